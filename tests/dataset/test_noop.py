"""Rows that do nothing are found as the published filter finds them."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.data.noop import STILL, kept_rows

LIBERO = (6,)


def actions(*rows: tuple[float, float]) -> np.ndarray:
    """Actions of LIBERO's robot: rows of the motion's length, spread over six channels, and the gripper."""
    lengths, grippers = np.array(rows).T
    return np.concatenate([np.repeat(lengths[:, None] / np.sqrt(6), 6, axis=1), grippers[:, None]], axis=1)


def test_the_sequence_of_the_specification_keeps_its_second_and_fourth() -> None:
    rows = actions((0, -1), (0.3, -1), (0, -1), (0, 1), (0, 1))
    for dtype in (np.float32, np.float64):
        assert kept_rows(rows.astype(dtype), gripper_channels=LIBERO).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([(1, -1)] * 4, [0, 1, 2, 3]),
        ([(0, -1), (0, 1), (0, -1)], []),  # before anything is kept a gripper's command is no change
        ([(0, 1), (1, 1), (0, -1), (0, 1), (0, 1)], [1, 2, 3]),  # compared with the last row kept, not the one before
        ([(0.99 * STILL, -1), (1.01 * STILL, -1)], [1]),
        ([(1, -1), (0, -1), (1, 1), (0, 1)], [0, 2]),
        ([(np.nan, -1), (0, -1)], [0]),  # what is no number is for others to refuse
    ],
)
def test_rows_that_do_nothing(rows: list[tuple[float, float]], kept: list[int]) -> None:
    assert kept_rows(actions(*rows), gripper_channels=LIBERO).tolist() == kept


def test_every_gripper_counts_and_none_is_motion() -> None:
    one = [[0.5, 1.0, -1.0], [0.0, 1.0, -1.0], [0.0, 1.0, 1.0], [0.0, -1.0, 1.0], [0.0, -1.0, 1.0]]
    assert kept_rows(np.array(one), gripper_channels=(1, 2)).tolist() == [0, 2, 3]
    assert kept_rows(np.array(one), gripper_channels=()).tolist() == [0, 1, 2, 3, 4]
    assert kept_rows(np.zeros((3, 2)), gripper_channels=()).tolist() == []
    assert kept_rows(np.zeros((0, 2)), gripper_channels=(1,)).tolist() == []


def test_filtering_again_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = rng.choice([0.0, 0.5], size=(12, 4), p=[0.7, 0.3])
        once = rows[kept_rows(rows, gripper_channels=(2, 3))]
        assert len(kept_rows(once, gripper_channels=(2, 3))) == len(once)


def test_a_gripper_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gripper channels from 0 to 3 for actions of 4 channels, got \[6\]"):
        kept_rows(np.zeros((2, 4)), gripper_channels=LIBERO)
