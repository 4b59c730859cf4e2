"""Rotations in the conventions of robots' data: quaternions are xyzw, axis-angle vectors have the angle as length."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def axis_angle_of_quaternion(quaternion: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 3"]:
    """Unit axis times angle (radians, 0 to 2 pi) of unit quaternions, xyzw.

    The angle is `2 acos(w)` without taking the shorter way round, as robosuite has it, so that states equal those of
    datasets recorded with it. The unit rotation gives zeros.

    Args:
        quaternion: x, y, z, w; w is clipped to [-1, 1].
    """
    w = np.clip(quaternion[..., 3:], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    is_still = sine < 1e-9
    return np.where(is_still, 0.0, quaternion[..., :3] * 2.0 * np.arccos(w) / np.where(is_still, 1.0, sine))
