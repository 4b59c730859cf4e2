"""Episodes: columns of one length, and what counts as success."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from wamkit.episode import Episode

EPISODE = Episode(
    actions=np.zeros((3, 2), np.float32),
    state=np.zeros((3, 4), np.float32),
    video={"front": np.zeros((3, 8, 8, 3), np.uint8)},
    reward=np.zeros(3, np.float32),
    success=np.array([False, True, False]),
    task="open it",
)


def test_length_and_success() -> None:
    assert len(EPISODE) == 3
    assert EPISODE.is_success  # solved at some step, though not at the last
    assert not dataclasses.replace(EPISODE, success=np.zeros(3, bool)).is_success


@pytest.mark.parametrize(
    "change",
    [
        {"actions": np.zeros((2, 2), np.float32)},
        {"video": {"front": np.zeros((4, 8, 8, 3), np.uint8)}},
        {"success": np.zeros(2, bool)},
        {
            "actions": np.zeros((0, 2)),
            "state": np.zeros((0, 4)),
            "video": {},
            "reward": np.zeros(0),
            "success": np.zeros(0, bool),
        },
    ],
    ids=["actions", "video", "success", "empty"],
)
def test_columns_of_other_lengths_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="same length of 1 or more"):
        dataclasses.replace(EPISODE, **change)
