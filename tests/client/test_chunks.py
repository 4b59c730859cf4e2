"""Which action is run when: chunks that are run out, and chunks that are asked for ahead of time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from wamkit_client import AsyncClient, ChunkBroker, Client, PolicyChanged, RealTimeChunks, ServerError, pack

from wamkit.chunking import steps_to_tell
from wamkit.serving.server import Server

from ..serving.conftest import TASK, alone, observation
from .conftest import receive, scripted, vanish


class Counting:
    """Answers its n-th request (from 0) with actions 100 n, 100 n + 1, …, when it is let; the gripper is -n.

    Args:
        steps: of a chunk.
        channels: of an action; the last one drives the gripper.
    """

    def __init__(self, steps: int = 6, channels: int = 2) -> None:
        self.metadata = {"execution_horizon": 4, "gripper_channels": [channels - 1]}
        self.requests: list[Mapping[str, Any]] = []
        self.failures: list[BaseException] = []
        self.gate = threading.Semaphore(0)
        self.steps, self.channels = steps, channels

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        number = len(self.requests)
        self.requests.append(observation)
        assert self.gate.acquire(timeout=10)
        if self.failures:
            raise self.failures.pop()
        actions = np.repeat(100.0 * number + np.arange(self.steps)[:, None], self.channels, axis=1)
        actions[:, -1] = -number
        actions.setflags(write=False)  # as those that come through the wire
        return {"actions": actions, "number": number}

    def let(self, chunks: RealTimeChunks) -> None:
        """Answer the request under way."""
        self.gate.release()
        assert chunks.wait(10)


def run(chunks: RealTimeChunks, steps: int, first: int = 0) -> list[float | None]:
    """First channels of what is run in some steps; each step's observation is its number."""
    actions = [chunks.poll({"step": first + step}) for step in range(steps)]
    return [None if action is None else float(action[0]) for action in actions]


def asked(server: Counting) -> list[tuple[int, int]]:
    return [(request["step"], request["executed"]) for request in server.requests]


# ChunkBroker


def test_a_chunk_is_run_before_the_next_is_asked_for() -> None:
    server = Counting()
    server.gate.release(10)
    broker = ChunkBroker(server)
    actions = [broker.act({"step": step})[0] for step in range(10)]
    assert actions == [0, 1, 2, 3, 100, 101, 102, 103, 200, 201]
    assert asked(server) == [(0, 0), (4, 4), (8, 4)]
    counts = broker.counts
    assert (counts.steps, counts.requests, counts.waits, counts.dropped) == (10, 3, 3, 0) and counts.waited_s > 0
    assert broker.last["number"] == 2
    broker.reset()
    assert broker.counts.steps == 0 and broker.act({"step": 10})[0] == 300 and asked(server)[-1] == (10, 0)


@pytest.mark.parametrize(("horizon", "steps", "wanted"), [(2, 6, 2), (6, 6, 6), (9, 6, 6), (4, 3, 3)])
def test_the_shorter_of_chunk_and_horizon_is_run(horizon: int, steps: int, wanted: int) -> None:
    server = Counting(steps)
    server.gate.release(10)
    broker = ChunkBroker(server, execution_horizon=horizon)
    for step in range(wanted + 1):
        broker.act({"step": step})
    assert asked(server) == [(0, 0), (wanted, wanted)]


def test_after_an_error_the_broker_asks_again() -> None:
    server = Counting()
    server.gate.release(10)
    broker = ChunkBroker(server)
    for step in range(4):
        broker.act({"step": step})
    server.failures = [ServerError("broken")]
    with pytest.raises(ServerError, match="broken"):
        broker.act({"step": 4})
    assert broker.act({"step": 5})[0] == 200 and asked(server) == [(0, 0), (4, 4), (5, 4)]


def remembering(stride: int, num_context: int = 2, **settings: Any) -> Counting:
    """One whose policy remembers frames that are a stride apart."""
    server = Counting(**settings)
    server.metadata |= {"context_stride": stride, "num_context": num_context}
    return server


def told(server: Counting) -> list[tuple[int, int, bool]]:
    """Step, count of executed actions, and whether it was only to be remembered, of each request."""
    return [(each["step"], each["executed"], each.get("compute_kv_cache", False)) for each in server.requests]


def break_at(server: Counting, number: int) -> None:
    """Let it fail at its request of that number."""
    infer = server.infer

    def breaking(observation: Mapping[str, Any]) -> Mapping[str, Any]:
        if len(server.requests) == number:
            server.failures = [ServerError("broken")]
        return infer(observation)

    server.infer = breaking  # type: ignore[method-assign]


def test_what_was_seen_the_step_before_is_told_first() -> None:
    server = remembering(1)
    server.gate.release(10)
    broker, camera = ChunkBroker(server), np.zeros(1)
    for step in range(9):
        camera[:] = step  # cameras may write into the same memory again
        broker.act({"step": step, "camera": camera, "prompt": "go", "reset": False, "deadline_ms": 5})
    assert told(server) == [(0, 0, False), (3, 3, True), (4, 1, False), (7, 3, True), (8, 1, False)]
    assert server.requests[3]["camera"] == 7
    assert set(server.requests[1]) == {"step", "camera", "executed", "compute_kv_cache"}
    assert broker.counts.requests == 3
    broker.act({"step": 9})
    broker.reset()
    broker.act({"step": 10})
    assert told(server)[5:] == [(10, 0, False)]


@pytest.mark.parametrize(
    ("stride", "num_context", "wanted"),
    [
        (2, 3, [(2, 2, True), (4, 2, False), (6, 2, True), (8, 2, False)]),
        (2, 2, [(2, 2, True), (4, 2, False), (6, 2, True), (8, 2, False)]),
        (1, 3, [(2, 2, True), (3, 1, True), (4, 1, False), (6, 2, True), (7, 1, True), (8, 1, False)]),
        (4, 2, [(4, 4, False), (8, 4, False)]),
        (3, 3, [(1, 1, True), (2, 1, True), (4, 2, False), (5, 1, True), (6, 1, True), (8, 2, False)]),
        (5, 2, [(3, 3, True), (4, 1, False), (7, 3, True), (8, 1, False)]),
        (7, 1, [(4, 4, False), (8, 4, False)]),
    ],
)
def test_all_that_the_policy_remembers_is_told(
    stride: int, num_context: int, wanted: list[tuple[int, int, bool]]
) -> None:
    """Also what it remembers in the call after the next one, when a chunk is no multiple of the stride."""
    server = remembering(stride, num_context)
    server.gate.release(20)
    broker = ChunkBroker(server)
    for step in range(9):
        broker.act({"step": step})
    assert told(server) == [(0, 0, False), *wanted]


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("horizon", [1, 3, 4, 6])
def test_the_broker_tells_what_a_closed_loop_tells(stride: int, horizon: int) -> None:
    server = remembering(stride, num_context=3)
    server.gate.release(30)
    broker = ChunkBroker(server, execution_horizon=horizon)
    for step in range(horizon + 1):
        broker.act({"step": step})
    wanted = steps_to_tell(horizon, horizon=horizon, num_context=3, stride=stride)
    assert [step for step, _, is_remembered in told(server) if is_remembered] == list(wanted)


def test_after_an_error_nothing_is_told_twice() -> None:
    for failing in (1, 2):  # the frame before, and the one that asks
        server = remembering(1)
        server.gate.release(20)
        broker = ChunkBroker(server)
        for step in range(4):
            broker.act({"step": step})
        break_at(server, failing)
        with pytest.raises(ServerError, match="broken"):
            broker.act({"step": 4})
        broker.act({"step": 4})
        after = [(3, 3, True), (4, 1, False)] if failing == 1 else [(4, 1, False)]
        assert told(server)[failing + 1 :] == after


# RealTimeChunks


def test_the_old_chunk_runs_while_the_next_is_computed() -> None:
    server = Counting()
    with RealTimeChunks(server, ask_after=2, blend=0) as chunks:
        assert run(chunks, 3) == [None, None, None]  # nothing to run yet, and nothing that was missed
        server.let(chunks)
        assert run(chunks, 2, 3) == [0, 1]
        assert run(chunks, 3, 5) == [2, 3, 4]  # step 5 asked; its answer is on its way
        server.let(chunks)
        assert run(chunks, 2, 8) == [103, 104]  # 100 to 102 were for steps 5 to 7
        server.let(chunks)
        assert asked(server) == [(0, 0), (5, 2), (8, 3)]
        counts = chunks.counts
        assert (counts.steps, counts.requests, counts.dropped, counts.waits) == (7, 3, 3, 0)


def test_by_default_half_a_horizon_is_run_before_the_next_request() -> None:
    server = Counting()
    with RealTimeChunks(server) as chunks:
        server.gate.release()
        chunks.act({"step": 0})
        run(chunks, 3, 1)
        server.let(chunks)
    assert (chunks.ask_after, chunks.sudden, chunks.blend) == (2, (1,), 2) and asked(server) == [(0, 0), (2, 2)]


def test_the_seam_is_blended_but_grippers_are_not() -> None:
    server = Counting(steps=8, channels=3)
    with RealTimeChunks(server, ask_after=2, blend=3) as chunks:
        server.gate.release()
        assert [chunks.act({"step": step})[0] for step in range(2)] == [0, 1]
        assert run(chunks, 1, 2) == [2]
        server.let(chunks)
        actions = [chunks.poll({"step": step}) for step in range(3, 7)]
        server.gate.release()
    # Of the old chunk 3, 4, 5 were to come, of the new one 101, 102, 103 are: a quarter of the new one first.
    wanted = [0.75 * 3 + 0.25 * 101, 0.5 * 4 + 0.5 * 102, 0.25 * 5 + 0.75 * 103, 104]
    assert [None if action is None else action.tolist() for action in actions] == [[x, x, -1] for x in wanted]


@pytest.mark.parametrize("left", [0, 1])
def test_no_more_is_blended_than_is_left_of_the_old_chunk(left: int) -> None:
    server = Counting(steps=6)
    with RealTimeChunks(server, ask_after=1, blend=3) as chunks:
        server.gate.release()
        chunks.act({"step": 0})
        server.steps = 8
        run(chunks, 5 - left, 1)  # so many actions of the new chunk are late
        server.let(chunks)
        given = run(chunks, 2, 6 - left)
        server.let(chunks)
    assert given == ([(5 + 104) / 2, 105] if left else [105, 106])


def test_a_chunk_that_is_too_late_altogether_is_not_run() -> None:
    server = Counting(steps=4)
    with RealTimeChunks(server, ask_after=1, blend=2) as chunks:
        server.gate.release()
        chunks.act({"step": 0})
        server.steps = 3  # shorter than what is left of the old one: all of it is late after three more steps
        assert run(chunks, 3, 1) == [1, 2, 3]
        assert run(chunks, 2, 4) == [None, None]
        server.let(chunks)
        assert run(chunks, 1, 6) == [None]  # asks anew
        assert chunks.counts.dropped == 3
        server.let(chunks)
        assert run(chunks, 1, 7) == [200]  # the robot held still meanwhile, so nothing is late
    assert asked(server) == [(0, 0), (1, 1), (6, 3)]


def test_what_is_left_of_a_chunk_outlives_an_answer_that_is_too_late() -> None:
    server = Counting(steps=8)
    with RealTimeChunks(server, ask_after=1, blend=0) as chunks:
        server.gate.release()
        chunks.act({"step": 0})
        server.steps = 2
        assert run(chunks, 3, 1) == [1, 2, 3]
        server.let(chunks)
        assert run(chunks, 2, 4) == [4, 5]
        server.let(chunks)
    assert asked(server) == [(0, 0), (1, 1), (4, 3)]


def test_a_robot_that_can_wait_waits() -> None:
    server = Counting(steps=3)
    with RealTimeChunks(server, ask_after=3, blend=0) as chunks:
        for step in range(7):
            server.gate.release()  # answers come at once, and yet only when the chunk is over
            assert chunks.act({"step": step})[0] == 100 * (step // 3) + step % 3
        counts = chunks.counts
        assert (counts.steps, counts.requests, counts.waits) == (7, 3, 3) and counts.waited_s > 0


def test_an_error_is_raised_once_and_the_chunk_goes_on() -> None:
    server = Counting()
    with RealTimeChunks(server, ask_after=2, blend=0) as chunks:
        server.gate.release()
        chunks.act({"step": 0})
        assert run(chunks, 2, 1) == [1, 2]  # step 2 asked
        server.failures = [ServerError("broken")]
        server.let(chunks)
        with pytest.raises(ServerError, match="broken"):
            chunks.poll({"step": 3})
        assert run(chunks, 1, 3) == [3]  # and asked again
        server.let(chunks)
        assert run(chunks, 1, 4) == [201]
    # Two actions were run when the request that failed was sent, three when the next one was.
    assert asked(server)[:3] == [(0, 0), (2, 2), (3, 3)]


@pytest.mark.parametrize("ahead", [True, False])
def test_an_answer_without_a_chunk(ahead: bool) -> None:
    class Other(Counting):
        def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
            return {"action": [0.0]}

    broker = RealTimeChunks(Other()) if ahead else ChunkBroker(Other())
    with pytest.raises(ValueError, match=r"expected 'actions' of shape \(steps, channels\).*\['action'\]"):
        broker.act({})


def test_resetting_drops_what_is_under_way() -> None:
    server = Counting()
    with RealTimeChunks(server, ask_after=1, blend=2) as chunks:
        server.gate.release()
        chunks.act({"step": 0})
        run(chunks, 2, 1)
        server.gate.release()
        chunks.reset()
        assert chunks.counts.requests == 0 and run(chunks, 1, 3) == [None]
        server.let(chunks)
        assert run(chunks, 2, 4) == [200, 201] and asked(server)[2] == (3, 0)
        server.let(chunks)


def test_actions_may_be_changed() -> None:
    server = Counting()
    server.gate.release(2)
    with RealTimeChunks(server, blend=0) as chunks:
        for broker in (ChunkBroker(server), chunks):
            broker.act({"step": 0})[:] = 7
            assert broker.act({"step": 1})[0] % 100 == 1


def test_what_is_sent_is_what_was_seen() -> None:
    server = Counting()
    image, state = np.zeros((2, 2, 3), np.uint8), np.zeros(3)
    with RealTimeChunks(server) as chunks:
        chunks.poll({"images": {"front": image}, "obs": [image], "state": state})
        image[:], state[:] = 255, 1  # as a camera's driver that has one buffer, while the request is being sent
        server.let(chunks)
    (request,) = server.requests
    assert not any(array.any() for array in (request["images"]["front"], request["obs"][0], request["state"]))


def test_closing_does_not_wait_for_an_answer() -> None:
    server = Counting()
    with RealTimeChunks(server) as chunks:
        chunks.poll({"step": 0})
        assert not chunks.wait(0.01)
    assert not chunks.wait(0.01)  # the block has ended, the request has not
    server.let(chunks)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ask_after": 0}, "ask_after of 1 or more"),
        ({"ask_after": 1, "blend": -1}, "blend of 0 or more"),
        ({}, "does not say how many actions"),
    ],
)
def test_numbers_out_of_range(settings: dict[str, Any], words: str) -> None:
    server = Counting()
    server.metadata = {}
    with pytest.raises(ValueError, match=words):
        RealTimeChunks(server, **settings)


@pytest.mark.parametrize(
    ("horizon", "words"), [(0, "execution_horizon of 1 or more"), (None, "name execution_horizon")]
)
def test_horizons_out_of_range(horizon: int | None, words: str) -> None:
    server = Counting()
    server.metadata = {}
    with pytest.raises(ValueError, match=words):
        ChunkBroker(server, execution_horizon=horizon)


@pytest.mark.parametrize("kind", [ChunkBroker, RealTimeChunks])
def test_a_client_that_must_be_awaited(kind: Any) -> None:
    client = AsyncClient("ws://localhost:8000")
    for settings in ({}, {"execution_horizon": 4} if kind is ChunkBroker else {"ask_after": 2}):
        with pytest.raises(TypeError, match="such as Client, got AsyncClient; make a Client"):
            kind(client, **settings)


@pytest.mark.parametrize("kind", [ChunkBroker, RealTimeChunks])
def test_no_action_of_another_policy_is_run(kind: Any) -> None:
    """One with wider actions and a longer horizon comes back, in the place of the one that the broker knows."""

    def talk(connection: Any, number: int) -> None:
        width = 2 + number
        connection.send(pack({"action": ["x"] * width, "execution_horizon": 2 + number}))
        receive(connection)
        connection.send(pack({"actions": np.zeros((4, width))}))
        vanish(connection)

    with scripted(talk, told=False) as server, Client(server.url) as client:
        broker = kind(client)
        assert [broker.act({"step": step}).shape for step in range(2)] == [(2,), (2,)]
        if kind is RealTimeChunks:
            broker.wait(10)
        with pytest.raises(PolicyChanged, match="execution_horizon is 3 and was 2"):
            broker.act({"step": 2})
        client.close()


# With a real server


def test_an_episode_begins_with_a_chunk_of_its_own(server: Server) -> None:
    with Client(server.url) as client, RealTimeChunks(client) as chunks:
        for broker in (ChunkBroker(client), chunks):
            for _ in range(2):
                broker.reset()
                client.reset(TASK, seed=3)
                assert np.array_equal(broker.act(observation()), alone([0], seed=3, executed=0)[0][0])


def test_a_served_policy_chunk_by_chunk(server: Server) -> None:
    with Client(server.url) as client:
        client.reset(TASK, seed=3)
        broker = ChunkBroker(client)
        actions = [broker.act(observation(row)) for row in range(8)]
    wanted = [chunk[:4] for chunk in alone([0, 4], seed=3, executed=4)]
    assert np.array_equal(actions, np.concatenate(wanted))


def test_a_served_policy_ahead_of_time(server: Server) -> None:
    with Client(server.url) as client, RealTimeChunks(client, blend=0) as chunks:
        assert (chunks.ask_after, chunks.sudden) == (2, (2,))
        client.reset(TASK, seed=3)
        actions = []
        for row in range(4):
            actions.append(chunks.act(observation(row)))
            chunks.wait()
    first, second = alone([0, 2], seed=3, executed=2)
    assert np.array_equal(actions, [*first[:3], second[1]])  # asked after two actions, there one action later


def test_asking_ahead_tells_what_was_seen_the_step_before() -> None:
    server = remembering(1, steps=8)
    with RealTimeChunks(server, ask_after=3, blend=0) as chunks:
        server.gate.release(20)
        camera = np.zeros(1)
        for step in range(8):
            camera[:] = step
            chunks.act({"step": step, "camera": camera, "value": True})
            chunks.wait(10)
    assert told(server) == [(0, 0, False), (2, 2, True), (3, 1, False), (5, 2, True), (6, 1, False)]
    assert [float(request["camera"][0]) for request in server.requests] == [0, 2, 3, 5, 6]
    assert "value" not in server.requests[1]


def test_only_what_was_seen_since_the_last_request_is_told() -> None:
    server = remembering(2, num_context=3, steps=9)
    with RealTimeChunks(server, ask_after=3, blend=0) as chunks:
        server.gate.release(20)
        for step in range(7):
            chunks.act({"step": step})
            chunks.wait(10)
        assert told(server) == [(0, 0, False), (1, 1, True), (3, 2, False), (4, 1, True), (6, 2, False)]
        chunks.reset()
        chunks.act({"step": 7})
        assert told(server)[-1] == (7, 0, False)


def test_a_robot_that_holds_still_tells_what_it_saw_before_it_moved_last() -> None:
    server = remembering(1, steps=2)
    with RealTimeChunks(server, ask_after=9, blend=0) as chunks:
        server.gate.release()
        chunks.act({"step": 0})
        assert run(chunks, 3, 1) == [1, None, None]
        server.gate.release(2)
        assert chunks.wait(10)
    assert told(server) == [(0, 0, False), (1, 1, True), (2, 1, False)]


@pytest.mark.parametrize(("failing", "after"), [(1, [(3, 3, True), (4, 1, False)]), (2, [(4, 2, True), (5, 1, False)])])
def test_after_an_error_the_server_counts_from_what_it_was_told_last(
    failing: int, after: list[tuple[int, int, bool]]
) -> None:
    server = remembering(1, steps=8)
    with RealTimeChunks(server, ask_after=3, blend=0) as chunks:
        server.gate.release(9)
        for step in range(3):
            chunks.act({"step": step})
        break_at(server, failing)
        chunks.poll({"step": 3})
        assert chunks.wait(10)
        with pytest.raises(ServerError, match="broken"):
            chunks.poll({"step": 4})
        for step in (4, 5):
            chunks.poll({"step": step})
            assert chunks.wait(10)
    assert told(server)[failing + 1 :] == after
