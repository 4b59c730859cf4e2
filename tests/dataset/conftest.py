"""Small datasets that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.writer import LeRobotWriter
from wamkit.episode import Episode

WriteDataset = Callable[..., tuple[Path, list[Episode]]]


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """Records synthetic episodes of lengths 12, 13, 14, … into a folder; gives the folder and the episodes."""

    def write(num: int = 3, *, name: str = "set", size: int = 64, **settings) -> tuple[Path, list[Episode]]:
        robot = synthetic_robot(height=size, width=size)
        episodes = [
            synthetic_episodes(number + 1, length=12 + number, height=size, width=size)[number] for number in range(num)
        ]
        with LeRobotWriter(tmp_path / name, robot, **settings) as writer:
            for episode in episodes:
                writer.add(episode)
        return tmp_path / name, episodes

    return write
