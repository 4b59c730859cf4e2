"""GR00T's `meta/modality.json`, read and written: what numbers of a LeRobot dataset are, and which cameras it has.

    {"state":  {"arm": {"start": 0, "end": 6, "rotation_type": "axis_angle"}, "gripper": {"start": 6, "end": 7}},
     "action": {"arm": {"start": 0, "end": 6, "absolute": false}, "gripper": {"start": 6, "end": 7}},
     "video":  {"front": {"original_key": "observation.images.front"}},
     "annotation": {"human.task_description": {"original_key": "task_index"}}}

Slices are half open and count within `observation.state` or `action`, unless they name another column. GR00T takes a
slice that does not say `absolute` to be absolute; many files leave it out of differences too, so here it stays unknown.

Source: NVIDIA Isaac GR00T, data schema of its LeRobot datasets; `ecosystem.md` 3.4 of the specification.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, Final

from wamkit.data.atomic import write_json_atomically
from wamkit.data.features import ACTION, STATE, camera_key
from wamkit.data.lerobot import DatasetError
from wamkit.spec import ChannelSpec, RobotSpec

MODALITY_PATH: Final = "meta/modality.json"
ROTATIONS: Final = (
    *("axis_angle", "quaternion", "rotation_6d", "matrix"),
    *(f"euler_angles_{order}" for order in ("rpy", "ryp", "pry", "pyr", "yrp", "ypr")),
)
_OWN_ROTATIONS: Final = {"quaternion_xyzw": "quaternion", "quaternion_wxyz": "quaternion"}
_TASK: Final = {"human.task_description": "task_index"}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some successive channels of a vector.

    Args:
        name: for instance `left_arm`.
        start: first channel.
        end: one past the last.
        absolute: whether they are positions rather than differences; `None` when the file does not say.
        rotation_type: format of a rotation, one of `ROTATIONS`; empty when they are none.
        original_key: the vector's column, where it is not GR00T's `observation.state` or `action`.
    """

    name: str
    start: int
    end: int
    absolute: bool | None = None
    rotation_type: str = ""
    original_key: str = ""


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What `meta/modality.json` says.

    Args:
        state: slices of `observation.state`.
        action: slices of `action`.
        video: camera name -> feature key.
        annotation: language column -> the column it is kept in.
    """

    state: tuple[Slice, ...] = ()
    action: tuple[Slice, ...] = ()
    video: dict[str, str]
    annotation: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As GR00T reads it."""
        return {
            "state": {item.name: _slice_dict(item) for item in self.state},
            "action": {item.name: _slice_dict(item) for item in self.action},
            "video": {name: {"original_key": key} for name, key in self.video.items()},
            "annotation": {name: {"original_key": key} for name, key in self.annotation.items()},
        }


def read_modality(root: Path | str, *, state: str = STATE, action: str = ACTION) -> Modality | None:
    """The modalities of a dataset; `None` when it has no such file.

    Slices of other columns than the two that training reads are passed over.

    Args:
        root: dataset folder.
        state: column of the states.
        action: column of the actions.

    Raises:
        DatasetError: the file is not JSON, or a part of it has another form; the message names it.
    """
    path = Path(root) / MODALITY_PATH
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path}: expected JSON, it cannot be read ({error}); correct it, or remove it") from error
    parts = {key: _part(document, key, path) for key in ("state", "action", "video", "annotation")}
    return Modality(
        state=_slices(parts["state"], state, STATE, f"{path}: state"),
        action=_slices(parts["action"], action, ACTION, f"{path}: action"),
        video={name: _original_key(item, camera_key(name)) for name, item in parts["video"].items()},
        annotation={name: _original_key(item, f"annotation.{name}") for name, item in parts["annotation"].items()},
    )


def write_modality(root: Path | str, modality: Modality) -> Path:
    """Write `meta/modality.json`, whole or not at all; an earlier one is replaced.

    Returns:
        The file written.

    Raises:
        OSError: writing failed; the old file is untouched.
    """
    path = Path(root) / MODALITY_PATH
    write_json_atomically(path, modality.to_dict())
    return path


def modality_of(
    robot: RobotSpec, camera_keys: Mapping[str, str], *, state: str = STATE, action: str = ACTION
) -> Modality:
    """The modalities of a dataset of a robot.

    Successive channels of one unit, frame and rotation make a slice; grippers are slices of their own. It is called by
    what the names of its channels begin with.

    Args:
        robot: names the channels.
        camera_keys: feature key of each camera.
        state: column of the states.
        action: column of the actions.
    """
    is_absolute = robot.action_kind == "absolute"
    grippers = set(robot.gripper_channels)
    return Modality(
        state=_grouped(robot.state, set(), lambda index: True, "" if state == STATE else state),
        action=_grouped(
            robot.action,
            grippers,
            lambda index: is_absolute or index in grippers,
            "" if action == ACTION else action,
        ),
        video={camera.name: camera_keys[camera.name] for camera in robot.cameras},
        annotation=dict(_TASK),
    )


def _grouped(
    channels: Sequence[ChannelSpec], grippers: set[int], is_absolute: Callable[[int], bool], column: str
) -> tuple[Slice, ...]:
    def kind(index: int) -> tuple[Any, ...]:
        channel = channels[index]
        return channel.unit, channel.frame, channel.rotation, index in grippers

    slices: list[Slice] = []
    for _, group in groupby(range(len(channels)), key=kind):
        indices = list(group)
        rotation = channels[indices[0]].rotation
        rotation = _OWN_ROTATIONS.get(rotation, rotation)
        slices.append(
            Slice(
                name=_group_name([channels[index].name for index in indices], {item.name for item in slices}),
                start=indices[0],
                end=indices[-1] + 1,
                absolute=is_absolute(indices[0]),
                rotation_type=rotation if rotation in ROTATIONS else "",
                original_key=column,
            )
        )
    return tuple(slices)


def _group_name(names: list[str], taken: set[str]) -> str:
    first, last = min(names), max(names)  # what these begin with alike, all begin with
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    shared = names[0] if len(names) == 1 else first[:alike].rstrip("_.-0123456789")
    base = shared or ("_".join(names) if len(names) < 4 else names[0])
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _slice_dict(item: Slice) -> dict[str, Any]:
    found: dict[str, Any] = {"start": item.start, "end": item.end}
    if item.absolute is not None:
        found["absolute"] = item.absolute
    if item.rotation_type:
        found["rotation_type"] = item.rotation_type
    if item.original_key:
        found["original_key"] = item.original_key
    return found


def _part(document: object, key: str, path: Path) -> dict[str, dict[str, Any]]:
    part = document.get(key) if isinstance(document, dict) else document
    if part is None and key in ("video", "annotation"):
        return {}
    if not isinstance(part, dict) or not all(isinstance(item, dict) for item in part.values()):
        raise DatasetError(
            f"{path}: expected objects by name as {key!r} (state and action are needed), got {part!r}; correct it, or "
            "remove it"
        )
    return part


def _slices(part: Mapping[str, Mapping[str, Any]], column: str, usual: str, where: str) -> tuple[Slice, ...]:
    found = []
    for name, item in part.items():
        # A file that names no column means the usual one, which others' data may keep under another name.
        key = _original_key(item, column)
        if key not in (column, usual):
            continue
        start, end = item.get("start"), item.get("end")
        absolute, rotation = item.get("absolute"), item.get("rotation_type") or ""
        is_right = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in (start, end))
        if not is_right or not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
            raise DatasetError(f"{where}.{name}: expected whole numbers 0 <= start < end, got {start!r} and {end!r}")
        if absolute not in (True, False, None) or rotation not in ("", *ROTATIONS):
            raise DatasetError(
                f"{where}.{name}: expected absolute as true or false and rotation_type among {list(ROTATIONS)}, got "
                f"{absolute!r} and {rotation!r}"
            )
        found.append(
            Slice(
                name=name,
                start=start,
                end=end,
                absolute=absolute,
                rotation_type=rotation,
                original_key="" if key == usual else key,
            )
        )
    return tuple(sorted(found, key=lambda item: (item.start, item.end)))


def _original_key(item: Mapping[str, Any], default: str) -> str:
    key = item.get("original_key")
    return key if isinstance(key, str) and key else default
