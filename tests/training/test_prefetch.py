"""Batches drawn ahead are exactly those that would be drawn in turn."""

from __future__ import annotations

import threading

import pytest
import torch
from regression_family import Windows, make_stages

from wamkit.training.prefetch import prefetched
from wamkit.types import Batch

SEE = make_stages()[0]


class Recorded(Windows):
    """Notes which batches were asked for, and by which thread."""

    def __init__(self) -> None:
        super().__init__(SEE)
        self.asked: list[tuple[int, str]] = []

    def batch(self, step: int) -> Batch:
        self.asked.append((step, threading.current_thread().name))
        if step == 5:
            raise ValueError("episode 2: video cut short")
        return super().batch(step)


def test_the_same_batches_in_the_same_order_from_another_thread() -> None:
    source, plain = Recorded(), Windows(SEE)
    for number, batch in enumerate(prefetched(source, 1, 5), start=1):
        expected = plain.batch(number)
        assert torch.equal(batch.context, expected.context) and torch.equal(batch.actions, expected.actions)
    assert [number for number, _ in source.asked] == [1, 2, 3, 4], "each once, and none past the end"
    assert all(name.startswith("batches") for _, name in source.asked)


def test_an_error_belongs_to_its_batch() -> None:
    batches = prefetched(Recorded(), 3, 8)
    next(batches), next(batches)
    with pytest.raises(ValueError, match="episode 2: video cut short"):
        next(batches)


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    batches = prefetched(Recorded(), 0, 5)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    assert list(prefetched(Recorded(), 3, 3)) == []
