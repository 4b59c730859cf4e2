"""Shared robots: what a dataset of published demonstrations says is what the simulator must offer."""

from __future__ import annotations

import pytest

from wamkit.robots import libero_robot
from wamkit.spec import RobotSpec, SpecMismatch, require_match


def test_libero_has_the_published_channels() -> None:
    robot = libero_robot()
    assert [camera.name for camera in robot.cameras] == ["agentview", "robot0_eye_in_hand"]
    assert (robot.cameras[0].height, robot.cameras[0].width) == (128, 128)
    assert [channel.name for channel in robot.state] == [
        "eef_x",
        "eef_y",
        "eef_z",
        "eef_rx",
        "eef_ry",
        "eef_rz",
        "finger_left",
        "finger_right",
    ]
    assert [channel.name for channel in robot.action] == [
        "eef_dx",
        "eef_dy",
        "eef_dz",
        "eef_drx",
        "eef_dry",
        "eef_drz",
        "gripper",
    ]
    assert (robot.control_hz, robot.gripper_channels, robot.gripper_sign) == (20.0, (6,), "close_positive")
    assert RobotSpec.from_dict(robot.to_dict()) == robot


def test_another_size_does_not_fit() -> None:
    with pytest.raises(SpecMismatch, match="wanted 256x256 px, offered 128x128 px"):
        require_match(libero_robot(256, 256), libero_robot(), wanted_by="policy", offered_by="dataset")
