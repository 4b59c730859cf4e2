"""Robots that simulators and published datasets share: one description, so that what was recorded fits what is run.

Source: LIBERO's environments and demonstrations; operational-space control of robosuite.
"""

from __future__ import annotations

from wamkit.spec import CameraSpec, ChannelSpec, RobotSpec

LIBERO = "panda/libero"
LIBERO_CAMERAS = ("agentview", "robot0_eye_in_hand")
LIBERO_SIZE = 128
"""Height and width in pixels of the published demonstrations."""
LIBERO_RENDERING = "mujoco-stock"
"""Of the published demonstrations."""


def libero_robot(
    height: int = LIBERO_SIZE,
    width: int = LIBERO_SIZE,
    cameras: tuple[str, ...] = LIBERO_CAMERAS,
    rendering: str = LIBERO_RENDERING,
) -> RobotSpec:
    """The Franka arm of LIBERO; pictures are upright, that is, turned by 180 degrees from how the simulator gives them.

    The state is the hand's position, its rotation as axis-angle and the two finger joints. Actions are motions within
    the controller's range of -1 to 1; the gripper's -1 opens, +1 closes.

    Args:
        height: of every camera, pixels.
        width: of every camera, pixels.
        cameras: their names, in view order.
        rendering: name of the rendering setting.

    Raises:
        ValueError: a size that is not positive, or a camera twice.
    """
    axes = ("x", "y", "z")
    return RobotSpec(
        name=LIBERO,
        cameras=tuple(CameraSpec(name=name, height=height, width=width) for name in cameras),
        state=(
            *(ChannelSpec(name=f"eef_{axis}", unit="m", frame="world") for axis in axes),
            *(ChannelSpec(name=f"eef_r{axis}", unit="rad", frame="world", rotation="axis_angle") for axis in axes),
            *(ChannelSpec(name=f"finger_{side}", unit="m") for side in ("left", "right")),
        ),
        action=(
            *(ChannelSpec(name=f"eef_d{axis}", frame="world") for axis in axes),
            *(ChannelSpec(name=f"eef_dr{axis}", frame="world", rotation="axis_angle") for axis in axes),
            ChannelSpec(name="gripper"),
        ),
        action_kind="delta",
        gripper_channels=(6,),
        gripper_sign="close_positive",
        control_hz=20.0,
        rendering=rendering,
    )
