"""`wamkit data describe`: say which robot a dataset is of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from wamkit.spec import ActionKind, CameraSpec, GripperSign, RobotSpec

if TYPE_CHECKING:
    from wamkit.data.describe import Described
    from wamkit.data.lerobot import LeRobotDataset


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Say which robot a dataset is of, so that it can be trained on; written into its meta/info.json.

    Found in info.json and, if there, GR00T's meta/modality.json; options go before both, and --robot takes their place.
    It is shown before it is written. No other file is touched: cameras are renamed by a note in info.json.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder."""
    robot: str | None = None
    """The whole description: libero, a dataset of the same robot, or a JSON file; cameras have the dataset's sizes.
    With libero, cameras called image and wrist_image are read as the simulator's."""
    rename: tuple[str, ...] | None = None
    """Cameras to read under other names, each as OLD=NEW with OLD as the files have it, image=agentview."""
    name: str | None = None
    """Robot and place, as panda/kitchen; by default the dataset's robot_type."""
    cameras: tuple[str, ...] | None = None
    """Cameras in view order, by their new names; by default all."""
    action_kind: ActionKind | None = None
    """What an action is: a position, a difference to the action before, or to the state. Needed unless modality.json
    says it."""
    gripper_channels: tuple[int, ...] | None = None
    """Numbers of the action channels that drive grippers; without a number none does. By default those so called."""
    gripper_sign: GripperSign | None = None
    """What a larger gripper action does."""
    state_names: tuple[str, ...] | None = None
    """A name for each state channel."""
    action_names: tuple[str, ...] | None = None
    """A name for each action channel."""
    state_units: tuple[str, ...] | None = None
    """A unit for each state channel: m, rad, m/s, 1, …"""
    action_units: tuple[str, ...] | None = None
    """A unit for each action channel."""
    modality: bool = False
    """Write GR00T's meta/modality.json from the robot, which may be one that the dataset names already."""
    replace: bool = False
    """Write over another robot, or another modality.json, that is there already."""
    dry_run: bool = False
    """Only show what was found."""
    json: bool = False
    """Print the robot as JSON."""


def run(options: Describe) -> int:
    """Find, show and write."""
    from wamkit.data.describe import vector_columns, write_robot
    from wamkit.data.lerobot import LeRobotDataset
    from wamkit.data.modality import MODALITY_PATH, modality_of, read_modality, write_modality
    from wamkit.recipes.published_datasets import choose_renames

    renamed = choose_renames(options.root, given=options.rename, robot=options.robot)
    dataset = LeRobotDataset(options.root, renamed=renamed)
    found = _find(dataset, options)
    robot = found.robot
    print(json.dumps(robot.to_dict(), indent=2) if options.json else _shown(robot, found.sources, dataset.wamkit))
    if options.dry_run:
        return 0
    keys = {camera: dataset.camera_key(camera) for camera in dataset.cameras}
    columns = vector_columns(dataset)
    wanted = modality_of(robot, keys, **columns)
    if options.modality and not options.replace and read_modality(options.root, **columns) not in (None, wanted):
        raise ValueError(
            f"{options.root / MODALITY_PATH} is there and says something else; look at it, and write with --replace if "
            "this is right"
        )
    is_written = write_robot(options.root, robot, renamed=renamed, replace=options.replace)
    if options.modality:
        write_modality(options.root, wanted)
    if not options.json:
        written = (["the robot into meta/info.json"] if is_written else []) + (
            [MODALITY_PATH] if options.modality else []
        )
        print(f"wrote {' and '.join(written)}" if written else "the dataset names its robot already; nothing to do")
    return 0


def _find(dataset: LeRobotDataset, options: Describe) -> Described:
    from wamkit.data.describe import Described, describe_robot

    given = {
        key: getattr(options, key)
        for key in (
            *("name", "cameras", "action_kind", "gripper_channels", "gripper_sign"),
            *("state_names", "action_names", "state_units", "action_units"),
        )
    }
    if options.robot is not None:
        from wamkit.recipes.published_datasets import describe_as

        useless = [
            f"--{key.replace('_', '-')}" for key, value in given.items() if key != "cameras" and value is not None
        ]
        if useless:
            raise ValueError(f"{', '.join(useless)}: without effect, --robot says all of this; leave one out")
        return describe_as(dataset, options.robot, cameras=options.cameras)
    if dataset.robot is not None and all(value is None for value in given.values()):
        sources = dict.fromkeys(("name", "cameras"), "the robot that info.json names")
        return Described(robot=dataset.robot, sources=sources)
    return describe_robot(dataset, **given)


def _shown(robot: RobotSpec, sources: dict[str, str], own: dict[str, Any]) -> str:
    def source(part: str) -> str:
        return f"  ({sources[part]})" if part in sources else ""

    def camera_shown(camera: CameraSpec) -> str:
        renamed = own.get("cameras", {}).get(camera.name)
        return f"{camera.name} {camera.height}x{camera.width}" + (
            f" (called {renamed} in the files)" if renamed else ""
        )

    lines = [f"robot {robot.name}{source('name')}, {robot.control_hz:g} actions per second{source('rate')}"]
    lines.append(f"cameras {', '.join(map(camera_shown, robot.cameras)) or 'none'}{source('cameras')}")
    parts: tuple[tuple[str, Any], ...] = (("state", robot.state), ("action", robot.action))
    for part, channels in parts:
        lines.append(f"{part}: {len(channels)} channels{source(f'{part} names')}; units{source(f'{part} units')}")
        lines += [
            f"  {index:>3} {channel.name} [{channel.unit}]{f' {channel.rotation}' if channel.rotation else ''}"
            for index, channel in enumerate(channels)
        ]
    lines.append(f"actions are {robot.action_kind}{source('action kind')}")
    grippers = ", ".join(robot.action[index].name for index in robot.gripper_channels)
    lines.append(f"grippers {grippers or 'none'}, {robot.gripper_sign}{source('grippers')}")
    return "\n".join(lines)
