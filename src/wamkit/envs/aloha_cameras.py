"""The cameras of gym-aloha's scenes: all hang upright."""

from __future__ import annotations

from dataclasses import dataclass

from wamkit.envs import choices_error
from wamkit.envs.render import camera_intrinsics
from wamkit.spec import CameraSpec


@dataclass(frozen=True, kw_only=True)
class CameraInfo:
    """One camera.

    Args:
        fovy_degrees: vertical field of view.
        pose: camera to world (OpenCV axes, metres), first three rows; `None` where it moves with an arm.
    """

    fovy_degrees: float
    pose: tuple[tuple[float, ...], ...] | None = None


CAMERAS: dict[str, CameraInfo] = {
    "top": CameraInfo(fovy_degrees=78.0, pose=((1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.6), (0.0, 0.0, -1.0, 0.8))),
    "left_wrist": CameraInfo(fovy_degrees=20.0),
    "right_wrist": CameraInfo(fovy_degrees=20.0),
    "angle": CameraInfo(
        fovy_degrees=78.0,
        pose=((1.0, 0.0, 0.0, 0.0), (0.0, -0.707106781, 0.707106781, 0.0), (0.0, -0.707106781, -0.707106781, 0.6)),
    ),
    "front_close": CameraInfo(fovy_degrees=78.0),  # it turns after the left hand
    "left_pillar": CameraInfo(
        fovy_degrees=78.0,
        pose=(
            (0.624695048, -0.533929558, 0.569802882, -0.5),
            (-0.780868809, -0.427143646, 0.455842306, 0.2),
            (0.0, -0.729703729, -0.683763459, 0.6),
        ),
    ),
    "right_pillar": CameraInfo(
        fovy_degrees=78.0,
        pose=(
            (0.624695048, 0.533929558, -0.569802882, 0.5),
            (0.780868809, -0.427143646, 0.455842306, 0.2),
            (0.0, -0.729703729, -0.683763459, 0.6),
        ),
    ),
}


def require_cameras(names: tuple[str, ...]) -> None:
    """Check camera names.

    Raises:
        ValueError: none, a repeated or an unknown camera; the message lists the choices.
    """
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected distinct cameras, at least one, got {names}; choose among: {', '.join(CAMERAS)}")
    for name in names:
        if name not in CAMERAS:
            raise choices_error("ALOHA camera", name, tuple(CAMERAS))


def camera_spec(name: str, height: int, width: int) -> CameraSpec:
    """What a camera publishes: its picture's size and intrinsics, and its pose unless it moves."""
    info = CAMERAS[name]
    intrinsics = tuple(
        tuple(float(number) for number in row) for row in camera_intrinsics(info.fovy_degrees, height, width)
    )
    pose = None if info.pose is None else (*info.pose, (0.0, 0.0, 0.0, 1.0))
    return CameraSpec(name=name, height=height, width=width, intrinsics=intrinsics, pose=pose)
