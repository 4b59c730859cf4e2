"""Motions of LIBERO's arm as generators of actions: each reads the privileged state anew before every action.

A script is a generator that strings motions together with `yield from`, so it reacts to where noise took the robot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

Action = Float[np.ndarray, "7"]
Point = Float[np.ndarray, "3"]
Motion = Iterator[np.ndarray]

OPEN, CLOSE = -1.0, 1.0
METRES_PER_ACTION = 0.05
RADIANS_PER_ACTION = 0.5
MAX_GRASP_M = 0.074
_REACH_M = 0.035  # from the fingertips to what would meet the palm
_SPACING_M = 0.04  # of the points that stand for a box
_CLEAR_M = 0.1  # around an object, for the hand
_FAR_M = 0.08  # world x beyond which the arm reaches the table poorly
_RIM_M = 0.005  # inwards from the outermost point of a rim
_RIM_DEPTH_M = 0.024
_HAND_HALF_WIDTH_M = 0.115
_HAND_HALF_DEPTH_M = 0.045
_GAIN = 1.2  # the controller reaches only part of a commanded displacement within a step
_TURN_GAIN = 0.8


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """Where and how the hand takes hold of an object.

    Args:
        point: where the fingertips should meet, world, metres.
        yaw: turn of the hand about the vertical, radians.
        top: highest point of the object, metres.
    """

    point: Point
    yaw: float
    top: float


class Arm:
    """The arm and the bodies around it, as a script sees them.

    Args:
        env: robosuite's environment.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.model, self.data = env.sim.model._model, env.sim.data._data
        robot = env.robots[0]
        self._site = int(robot.eef_site_id)
        self._hand = int(self.model.body(robot.robot_model.eef_name).id)
        self._fingers = list(robot._ref_gripper_joint_pos_indexes)
        self._pads = [
            frozenset(int(self.model.geom(name).id) for name in robot.gripper.important_geoms[f"{side}_finger"])
            for side in ("left", "right")
        ]

    @property
    def position(self) -> Point:
        """Where the fingertips meet, world, metres."""
        return self.data.site_xpos[self._site].copy()

    def above(self, metres: float) -> Point:
        """The point straight above where the fingertips meet."""
        return self.position + np.array([0.0, 0.0, metres])

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """The hand's axes as columns, world: y is where the fingers close, z where they point."""
        return self.data.xmat[self._hand].reshape(3, 3).copy()

    @property
    def yaw(self) -> float:
        """Turn of the hand about the vertical, radians."""
        return math.atan2(float(self.axes[1, 0]), float(self.axes[0, 0]))

    @property
    def opening(self) -> float:
        """Distance between the fingers, metres."""
        return float(np.abs(self.data.qpos[self._fingers]).sum())

    def body_position(self, name: str) -> Point:
        """Position of an object or fixture by LIBERO's name, world, metres."""
        return self.data.xpos[self.env.obj_body_id[name]].copy()

    def site_position(self, name: str) -> Point:
        """Position of a site, world, metres."""
        return self.data.site(name).xpos.copy()

    def joint(self, name: str) -> tuple[Point, Point, float]:
        """A joint's anchor (world, metres), its axis (world) and its position (metres or radians)."""
        joint = self.data.joint(name)
        return joint.xanchor.copy(), joint.xaxis.copy(), float(joint.qpos[0])

    def joint_names(self, name: str) -> list[str]:
        """MuJoCo's names of the joints that move a site or an object."""
        things = self.env.object_sites_dict if name in self.env.object_sites_dict else self.env.fixtures_dict
        return list(things[name].joints)

    def body_of(self, joint: str) -> str:
        """MuJoCo's name of the body that a joint moves."""
        return str(self.model.body(int(self.model.joint(joint).bodyid[0])).name)

    def foremost(self, joint: str, direction: Point) -> Point:
        """Middle of the geom that lies farthest in a direction, of the body that a joint moves: a drawer's handle."""
        body = int(self.model.joint(joint).bodyid[0])
        geoms = [geom for geom in range(self.model.ngeom) if int(self.model.geom_bodyid[geom]) == body]
        solid = [geom for geom in geoms if self.model.geom_contype[geom]]
        return self.data.geom_xpos[max(solid, key=lambda geom: float(self.data.geom_xpos[geom] @ direction))].copy()

    def is_reached(self, goal: Sequence[str]) -> bool:
        """Whether a goal of the task file holds now."""
        return bool(self.env._eval_predicate(list(goal)))

    def points(self, name: str) -> Float[np.ndarray, "n 3"]:
        """Points on the surface of an object's visible geoms, world, metres."""
        return body_points(self.model, self.data, self.env.obj_body_id[name])

    def holds(self, name: str) -> bool:
        """Whether both fingers touch an object."""
        body = self.env.obj_body_id[name]
        members = _with_descendants(self.model, body)
        touched = [False, False]
        for contact in self.data.contact[: self.data.ncon]:
            for finger, other in ((contact.geom1, contact.geom2), (contact.geom2, contact.geom1)):
                if int(self.model.geom_bodyid[other]) in members:
                    touched = [done or int(finger) in pads for done, pads in zip(touched, self._pads, strict=True)]
        return all(touched)

    def grasp(self, name: str) -> Grasp:
        """How to take hold of an object from above: by its narrowest side, or by the rim when it is too wide.

        Among the turns of the hand, those come first for which the hand, which is wider than its fingers reach, meets
        no neighbour.

        Args:
            name: of the object.
        """
        points = self.points(name)
        height = self._grasp_height(points)
        return _best_grasp(points, height, self._neighbours(name, height + 0.01))

    def handle(self, body: str, *, above: float = -math.inf) -> Grasp:
        """How to take hold of a part of a fixture from above, without regard to neighbours.

        Args:
            body: MuJoCo's name of the part's body.
            above: only what lies higher counts, world z, metres.
        """
        points = body_points(self.model, self.data, self.model.body(body).id)
        points = points[points[:, 2] > above]
        return _best_grasp(points, self._grasp_height(points), np.empty((0, 3)))

    def _grasp_height(self, points: Float[np.ndarray, "n 3"]) -> float:
        return float(max(points[:, 2].max() - _REACH_M, points[:, 2].min() + 0.012))

    def aside(self, name: str, region: str, reach: float = 0.16) -> Point | None:
        """Where an object can wait while a drawer opens; `None` when it is not in the way.

        Args:
            name: of the object.
            region: the drawer's.
            reach: how far the drawer comes out, metres.
        """
        joint = self.joint_names(region)[0]
        drawer = body_points(self.model, self.data, int(self.model.joint(joint).bodyid[0]))
        outwards = -self.joint(joint)[1]
        swept = np.concatenate([drawer + step * outwards for step in np.linspace(0.0, reach, 5)])[:, :2]
        here = self.body_position(name)
        if np.linalg.norm(swept - here[:2], axis=1).min() > _CLEAR_M:
            return None
        taken = np.concatenate([swept, self._neighbours(name, -math.inf)[:, :2]])
        low = float(self.points(name)[:, 2].min())
        grid = np.arange(-0.3, 0.31, 0.04)
        free = [
            np.array([here[0] + x, here[1] + y])
            for x in grid
            for y in grid
            if here[0] + x < _FAR_M and np.linalg.norm(taken - [here[0] + x, here[1] + y], axis=1).min() > _CLEAR_M
        ]
        if not free:
            return None
        nearest = min(free, key=lambda place: float(np.linalg.norm(place - here[:2])))
        return np.array([*nearest, low])

    def _neighbours(self, name: str, height: float) -> Float[np.ndarray, "n 3"]:
        names = [*(thing.name for thing in self.env.objects), *self.env.fixtures_dict]
        clouds = [self.points(other) for other in names if other != name]
        points = np.concatenate([np.empty((0, 3)), *clouds])
        return points[points[:, 2] > height]

    def action(self, target: Point, yaw: float, gripper: float, limit: float = 1.0, tilt: float = 0.0) -> Action:
        """The action that moves towards a target with the fingers pointing down.

        Args:
            target: where the fingertips should meet, world, metres.
            yaw: turn about the vertical, radians; 0 closes the fingers along the world's y axis.
            gripper: `OPEN` or `CLOSE`.
            limit: largest displacement per axis, as an action.
            tilt: turn about the hand's own x axis first, radians.
        """
        move = np.clip(_GAIN * (target - self.position) / METRES_PER_ACTION, -limit, limit)
        turn = rotation_vector(pointing_down(yaw, tilt) @ self.axes.T)
        return np.concatenate([move, np.clip(_TURN_GAIN * turn / RADIANS_PER_ACTION, -1, 1), [gripper]])

    def move(
        self,
        target: Point | Callable[[], Point],
        *,
        gripper: float,
        yaw: float = 0.0,
        tolerance: float = 0.012,
        max_steps: int = 60,
        limit: float = 1.0,
        tilt: float = 0.0,
    ) -> Motion:
        """Go to a target, read anew at every step when it is a function, until it is near or the steps are over."""
        for _ in range(max_steps):
            goal = target() if callable(target) else target
            is_turned = np.linalg.norm(rotation_vector(pointing_down(yaw, tilt) @ self.axes.T)) < 0.15
            if np.linalg.norm(goal - self.position) < tolerance and is_turned:
                return
            yield self.action(goal, yaw, gripper, limit, tilt)

    def close(self, *, yaw: float = 0.0, tilt: float = 0.0, max_steps: int = 20) -> Motion:
        """Close the fingers, with the hand where it is, until they stop."""
        place, before = self.position, math.inf
        for step in range(max_steps):
            if step > 5 and before - self.opening < 0.0005:
                return
            before = self.opening
            yield self.action(place, yaw, CLOSE, tilt=tilt)

    def stay(self, steps: int, *, gripper: float, yaw: float = 0.0, tilt: float = 0.0) -> Motion:
        """Hold the hand where it is while the fingers move."""
        place = self.position
        for _ in range(steps):
            yield self.action(place, yaw, gripper, tilt=tilt)


def pointing_down(yaw: float, tilt: float = 0.0) -> Float[np.ndarray, "3 3"]:
    """Axes of a hand whose fingers point down: x along the world's x, y against its y, z down; then turned.

    Args:
        yaw: about the vertical, radians.
        tilt: about the hand's own x axis, radians; at yaw 0, pi/2 points the fingers along the world's y axis, and
            they close up and down.
    """
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0.0], [math.sin(yaw), math.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    lean = np.array([[1.0, 0.0, 0.0], [0.0, math.cos(tilt), -math.sin(tilt)], [0.0, math.sin(tilt), math.cos(tilt)]])
    return turn @ np.diag([1.0, -1.0, -1.0]) @ lean


def rotation_vector(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Unit axis times angle (radians, at most pi) of a rotation matrix."""
    angle = math.acos(float(np.clip((np.trace(matrix) - 1) / 2, -1.0, 1.0)))
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    length = float(np.linalg.norm(axis))
    return np.zeros(3) if length < 1e-9 else axis / length * angle


def body_points(model: Any, data: Any, body: int) -> Float[np.ndarray, "n 3"]:
    """Points of the geoms of a body and of the bodies fixed to it: mesh vertices, a grid in the box of anything else.

    Collision geoms are what counts in a grasp; a body without any gives its visible ones.

    Args:
        model: MuJoCo's model.
        data: MuJoCo's data.
        body: id.
    """
    import mujoco

    members = _with_descendants(model, body)
    geoms = [geom for geom in range(model.ngeom) if int(model.geom_bodyid[geom]) in members]
    solid = [geom for geom in geoms if model.geom_contype[geom] or model.geom_conaffinity[geom]]
    clouds = []
    for geom in solid or geoms:
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = int(model.geom_dataid[geom])
            start, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
            local = model.mesh_vert[start : start + count].astype(np.float64)
        else:
            half = _half_sizes(model, geom)
            steps = [np.linspace(-size, size, 2 + int(2 * size / _SPACING_M)) for size in half]
            local = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
        clouds.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    return np.concatenate(clouds)


def _best_grasp(points: Float[np.ndarray, "n 3"], height: float, neighbours: Float[np.ndarray, "k 3"]) -> Grasp:
    top = float(points[:, 2].max())
    near = points[np.abs(points[:, 2] - height) <= 0.015]
    near = near if len(near) >= 3 else points
    rim = points[points[:, 2] > top - 0.012]

    def candidates() -> Iterator[tuple[float, Grasp]]:
        for degrees in range(-80, 100, 10):  # a hand turned by 180 degrees is the same hand
            yaw = math.radians(degrees)
            turn = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
            low, high = ((near[:, :2] @ turn.T).min(axis=0), (near[:, :2] @ turn.T).max(axis=0))
            width = float(high[1] - low[1])
            # A turn must be worth it: round objects are grasped as the hand comes.
            if width <= MAX_GRASP_M:
                places = [(np.array([*((low + high) / 2 @ turn), height]), width + 0.01 * abs(yaw))]
            else:
                low, high = ((rim[:, :2] @ turn.T).min(axis=0), (rim[:, :2] @ turn.T).max(axis=0))
                middle = (low[0] + high[0]) / 2
                sides = [np.array([middle, low[1] + _RIM_M]), np.array([middle, high[1] - _RIM_M])]
                places = [(np.array([*(side @ turn), top - _RIM_DEPTH_M]), 0.1 + 0.01 * abs(yaw)) for side in sides]
            for place, cost in places:
                offset = np.abs((neighbours[:, :2] - place[:2]) @ turn.T)
                is_hit = (offset[:, 1] < _HAND_HALF_WIDTH_M) & (offset[:, 0] < _HAND_HALF_DEPTH_M)
                yield cost + 0.03 * bool(is_hit.any()), Grasp(point=place, yaw=yaw, top=top)

    return min(candidates(), key=lambda candidate: candidate[0])[1]


def _with_descendants(model: Any, body: int) -> set[int]:
    members = {body}
    for child in range(body + 1, model.nbody):
        if int(model.body_parentid[child]) in members:
            members.add(child)
    return members


def _half_sizes(model: Any, geom: int) -> Float[np.ndarray, "3"]:
    import mujoco

    size = model.geom_size[geom].astype(np.float64)
    kind = model.geom_type[geom]
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return np.full(3, size[0])
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        return np.array([size[0], size[0], size[1]])
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return np.array([size[0], size[0], size[0] + size[1]])
    return size
