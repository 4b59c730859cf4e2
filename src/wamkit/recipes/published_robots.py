"""Robots that WAV was published on, for policies whose weights come without a dataset; importing this loads no torch.

Source: the public LIBERO evaluation: `libero_object` and its sister suites; specification, sections 6.1 and 6.3.
"""

from __future__ import annotations

from wamkit.robots import libero_robot as at_any_size
from wamkit.spec import RobotSpec


def libero_robot() -> RobotSpec:
    """The Franka arm of LIBERO as the public code sees it: 256 px, the third person first."""
    return at_any_size(256, 256)


ROBOTS = {"libero": libero_robot}

PUBLISHED_CAMERAS = {"libero": {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}}
"""What published LeRobot datasets of a robot call its cameras -> what the robot calls them.

Source: `physical-intelligence/libero`, whose pictures and numbers are as `libero_robot` has them.
"""
