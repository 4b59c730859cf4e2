"""LIBERO: 130 tasks of a Franka arm on robosuite, from the stored initial states or from newly drawn ones.

A policy sees two pictures, the hand's pose and the two finger joints, never the pose of an object.

Source: Liu et al., "LIBERO", arXiv 2306.03310; packages `hf-libero` 0.1.4 and `robosuite` 1.4.0 (both MIT).
"""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Float64

from wamkit.envs.base import CameraMatrices, EpisodeRequest, StepOutcome
from wamkit.envs.libero_assets import LiberoFiles, explain_missing, find_files, import_package
from wamkit.envs.libero_tasks import sentence, suite_and_name
from wamkit.envs.mujoco_simulator import MujocoFactory, MujocoScene, MujocoSimulator
from wamkit.envs.render import COARSE_CELL_M, RENDERING_NAMES, LoadedScene
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
_MAX_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class LiberoFactory(MujocoFactory):
    """Makes a LIBERO simulator; see `MujocoFactory`. Its stock look gives the pixels of the package's own renderer.

    Args:
        settle_steps: control steps without motion that every episode begins with, so that objects come to rest; they
            are not counted.

    Raises:
        ValueError: as `MujocoFactory`, or negative settle steps.
        ModuleNotFoundError: LIBERO is not installed (when the simulator is made).
        FileNotFoundError: its scene assets are missing (when the simulator is made).
    """

    suite: ClassVar[str] = "LIBERO"
    known_cameras: ClassVar[tuple[str, ...]] = CAMERAS

    cameras: tuple[str, ...] = LIBERO_CAMERAS
    height: int = LIBERO_SIZE
    width: int = LIBERO_SIZE
    settle_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.settle_steps < 0:
            raise ValueError(f"expected settle_steps of 0 or more, got {self.settle_steps}")

    @property
    def robot(self) -> RobotSpec:
        """What the simulator will publish, known without starting it."""
        return libero_robot(self.height, self.width, self.cameras, RENDERING_NAMES[self.rendering])

    def __call__(self) -> LiberoSimulator:
        return LiberoSimulator(self)


@dataclass(kw_only=True)
class LiberoScene(MujocoScene):
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

    def free(self) -> None:
        """Close the environment."""
        self.env.close()
        del self.env
        gc.collect()  # its parts hold each other, and the collector does not see how large they are


class LiberoSimulator(MujocoSimulator[LiberoScene]):
    """One LIBERO robot; see `wamkit.envs.base.Simulator`. Make it with `LiberoFactory`."""

    step_limit: ClassVar[int] = STEP_LIMIT
    scenes_kept: ClassVar[int] = 2

    def __init__(self, factory: LiberoFactory) -> None:
        self._files: LiberoFiles = find_files()
        super().__init__(factory)
        self._settle_steps = factory.settle_steps
        with _quiet():
            self._package = import_package(self._files)  # after the GL backend is chosen: it imports mujoco
        self._script: Iterator[np.ndarray] | None = None

    def _sentence(self, task: str) -> str:
        return sentence(task)

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
        for _ in range(self._settle_steps):
            scene.env.step(np.array(NO_OP))
        self._begin(scene, request.task)
        self._script = None

    def state(self) -> Float32[np.ndarray, "s"]:
        """Hand position (metres, world), its rotation as axis-angle (radians) and the two finger joints (metres)."""
        env = self._current().env
        robot, data = env.robots[0], env.sim.data
        w, x, y, z = data.get_body_xquat(robot.robot_model.eef_name)
        rotation = axis_angle_of_quaternion(np.array([x, y, z, w]))
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([data.site_xpos[robot.eef_site_id], rotation, fingers]).astype(np.float32)

    def step(self, action: Float32[np.ndarray, "a"]) -> StepOutcome:
        """Move the hand by up to 5 cm and 0.5 rad per axis (action 1) and drive the gripper (positive closes).

        Values beyond [-1, 1] are clipped, as the controller does.

        Raises:
            ValueError: a malformed action, or a step past the limit of 1000.
        """
        action = self._count_step(action)
        scene = self._current()
        _, reward, success, _ = scene.env.step(np.clip(action, -1.0, 1.0).astype(np.float64))
        return StepOutcome(reward=float(reward), success=bool(success), terminated=False, truncated=self._is_over)

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

    def _turned(self, image: np.ndarray, camera: str) -> np.ndarray:
        """What LIBERO's datasets show of an upright picture: its mirror image.

        The package gives pictures with the bottom row first, and the published training data turn those by 180 degrees:
        upright again, but left and right are exchanged.
        """
        return np.ascontiguousarray(image[:, ::-1])

    def _turned_matrices(self, matrices: CameraMatrices, camera: str) -> CameraMatrices:
        """Pixel columns count from the other side."""
        mirror = np.array([[-1.0, 0.0, self._factory.width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        return CameraMatrices(intrinsics=mirror @ matrices.intrinsics, pose=matrices.pose)

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

    def _make(self, task: str) -> LiberoScene:
        suite_and_name(task)
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
