"""Random numbers follow from keys: not from the batch, nor from the process."""

from __future__ import annotations

import pytest
import torch

from wamkit.draws import SeededDraws, TrainingDraws


def batch(rows: list[int], *, num_rows: int = 6, key: tuple[int, ...] = (1, 0, 5)) -> TrainingDraws:
    return TrainingDraws(key=key, rows=rows, num_rows=num_rows)


def test_a_row_draws_the_same_numbers_wherever_it_is_computed() -> None:
    whole = batch([0, 1, 2, 3, 4, 5])
    for rows in ([0, 2, 4], [5], [3, 1]):
        part = batch(rows)
        assert torch.equal(part("noise", (3, 2)), whole("noise", (3, 2))[rows])
        assert torch.equal(part.uniform("level"), whole.uniform("level")[rows])
        assert part.shared("share") == whole.shared("share")


def test_rows_streams_and_batches_differ() -> None:
    draws = batch([0, 1])
    noise = draws("noise", (100,))
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, draws("other", (100,)))
    assert not torch.equal(noise, batch([0, 1], key=(1, 0, 6))("noise", (100,)))
    assert draws.shared("share") != draws.shared("other")


def test_numbers_have_their_distribution() -> None:
    draws = TrainingDraws(key=(0,), rows=range(200), num_rows=200)
    noise, uniform = draws("noise", (50,)), draws.uniform("level", (50,))
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02
    assert draws.uniform("level").shape == (200,)


@pytest.mark.parametrize("rows", [[], [6], [-1]])
def test_rows_outside_the_batch_are_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="rows of a batch of 6"):
        batch(rows)


def test_sampling_draws_do_not_depend_on_the_batch() -> None:
    together = SeededDraws(keys=[(1, 0), (2, 0)])("video", (4,))
    assert torch.equal(together[1:], SeededDraws(keys=[(2, 0)])("video", (4,)))
