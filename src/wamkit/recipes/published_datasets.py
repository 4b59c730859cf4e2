"""Published datasets of a known robot: what they call its cameras, and which of them drive its gripper otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wamkit.data.describe import Described, fit_robot
from wamkit.data.features import ACTION, camera_name
from wamkit.data.lerobot import LeRobotDataset
from wamkit.recipes.import_weights import read_robot
from wamkit.recipes.published_robots import PUBLISHED_CAMERAS, ROBOTS

_LOOKED_AT = 20  # episodes, until one opens the gripper


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


def describe_as(dataset: LeRobotDataset, robot: str, *, cameras: Sequence[str] | None = None) -> Described:
    """Describe a dataset by a robot that somebody names, after a look at what it does with the gripper.

    Some published LIBERO sets tell the gripper 0 to close and 1 to open. A policy trained on them under the simulator's
    description would never open it, so they are refused.

    Args:
        dataset: opened under the robot's names of cameras.
        robot: one of `ROBOTS`, a dataset, or a JSON file of a spec.
        cameras: those of the robot that the dataset has; by default all.

    Raises:
        DatasetError: as `fit_robot`.
        FileNotFoundError: as `read_robot`.
        ValueError: as both; or no action of the gripper of one of `ROBOTS` is negative.
    """
    found = fit_robot(dataset, read_robot(robot), cameras=cameras)
    grippers = list(found.robot.gripper_channels)
    if robot not in ROBOTS or not grippers or not dataset.num_episodes:
        return found
    highest = 0.0
    usable = [entry for entry in dataset.episodes if entry.index not in dataset.ignored]
    for entry in usable[:_LOOKED_AT]:
        values = dataset.columns(entry.index, [ACTION])[ACTION][:, grippers]
        if (values < 0).any():
            return found
        highest = max(highest, float(values.max(initial=0.0)))
    raise ValueError(
        f"expected gripper actions from -1 to 1, as robot {found.robot.name!r} takes them, got 0 to {highest:g} in "
        f"{dataset.root}: there the gripper is driven in another way (often 0 closes and 1 opens), and a policy "
        "trained on it would not fit the simulator; bring the actions to the robot's, or describe it without --robot"
    )


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
