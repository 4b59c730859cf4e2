"""The cameras of gym-aloha's scenes: all hang upright."""

from __future__ import annotations

from wamkit.envs.mujoco_simulator import CameraInfo

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
