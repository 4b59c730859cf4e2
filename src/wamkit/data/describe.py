"""The robot of a dataset that does not name it: from `info.json`, GR00T's `modality.json` and what a user says.

What neither file tells and a policy depends on (what an action means, which way a gripper closes) is asked for, never
guessed; units are `1` until someone says what they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.data import features as words
from wamkit.data.atomic import write_json_atomically
from wamkit.data.camera_names import CAMERAS
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.data.modality import MODALITY_PATH, Modality, Slice, read_modality
from wamkit.lock import FolderLock
from wamkit.spec import ActionKind, CameraSpec, ChannelSpec, GripperSign, RobotSpec


@dataclass(frozen=True, kw_only=True)
class Described:
    """A robot, and where each part of its description comes from.

    Args:
        robot: the description.
        sources: part -> source, for people.
    """

    robot: RobotSpec
    sources: dict[str, str]


def describe_robot(
    dataset: LeRobotDataset,
    *,
    name: str | None = None,
    cameras: Sequence[str] | None = None,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    state_units: Sequence[str] | None = None,
    action_units: Sequence[str] | None = None,
    action_kind: ActionKind | None = None,
    gripper_channels: Sequence[int] | None = None,
    gripper_sign: GripperSign | None = None,
) -> Described:
    """Describe the robot of a dataset. What is given goes before `modality.json`, that before `info.json`.

    Names of channels are the exception: those of `info.json` are of single channels and go before slices'.

    Args:
        dataset: its `robot`, if it has one, is not looked at.
        name: by default the `robot_type` of `info.json`.
        cameras: in view order; by default those of `modality.json`, else all.
        state_names: one per channel.
        action_names: one per channel.
        state_units: one per channel, `m`, `rad`, …; by default `1`.
        action_units: one per channel.
        action_kind: by default what `modality.json` says of the channels that are no grippers.
        gripper_channels: by default the actions that are called grippers.
        gripper_sign: needed when there are grippers.

    Raises:
        DatasetError: no action or state column, or a damaged `modality.json`.
        ValueError: the kind of action or a gripper's sign is not known, or what is given does not fit the data.
    """
    modality = read_modality(dataset.root, **vector_columns(dataset))
    parts = modality or Modality(video={}, annotation={})
    sources: dict[str, str] = {}
    state = _channels(dataset, words.STATE, parts.state, state_names, state_units, sources)
    action = _channels(dataset, words.ACTION, parts.action, action_names, action_units, sources)
    grippers = _grippers(action, parts.action, gripper_channels, sources)
    if grippers and gripper_sign in (None, "none"):
        raise ValueError(
            f"expected the sign of the grippers, actions {[action[index].name for index in grippers]}: say "
            "--gripper-sign open_positive or close_positive; without grippers, --gripper-channels alone"
        )
    chosen = _cameras(dataset, parts, cameras, sources)
    robot_type = dataset.info.get("robot_type")
    sources["name"] = "given" if name else f"robot_type of {words.INFO}" if robot_type else "not known"
    robot = RobotSpec(
        name=name or str(robot_type or "unknown"),
        cameras=tuple(_camera(dataset, camera) for camera in chosen),
        state=state,
        action=action,
        action_kind=action_kind or _kind(parts.action, grippers, sources),
        gripper_channels=grippers,
        gripper_sign=gripper_sign if gripper_sign is not None and grippers else "none",
        control_hz=dataset.fps,
    )
    sources.setdefault("action kind", "given")
    return Described(robot=robot, sources=sources)


def fit_robot(dataset: LeRobotDataset, robot: RobotSpec, *, cameras: Sequence[str] | None = None) -> Described:
    """Take a known robot as the whole description of a dataset; only its cameras' sizes are the dataset's.

    Its rate is kept where `info.json` says another: a row is one action of it, at whatever rate the file was labelled.
    Published LIBERO sets say 10 rows per second of a robot that is driven 20 times a second.

    Args:
        dataset: its `robot`, if it has one, is not looked at.
        robot: who recorded it.
        cameras: those of the robot that the dataset has, in view order; by default all.

    Raises:
        DatasetError: the dataset has other widths, or no action or state column.
        ValueError: it lacks a camera of the robot, or `cameras` are not the robot's.
    """
    chosen = robot if cameras is None else robot.with_cameras(tuple(cameras))
    missing = [name for name in chosen.camera_names if name not in dataset.cameras]
    if missing:
        free = [name for name in dataset.cameras if name not in chosen.camera_names]
        remedy = f"--rename {free[0]}={missing[0]} says that they are the same; " if free else ""
        raise ValueError(
            f"expected the cameras {list(chosen.camera_names)} of robot {robot.name!r}, dataset {dataset.root} has "
            f"{list(dataset.cameras)}; {remedy}--cameras leaves out what was not recorded"
        )
    _require_widths(dataset, chosen)
    sources = {"name": "given", "cameras": f"sizes from {words.INFO}"}
    if dataset.fps != robot.control_hz:
        sources["rate"] = f"{words.INFO} says {dataset.fps:g} rows per second; a row is taken for one action"
    fitted = tuple(_with_size(camera, _camera(dataset, camera.name)) for camera in chosen.cameras)
    return Described(robot=dataclasses.replace(chosen, cameras=fitted), sources=sources)


def _with_size(camera: CameraSpec, recorded: CameraSpec) -> CameraSpec:
    if (camera.height, camera.width) == (recorded.height, recorded.width):
        return camera
    # A matrix in pixels belongs to a size.
    return dataclasses.replace(camera, height=recorded.height, width=recorded.width, intrinsics=None)


def vector_columns(dataset: LeRobotDataset) -> dict[str, str]:
    """The columns in which a dataset keeps `state` and `action`.

    Raises:
        DatasetError: it has none.
    """
    for key in (words.STATE, words.ACTION):
        _width(dataset, key)
    return {"state": dataset.stored_name(words.STATE), "action": dataset.stored_name(words.ACTION)}


def write_robot(
    root: Path | str, robot: RobotSpec, *, renamed: Mapping[str, str] | None = None, replace: bool = False
) -> bool:
    """Write a robot into a dataset's `info.json`, which nothing else of changes, whole or not at all.

    Statistics, caches and runs of the dataset know it by its robot too, and have to be made again.

    Args:
        root: dataset folder, of any version.
        robot: fits the dataset.
        renamed: the dataset's own names of cameras -> those that the robot has for them; written beside it.
        replace: whether another robot may be there already.

    Returns:
        Whether anything had to be written.

    Raises:
        DatasetError: another robot is there, or the spec does not fit the features.
        FileNotFoundError: no dataset.
        BlockingIOError: something else is writing into the folder.
        OSError: writing failed; the old file is untouched.
        ValueError: a camera that the dataset has not, or one name for two.
    """
    root = Path(root)
    LeRobotDataset(root, check=False)  # a folder that is no dataset gets no lock file
    with FolderLock(root):
        before, dataset = LeRobotDataset(root, check=False), LeRobotDataset(root, check=False, renamed=renamed)
        if before.robot == robot and before.cameras == dataset.cameras:
            return False
        if before.robot is not None and not replace:
            raise DatasetError(
                f"{root} already names its robot, {before.robot.name!r}, as something else, or its cameras otherwise; "
                "look at both and write with --replace if the new one is right"
            )
        _require_widths(dataset, robot)
        for camera in robot.cameras:
            dataset.camera_key(camera.name)
        path = root / words.INFO
        info = json.loads(path.read_text(encoding="utf-8"))
        own = info.get(words.WAMKIT, {}) | {"robot": robot.to_dict()}
        own.pop(CAMERAS, None)
        if CAMERAS in dataset.wamkit:
            own[CAMERAS] = dataset.wamkit[CAMERAS]
        write_json_atomically(path, info | {words.WAMKIT: own})
    return True


def _require_widths(dataset: LeRobotDataset, robot: RobotSpec) -> None:
    for key, channels in ((words.STATE, robot.state), (words.ACTION, robot.action)):
        width = _width(dataset, key)
        if len(channels) != width:
            raise DatasetError(
                f"{dataset.root}: expected {width} channels of {key!r} in the robot, got {len(channels)} of "
                f"{robot.name!r}; give the robot that recorded the dataset"
            )


def _width(dataset: LeRobotDataset, key: str) -> int:
    shape = dataset.features.get(key, {}).get("shape")
    if not shape or any(side != 1 for side in shape[:-1]):
        raise DatasetError(
            f"{dataset.root}: expected a vector {key!r} among the features, got {shape} ({sorted(dataset.features)}); "
            "convert the dataset"
        )
    return int(shape[-1])


def _channels(
    dataset: LeRobotDataset,
    key: str,
    slices: Sequence[Slice],
    names: Sequence[str] | None,
    units: Sequence[str] | None,
    sources: dict[str, str],
) -> tuple[ChannelSpec, ...]:
    width, what = _width(dataset, key), "state" if key == words.STATE else "action"
    beyond = [item.name for item in slices if item.end > width]
    if beyond:
        raise DatasetError(
            f"{dataset.root / MODALITY_PATH}: expected slices of the {width} channels of {key!r}, {beyond[0]!r} ends "
            "beyond them; correct it, or remove it"
        )
    for given, option in ((names, f"--{what}-names"), (units, f"--{what}-units")):
        if given is not None and len(given) != width:
            raise ValueError(f"{option}: expected one for each of the {width} channels of {key!r}, got {list(given)}")
    found = list(_flat(dataset.features[key].get("names")))
    is_named = len(found) == width and len(set(found)) == width and key not in found
    if names is not None:
        sources[f"{what} names"], chosen = "given", list(names)
    elif is_named:
        sources[f"{what} names"], chosen = words.INFO, found
    else:
        sources[f"{what} names"], chosen = _sliced_names(slices, width, what)
    if len(set(chosen)) != width:
        raise ValueError(f"expected {width} different names of {what} channels, got {chosen}; give --{what}-names")
    rotations = [""] * width
    for item in slices:
        rotations[item.start : item.end] = [item.rotation_type] * (item.end - item.start)
    sources[f"{what} units"] = "given" if units is not None else "not known"
    return tuple(
        ChannelSpec(name=chosen[index], unit="1" if units is None else units[index], rotation=rotations[index])
        for index in range(width)
    )


def _flat(names: object) -> Iterable[str]:
    """Names of a feature, which may be a list, or a dict of lists or of positions."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, Mapping):
        for key, item in names.items():
            yield from [str(key)] if isinstance(item, int) else _flat(item)
    elif isinstance(names, Sequence):
        for item in names:
            yield from _flat(item)


def _sliced_names(slices: Sequence[Slice], width: int, what: str) -> tuple[str, list[str]]:
    names = [f"{what}_{index}" for index in range(width)]
    for item in slices:
        size = item.end - item.start
        own = [item.name] if size == 1 else [f"{item.name}_{index}" for index in range(size)]
        names[item.start : item.end] = own
    return MODALITY_PATH if slices else "not known, numbered", names


def _grippers(
    action: Sequence[ChannelSpec], slices: Sequence[Slice], given: Sequence[int] | None, sources: dict[str, str]
) -> tuple[int, ...]:
    if given is not None:
        wrong = [index for index in given if not 0 <= index < len(action)]
        if wrong or len(set(given)) != len(given):
            raise ValueError(f"--gripper-channels: expected different numbers from 0 to {len(action) - 1}, got {given}")
        sources["grippers"] = "given"
        return tuple(sorted(given))
    called = {index for index, channel in enumerate(action) if "gripper" in channel.name.lower()}
    for item in slices:
        called |= set(range(item.start, item.end)) if "gripper" in item.name.lower() else set()
    sources["grippers"] = "by their names" if called else "none is called so"
    return tuple(sorted(called))


def _kind(slices: Sequence[Slice], grippers: Sequence[int], sources: dict[str, str]) -> ActionKind:
    moving = [item for item in slices if not set(range(item.start, item.end)) <= set(grippers)]
    said = {item.absolute for item in moving}
    if len(said) != 1 or None in said:
        told = {item.name: item.absolute for item in moving} or "nothing"
        raise ValueError(
            f"expected to know whether actions are positions or differences, {MODALITY_PATH} says {told}: give "
            "--action-kind absolute, delta (from one action to the next) or relative (to the state)"
        )
    sources["action kind"] = MODALITY_PATH
    return "absolute" if said == {True} else "delta"


def _cameras(
    dataset: LeRobotDataset, modality: Modality, given: Sequence[str] | None, sources: dict[str, str]
) -> list[str]:
    if given is not None:
        sources["cameras"] = "given"
        for camera in given:
            dataset.camera_key(camera)
        return list(given)
    if not modality.video:
        sources["cameras"] = words.INFO
        return list(dataset.cameras)
    sources["cameras"] = MODALITY_PATH
    by_key = {dataset.camera_key(camera): camera for camera in dataset.cameras}
    missing = [key for key in modality.video.values() if key not in by_key]
    if missing:
        raise DatasetError(
            f"{dataset.root / MODALITY_PATH}: expected cameras among {list(by_key)}, got {missing}; correct "
            "original_key, or give --cameras"
        )
    return [by_key[key] for key in modality.video.values()]


def _camera(dataset: LeRobotDataset, camera: str) -> CameraSpec:
    feature: dict[str, Any] = dataset.features[dataset.camera_key(camera)]
    shape, names = feature["shape"], feature.get("names")
    axes = [str(item) for item in names] if isinstance(names, list) else []
    if {"height", "width"} <= set(axes) and len(axes) == len(shape):
        height, width = shape[axes.index("height")], shape[axes.index("width")]
    else:  # the format says height, width, channels; some sets have the channels first
        height, width = shape[1:] if shape[0] in (1, 3) and shape[2] not in (1, 3) else shape[:2]
    return CameraSpec(name=camera, height=int(height), width=int(width))
