"""Under which names a dataset's cameras are to be read: as a user says, or as a known robot's published datasets do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wamkit.data.features import camera_name
from wamkit.data.lerobot import LeRobotDataset
from wamkit.recipes.published_robots import PUBLISHED_CAMERAS


def choose_renames(root: Path, *, given: Sequence[str] | None = None, robot: str | None = None) -> dict[str, str]:
    """The dataset's own name of a camera -> the name to read it under; empty when all keep their names.

    Args:
        root: dataset folder.
        given: `OLD=NEW` each; with them nothing is done by itself.
        robot: one of `ROBOTS` renames the cameras of a dataset that has exactly those of its published datasets.

    Raises:
        DatasetError: no readable dataset.
        FileNotFoundError: no dataset.
        ValueError: a part of `given` is malformed, or names a camera twice.
    """
    if given is not None:
        return _read_renames(given)
    published = PUBLISHED_CAMERAS.get(robot or "", {})
    is_published = bool(published) and set(LeRobotDataset(root, check=False).cameras) == set(published)
    return dict(published) if is_published else {}


def _read_renames(given: Sequence[str]) -> dict[str, str]:
    renames: dict[str, str] = {}
    for text in given:
        old, _, new = (camera_name(part.strip()) for part in text.partition("="))
        if not old or not new:
            raise ValueError(f"--rename: expected OLD=NEW, as image=agentview, got {text!r}")
        if old in renames:
            raise ValueError(f"--rename: expected each camera once, got {old!r} as {renames[old]!r} and {new!r}")
        renames[old] = new
    return renames
