"""Scripted demonstrators of LIBERO's tasks: ours, not the human demonstrations that the benchmark ships.

They read the pose of every object, so they can record demonstrations where nothing can be downloaded. There is one
script for each kind of goal in the task files; a script goes on until its goal is reached, and tries again when an
object slipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wamkit.envs.libero_assets import find_files
from wamkit.envs.libero_motion import CLOSE, OPEN, Arm, Motion, Point

APPROACH_M = 0.12
LIFT_M = 0.25
_HANDLE_TILT = math.radians(65)
Goal = Sequence[str]


def demonstrator(env: Any) -> Motion:
    """The script of the task that an environment runs: its goals one after the other, then rest.

    Args:
        env: robosuite's environment, reset.

    Raises:
        ValueError: there is no script for one of its goals (`unscripted`).
    """
    goals = _ordered(env.parsed_problem["goal_state"])
    missing = unscripted(goals)
    if missing:
        raise ValueError(f"there is no scripted demonstrator for {missing}; record another task")
    return _run(Arm(env), goals)


def unscripted(goals: Sequence[Goal]) -> list[str]:
    """Those goals of a task file that no script reaches, as text."""
    return [" ".join(goal) for goal in goals if _script(goal) is None]


def unscripted_tasks(tasks: Sequence[str]) -> dict[str, str]:
    """Those of some LIBERO tasks that have no script, each with the goals that none reaches.

    Raises:
        ValueError: an unknown task.
        ModuleNotFoundError: LIBERO is not installed.
        FileNotFoundError: its scene assets are missing.
    """
    files = find_files()
    missing = {task: ", ".join(unscripted(files.goals(task))) for task in tasks}
    return {task: goals for task, goals in missing.items() if goals}


def _run(arm: Arm, goals: Sequence[Goal]) -> Motion:
    for goal in goals:
        script = _script(goal)
        assert script is not None
        while not arm.is_reached(goal):
            yield from script(arm, *goal[1:])
        yield from arm.stay(3, gripper=OPEN)
        yield from arm.move(arm.above(0.12), gripper=OPEN, tolerance=0.03, max_steps=20)
    while True:
        yield from arm.stay(10, gripper=OPEN)


def _script(goal: Goal) -> Callable[..., Motion] | None:
    kind, *things = goal
    if kind == "in" and things[1].endswith("_contain_region") and things[1].startswith("basket"):
        return _put_in_basket
    if kind == "in" and _is_drawer(things[1]):
        return _put_in_drawer
    if kind == "on":
        return _drag if things[0].startswith("plate") else _put_on
    if kind == "open" and _is_drawer(things[0]):
        return _open_drawer
    return _turn_knob if kind == "turnon" and things[0].startswith("flat_stove") else None


def _is_drawer(region: str) -> bool:
    return "cabinet" in region and region.endswith(("top_region", "middle_region", "bottom_region"))


def _ordered(goals: Sequence[Goal]) -> list[Goal]:
    """What must come first, first: a drawer is opened before something goes into it."""
    return sorted(goals, key=lambda goal: ("turnon", "open", "in", "on").index(goal[0]) if _script(goal) else 9)


def _put_in_basket(arm: Arm, name: str, region: str) -> Motion:
    yield from _pick(arm, name)
    if arm.holds(name):
        points = arm.points(region.removesuffix("_contain_region"))
        middle, rim = (points.min(axis=0) + points.max(axis=0)) / 2, float(points[:, 2].max())
        yield from _place(arm, name, np.array([*middle[:2], rim]), above=0.06, release=-0.04)


def _put_on(arm: Arm, name: str, support: str) -> Motion:
    yield from _pick(arm, name)
    if arm.holds(name):
        if support in arm.env.objects_dict:
            points = arm.points(support)
            middle, top = (points.min(axis=0) + points.max(axis=0)) / 2, float(points[:, 2].max())
            place = np.array([*middle[:2], top])
        else:
            place = arm.site_position(support)
        yield from _place(arm, name, place, above=0.08, release=0.005)


def _put_in_drawer(arm: Arm, name: str, region: str) -> Motion:
    if arm.joint(arm.joint_names(region)[0])[2] > -0.14:
        aside = arm.aside(name, region)
        if aside is not None:
            yield from _pick(arm, name)
            yield from _place(arm, name, aside, above=0.06, release=0.005)
        yield from _open_drawer(arm, region)
        return
    yield from _pick(arm, name)
    if arm.holds(name):
        yield from _place(arm, name, arm.site_position(region), above=0.12, release=0.03)


def _pick(arm: Arm, name: str) -> Motion:
    grasp = arm.grasp(name)
    above = np.array([*grasp.point[:2], grasp.top + APPROACH_M])
    yield from arm.move(above, gripper=OPEN, yaw=grasp.yaw, tolerance=0.02)
    offset = grasp.point - arm.body_position(name)
    yield from arm.move(
        lambda: arm.body_position(name) + offset, gripper=OPEN, yaw=grasp.yaw, tolerance=0.008, max_steps=45
    )
    yield from arm.close(yaw=grasp.yaw)
    yield from arm.move(arm.above(LIFT_M), gripper=CLOSE, yaw=grasp.yaw, tolerance=0.03, max_steps=25)


def _place(arm: Arm, name: str, place: Point, *, above: float, release: float) -> Motion:
    """Carry what the hand holds over a place, lower it, and let go.

    Args:
        arm: holding the object.
        name: of the object.
        place: world, metres.
        above: clearance under the object while it is carried, metres above the place.
        release: the same when it is let go.
    """

    def over(clearance: float) -> Callable[[], Point]:
        def target() -> Point:
            body = arm.points(name)
            offset = arm.position - (body.min(axis=0) + body.max(axis=0)) / 2
            hanging = arm.position[2] - float(body[:, 2].min())
            return np.array([*(place[:2] + offset[:2]), place[2] + clearance + hanging])

        return target

    yaw = arm.yaw
    yield from arm.move(over(above), gripper=CLOSE, yaw=yaw, tolerance=0.025, max_steps=70)
    yield from arm.move(over(release), gripper=CLOSE, yaw=yaw, tolerance=0.012, max_steps=30)
    yield from arm.stay(6, gripper=OPEN, yaw=yaw)
    yield from arm.move(arm.above(0.15), gripper=OPEN, yaw=yaw, tolerance=0.03, max_steps=20)


def _open_drawer(arm: Arm, region: str) -> Motion:
    """Take the drawer's handle from the front, with the fingers above and below it, and pull."""
    joint = arm.joint_names(region)[0]
    outwards = -arm.joint(joint)[1]  # drawers open towards negative positions
    yaw, tilt = math.atan2(-outwards[0], outwards[1]), -_HANDLE_TILT
    handle = arm.foremost(joint, outwards)
    ready = handle + 0.14 * outwards
    yield from arm.move(np.array([*ready[:2], ready[2] + 0.1]), gripper=OPEN, tolerance=0.03, yaw=yaw, tilt=tilt)
    yield from arm.move(ready, gripper=OPEN, tolerance=0.02, yaw=yaw, tilt=tilt)
    yield from arm.move(handle, gripper=OPEN, tolerance=0.01, max_steps=40, yaw=yaw, tilt=tilt)
    yield from arm.close(yaw=yaw, tilt=tilt)
    for _ in range(40):
        if arm.joint(joint)[2] < -0.15:
            break
        yield arm.action(arm.position + 0.03 * outwards, yaw, CLOSE, tilt=tilt)
    yield from arm.stay(6, gripper=OPEN, yaw=yaw, tilt=tilt)
    yield from arm.move(arm.position + 0.08 * outwards, gripper=OPEN, tolerance=0.03, max_steps=20, yaw=yaw, tilt=tilt)
    yield from arm.move(arm.above(0.2), gripper=OPEN, tolerance=0.05, max_steps=30)


def _turn_knob(arm: Arm, stove: str) -> Motion:
    """Take the knob from above and turn the hand with it."""
    joint = arm.joint_names(stove)[0]
    body = arm.body_of(joint)
    grasp = arm.handle(body, above=arm.body_position(stove)[2] + 0.02)
    above = np.array([*grasp.point[:2], grasp.top + APPROACH_M])
    yield from arm.move(above, gripper=OPEN, yaw=grasp.yaw, tolerance=0.02)
    yield from arm.move(grasp.point, gripper=OPEN, yaw=grasp.yaw, tolerance=0.008, max_steps=45)
    yield from arm.close(yaw=grasp.yaw)
    for step in range(40):
        yield arm.action(grasp.point, grasp.yaw + min(1.0, 0.05 * step), CLOSE)
    yield from arm.stay(6, gripper=OPEN, yaw=arm.yaw)
    yield from arm.move(arm.above(0.15), gripper=OPEN, yaw=arm.yaw, tolerance=0.03, max_steps=20)


def _drag(arm: Arm, name: str, region: str) -> Motion:
    """Drag a plate over the table: closed fingers inside it take its rim along."""
    goal = arm.site_position(region)
    points = arm.points(name)
    radius, low = float(np.ptp(points[:, 0])) / 2, float(points[:, 2].min())

    def inside(ahead: float, height: float) -> Point:
        centre = arm.body_position(name)
        way = (goal - centre)[:2]
        return np.array([*(centre[:2] + ahead * way / max(float(np.linalg.norm(way)), 0.01)), low + height])

    yield from arm.move(lambda: inside(0.0, APPROACH_M), gripper=CLOSE, tolerance=0.02)
    yield from arm.move(lambda: inside(0.2 * radius, 0.018), gripper=CLOSE, tolerance=0.008, max_steps=40)
    for _ in range(120):
        if np.linalg.norm((goal - arm.body_position(name))[:2]) < 0.015:
            break
        yield arm.action(inside(radius, 0.016), 0.0, CLOSE, limit=0.5)
    yield from arm.move(arm.above(0.15), gripper=CLOSE, tolerance=0.03, max_steps=20)
