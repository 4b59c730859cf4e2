"""What our scripted demonstrator does with the two arms of gym-aloha: waypoints for the hands, smoothly joined.

Every layout has its own waypoints, since the script sees where things lie. The package brings no demonstrator; this one
is ours, and its data are not the human demonstrations of ALOHA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from wamkit.envs.aloha_arm import JOINTS, SIDES, Arm, Hand

_OPEN, _CLOSED = 1.0, 0.0  # a cube of 4 cm stops closing fingers at 0.6; what is missing presses
_PITCH = math.radians(60)  # of a hand that takes something from the table
_CUBE_REST_M = 0.02

Script = Iterator[Float32[np.ndarray, "14"]]


class Hands:
    """Both arms, and what they were asked last.

    Args:
        model: of one of the package's scenes.
        data: of the scene at the start of an episode.
        action: 14 numbers that hold the arms where they are.
    """

    def __init__(self, model: Any, data: Any, action: np.ndarray) -> None:
        self._arms = {side: Arm.from_model(model, data, side) for side in SIDES}
        self._action = action.astype(np.float64)

    def move(self, steps: int, *, left: Hand | None = None, right: Hand | None = None) -> Script:
        """Actions that bring hands somewhere, starting and ending slowly; an arm that is not named stays.

        Args:
            steps: control steps.
            left: where the left hand goes.
            right: where the right hand goes.

        Raises:
            ValueError: out of reach.
        """
        start, end = self._action, self._action.copy()
        for number, (side, hand) in enumerate(zip(SIDES, (left, right), strict=True)):
            if hand is not None:
                first = number * (len(JOINTS) + 1)
                end[first : first + len(JOINTS) + 1] = *self._arms[side].joints(hand), hand.opening
        self._action = end
        for step in range(1, steps + 1):
            done = step / steps
            yield (start + (end - start) * done**2 * (3 - 2 * done)).astype(np.float32)

    def stay(self) -> Script:
        """The last action for ever."""
        while True:
            yield self._action.astype(np.float32)


def transfer_cube(model: Any, data: Any, action: np.ndarray) -> Script:
    """The right hand picks the cube and brings it to the middle, where the left takes it and the right lets go.

    Args:
        model: of the scene.
        data: of the scene, read whenever the script goes on.
        action: 14 numbers that hold the arms where they are.

    Raises:
        ValueError: the cube is out of reach.
    """
    hands = Hands(model, data, action)
    x, y, _ = data.body("box").xpos
    cube, meeting = (x, y, _CUBE_REST_M), (0.0, 0.5, 0.25)
    yield from hands.move(40, right=_hand((x, y, _CUBE_REST_M + 0.08)))
    yield from hands.move(25, right=_hand(cube))
    yield from hands.move(10)
    yield from hands.move(20, right=_hand(cube, opening=_CLOSED))
    # The left hand waits with its fingers one above the other, so that each hand finds its own faces of the cube.
    waiting = _hand((-0.12, 0.5, 0.25), pitch=0.0, roll=math.pi / 2)
    yield from hands.move(50, right=_hand(meeting, opening=_CLOSED), left=waiting)
    yield from hands.move(10)
    held = data.body("box").xpos.copy()
    # A cube that was lost is not followed.
    x, y, z = held if np.linalg.norm(held - meeting) < 0.05 else meeting
    taking = replace(waiting, point=(float(x) - 0.005, float(y), float(z)))
    yield from hands.move(30, left=taking)
    yield from hands.move(5)
    yield from hands.move(20, left=replace(taking, opening=_CLOSED))
    yield from hands.move(15, right=_hand(meeting))
    yield from hands.move(30, right=_hand((0.1, 0.5, 0.3)))
    yield from hands.stay()


def insertion(model: Any, data: Any, action: np.ndarray) -> Script:
    """The right hand picks the peg, the left the socket; they meet in the middle, and one goes into the other.

    Args:
        model: of the scene.
        data: of the scene, read whenever the script goes on.
        action: 14 numbers that hold the arms where they are.

    Raises:
        ValueError: the peg or the socket is out of reach.
    """
    hands = Hands(model, data, action)
    peg, socket = (data.body(name).xpos.copy() for name in ("peg", "socket"))
    peg[2], socket[2] = 0.02, 0.024  # as low as the fingers' tips can go above the table

    def both(left: np.ndarray, right: np.ndarray, opening: float) -> dict[str, Hand]:
        return {"left": _hand(tuple(left), opening=opening), "right": _hand(tuple(right), opening=opening)}

    above = np.array([0.0, 0.0, 0.08])
    yield from hands.move(45, **both(socket + above, peg + above, _OPEN))
    yield from hands.move(30, **both(socket, peg, _OPEN))
    yield from hands.move(10)
    yield from hands.move(20, **both(socket, peg, _CLOSED))
    left, right = np.array([-0.1, 0.5, 0.2]), np.array([0.1, 0.5, 0.2])
    yield from hands.move(50, **both(left, right, _CLOSED))
    yield from hands.move(10)
    # How the objects lie in the hands is seen only now.
    left += np.clip(np.array([-0.09, 0.5, 0.2]) - data.body("socket").xpos, -0.02, 0.02)
    right += np.clip(np.array([0.09, 0.5, 0.2]) - data.body("peg").xpos, -0.02, 0.02)
    yield from hands.move(20, **both(left, right, _CLOSED))
    yield from hands.move(10)
    inwards = np.array([0.05, 0.0, 0.0])
    yield from hands.move(35, **both(left + inwards, right - inwards, _CLOSED))
    yield from hands.stay()


SCRIPTS: dict[str, Callable[[Any, Any, np.ndarray], Script]] = {
    "transfer-cube": transfer_cube,
    "insertion": insertion,
}


def _hand(
    point: tuple[float, float, float], *, pitch: float = _PITCH, roll: float = 0.0, opening: float = _OPEN
) -> Hand:
    x, y, z = (float(number) for number in point)
    return Hand(point=(x, y, z), pitch=pitch, roll=roll, opening=opening)
