"""Robots that WAV was published on, for policies whose weights come without a dataset; importing this loads no torch.

Source: the public LIBERO evaluation: `libero_object` and its sister suites; specification, sections 6.1 and 6.3.
"""

from __future__ import annotations

from wamkit.spec import CameraSpec, ChannelSpec, RobotSpec


def libero_robot() -> RobotSpec:
    """The Franka arm of LIBERO as the public code sees it: both pictures turned by 180°, the third person first.

    Actions are relative motions in the controller's range [-1, 1], the gripper's -1 opens.
    """
    axes = ("x", "y", "z")
    return RobotSpec(
        name="panda/libero",
        cameras=tuple(CameraSpec(name=name, height=256, width=256) for name in ("image", "wrist_image")),
        state=(
            *(ChannelSpec(name=f"hand_{axis}", unit="m", frame="world") for axis in axes),
            *(ChannelSpec(name=f"hand_r{axis}", unit="rad", frame="world", rotation="axis_angle") for axis in axes),
            *(ChannelSpec(name=f"finger_{side}", unit="m") for side in ("left", "right")),
        ),
        action=(
            *(ChannelSpec(name=f"d{axis}", frame="world") for axis in axes),
            *(ChannelSpec(name=f"dr{axis}", frame="world", rotation="axis_angle") for axis in axes),
            ChannelSpec(name="gripper"),
        ),
        action_kind="delta",
        gripper_channels=(6,),
        gripper_sign="close_positive",
        control_hz=20.0,
    )


ROBOTS = {"libero": libero_robot}
