"""The observation memory, against the behaviour of the public evaluation code."""

from __future__ import annotations

import random

import pytest
import torch

from wamkit.chunking import ObservationMemory, steps_to_tell


def remembered(memory: ObservationMemory) -> list[float]:
    return memory.stack(dim=0).tolist()


def feed(threshold: int, executed: list[int]) -> list[list[float]]:
    """Observations 0, 1, 2, … with the given counts of executed actions."""
    memory, seen = ObservationMemory(3, threshold), []
    for number, count in enumerate(executed):
        memory = memory.added(torch.tensor(float(number)), count)
        seen.append(remembered(memory))
    return seen


def test_the_first_observation_fills_the_memory() -> None:
    assert feed(1, [0]) == [[0, 0, 0]]


def test_threshold_one_keeps_the_last_policy_calls() -> None:
    assert feed(1, [0, 8, 8, 8]) == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_below_the_threshold_only_the_newest_place_changes() -> None:
    # the counter starts at threshold - 1, so the first executed action already shifts
    assert feed(4, [0, 1, 1, 1, 2, 4]) == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 2],
        [0, 0, 3],
        [0, 3, 4],
        [3, 4, 5],
    ]


def test_a_negative_count_is_refused() -> None:
    memory = ObservationMemory(2).added(torch.zeros(1), 0)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        memory.added(torch.zeros(1), -1)


def test_adding_leaves_the_memory_before_it_as_it_was() -> None:
    before = ObservationMemory(2).added(torch.zeros(1), 0)
    after = before.added(torch.ones(1), 1)
    assert (before.stack(0).tolist(), after.stack(0).tolist()) == ([[0], [0]], [[0], [1]])


def test_a_memory_knows_which_places_it_made_up() -> None:
    memory, known = ObservationMemory(3, 4), []
    assert memory.known == (False, False, False)
    for count in (0, 1, 1, 3, 4):
        memory = memory.added(torch.zeros(1), count)
        known.append(memory.num_known)
    assert known == [1, 2, 2, 3, 3] and memory.known == (True, True, True)
    assert ObservationMemory(3).added(torch.zeros(1), 0).known == (False, False, True)


def spaced(num_context: int, stride: int, steps: list[int]) -> list[tuple[list[int], int]]:
    """Places and the number of known ones after each observation; an observation is the control step it is of."""
    memory, last, seen = ObservationMemory(num_context, stride=stride), 0, []
    for step in steps:
        memory, last = memory.added(torch.tensor(step), step - last), step
        seen.append((memory.stack(dim=0).tolist(), memory.num_known))
    return seen


def test_with_stride_one_the_memory_holds_the_step_just_before() -> None:
    assert spaced(2, 1, [0, 1, 4, 5, 6]) == [([0, 0], 1), ([0, 1], 2), ([4, 4], 1), ([4, 5], 2), ([5, 6], 2)]
    assert spaced(1, 1, [0, 1, 4]) == [([0], 1), ([1], 1), ([4], 1)]


def test_with_a_longer_stride_places_are_exactly_so_far_apart() -> None:
    assert spaced(3, 2, [0, 2, 4, 6]) == [([0, 0, 0], 1), ([0, 0, 2], 2), ([0, 2, 4], 3), ([2, 4, 6], 3)]
    assert spaced(3, 2, [0, 1, 2, 5, 6]) == [([0] * 3, 1), ([1] * 3, 1), ([0, 0, 2], 2), ([5] * 3, 1), ([6] * 3, 1)]


def test_the_same_step_told_again_takes_the_place_of_the_first() -> None:
    memory = ObservationMemory(2, stride=1).added(torch.tensor(0), 0).added(torch.tensor(1), 1)
    again = memory.added(torch.tensor(-1), 0)
    assert (again.stack(0).tolist(), again.known) == ([0, -1], (True, True))
    assert again.added(torch.tensor(2), 1).stack(0).tolist() == [-1, 2]


def test_a_memory_with_a_stride_holds_what_was_told_and_no_more() -> None:
    draws = random.Random(0)
    for _ in range(100):
        num_context, stride = draws.randint(1, 4), draws.randint(1, 4)
        steps = [0]
        while len(steps) < 30:
            steps.append(steps[-1] + draws.choice([1, 1, 1, 2, 3]))
        memory, last = ObservationMemory(num_context, stride=stride), 0
        for index, step in enumerate(steps):
            memory, last = memory.added(torch.tensor(step), step - last), step
            own = [step]
            while len(own) < num_context and step - len(own) * stride in steps[: index + 1]:
                own.insert(0, step - len(own) * stride)
            assert memory.stack(0).tolist() == [own[0]] * (num_context - len(own)) + own
            assert memory.known == (False,) * (num_context - len(own)) + (True,) * len(own)
            assert len(memory.told) <= (num_context - 1) * stride + 1


def test_what_to_tell_of_a_chunk() -> None:
    assert steps_to_tell(8, horizon=8, num_context=4, stride=None) == ()
    assert steps_to_tell(8, horizon=8, num_context=1, stride=1) == ()
    assert steps_to_tell(5, horizon=5, num_context=2, stride=1) == (4,)
    assert steps_to_tell(1, horizon=1, num_context=2, stride=1) == ()
    assert steps_to_tell(8, horizon=8, num_context=3, stride=3) == (2, 5)
    assert steps_to_tell(3, horizon=5, num_context=3, stride=1) == (1, 2)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("num_context", "stride"), [(2, 1), (4, 1), (4, 2), (3, 4), (2, 7)])
def test_what_is_told_fills_every_place_that_lies_in_the_episode(horizon: int, num_context: int, stride: int) -> None:
    memory = ObservationMemory(num_context, stride=stride).added(torch.tensor(0), 0)
    for call in range(1, 20):
        start, last = (call - 1) * horizon, 0
        for step in (*steps_to_tell(horizon, horizon=horizon, num_context=num_context, stride=stride), horizon):
            memory, last = memory.added(torch.tensor(start + step), step - last), step
        steps = [call * horizon - stride * place for place in reversed(range(num_context))]
        known = [step for step in steps if step >= 0]
        assert memory.num_known == len(known), (call, memory)
        assert memory.stack(0).tolist()[-len(known) :] == known
