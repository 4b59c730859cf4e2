"""One arm of gym-aloha in closed form: which joint angles hold its fingers at a point.

The forearm is never rolled, so the arm stays in a vertical plane through its base: two links and a hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

SIDES = ("left", "right")
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")

JOINT_LIMITS = (
    (-3.14158, 3.14158),
    (-1.85005, 1.25664),
    (-1.76278, 1.6057),
    (-3.14158, 3.14158),
    (-1.8675, 2.23402),
    (-3.14158, 3.14158),
)
"""Lowest and highest angle of each joint, radians."""

GRASP_M = 0.135
"""From the wrist's last joint to the point between the fingers that is brought to a target; their tips are 2 cm on."""


@dataclass(frozen=True, kw_only=True)
class Hand:
    """Where a hand is to be.

    Args:
        point: of the world, between the fingers, metres.
        pitch: how far the hand points down, radians; 0 is level.
        roll: about the direction in which the hand points, radians; at 0 the fingers close sideways.
        opening: 0 closed, 1 open.
    """

    point: tuple[float, float, float]
    pitch: float
    roll: float = 0.0
    opening: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Lengths (metres) and place of an arm.

    Args:
        shoulder: where the shoulder's axis crosses the waist's, world.
        yaw: direction in which the arm points at waist angle 0, radians.
        upper: from the shoulder to the elbow, along and up, at shoulder angle 0.
        forearm: from the elbow to the wrist.
        hand: from the wrist to the point between the fingers.
    """

    shoulder: tuple[float, float, float]
    yaw: float
    upper: tuple[float, float]
    forearm: float
    hand: float

    @classmethod
    def from_model(cls, model: Any, data: Any, side: str) -> Arm:
        """Read off a MuJoCo model.

        Args:
            model: of one of the package's scenes.
            data: in which positions were computed.
            side: `left` or `right`.
        """

        def offset(link: str) -> np.ndarray:
            return np.asarray(model.body(f"vx300s_{side}/{link}").pos)

        x, y, z = (float(number) for number in data.body(f"vx300s_{side}/upper_arm_link").xpos)
        forward = data.body(f"vx300s_{side}").xmat.reshape(3, 3)[:, 0]
        along, _, up = offset("upper_forearm_link")
        return cls(
            shoulder=(x, y, z),
            yaw=math.atan2(forward[1], forward[0]),
            upper=(float(along), float(up)),
            forearm=float(offset("lower_forearm_link")[0] + offset("wrist_link")[0]),
            hand=float(offset("gripper_link")[0]) + GRASP_M,
        )

    def joints(self, hand: Hand) -> Float64[np.ndarray, "6"]:
        """Joint angles, elbow up, that bring the hand there.

        Raises:
            ValueError: the place is out of reach.
        """
        x, y, z = (wanted - own for wanted, own in zip(hand.point, self.shoulder, strict=True))
        waist = math.remainder(math.atan2(y, x) - self.yaw, math.tau)
        along = math.hypot(x, y) - self.hand * math.cos(hand.pitch)
        up = z + self.hand * math.sin(hand.pitch)
        upper = math.hypot(*self.upper)
        distance = math.hypot(along, up)
        # Angles of the triangle shoulder, elbow, wrist; positive joint angles turn downwards.
        at_shoulder = (upper**2 + distance**2 - self.forearm**2) / (2 * upper * distance)
        at_elbow = (upper**2 + self.forearm**2 - distance**2) / (2 * upper * self.forearm)
        if abs(at_shoulder) > 1 or abs(at_elbow) > 1:
            raise ValueError(f"expected a place within the arm's reach, got {hand}, {distance:.3f} m from the shoulder")
        rest = math.atan2(self.upper[1], self.upper[0])
        shoulder = rest - (math.atan2(up, along) + math.acos(at_shoulder))
        elbow = (math.pi - rest) - math.acos(at_elbow)
        angles = np.array([waist, shoulder, elbow, 0.0, hand.pitch - shoulder - elbow, hand.roll])
        for name, angle, (lowest, highest) in zip(JOINTS, angles, JOINT_LIMITS, strict=True):
            if not lowest <= angle <= highest:
                raise ValueError(
                    f"expected a place within the arm's reach, got {hand}, which needs {name} at {angle:.2f} rad, "
                    f"beyond {lowest:.2f} to {highest:.2f}"
                )
        return angles
