"""Scripted demonstrators of LIBERO's tasks: ours, not the human demonstrations that the benchmark ships.

They read the pose of every object, so they can record demonstrations where nothing can be downloaded. A script goes on
until it is stopped, and tries again when an object slipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from wamkit.envs.libero_motion import CLOSE, OPEN, Arm, Motion, Point

APPROACH_M = 0.12
LIFT_M = 0.25


def demonstrator(env: object, goals: list[list[str]]) -> Iterator[np.ndarray]:
    """The script of a task whose goals are those of LIBERO's task file.

    Args:
        env: robosuite's environment, reset.
        goals: predicates with their arguments, for instance `["in", "milk_1", "basket_1_contain_region"]`.

    Raises:
        ValueError: there is no script for such a goal.
    """
    arm = Arm(env)
    for goal in goals:
        yield from _in_basket(arm, goal[1], goal[2].removesuffix("_contain_region"))
    while True:
        yield arm.action(arm.position, 0.0, OPEN)


def _in_basket(arm: Arm, name: str, basket: str) -> Motion:
    while not _is_within(arm, name, basket):
        yield from _pick(arm, name)
        if not arm.holds(name):
            continue
        yield from _drop(arm, name, basket)


def _pick(arm: Arm, name: str) -> Motion:
    box = arm.slice(name)
    above = np.array([*box.centre[:2], box.top + APPROACH_M])
    yield from arm.move(above, gripper=OPEN, yaw=box.yaw, tolerance=0.02)
    box = arm.slice(name)
    yield from arm.move(box.centre, gripper=OPEN, yaw=box.yaw, tolerance=0.008, max_steps=45)
    yield from arm.stay(8, gripper=CLOSE, yaw=box.yaw)
    yield from arm.move(arm.above(LIFT_M), gripper=CLOSE, yaw=box.yaw, tolerance=0.03, max_steps=25)


def _drop(arm: Arm, name: str, basket: str) -> Motion:
    points = arm.points(basket)
    rim = float(points[:, 2].max())
    middle = (points.min(axis=0) + points.max(axis=0))[:2] / 2

    def over(clearance: float) -> Callable[[], Point]:
        def target() -> Point:
            body = arm.points(name)
            hanging = arm.position[2] - float(body[:, 2].min())
            offset = arm.position[:2] - (body.min(axis=0) + body.max(axis=0))[:2] / 2
            return np.array([*(middle + offset), rim + clearance + hanging])

        return target

    yield from arm.move(over(0.06), gripper=CLOSE, tolerance=0.025, max_steps=70)
    yield from arm.move(over(-0.04), gripper=CLOSE, tolerance=0.02, max_steps=25)
    yield from arm.stay(6, gripper=OPEN)
    yield from arm.move(arm.above(0.15), gripper=OPEN, tolerance=0.03, max_steps=20)


def _is_within(arm: Arm, name: str, basket: str) -> bool:
    points, place = arm.points(basket), arm.body_position(name)
    low, high = points.min(axis=0), points.max(axis=0)
    return bool((place > low).all() and (place < high).all())
