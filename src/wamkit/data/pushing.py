"""A square that is pushed over a lattice into the corner that the sentence names, for learning tests.

Nothing in it is left to chance: the picture and the sentence say which action is right, and picture and action what
comes next. So a model that learned it makes no mistake, unlike with `synthetic`, whose demonstrator is noisy.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from wamkit.data.synthetic import synthetic_robot
from wamkit.episode import Episode
from wamkit.spec import RobotSpec

SIDE, STEP = 64, 8
PLACES = (SIDE - 2 * STEP) // STEP + 1
CORNERS = {"upper left": (0, 0), "upper right": (0, PLACES - 1), "lower left": (PLACES - 1, 0)}
CORNERS["lower right"] = (PLACES - 1, PLACES - 1)
ROBOT: RobotSpec = synthetic_robot(height=SIDE, width=SIDE, cameras=("front",))


def picture(row: int, column: int, is_held: bool) -> np.ndarray:
    """The table with the square, uint8 `[h, w, 3]`."""
    frame = np.full((SIDE, SIDE, 3), 120, dtype=np.uint8)
    frame[::STEP] = 100  # lines, so that every place looks like itself
    top, left = row * STEP, column * STEP
    frame[top : top + 2 * STEP, left : left + 2 * STEP] = (40, 200, 60) if is_held else (220, 40, 40)
    return frame


def demonstration(start: tuple[int, int], corner: str, *, rest: int = 6) -> Episode:
    """From a place to a corner, rows first, one place a step; then `rest` steps with the gripper closed."""
    place, goal = np.array(start), np.array(CORNERS[corner])
    is_held = False
    video, states, actions = [], [], []
    resting = 0
    while resting < rest:
        video.append(picture(int(place[0]), int(place[1]), is_held))
        states.append([place[1] / PLACES, place[0] / PLACES, float(is_held)])
        move = np.zeros(2, dtype=int)
        axis = 0 if place[0] != goal[0] else 1
        move[axis] = np.sign(goal[axis] - place[axis])
        arrived = not move.any()
        actions.append([move[1], move[0], 1.0 if arrived else -1.0])
        place, is_held, resting = place + move, arrived, resting + int(arrived)
    rows = len(actions)
    return Episode(
        actions=np.array(actions, dtype=np.float32),
        state=np.array(states, dtype=np.float32),
        video={"front": np.stack(video)},
        reward=np.zeros(rows, dtype=np.float32),
        success=np.arange(rows) >= rows - rest,
        task=f"push the square to the {corner} corner",
        metadata={"corner": corner},
    )


def pushing_episodes(every: int = 1) -> list[Episode]:
    """Demonstrations to every corner.

    Args:
        every: from every such start, counted along the diagonals.
    """
    starts = [place for place in product(range(PLACES), range(PLACES)) if sum(place) % every == 0]
    return [demonstration(start, corner) for corner in CORNERS for start in starts]
