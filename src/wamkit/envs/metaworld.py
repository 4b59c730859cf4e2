"""Meta-World 3: fifty manipulation tasks of a Sawyer arm on MuJoCo, with scripted demonstrators.

A policy sees images, the hand's position and the gripper's opening: the first four of the package's 39 numbers, never
object or goal coordinates.

Source: Yu et al., "Meta-World", arXiv 1910.10897; package `metaworld` 3 (MIT).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from wamkit.envs.base import CameraMatrices, Contact, EpisodeRequest, StepOutcome
from wamkit.envs.metaworld_cameras import CAMERAS, camera_spec, require_cameras
from wamkit.envs.metaworld_tasks import GOAL_SITES, task_info
from wamkit.envs.render import (
    COARSE_CELL_M,
    RENDERING_NAMES,
    LoadedScene,
    OffscreenRenderer,
    Rendering,
    camera_matrices,
    find_contacts,
)
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
_SCENES_KEPT = 4  # models with their GL resources that a worker keeps, so that alternating tasks need no rebuild


@dataclass(frozen=True, kw_only=True)
class MetaWorldFactory:
    """Makes a Meta-World simulator inside the process that will run it.

    Args:
        cameras: the package's cameras, in view order.
        height: pixels.
        width: pixels.
        rendering: `low_cost` or `stock` (ten times slower on a CPU); part of the observation.

    Raises:
        ValueError: an unknown camera or rendering, or a size that is not positive.
    """

    cameras: tuple[str, ...] = DEFAULT_CAMERAS
    height: int = 64
    width: int = 64
    rendering: Rendering = "low_cost"

    def __post_init__(self) -> None:
        require_cameras(self.cameras)
        if self.rendering not in RENDERING_NAMES:
            raise ValueError(f"expected rendering to be one of {list(RENDERING_NAMES)}, got {self.rendering!r}")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"expected a positive image size, got {self.height}x{self.width}")

    @property
    def robot(self) -> RobotSpec:
        """What the simulator will publish, known without starting it."""
        return RobotSpec(
            name="sawyer/metaworld",
            cameras=tuple(camera_spec(name, self.height, self.width) for name in self.cameras),
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


def turn_upright(image: UInt8[np.ndarray, "h w 3"], camera: str) -> UInt8[np.ndarray, "h w 3"]:
    """Turn the picture of a camera that hangs upside down by 180 degrees. The only place where a picture is turned."""
    return np.ascontiguousarray(image[::-1, ::-1]) if CAMERAS[camera].is_upside_down else image


def turn_matrices_upright(matrices: CameraMatrices, camera: str) -> CameraMatrices:
    """The matrices of the turned picture.

    Turning a picture by 180 degrees about its centre is the same as rolling the camera by 180 degrees about its viewing
    axis, so intrinsics stay and the camera's x and y axes change sign.
    """
    if not CAMERAS[camera].is_upside_down:
        return matrices
    return CameraMatrices(intrinsics=matrices.intrinsics, pose=matrices.pose @ np.diag([-1.0, -1.0, 1.0, 1.0]))


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


@dataclass
class _Scene:
    env: Any
    loaded: LoadedScene
    pads: frozenset[int]


class MetaWorldSimulator:
    """One Meta-World robot; see `wamkit.envs.base.Simulator`. Make it with `MetaWorldFactory`."""

    def __init__(self, factory: MetaWorldFactory) -> None:
        self.robot = factory.robot
        self._factory = factory
        self._renderer = OffscreenRenderer(factory.height, factory.width, factory.rendering)
        import metaworld  # after the GL backend is chosen: it imports mujoco
        from metaworld.policies import ENV_POLICY_MAP

        # The demonstrators' gains are meant to saturate, and say so at every step.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", category=UserWarning)
        self._metaworld = metaworld
        self._demonstrators: dict[str, Any] = dict(ENV_POLICY_MAP)
        self._layouts: dict[tuple[str, int], list[Any]] = {}
        self._scenes: OrderedDict[str, _Scene] = OrderedDict()
        self._scene: _Scene | None = None
        self._task, self._steps = "", 0

    @property
    def sentence(self) -> str:
        """The sentence of the current task; empty before the first reset."""
        return task_info(self._task).sentence if self._task else ""

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
        self._metaworld.sawyer_xyz_env.mujoco.mj_forward(scene.env.model, scene.env.data)
        self._scene, self._task, self._steps = scene, request.task, 0
        self._demonstrator = self._demonstrators[request.task]()

    def state(self) -> Float32[np.ndarray, "s"]:
        """Hand position (metres, world) and gripper opening (0 closed, 1 open)."""
        self._current()
        return self._full_observation[: len(_STATE)].astype(np.float32)

    def action_bounds(self) -> Float32[np.ndarray, "2 a"]:
        """-1 and 1 in every channel."""
        return np.array([[-1.0], [1.0]], dtype=np.float32).repeat(len(_ACTION), axis=1)

    def step(self, action: Float32[np.ndarray, "a"]) -> StepOutcome:
        """Move the hand by up to 1 cm per axis (action 1) and drive the gripper (positive closes).

        Values beyond [-1, 1] are clipped, as the package does.

        Raises:
            ValueError: a malformed action, or a step past the limit of 500.
        """
        env = self._current().env
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (len(_ACTION),) or not np.isfinite(action).all():
            raise ValueError(f"expected {len(_ACTION)} finite action numbers, got shape {action.shape}: {action}")
        if self._steps >= STEP_LIMIT:
            raise ValueError(f"the episode ended at its limit of {STEP_LIMIT} steps; reset before stepping on")
        self._full_observation, reward, terminated, truncated, info = env.step(np.clip(action, -1.0, 1.0))
        self._steps += 1
        return StepOutcome(
            reward=float(reward),
            success=bool(info["success"]),
            terminated=bool(terminated),
            truncated=bool(truncated) or self._steps >= STEP_LIMIT,
        )

    def render(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """One upright image per camera."""
        scene = self._current()
        self._renderer.make_current()
        return {name: turn_upright(scene.loaded.render(scene.env.data, name), name) for name in self._factory.cameras}

    def geom_ids(self) -> dict[str, np.ndarray]:
        """The geom seen at each pixel of each camera's upright image, int `[h, w]`, -1 where there is none."""
        scene = self._current()
        self._renderer.make_current()
        ids = {name: scene.loaded.geom_ids(scene.env.data, name) for name in self._factory.cameras}
        return {name: image[::-1, ::-1] if CAMERAS[name].is_upside_down else image for name, image in ids.items()}

    def camera_matrices(self) -> dict[str, CameraMatrices]:
        """Matrices of the upright images; cameras on the arm move with it, so ask at every frame."""
        env, factory = self._current().env, self._factory
        return {
            name: turn_matrices_upright(camera_matrices(env.model, env.data, name, factory.height, factory.width), name)
            for name in factory.cameras
        }

    def contacts(self) -> list[Contact]:
        """Contacts of the finger pads."""
        scene = self._current()
        return find_contacts(scene.env.model, scene.env.data, scene.pads)

    def demonstrate_action(self) -> Float32[np.ndarray, "a"]:
        """What the package's scripted demonstrator, which sees object and goal coordinates, would do now."""
        self._current()
        return np.clip(self._demonstrator.get_action(self._full_observation), -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        """Free scenes and the GL context; closing twice is fine."""
        for scene in self._scenes.values():
            scene.loaded.close()
            scene.env.close()
        self._scenes.clear()
        self._scene = None
        self._renderer.close()

    def _current(self) -> _Scene:
        if self._scene is None:
            raise ValueError("no episode: call reset first")
        return self._scene

    def _layout(self, request: EpisodeRequest) -> Any:
        seed = request.layout_seed + request.layout // LAYOUTS_PER_SEED
        key = (request.task, seed)
        if key not in self._layouts:
            self._layouts[key] = draw_layouts(request.task, seed)
        return self._layouts[key][request.layout % LAYOUTS_PER_SEED]

    def _load(self, task: str) -> _Scene:
        if task not in self._scenes:
            while len(self._scenes) >= _SCENES_KEPT:
                _, oldest = self._scenes.popitem(last=False)
                oldest.loaded.close()
                oldest.env.close()
            env = self._metaworld.ALL_V3_ENVIRONMENTS[task]()
            env.max_path_length = STEP_LIMIT
            _hide_markers(env.model, shown=task_info(task).shown)
            pads = frozenset(int(env.model.geom(name).id) for name in ("leftpad_geom", "rightpad_geom"))
            loaded = self._renderer.load(env.model, dict.fromkeys(_robot_meshes(env.model), COARSE_CELL_M))
            self._scenes[task] = _Scene(env=env, loaded=loaded, pads=pads)
        self._scenes.move_to_end(task)
        return self._scenes[task]


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
