"""Words for robots and policies, and the comparison that refuses a mismatch.

A `RobotSpec` says what a robot, simulator or dataset records; a `PolicySpec` says what a policy was trained on. They
are compared whenever policy, dataset and environment meet, because a silent mismatch (camera order, gripper sign,
control rate, rotation format) is the field's most frequent cause of 0 % success. This module and `typed`, which reads
it, need only the standard library.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from wamkit.typed import check_least, read_fields

ActionKind = Literal["absolute", "delta", "relative"]
GripperSign = Literal["open_positive", "close_positive", "none"]
Preprocess = Literal["exact", "resize", "center_crop_resize"]


class SpecMismatch(ValueError):
    """Two specs that must agree do not; the message names both sides and every difference."""


@dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """One camera.

    Args:
        name: the camera's name; the order of cameras in a spec is the order of the view axis.
        height: pixels.
        width: pixels.
        intrinsics: row-major 3x3 pinhole matrix in pixels, or `None` when unknown.
        pose: row-major 4x4 matrix taking camera coordinates (OpenCV axes: x right, y down, z forward) to world
            coordinates in metres, or `None` when unknown or when the camera moves.
    """

    name: str
    height: int
    width: int
    intrinsics: tuple[tuple[float, ...], ...] | None = None
    pose: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise ValueError(
                f"camera {self.name!r}: expected positive height and width, got {self.height}x{self.width}"
            )
        for key, size in (("intrinsics", 3), ("pose", 4)):
            matrix = getattr(self, key)
            if matrix is not None and [len(row) for row in matrix] != [size] * size:
                raise ValueError(f"camera {self.name!r}: expected {key} of {size} rows of {size} numbers, got {matrix}")


@dataclass(frozen=True, kw_only=True)
class ChannelSpec:
    """One channel of a state or action vector.

    Args:
        name: for instance `hand_x`.
        unit: SI unit (`m`, `rad`, `m/s`) or `1` for a dimensionless number.
        frame: frame of reference, for instance `world`; empty when none applies.
        rotation: rotation format this channel belongs to (`axis_angle`, `quaternion_xyzw`); empty when none applies.
    """

    name: str
    unit: str = "1"
    frame: str = ""
    rotation: str = ""


@dataclass(frozen=True, kw_only=True)
class RobotSpec:
    """What a robot, simulator or dataset sees, feels and accepts.

    Args:
        name: robot and simulator, for instance `sawyer/metaworld`.
        cameras: cameras in the order of the view axis.
        state: proprioceptive channels in order.
        action: action channels in order.
        action_kind: how an action relates to the robot's pose.
        gripper_channels: indices into `action` that drive grippers.
        gripper_sign: meaning of a positive gripper action.
        control_hz: actions per second.
        rendering: name of the rendering setting; the look of an image is part of the observation.
    """

    name: str
    cameras: tuple[CameraSpec, ...]
    state: tuple[ChannelSpec, ...]
    action: tuple[ChannelSpec, ...]
    action_kind: ActionKind
    gripper_channels: tuple[int, ...] = ()
    gripper_sign: GripperSign = "none"
    control_hz: float
    rendering: str = ""

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            raise ValueError(f"robot {self.name!r}: expected distinct camera names, got {names}")
        wrong = [index for index in self.gripper_channels if not 0 <= index < len(self.action)]
        if wrong:
            raise ValueError(
                f"robot {self.name!r}: gripper channels {wrong} are outside the {len(self.action)} actions"
            )
        if not 0 < self.control_hz < math.inf:
            raise ValueError(f"robot {self.name!r}: expected a positive, finite control_hz, got {self.control_hz}")

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Camera names in view order."""
        return tuple(camera.name for camera in self.cameras)

    def with_cameras(self, names: tuple[str, ...]) -> RobotSpec:
        """The same robot with only the named cameras, in the order given.

        Raises:
            ValueError: a name is not a camera of this robot.
        """
        known = {camera.name: camera for camera in self.cameras}
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(f"robot {self.name!r} has cameras {list(known)}, not {missing}; choose among those")
        return dataclasses.replace(self, cameras=tuple(known[name] for name in names))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` inverts it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> RobotSpec:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value of another type or out of range; the message names it.
        """
        return read_fields(cls, data, "robot spec")


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What a policy needs and gives.

    Args:
        family: model family, for instance `wav`.
        robot: the robot it was trained on; its cameras are the policy's cameras in view order.
        num_context: observations (frames) the policy remembers, the newest last.
        action_horizon: actions predicted per call.
        execution_horizon: actions of each chunk meant to be run before the next call.
        normalization: name of the normalisation formula of state and actions.
        tasks: sentences seen in training; empty when open.
        image_size: (height, width) of the frames that the model sees; `None` is the size of the robot's cameras.
        preprocess: how camera frames are brought to that size.
        context_stride: control steps between two remembered frames; `None` remembers the frames of the policy's calls.
    """

    family: str
    robot: RobotSpec
    num_context: int
    action_horizon: int
    execution_horizon: int
    normalization: str
    tasks: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    preprocess: Preprocess = "exact"
    context_stride: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preprocess not in get_args(Preprocess):
            raise ValueError(f"expected preprocess among {get_args(Preprocess)}, got {self.preprocess!r}")
        check_least(self, "policy spec", 1, "num_context", "context_stride")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"policy spec: expected a positive image_size, got {self.image_size}")
        if not 1 <= self.execution_horizon <= self.action_horizon:
            raise ValueError(
                f"expected 1 <= execution_horizon <= action_horizon = {self.action_horizon}, "
                f"got {self.execution_horizon}"
            )

    @property
    def context_reach(self) -> int:
        """Control steps before the newest frame that a robot must also tell of: `context_stride` apart, so far back.

        0 where the frames of the policy's calls are all that it remembers.
        """
        return 0 if self.context_stride is None else (self.num_context - 1) * self.context_stride

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` inverts it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> PolicySpec:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value of another type or out of range; the message names it.
        """
        return read_fields(cls, data, "policy spec")


def require_match(
    wanted: RobotSpec, offered: RobotSpec, *, wanted_by: str, offered_by: str, in_order: bool = False
) -> None:
    """Compare two robot specs where they meet and refuse a mismatch.

    `offered` may have more cameras than `wanted`; every other field that changes what numbers or pixels mean must
    agree. Camera matrices are not compared.

    Args:
        wanted: the spec that the reader was built for (a policy).
        offered: the spec of what it is given (an environment or a dataset).
        wanted_by: name of the first side, for the message.
        offered_by: name of the second side, for the message.
        in_order: cameras must also come in the same order, as where frames may be taken by their place.

    Raises:
        SpecMismatch: listing every difference, both sides and what to do.
    """
    differences = []
    cameras = {camera.name: camera for camera in offered.cameras}
    for camera in wanted.cameras:
        other = cameras.get(camera.name)
        if other is None:
            differences.append(f"camera {camera.name!r} is wanted; offered are {list(cameras)}")
        elif (other.height, other.width) != (camera.height, camera.width):
            differences.append(
                f"camera {camera.name!r}: wanted {camera.height}x{camera.width} px, "
                f"offered {other.height}x{other.width} px"
            )
    shared = [name for name in cameras if name in wanted.camera_names]
    if in_order and sorted(shared) == sorted(wanted.camera_names) and tuple(shared) != wanted.camera_names:
        differences.append(f"order of cameras: wanted {list(wanted.camera_names)}, offered {list(cameras)}")
    for what, ours, theirs in (("state", wanted.state, offered.state), ("action", wanted.action, offered.action)):
        if len(ours) != len(theirs):
            differences.append(
                f"{what} width: wanted {len(ours)} {_names(ours)}, offered {len(theirs)} {_names(theirs)}"
            )
        else:
            differences += [
                f"{what} channel {index}: wanted {a}, offered {b}"
                for index, (a, b) in enumerate(zip(ours, theirs, strict=True))
                if a != b
            ]
    for key in ("action_kind", "gripper_channels", "gripper_sign", "control_hz", "rendering"):
        ours, theirs = getattr(wanted, key), getattr(offered, key)
        if ours != theirs:
            differences.append(f"{key}: wanted {ours!r}, offered {theirs!r}")
    if differences:
        listed = "\n  - ".join(differences)
        raise SpecMismatch(
            f"{wanted_by} and {offered_by} do not fit:\n  - {listed}\n"
            f"Use {offered_by} made with the same settings, or train a policy for it."
        )


def _names(channels: tuple[ChannelSpec, ...]) -> list[str]:
    return [channel.name for channel in channels]
