"""Meta-World 3: fifty manipulation tasks of a Sawyer arm on MuJoCo, with scripted demonstrators.

A policy sees images, the hand's position and the gripper's opening: the first four of the package's 39 numbers, never
object or goal coordinates.

Source: Yu et al., "Meta-World", arXiv 1910.10897; package `metaworld` 3 (MIT).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from wamkit.envs.base import CameraMatrices, EpisodeRequest, StepOutcome
from wamkit.envs.metaworld_cameras import CAMERAS
from wamkit.envs.metaworld_tasks import GOAL_SITES, task_info
from wamkit.envs.mujoco_simulator import MujocoFactory, MujocoScene, MujocoSimulator
from wamkit.envs.render import COARSE_CELL_M, RENDERING_NAMES, LoadedScene
from wamkit.spec import ChannelSpec, RobotSpec

CONTROL_HZ = 80.0
STEP_LIMIT = 500
LAYOUTS_PER_SEED = 50  # the package draws this many layouts for one benchmark seed
DEFAULT_CAMERAS = ("corner2", "gripperPOV")

_STATE = (
    ChannelSpec(name="hand_x", unit="m", frame="world"),
    ChannelSpec(name="hand_y", unit="m", frame="world"),
    ChannelSpec(name="hand_z", unit="m", frame="world"),
    ChannelSpec(name="gripper_opening", unit="1"),
)
_ACTION = (
    ChannelSpec(name="hand_dx", unit="1", frame="world"),
    ChannelSpec(name="hand_dy", unit="1", frame="world"),
    ChannelSpec(name="hand_dz", unit="1", frame="world"),
    ChannelSpec(name="gripper", unit="1"),
)


@dataclass(frozen=True, kw_only=True)
class MetaWorldFactory(MujocoFactory):
    """Makes a Meta-World simulator; see `MujocoFactory`."""

    suite: ClassVar[str] = "Meta-World"
    known_cameras: ClassVar[tuple[str, ...]] = tuple(CAMERAS)

    cameras: tuple[str, ...] = DEFAULT_CAMERAS

    @property
    def robot(self) -> RobotSpec:
        """What the simulator will publish, known without starting it."""
        return RobotSpec(
            name="sawyer/metaworld",
            cameras=self.camera_specs(CAMERAS),
            state=_STATE,
            action=_ACTION,
            action_kind="delta",
            gripper_channels=(3,),
            gripper_sign="close_positive",
            control_hz=CONTROL_HZ,
            rendering=RENDERING_NAMES[self.rendering],
        )

    def __call__(self) -> MetaWorldSimulator:
        return MetaWorldSimulator(self)


def draw_layouts(task: str, seed: int) -> list[Any]:
    """The 50 layouts of the package's benchmark object `MT1(task, seed=seed)`.

    The package draws them by resetting a scene 50 times. Where things go does not depend on the physics of moving the
    hand to its start, which is most of that time, so it is left out meanwhile.
    """
    import metaworld
    import mujoco

    scene: Any = metaworld.ALL_V3_ENVIRONMENTS[task]
    assert "do_simulation" not in vars(scene)
    scene.do_simulation = lambda self, ctrl, n_frames: mujoco.mj_kinematics(self.model, self.data)
    try:
        return metaworld.MT1(task, seed=seed).train_tasks
    finally:
        del scene.do_simulation


@dataclass(kw_only=True)
class _Scene(MujocoScene):
    env: Any
    loaded: LoadedScene
    pads: frozenset[int]

    @property
    def model(self) -> Any:
        return self.env.model

    @property
    def data(self) -> Any:
        return self.env.data

    def free(self) -> None:
        self.env.close()


class MetaWorldSimulator(MujocoSimulator[_Scene]):
    """One Meta-World robot; see `wamkit.envs.base.Simulator`. Make it with `MetaWorldFactory`.

    Its demonstrators are the package's scripts, which see object and goal coordinates.
    """

    step_limit: ClassVar[int] = STEP_LIMIT
    scenes_kept: ClassVar[int] = 4

    def __init__(self, factory: MetaWorldFactory) -> None:
        super().__init__(factory)
        import metaworld  # after the GL backend is chosen: it imports mujoco
        from metaworld.policies import ENV_POLICY_MAP

        # The demonstrators' gains are meant to saturate, and say so at every step.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", category=UserWarning)
        self._metaworld = metaworld
        self._demonstrators: dict[str, Any] = dict(ENV_POLICY_MAP)
        self._layouts: dict[tuple[str, int], list[Any]] = {}

    def _sentence(self, task: str) -> str:
        return task_info(task).sentence

    def reset(self, request: EpisodeRequest) -> None:
        """Put the robot and the objects of a layout in place.

        Layout n of a layout seed is number `n % 50` of the benchmark object with seed `layout_seed + n // 50`. The
        package's own `reset(seed=…)` is not repeatable and is never used.

        Raises:
            ValueError: an unknown task.
        """
        task_info(request.task)
        scene = self._load(request.task)
        scene.env.set_task(self._layout(request))
        self._full_observation, _ = scene.env.reset()
        # The package moves bodies and markers in the model after its last forward pass; the picture reads the data.
        self._metaworld.sawyer_xyz_env.mujoco.mj_forward(scene.model, scene.data)
        self._begin(scene, request.task)
        self._demonstrator = self._demonstrators[request.task]()

    def state(self) -> Float32[np.ndarray, "s"]:
        """Hand position (metres, world) and gripper opening (0 closed, 1 open)."""
        self._current()
        return self._full_observation[: len(_STATE)].astype(np.float32)

    def step(self, action: Float32[np.ndarray, "a"]) -> StepOutcome:
        """Move the hand by up to 1 cm per axis (action 1) and drive the gripper (positive closes).

        Values beyond [-1, 1] are clipped, as the package does.

        Raises:
            ValueError: a malformed action, or a step past the limit of 500.
        """
        action = self._count_step(action)
        outcome = self._current().env.step(np.clip(action, -1.0, 1.0))
        self._full_observation, reward, terminated, truncated, info = outcome
        return StepOutcome(
            reward=float(reward),
            success=bool(info["success"]),
            terminated=bool(terminated),
            truncated=bool(truncated) or self._is_over,
        )

    def demonstrate_action(self) -> Float32[np.ndarray, "a"]:
        """What the package's scripted demonstrator would do now."""
        self._current()
        return np.clip(self._demonstrator.get_action(self._full_observation), -1.0, 1.0).astype(np.float32)

    def _turned(self, image: np.ndarray, camera: str) -> np.ndarray:
        return np.ascontiguousarray(image[::-1, ::-1]) if CAMERAS[camera].is_upside_down else image

    def _turned_matrices(self, matrices: CameraMatrices, camera: str) -> CameraMatrices:
        """To turn a picture by 180 degrees about its centre is to roll the camera as far about its viewing axis.

        So intrinsics stay, and the camera's x and y axes change sign.
        """
        if not CAMERAS[camera].is_upside_down:
            return matrices
        return CameraMatrices(intrinsics=matrices.intrinsics, pose=matrices.pose @ np.diag([-1.0, -1.0, 1.0, 1.0]))

    def _layout(self, request: EpisodeRequest) -> Any:
        seed = request.layout_seed + request.layout // LAYOUTS_PER_SEED
        key = (request.task, seed)
        if key not in self._layouts:
            self._layouts[key] = draw_layouts(request.task, seed)
        return self._layouts[key][request.layout % LAYOUTS_PER_SEED]

    def _make(self, task: str) -> _Scene:
        env = self._metaworld.ALL_V3_ENVIRONMENTS[task]()
        env.max_path_length = STEP_LIMIT
        _hide_markers(env.model, shown=task_info(task).shown)
        pads = frozenset(int(env.model.geom(name).id) for name in ("leftpad_geom", "rightpad_geom"))
        loaded = self._renderer.load(env.model, dict.fromkeys(_robot_meshes(env.model), COARSE_CELL_M))
        return _Scene(env=env, loaded=loaded, pads=pads)


def _robot_meshes(model: Any) -> list[int]:
    """Meshes of the arm and its pedestal: two thirds of a scene's triangles, and far away in every camera."""
    import mujoco

    base = model.body("base").id
    is_robot = model.body_rootid[model.geom_bodyid] == base
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    return sorted({int(mesh) for mesh in model.geom_dataid[is_robot & is_mesh]})


def _hide_markers(model: Any, shown: tuple[str, ...]) -> None:
    for index in range(model.nsite):
        name = model.site(index).name
        if name in GOAL_SITES and name not in shown:
            model.site_rgba[index, 3] = 0.0
