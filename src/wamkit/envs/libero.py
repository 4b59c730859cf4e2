"""LIBERO: 130 tasks of a Franka arm on robosuite, from the stored initial states or from newly drawn ones.

A policy sees two pictures, the hand's pose and the two finger joints, never the pose of an object.

Source: Liu et al., "LIBERO", arXiv 2306.03310; packages `hf-libero` 0.1.4 and `robosuite` 1.4.0 (both MIT).
"""

from __future__ import annotations

import contextlib
import gc
import io
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from wamkit.envs import choices_error
from wamkit.envs.base import CameraMatrices, Contact, EpisodeRequest, StepOutcome
from wamkit.envs.libero_assets import LiberoFiles, explain_missing, find_files, import_package
from wamkit.envs.libero_tasks import sentence, suite_and_name
from wamkit.envs.render import (
    COARSE_CELL_M,
    RENDERING_NAMES,
    LoadedScene,
    OffscreenRenderer,
    Rendering,
    camera_matrices,
    find_contacts,
)
from wamkit.robots import LIBERO_CAMERAS, LIBERO_SIZE, libero_robot
from wamkit.rotations import axis_angle_of_quaternion
from wamkit.spec import RobotSpec

STEP_LIMIT = 1000
"""The simulator's own; protocols stop earlier."""
STORED = 0
"""The layout seed of the stored initial states; any other seed draws layouts from the task's own regions."""
CAMERAS = (*LIBERO_CAMERAS, "frontview", "galleryview", "birdview", "sideview")
NO_OP = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
_COLLISION_GROUP = 0  # geoms that robosuite keeps for contact and does not show
_OBJECT_CELL_M = 0.3
_SCENES_KEPT = 2
_MAX_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class LiberoFactory:
    """Makes a LIBERO simulator inside the process that will run it.

    Args:
        cameras: in view order.
        height: pixels.
        width: pixels.
        rendering: `low_cost` or `stock`, which gives the pixels of the package's own renderer; part of the observation.
        settle_steps: control steps without motion that every episode begins with, so that objects come to rest; they
            are not counted.

    Raises:
        ValueError: an unknown camera or rendering, a size that is not positive, or negative settle steps.
        ModuleNotFoundError: LIBERO is not installed (when the simulator is made).
        FileNotFoundError: its scene assets are missing (when the simulator is made).
    """

    cameras: tuple[str, ...] = LIBERO_CAMERAS
    height: int = LIBERO_SIZE
    width: int = LIBERO_SIZE
    rendering: Rendering = "low_cost"
    settle_steps: int = 10

    def __post_init__(self) -> None:
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise choices_error("LIBERO camera", camera, CAMERAS)
        if self.rendering not in RENDERING_NAMES:
            raise ValueError(f"expected rendering to be one of {list(RENDERING_NAMES)}, got {self.rendering!r}")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"expected a positive image size, got {self.height}x{self.width}")
        if self.settle_steps < 0:
            raise ValueError(f"expected settle_steps of 0 or more, got {self.settle_steps}")

    @property
    def robot(self) -> RobotSpec:
        """What the simulator will publish, known without starting it."""
        return libero_robot(self.height, self.width, self.cameras, RENDERING_NAMES[self.rendering])

    def __call__(self) -> LiberoSimulator:
        return LiberoSimulator(self)


def turn_picture(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """What LIBERO's datasets show of an upright picture: its mirror image.

    The package gives pictures with the bottom row first, and the published training data turn those by 180 degrees:
    upright again, but left and right are exchanged. The only place where a picture is turned.
    """
    return np.ascontiguousarray(image[:, ::-1])


def turn_matrices(matrices: CameraMatrices, width: int) -> CameraMatrices:
    """The matrices of the mirrored picture: pixel columns count from the other side."""
    mirror = np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return CameraMatrices(intrinsics=mirror @ matrices.intrinsics, pose=matrices.pose)


@dataclass(kw_only=True)
class LiberoScene:
    """One task's robosuite environment, its pictures, and what scripts need to know of it.

    Args:
        task: task id.
        env: robosuite's environment.
        loaded: GL resources.
        pads: geoms of the finger pads.
        fixtures: by body id, position and quaternion of each fixture before LIBERO moves it.
        states: stored initial states, read when first asked for.
    """

    task: str
    env: Any
    loaded: LoadedScene
    pads: frozenset[int]
    fixtures: dict[int, tuple[np.ndarray, np.ndarray]]
    states: Float64[np.ndarray, "n q"] | None = None

    @property
    def model(self) -> Any:
        """MuJoCo's model."""
        return self.env.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's data."""
        return self.env.sim.data._data


class LiberoSimulator:
    """One LIBERO robot; see `wamkit.envs.base.Simulator`. Make it with `LiberoFactory`."""

    def __init__(self, factory: LiberoFactory) -> None:
        self._files: LiberoFiles = find_files()
        self.robot = factory.robot
        self._factory = factory
        self._renderer = OffscreenRenderer(factory.height, factory.width, factory.rendering)
        with _quiet():
            self._package = import_package(self._files)  # after the GL backend is chosen: it imports mujoco
        self._scenes: OrderedDict[str, LiberoScene] = OrderedDict()
        self._scene: LiberoScene | None = None
        self._task, self._steps = "", 0
        self._script: Iterator[np.ndarray] | None = None

    @property
    def sentence(self) -> str:
        """The sentence of the current task; empty before the first reset."""
        return sentence(self._task) if self._task else ""

    def reset(self, request: EpisodeRequest) -> None:
        """Put the arm and the objects in place and let them come to rest.

        With `layout_seed` 0 layout n is the package's stored initial state n (0 to 49), on which policies are
        evaluated. Any other seed draws layout n anew from the regions that the task's file names; the package drew the
        stored ones in the same way.

        Raises:
            ValueError: an unknown task, or a stored layout that does not exist.
            FileNotFoundError: an asset of this task is missing.
        """
        scene = self._load(request.task)
        if request.layout_seed == STORED:
            self._restore(scene, request.layout)
        else:
            _draw(scene, np.random.SeedSequence((request.layout_seed, request.layout)))
        for _ in range(self._factory.settle_steps):
            scene.env.step(np.array(NO_OP))
        self._scene, self._task, self._steps, self._script = scene, request.task, 0, None

    def state(self) -> Float32[np.ndarray, "s"]:
        """Hand position (metres, world), its rotation as axis-angle (radians) and the two finger joints (metres)."""
        env = self._current().env
        robot, data = env.robots[0], env.sim.data
        w, x, y, z = data.get_body_xquat(robot.robot_model.eef_name)
        rotation = axis_angle_of_quaternion(np.array([x, y, z, w]))
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([data.site_xpos[robot.eef_site_id], rotation, fingers]).astype(np.float32)

    def action_bounds(self) -> Float32[np.ndarray, "2 a"]:
        """-1 and 1 in every channel."""
        return np.array([[-1.0], [1.0]], dtype=np.float32).repeat(len(self.robot.action), axis=1)

    def step(self, action: Float32[np.ndarray, "a"]) -> StepOutcome:
        """Move the hand by up to 5 cm and 0.5 rad per axis (action 1) and drive the gripper (positive closes).

        Values beyond [-1, 1] are clipped, as the controller does.

        Raises:
            ValueError: a malformed action, or a step past the limit of 1000.
        """
        scene = self._current()
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (len(self.robot.action),) or not np.isfinite(action).all():
            raise ValueError(
                f"expected {len(self.robot.action)} finite action numbers, got shape {action.shape}: {action}"
            )
        if self._steps >= STEP_LIMIT:
            raise ValueError(f"the episode ended at its limit of {STEP_LIMIT} steps; reset before stepping on")
        _, reward, success, _ = scene.env.step(np.clip(action, -1.0, 1.0).astype(np.float64))
        self._steps += 1
        return StepOutcome(
            reward=float(reward), success=bool(success), terminated=False, truncated=self._steps >= STEP_LIMIT
        )

    def render(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """One picture per camera, as the published datasets show them (see `turn_picture`)."""
        scene = self._current()
        self._renderer.make_current()
        return {name: turn_picture(scene.loaded.render(scene.data, name)) for name in self._factory.cameras}

    def geom_ids(self) -> dict[str, np.ndarray]:
        """The geom seen at each pixel of each camera's picture, int `[h, w]`, -1 where there is none."""
        scene = self._current()
        self._renderer.make_current()
        return {name: scene.loaded.geom_ids(scene.data, name)[:, ::-1] for name in self._factory.cameras}

    def camera_matrices(self) -> dict[str, CameraMatrices]:
        """Matrices of the pictures; the camera on the hand moves with it, so ask at every frame."""
        scene, factory = self._current(), self._factory
        return {
            name: turn_matrices(
                camera_matrices(scene.model, scene.data, name, factory.height, factory.width), factory.width
            )
            for name in factory.cameras
        }

    def contacts(self) -> list[Contact]:
        """Contacts of the finger pads."""
        scene = self._current()
        return find_contacts(scene.model, scene.data, scene.pads)

    def demonstrate_action(self) -> Float32[np.ndarray, "a"]:
        """What our scripted demonstrator, which sees the pose of every object, would do now.

        Raises:
            ValueError: there is no script for this task.
        """
        from wamkit.envs.libero_demonstrator import demonstrator

        scene = self._current()
        if self._script is None:
            self._script = demonstrator(scene.env)
        return next(self._script).astype(np.float32)

    def close(self) -> None:
        """Free scenes and the GL context; closing twice is fine."""
        for scene in self._scenes.values():
            scene.loaded.close()
            scene.env.close()
        self._scenes.clear()
        self._scene = None
        self._renderer.close()

    def _current(self) -> LiberoScene:
        if self._scene is None:
            raise ValueError("no episode: call reset first")
        return self._scene

    def _restore(self, scene: LiberoScene, layout: int) -> None:
        if scene.states is None:
            scene.states = self._files.initial_states(scene.task)
        if layout >= len(scene.states):
            raise ValueError(
                f"{scene.task} has the stored layouts 0 to {len(scene.states) - 1}, not {layout}; choose one of those, "
                "or draw layouts with another layout seed"
            )
        env, state = scene.env, scene.states[layout]
        _draw(scene, np.random.SeedSequence(0))  # places fixtures, which stored states do not hold
        expected = 1 + scene.model.nq + scene.model.nv
        if len(state) != expected:
            raise ValueError(
                f"{scene.task}: expected a stored state of {expected} numbers for this scene, got {len(state)}; the "
                "scene assets do not belong to the installed package"
            )
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        env._check_success()
        env._post_process()

    def _load(self, task: str) -> LiberoScene:
        suite_and_name(task)
        if task not in self._scenes:
            while len(self._scenes) >= _SCENES_KEPT:
                _, oldest = self._scenes.popitem(last=False)
                oldest.loaded.close()
                oldest.env.close()
                del oldest
                gc.collect()  # its parts hold each other, and the collector does not see how large they are
            self._scenes[task] = self._make(task)
        self._scenes.move_to_end(task)
        return self._scenes[task]

    def _make(self, task: str) -> LiberoScene:
        try:
            with _quiet():
                wrapper = self._package.env_wrapper.ControlEnv(
                    bddl_file_name=str(self._files.task_file(task)),
                    use_camera_obs=False,
                    has_offscreen_renderer=False,
                    initialization_noise="default",  # of the arm's joints; the stored states were drawn with it too
                    hard_reset=False,
                    horizon=STEP_LIMIT,
                    ignore_done=True,
                )
        except (FileNotFoundError, ValueError) as error:
            explained = explain_missing(error, task, self._files)
            if explained is None:
                raise
            raise explained from error
        env = wrapper.env
        env._observables = {}  # nobody reads them, and they cost five times the physics
        model = env.sim.model._model
        pads = {
            int(model.geom(name).id)
            for group, names in env.robots[0].gripper.important_geoms.items()
            if "fingerpad" in group
            for name in names
        }
        loaded = self._renderer.load(model, _coarse_meshes(model), hidden_groups=(_COLLISION_GROUP,))
        return LiberoScene(task=task, env=env, loaded=loaded, pads=frozenset(pads), fixtures=_fixtures(env))


def _draw(scene: LiberoScene, seed: np.random.SeedSequence) -> None:
    """Reset the environment with everything random drawn from a seed."""
    from robosuite.utils.errors import RandomizationError

    # Fixtures are moved in the model, and things on them are placed relative to where the model had them before.
    for body, (position, quaternion) in scene.fixtures.items():
        scene.model.body_pos[body], scene.model.body_quat[body] = position, quaternion
    scene.env.robots[0].gripper.current_action = np.zeros(scene.env.robots[0].gripper.dof)  # no reset of its own

    # The package draws from numpy's global generator and from no other; a process has one simulator.
    before = np.random.get_state()
    np.random.seed(seed.generate_state(4))
    try:
        for _ in range(_MAX_DRAWS):
            with contextlib.suppress(RandomizationError):  # objects that did not fit beside each other: draw again
                scene.env.reset()
                return
    finally:
        np.random.set_state(before)
    raise RuntimeError(f"LIBERO found no place for all objects in {_MAX_DRAWS} draws")


def _fixtures(env: Any) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Where the fixtures are in the scene's XML; the environment's constructor has moved them already."""
    places = {}
    for fixture in env.fixtures_dict.values():
        element = env.model.worldbody.find(f".//body[@name='{fixture.root_body}']")
        position, quaternion = element.get("pos", "0 0 0"), element.get("quat", "1 0 0 0")
        body = int(env.sim.model._model.body(fixture.root_body).id)
        places[body] = (np.array(position.split(), dtype=float), np.array(quaternion.split(), dtype=float))
    return places


def _coarse_meshes(model: Any) -> dict[int, float]:
    """How coarsely the low-cost rendering may draw each mesh.

    The scanned objects have up to 30,000 triangles on a few centimetres, most of the time of a picture. They are drawn
    finer than the arm, and the gripper as it is, since the camera on the hand sees them from near.
    """
    import mujoco

    cells: dict[int, float] = {}
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH):
        body = model.body(model.geom_bodyid[geom]).name
        if not body.startswith("gripper0_"):
            cells[int(model.geom_dataid[geom])] = (
                COARSE_CELL_M if body.startswith(("robot0_", "mount0_")) else _OBJECT_CELL_M
            )
    return cells


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's remarks on standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
