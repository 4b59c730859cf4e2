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
