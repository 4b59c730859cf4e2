"""The seven cameras of the Meta-World package: the same in all fifty scenes."""

from __future__ import annotations

from dataclasses import dataclass

from wamkit.envs import choices_error
from wamkit.envs.render import camera_intrinsics
from wamkit.spec import CameraSpec

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class CameraInfo:
    """One camera.

    Args:
        fovy_degrees: vertical field of view.
        pose: camera to world of the upright picture (OpenCV axes, metres), first three rows; `None` on the moving hand.
        is_upside_down: whether the package hangs it upside down, so that its pictures are turned.
    """

    fovy_degrees: float
    pose: Rows | None = None
    is_upside_down: bool = False


CAMERAS: dict[str, CameraInfo] = {
    "topview": CameraInfo(
        fovy_degrees=45.0,
        pose=((1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.5), (0.0, 0.0, -1.0, 1.5)),
    ),
    "corner": CameraInfo(
        fovy_degrees=45.0,
        pose=(
            (0.707106781, -0.192450090, 0.680413817, -1.1),
            (-0.707106781, -0.192450090, 0.680413817, -0.4),
            (0.0, -0.962250449, -0.272165527, 0.6),
        ),
        is_upside_down=True,
    ),
    "corner2": CameraInfo(
        fovy_degrees=60.0,
        pose=(
            (0.549901330, 0.376207741, -0.745705212, 1.3),
            (0.833182757, -0.309549142, 0.458242100, -0.2),
            (-0.058438184, -0.873296665, -0.483671287, 1.1),
        ),
        is_upside_down=True,
    ),
    "corner3": CameraInfo(
        fovy_degrees=45.0,
        pose=(
            (0.488472263, 0.760750476, -0.427379880, 0.9),
            (0.869002007, -0.379818318, 0.317133344, 0.0),
            (0.078932635, -0.526304816, -0.846624403, 1.5),
        ),
        is_upside_down=True,
    ),
    "corner4": CameraInfo(
        fovy_degrees=60.0,
        pose=(
            (0.549901330, 0.376207741, -0.745705212, 0.75),
            (0.833182757, -0.309549142, 0.458242100, 0.075),
            (-0.058438184, -0.873296665, -0.483671287, 0.7),
        ),
        is_upside_down=True,
    ),
    "behindGripper": CameraInfo(fovy_degrees=60.0),
    "gripperPOV": CameraInfo(fovy_degrees=90.0),
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
            raise choices_error("Meta-World camera", name, tuple(CAMERAS))


def camera_spec(name: str, height: int, width: int) -> CameraSpec:
    """What a camera publishes: its picture's size and intrinsics, and its pose unless it moves."""
    info = CAMERAS[name]
    intrinsics = tuple(
        tuple(float(number) for number in row) for row in camera_intrinsics(info.fovy_degrees, height, width)
    )
    pose = None if info.pose is None else (*info.pose, (0.0, 0.0, 0.0, 1.0))
    return CameraSpec(name=name, height=height, width=width, intrinsics=intrinsics, pose=pose)
