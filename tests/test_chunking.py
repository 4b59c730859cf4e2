"""The observation memory, against the behaviour of the public evaluation code."""

from __future__ import annotations

import pytest
import torch

from wamkit.chunking import ObservationMemory


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
