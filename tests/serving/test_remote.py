"""A served policy in place of one in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from wamkit_client import BadRequest, ConnectionLost, PolicyChanged, pack
from websockets.sync.server import ServerConnection, serve

from wamkit.batching import ExactBatches
from wamkit.envs.base import EpisodeRequest
from wamkit.envs.workers import WorkerPool
from wamkit.rollout import rollout
from wamkit.serving.inference import Batching
from wamkit.serving.remote import RemotePolicy
from wamkit.serving.server import Server
from wamkit.spec import CameraSpec
from wamkit.types import ActingPolicy, ActionChunk, RememberingPolicy

from ..policies import CONFIG, EPISODE, PLANNER, VIDEO, make_policy, watched
from .conftest import TASK, serving


def act(policy: ActingPolicy, slots: list[int], rows: list[int], record: bool = False) -> ActionChunk:
    return policy.act(
        slots,
        video=VIDEO[rows],
        state=torch.from_numpy(EPISODE.state[rows]),
        task=[TASK] * len(slots),
        executed=[4] * len(slots),
        record=record,
    )


@contextlib.contextmanager
def remote(server: Server) -> Iterator[RemotePolicy]:
    policy = RemotePolicy(server.url)
    try:
        yield policy
    finally:
        policy.close()


def test_several_robots_get_what_they_would_get_here() -> None:
    here = make_policy(PLANNER)
    with serving(make_policy(PLANNER)) as server, remote(server) as there:
        assert isinstance(there, ActingPolicy) and there.spec == here.spec and there.fingerprint == "0123"
        for policy in (here, there):
            policy.reset([0, 3], seeds=[7, 8])
        for rows in ([0, 2], [4, 6], [8, 10]):
            chunk = act(there, [3, 0], rows, record=True)
            alone = [act(here, [slot], [row], record=True) for slot, row in zip([3, 0], rows, strict=True)]
            for row, wanted in enumerate(alone):
                assert torch.equal(chunk.actions[row], wanted.actions[0])
                assert chunk.imagined is not None and wanted.imagined is not None
                for key in ("video", "value", "scores"):
                    theirs, ours = getattr(chunk.imagined, key), getattr(wanted.imagined, key)
                    assert torch.equal(theirs[row], ours[0]), key
                assert chunk.imagined.video_steps == wanted.imagined.video_steps
            assert {"encode", "plan", "act"} == set(chunk.timing)


@pytest.mark.usefixtures("types_unchecked")
def test_a_closed_loop_through_the_wire_remembers_as_one_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a policy that remembers the step just before, and episodes that begin while others are under way."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "envs")
    import line_world

    robot = dataclasses.replace(line_world.ROBOT, cameras=(CameraSpec(name="front", height=32, width=32),))
    requests = [EpisodeRequest(task="line", layout=20, layout_seed=0, seed=seed) for seed in range(3)]

    def courses(policy: ActingPolicy) -> dict[int, tuple[Any, ...]]:
        exact = ExactBatches(policy=policy, first_slot=2, executed=3)
        outcomes = rollout(
            policy,
            pool,
            requests,
            max_steps=lambda request: 8 + request.seed,
            execution_horizon=3,
            record=[2],
            exact=exact,
        )
        found = {}
        for outcome in outcomes:
            assert outcome.error is None
            calls = () if outcome.trace is None else outcome.trace.calls
            imagined = [None if call.video is None else call.video.tobytes() for call in calls]
            found[outcome.index] = outcome.digest, outcome.steps, imagined
        return found

    (here, _), (served, model) = watched(1, robot=robot), watched(1, robot=robot)
    factory = line_world.LineFactory(robot=robot, is_counted=True)
    with WorkerPool(factory, 2) as pool, serving(served, Batching(max_batch=2)) as server, remote(server) as there:
        assert isinstance(there, RememberingPolicy) and there.spec == here.spec
        assert there.metadata["context_stride"] == 1
        assert there.metadata["send"].endswith(
            "and before it what was seen 1 control step earlier, each with 'compute_kv_cache' true and 'executed'"
        )
        model.memories.clear()
        model.known.clear()
        assert courses(there) == courses(here)
    steps = (torch.cat(model.memories)[:, :, 0, 0, 0, 0] // 8).tolist()
    known = [row for call in model.known for row in call or ()]
    # Of a frame that is seen twice a trial of sharing calls was made, when two robots first asked at the same time.
    asked = [(memory, seen) for memory, seen in zip(steps, known, strict=True) if memory[0] != memory[-1]]
    later = [(memory, seen) for memory, seen in asked if memory[-1] > 0]
    assert len(later) >= 7
    assert all(memory == [memory[-1] - 1, memory[-1]] and seen == [True, True] for memory, seen in later)


def test_shared_calls_are_found_to_change_nothing(server: Server) -> None:
    with remote(server) as policy:
        batches = ExactBatches(policy=policy, first_slot=10, executed=4)
        assert batches.allows(VIDEO[[0, 1]], torch.from_numpy(EPISODE.state[[0, 1]]), [TASK] * 2, False)


def test_what_the_server_refuses_is_told(server: Server) -> None:
    with remote(server) as policy:
        with pytest.raises(ValueError, match=r"slots \[0\] have no episode"):
            act(policy, [0], [0])
        policy.reset([0], seeds=[1])
        with pytest.raises(BadRequest, match="NaN or infinity"):
            policy.act([0], video=VIDEO[[0]], state=torch.full((1, 3), torch.nan), task=[TASK], executed=[0])
        assert act(policy, [0], [0]).actions.shape == (1, 9, 3)


def test_an_episode_whose_server_was_lost_is_not_continued(server: Server) -> None:
    with remote(server) as policy:
        policy.reset([0], seeds=[1])
        act(policy, [0], [0])
        policy._clients[0]._connection.socket.shutdown(2)  # type: ignore[union-attr]
        with pytest.raises(ConnectionLost, match="in the middle of an episode"):
            act(policy, [0], [4])
        policy.reset([0], seeds=[1])
        assert act(policy, [0], [0]).actions.shape == (1, 9, 3)


def test_a_server_that_serves_another_policy_by_now_is_left() -> None:
    with serving() as first:
        policy = RemotePolicy(first.url)
    port = int(first.url.rpartition(":")[2])
    other = make_policy(config=dataclasses.replace(CONFIG, action_horizon=18))
    with serving(other, port=port), pytest.raises(PolicyChanged, match="action_horizon is 18 and was 9"):
        policy.reset([1], seeds=[1])
    policy.close()


@pytest.mark.parametrize("metadata", [{}, {"server": "wamkit", "protocol_version": 99}])
def test_another_server_is_told_apart(metadata: dict[str, object]) -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(pack(metadata))
        connection.recv()

    with serve(speak, "127.0.0.1", 0) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        port = other.socket.getsockname()[1]
        with pytest.raises(ValueError, match=r"a wamkit server that speaks protocol 1 .* same version of wamkit"):
            RemotePolicy(f"ws://127.0.0.1:{port}")
        other.shutdown()
