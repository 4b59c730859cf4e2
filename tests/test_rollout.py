"""Closed loop in the real simulator."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wamkit.envs.base import EpisodeRequest
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.workers import WorkerPool
from wamkit.rollout import EpisodeOutcome, rollout
from wamkit.spec import PolicySpec, SpecMismatch
from wamkit.trace import Trace
from wamkit.types import ActionChunk

pytestmark = pytest.mark.sim
FACTORY = MetaWorldFactory(height=32, width=32)


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerPool]:
    with WorkerPool(FACTORY, 2) as pool:
        yield pool


@pytest.fixture
def pool(workers: WorkerPool) -> Iterator[WorkerPool]:
    """The module's workers, idle again after each test."""
    yield workers
    while any(workers.is_busy(worker) for worker in range(len(workers))):
        workers.wait()


def episodes(*layouts: int, task: str = "coffee-button-v3") -> list[EpisodeRequest]:
    return [EpisodeRequest(task=task, layout=layout, layout_seed=1042, seed=layout) for layout in layouts]


def course(outcome: EpisodeOutcome) -> tuple[Any, ...]:
    """Everything of an outcome that must not depend on what ran beside it."""
    steps = tuple(call.step for call in outcome.calls)
    return outcome.request, outcome.success, outcome.steps, outcome.reward_sum, steps, outcome.sentence


def test_outcomes_do_not_depend_on_order_groups_or_recording(pool: WorkerPool, blind_presser: Any) -> None:
    requests = episodes(0, 1, 2, 3, 4)
    together = list(rollout(blind_presser(pool.robot), pool, requests, max_steps=34, num_groups=1))
    apart = list(rollout(blind_presser(pool.robot), pool, requests[::-1], max_steps=34, num_groups=2, record=range(5)))
    assert sorted(map(course, together), key=repr) == sorted(map(course, apart), key=repr)
    assert sorted(outcome.index for outcome in together) == [0, 1, 2, 3, 4]
    assert {outcome.success for outcome in together} == {True, False}, "the episodes should tell solved from unsolved"
    assert all(outcome.trace is None for outcome in together)


def test_a_group_is_served_in_one_batch(pool: WorkerPool, blind_presser: Any) -> None:
    policy = blind_presser(pool.robot)
    outcomes = list(rollout(policy, pool, episodes(1, 4), max_steps=12, num_groups=1))
    assert policy.batches == [(0, 1)] * 3
    assert [call.batch_size for outcome in outcomes for call in outcome.calls] == [2] * 6
    policy = blind_presser(pool.robot)
    list(rollout(policy, pool, episodes(1, 4), max_steps=12, num_groups=2))
    assert sorted(policy.batches) == [(0,)] * 3 + [(1,)] * 3


def test_a_trace_tells_what_happened(pool: WorkerPool, blind_presser: Any, tmp_path: Path) -> None:
    policy = blind_presser(pool.robot)
    outcomes = list(rollout(policy, pool, episodes(2, 1), max_steps=30, record=[0]))
    solved = next(outcome for outcome in outcomes if outcome.index == 0)
    assert [outcome.trace is not None for outcome in sorted(outcomes, key=lambda o: o.index)] == [True, False]
    trace = solved.trace
    assert trace is not None
    assert solved.success and solved.steps == len(trace) < 30
    assert trace.success[-1] and not trace.success[:-1].any()
    assert trace.reward.sum() == pytest.approx(solved.reward_sum, rel=1e-5)
    assert [call.step for call in trace.calls] == list(range(0, len(trace), 4))
    for call in trace.calls:
        executed = trace.actions[call.step : call.step + 4]
        np.testing.assert_array_equal(executed, call.actions[: len(executed)])
        assert call.actions.shape == (8, 4)
        assert call.value is not None and call.value.shape == (8,)
        assert call.scores is not None and call.scores.shape == (2, 40)
        assert call.video is not None and call.video_steps is not None
        assert call.video.shape == (2, 4, 32, 32, 3) and call.video_steps.tolist() == [2, 4, 6, 8]
        # The presser imagines the present frame first, so the frame it saw is the trace's frame at the call.
        for view, frames in enumerate(trace.frames.values()):
            np.testing.assert_array_equal(call.video[view, 0], frames[call.step])
    # Replaying its actions from its layout gives its rows again, so every row stands where it belongs.
    first = pool.call(0, "reset", solved.request)
    replayed = pool.call(0, "run_chunk", trace.actions, True)
    np.testing.assert_array_equal(np.stack([first.state, *replayed.recorded.state]), trace.state)
    np.testing.assert_array_equal(replayed.rewards, trace.reward)
    for camera, frames in trace.frames.items():
        np.testing.assert_array_equal(first.video[camera], frames[0])
        np.testing.assert_array_equal(replayed.recorded.video[camera], frames[1:])
    trace.save(tmp_path / "trace.npz")
    loaded = Trace.load(tmp_path / "trace.npz")
    assert loaded.task == trace.task == "press the button on the coffee machine"
    assert loaded.metadata == {"task": "coffee-button-v3", "layout": 2, "layout_seed": 1042, "seed": 2}
    assert list(loaded.frames) == ["corner2", "gripperPOV"]
    for camera in trace.frames:
        np.testing.assert_array_equal(loaded.frames[camera], trace.frames[camera])
    for ours, theirs in zip(loaded.calls, trace.calls, strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        np.testing.assert_array_equal(ours.video, theirs.video)


def test_the_step_limit_cuts_the_last_chunk(pool: WorkerPool, blind_presser: Any) -> None:
    policy = blind_presser(pool.robot)
    steps: list[int] = []
    (outcome,) = rollout(policy, pool, episodes(1), max_steps=10, on_steps=steps.append)
    assert not outcome.success and outcome.error is None
    assert outcome.steps == 10 and steps == [4, 4, 2]
    assert policy.executed[0] == 8, "the policy is told what ran since its previous call"


def test_a_dead_worker_costs_its_episode_only(pool: WorkerPool, blind_presser: Any) -> None:
    undisturbed = {
        o.index: course(o) for o in rollout(blind_presser(pool.robot), pool, episodes(2, 1, 4), max_steps=12)
    }
    restarts = pool.restarts

    class Killer(blind_presser):  # type: ignore[misc]
        """Kills the simulator of slot 0 in its second call."""

        calls = 0

        def act(self, slots: Sequence[int], **observation: Any) -> Any:
            self.calls += 1
            if self.calls == 2:
                os.kill(pool.process_ids[0], signal.SIGKILL)
            return super().act(slots, **observation)

    outcomes = {o.index: o for o in rollout(Killer(pool.robot), pool, episodes(2, 1, 4), max_steps=12)}
    assert pool.restarts == restarts + 1
    assert [outcomes[i].error is None for i in range(3)] == [False, True, True]
    assert not outcomes[0].success and "worker 0" in str(outcomes[0].error)
    assert {i: course(outcomes[i]) for i in (1, 2)} == {i: undisturbed[i] for i in (1, 2)}

    retried = {o.index: o for o in rollout(Killer(pool.robot), pool, episodes(2, 1, 4), max_steps=12, retries=1)}
    assert [retried[i].attempts for i in range(3)] == [2, 1, 1]
    assert {i: course(o) for i, o in retried.items()} == undisturbed


def test_an_idle_worker_takes_the_episode_of_one_that_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 0 has solved its short episode; then worker 1 dies in its long one, and no replacement can start."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "envs")
    import line_world

    broken = tmp_path / "broken"

    class Forward:
        spec = PolicySpec(
            family="forward",
            robot=line_world.ROBOT,
            num_context=1,
            action_horizon=4,
            execution_horizon=4,
            normalization="none",
        )

        def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None:
            pass

        def act(self, slots: Sequence[int], **observation: Any) -> ActionChunk:
            if list(slots) == [1] and not broken.exists():
                broken.touch()
                os.kill(pool.process_ids[1], signal.SIGKILL)
            return ActionChunk(actions=torch.ones(len(slots), 4, 2))

    requests = [EpisodeRequest(task="line", layout=layout, layout_seed=0, seed=0) for layout in (0, 3)]
    with WorkerPool(line_world.LineFactory(fail_if_exists=str(broken)), 2) as pool:
        outcomes = {o.index: o for o in rollout(Forward(), pool, requests, max_steps=30, retries=5)}
        assert pool.process_ids[1] == 0, "given up"
    assert [outcomes[index].success for index in (0, 1)] == [True, True]
    assert [outcomes[index].steps for index in (0, 1)] == [5, 20] and outcomes[1].attempts > 1


def test_simulators_that_all_fail_end_the_run(pool: WorkerPool, blind_presser: Any) -> None:
    requests = episodes(*range(20), task="drawer-opened-v3")
    with pytest.raises(RuntimeError, match=r"8 simulators failed in a row .* drawer-opened-v3"):
        list(rollout(blind_presser(pool.robot), pool, requests, max_steps=8))


def test_a_policy_for_another_robot_is_refused_before_the_first_step(pool: WorkerPool, blind_presser: Any) -> None:
    policy = blind_presser(MetaWorldFactory(height=64, width=64).robot)
    with pytest.raises(SpecMismatch, match="64x64 px, offered 32x32 px"):
        rollout(policy, pool, episodes(0), max_steps=8)
    assert policy.batches == [] and not pool.is_busy(0)


def test_a_policy_may_use_fewer_cameras(pool: WorkerPool, blind_presser: Any) -> None:
    policy = blind_presser(pool.robot.with_cameras(("gripperPOV",)))
    (outcome,) = rollout(policy, pool, episodes(0), max_steps=4, record=[0])
    assert outcome.trace is not None and list(outcome.trace.frames) == ["gripperPOV"]
    assert outcome.trace.calls[0].video is not None and outcome.trace.calls[0].video.shape[0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda actions: actions * float("nan"), r"not finite numbers in task coffee-button-v3, layout 3, seed 3"),
        (lambda actions: actions[:, :2], r"chunk of 1 x at least 4 x 4 numbers from the policy, got \(1, 2, 4\)"),
        (lambda actions: actions[:, :, :3], r"got \(1, 8, 3\)"),
    ],
)
def test_malformed_actions_are_named(pool: WorkerPool, blind_presser: Any, change: Any, message: str) -> None:
    class Malformed(blind_presser):  # type: ignore[misc]
        def act(self, slots: Sequence[int], **observation: Any) -> Any:
            chunk = super().act(slots, **observation)
            return type(chunk)(actions=torch.as_tensor(change(chunk.actions)))

    with pytest.raises(ValueError, match=message):
        list(rollout(Malformed(pool.robot), pool, episodes(3), max_steps=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution_horizon": 9}, "execution_horizon <= 8"),
        ({"max_steps": 0}, "max_steps >= 1"),
        ({"num_groups": 3}, "num_groups <= 2"),
    ],
)
def test_wrong_settings_are_refused(
    pool: WorkerPool, blind_presser: Any, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(blind_presser(pool.robot), pool, episodes(0), **{"max_steps": 8, **options})
