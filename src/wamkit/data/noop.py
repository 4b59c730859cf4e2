"""Which rows of a demonstration do something: the filter that the published LIBERO data went through. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Int

STILL: Final = 1e-4
"""Length of an action's motion below which it moves nothing."""


def kept_rows(actions: Float[np.ndarray, "t a"], *, gripper_channels: Sequence[int]) -> Int[np.ndarray, " kept"]:
    """Rows that do something: the robot moves, or a gripper's command differs from that of the last row *kept*.

    Of the first row only the motion counts, because nothing is known of the gripper before it.

    Args:
        actions: motions, of which zero is none (`delta` or `relative`), in the unit that the robot is driven in.
        gripper_channels: those that drive grippers, as `RobotSpec.gripper_channels`; all others are the motion.

    Raises:
        ValueError: a channel that the actions do not have.

    Source: WorldVLA 3.3 of the specification, step 1; `regenerate_libero_dataset` of the published `modified_libero`
        data.
    Differs: the published data were then replayed in the simulator, and only what was solved again was kept; here the
        rows that stay are as they were recorded.
    """
    width = actions.shape[1]
    wrong = [channel for channel in gripper_channels if not 0 <= channel < width]
    if wrong:
        raise ValueError(
            f"expected gripper channels from 0 to {width - 1} for actions of {width} channels, got {wrong}; give those "
            "of the robot that recorded the actions"
        )
    grippers = list(gripper_channels)
    motion = [channel for channel in range(width) if channel not in grippers]
    still = np.linalg.norm(actions[:, motion].astype(np.float64), axis=1) < STILL
    kept: list[int] = []
    for row, is_still in enumerate(still):
        if not is_still or (kept and (actions[row, grippers] != actions[kept[-1], grippers]).any()):
            kept.append(row)
    return np.array(kept, dtype=np.int64)
