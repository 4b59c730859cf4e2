"""Closed loop of a policy that remembers frames a fixed number of control steps apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from wamkit.batching import ExactBatches
from wamkit.envs.base import EpisodeRequest
from wamkit.envs.in_process import InProcessPool
from wamkit.envs.workers import WorkerPool
from wamkit.policy import Policy
from wamkit.rollout import EpisodeOutcome, rollout
from wamkit.spec import CameraSpec, RobotSpec
from wamkit.types import ActionChunk, RememberingPolicy

from .policies import Watched, watched


@pytest.fixture
def line_world(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent / "envs")
    import line_world

    return line_world


@pytest.fixture
def robot(line_world: ModuleType) -> RobotSpec:
    """The hand on a line, with a camera of the size that WAV `tiny` sees."""
    return dataclasses.replace(line_world.ROBOT, cameras=(CameraSpec(name="front", height=32, width=32),))


class Noting(Policy):
    """A policy that notes what each slot remembers in each of its calls: steps, and whether they were seen."""

    def __init__(self, policy: Policy, model: Watched) -> None:
        super().__init__(model, policy.spec, policy.transforms, num_steps=1)
        self.watched = model
        self.remembered: dict[int, list[tuple[list[int], list[bool]]]] = {}
        self.batches: list[int] = []

    def act(self, slots: Sequence[int], **observation: Any) -> ActionChunk:
        chunk = super().act(slots, **observation)
        known = self.watched.known[-1]
        assert known is not None
        for row, slot in enumerate(slots):
            pictures = self.watched.memories[-1][row, :, 0].flatten(1)
            assert (pictures == pictures[:, :1]).all()
            self.remembered.setdefault(slot, []).append(((pictures[:, 0] // 8).tolist(), known[row]))
        self.batches.append(len(slots))
        return chunk


def noting(stride: int | None, num_context: int, robot: RobotSpec) -> Noting:
    policy = Noting(*watched(stride, num_context, robot))
    assert isinstance(policy, RememberingPolicy)
    return policy


def requests(count: int) -> list[EpisodeRequest]:
    """Layouts whose goals are out of reach."""
    return [EpisodeRequest(task="line", layout=20 + layout, layout_seed=0, seed=layout) for layout in range(count)]


def wanted(num_context: int, stride: int, step: int) -> tuple[list[int], list[bool]]:
    """What is remembered at a step of an episode."""
    steps = [step - stride * place for place in reversed(range(num_context))]
    oldest = min(step for step in steps if step >= 0)
    return [max(step, oldest) for step in steps], [step >= 0 for step in steps]


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize(
    ("num_context", "stride", "horizon"), [(2, 1, 5), (2, 1, 1), (3, 2, 4), (4, 1, 2), (3, 2, 3), (2, 6, 4)]
)
def test_the_memory_holds_frames_exactly_the_stride_apart(
    line_world: ModuleType, robot: RobotSpec, num_context: int, stride: int, horizon: int, record: bool
) -> None:
    policy = noting(stride, num_context, robot)
    with InProcessPool(line_world.LineFactory(robot=robot, is_counted=True)) as pool:
        (outcome,) = rollout(
            policy, pool, requests(1), max_steps=13, execution_horizon=horizon, record=[0] if record else []
        )
    assert outcome.error is None and outcome.steps == 13
    steps = [call.step for call in outcome.calls]
    assert steps == list(range(0, 13, horizon))
    assert policy.remembered == {0: [wanted(num_context, stride, step) for step in steps]}


def test_a_memory_of_calls_is_asked_for_nothing_else(line_world: ModuleType, robot: RobotSpec) -> None:
    policy = noting(None, 2, robot)
    with InProcessPool(line_world.LineFactory(robot=robot, is_counted=True)) as pool:
        list(rollout(policy, pool, requests(1), max_steps=10, execution_horizon=4))
    assert policy.remembered == {0: [([0, 0], [False, True]), ([0, 4], [True, True]), ([4, 8], [True, True])]}


def courses(outcomes: Sequence[EpisodeOutcome]) -> dict[int, tuple[str, int]]:
    assert all(outcome.error is None for outcome in outcomes)
    return {outcome.index: (outcome.digest, outcome.steps) for outcome in outcomes}


@pytest.mark.usefixtures("types_unchecked")
def test_robots_are_served_together_and_get_what_they_would_get_alone(line_world: ModuleType, robot: RobotSpec) -> None:
    """Episodes end at different times, so that some begin while others are under way."""
    policy, alone = noting(1, 2, robot), noting(1, 2, robot)
    factory = line_world.LineFactory(robot=robot, is_counted=True)
    limits = {0: 11, 1: 5, 2: 9, 3: 7, 4: 10}
    options: dict[str, Any] = {"max_steps": lambda request: limits[request.seed], "execution_horizon": 3}
    with WorkerPool(factory, 3) as pool:
        exact = ExactBatches(policy=policy, first_slot=3, executed=3)
        together = list(rollout(policy, pool, requests(5), exact=exact, **options))
    with InProcessPool(factory) as pool:
        one_by_one = list(rollout(alone, pool, requests(5), **options))
    assert courses(together) == courses(one_by_one) and len(together) == 5
    assert max(policy.batches) == 3 and set(alone.batches) == {1}
    for slot in range(3):
        assert policy.remembered[slot], "every worker had an episode"
        for memory, known in policy.remembered[slot]:
            assert (memory, known) == wanted(2, 1, memory[-1])


def test_a_policy_that_cannot_remember_is_refused(line_world: ModuleType, robot: RobotSpec) -> None:
    class Blind:
        spec = dataclasses.replace(watched(2, 2, robot)[0].spec)

        def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None:
            pass

        def act(self, slots: Sequence[int], **observation: Any) -> ActionChunk:
            raise AssertionError("not asked")

    with InProcessPool(line_world.LineFactory(robot=robot)) as pool:
        with pytest.raises(
            ValueError, match=r"expected a policy with `remember` .* 2 control steps apart .* got Blind"
        ):
            rollout(Blind(), pool, requests(1), max_steps=4)
        Blind.spec = dataclasses.replace(Blind.spec, context_stride=None)
        assert rollout(Blind(), pool, requests(1), max_steps=4)


class Crowded:
    """A policy of arithmetic: its actions tell the call, and are disturbed where robots of one call know differently.

    Args:
        disturbance: added then.
    """

    def __init__(self, robot: RobotSpec, disturbance: float, num_context: int = 3) -> None:
        self.policy, _ = watched(2, num_context, robot)
        self.spec, self.reset, self.remember = self.policy.spec, self.policy.reset, self.policy.remember
        self.disturbance = disturbance
        self.known: list[list[int]] = []

    def act(
        self, slots: Sequence[int], *, video: torch.Tensor, executed: Sequence[int], **observation: Any
    ) -> ActionChunk:
        known = self.policy.num_known(slots, executed=executed)
        self.remember(slots, video=video, executed=executed)
        self.known.append(known)
        actions = torch.tensor(known)[:, None, None].expand(-1, 9, 2) + self.disturbance * (len(set(known)) - 1)
        return ActionChunk(actions=actions)


@pytest.mark.parametrize("disturbance", [0.0, 1e-3])
def test_calls_for_robots_that_have_seen_more_or_less_are_tried_as_such(
    robot: RobotSpec, disturbance: float, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Crowded(robot, disturbance)
    exact = ExactBatches(policy=policy, first_slot=5, executed=4)
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32, 3), np.uint8))

    def allows(*known: int) -> bool:
        policy.known.clear()
        size = len(known)
        return exact.allows(video[:size], torch.zeros(size, 1), ["go"] * size, False, known)

    assert allows(3, 3, 3) and policy.known == [[3]] * 6 + [[3, 3, 3]] * 2
    assert allows(1, 3, 2) == (not disturbance) and policy.known[-2:] == [[1, 3, 2]] * 2
    assert allows(1, 3, 2) == (not disturbance) and policy.known == [], "found out already"
    assert allows(2, 3, 3) == (not disturbance) and allows(1, 1)
    assert caplog.text.count("a policy call for 3 robots rounds differently") == bool(disturbance)
