"""The seven cameras of the Meta-World package: the same in all fifty scenes."""

from __future__ import annotations

from wamkit.envs.mujoco_simulator import CameraInfo

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
