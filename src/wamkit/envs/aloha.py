"""gym-aloha: two ViperX arms over a table on MuJoCo, each with a camera at its wrist.

A policy sees images and the arms' own joints, never where objects are. Physics, scenes, start layouts and rewards are
the package's; pictures and demonstrators are ours.

Source: Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", arXiv 2304.13705; package
`gym-aloha` (Apache-2.0) on `dm_control`.
"""

from __future__ import annotations

import atexit
import importlib.util
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from wamkit.envs.aloha_arm import JOINT_LIMITS, JOINTS, SIDES
from wamkit.envs.aloha_cameras import camera_spec, require_cameras
from wamkit.envs.aloha_demonstrator import SCRIPTS, Script
from wamkit.envs.aloha_tasks import task_info
from wamkit.envs.base import CameraMatrices, Contact, EpisodeRequest, StepOutcome
from wamkit.envs.render import (
    RENDERING_NAMES,
    LoadedScene,
    OffscreenRenderer,
    Rendering,
    camera_matrices,
    find_contacts,
)
from wamkit.spec import ChannelSpec, RobotSpec

CONTROL_HZ = 50.0
STEP_LIMIT = 400
"""Of the original project and of LeRobot's evaluations; the package registers its environments with 300."""
SOLVED_REWARD = 4.0
DEFAULT_CAMERAS = ("top", "left_wrist", "right_wrist")

_CHANNELS = tuple(
    ChannelSpec(name=f"{side}_{joint}", unit="1" if joint == "gripper" else "rad")
    for side in SIDES
    for joint in (*JOINTS, "gripper")
)
_GRIPPERS = tuple(index for index, channel in enumerate(_CHANNELS) if channel.name.endswith("gripper"))
_INSTALL = "pip install 'wamkit[aloha]', or pip install gym-aloha==0.1.5 mujoco==3.3.0"


@dataclass(frozen=True, kw_only=True)
class AlohaFactory:
    """Makes a gym-aloha simulator inside the process that will run it.

    Args:
        cameras: the package's cameras, in view order.
        height: pixels.
        width: pixels.
        rendering: `low_cost` or `stock` (ten times slower on a CPU); part of the observation.

    Raises:
        ValueError: an unknown camera or rendering, or a size that is not positive.
        ModuleNotFoundError: the package is not installed (when the simulator is made).
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
            name="two vx300s/gym-aloha",
            cameras=tuple(camera_spec(name, self.height, self.width) for name in self.cameras),
            state=_CHANNELS,
            action=_CHANNELS,
            action_kind="absolute",
            gripper_channels=_GRIPPERS,
            gripper_sign="open_positive",
            control_hz=CONTROL_HZ,
            rendering=RENDERING_NAMES[self.rendering],
        )

    def __call__(self) -> AlohaSimulator:
        return AlohaSimulator(self)


def package_seed(request: EpisodeRequest) -> int:
    """The seed with which the package draws a request's layout; families of layouts share none."""
    return int(np.random.SeedSequence((request.layout_seed, request.layout)).generate_state(1)[0])


def _close(renderer: weakref.ref[OffscreenRenderer]) -> None:
    if (alive := renderer()) is not None:
        alive.close()


@dataclass(frozen=True, kw_only=True)
class _Scene:
    physics: Any
    task: Any
    loaded: LoadedScene
    pads: frozenset[int]

    @property
    def model(self) -> Any:
        return self.physics.model.ptr

    @property
    def data(self) -> Any:
        return self.physics.data.ptr


class AlohaSimulator:
    """Two arms of gym-aloha; see `wamkit.envs.base.Simulator`. Make it with `AlohaFactory`."""

    def __init__(self, factory: AlohaFactory) -> None:
        missing = [name for name in ("dm_control", "gym_aloha") if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(f"the suite aloha needs {', '.join(missing)}, not installed here: {_INSTALL}")
        self.robot = factory.robot
        self._factory = factory
        self._renderer = OffscreenRenderer(factory.height, factory.width, factory.rendering)
        # After the GL backend is chosen: dm_control loads one when it is imported.
        import dm_control.mujoco
        import gym_aloha.constants
        import gym_aloha.tasks.sim
        import gym_aloha.utils

        # dm_control ends EGL when Python exits, and a context that nobody closed must be freed before that.
        atexit.register(_close, weakref.ref(self._renderer))
        self._make_physics, self._package = dm_control.mujoco.Physics.from_xml_path, gym_aloha
        self._scenes: dict[str, _Scene] = {}
        self._scene: _Scene | None = None
        self._script: Script | None = None
        self._task, self._steps = "", 0

    @property
    def sentence(self) -> str:
        """The sentence of the current task; empty before the first reset."""
        return task_info(self._task).sentence if self._task else ""

    def reset(self, request: EpisodeRequest) -> None:
        """Put the arms at their start and the objects where the package draws them for the layout's seed.

        Raises:
            ValueError: an unknown task.
        """
        info = task_info(request.task)
        scene = self._load(request.task)
        drawn = getattr(self._package.utils, info.sampler)(package_seed(request))
        self._package.tasks.sim.BOX_POSE[0] = np.hstack(drawn)  # where the package's tasks read it
        scene.task.initialize_episode(scene.physics)
        self._scene, self._task, self._steps, self._script = scene, request.task, 0, None

    def state(self) -> Float32[np.ndarray, "s"]:
        """Of each arm, left first, six joint angles (radians) and how far the gripper is open (0 closed, 1 open)."""
        scene = self._current()
        return scene.task.get_qpos(scene.physics).astype(np.float32)

    def action_bounds(self) -> Float32[np.ndarray, "2 a"]:
        """The joints' limits in radians, and 0 to 1 for grippers."""
        arm = np.array([*JOINT_LIMITS, (0.0, 1.0)], dtype=np.float32).T
        return np.concatenate([arm, arm], axis=1)

    def step(self, action: Float32[np.ndarray, "a"]) -> StepOutcome:
        """Drive the joints towards the angles of the action, and grippers towards their openings, for 20 ms.

        Angles beyond a joint's limits count as its limit. Solving the task does not end the episode.

        Raises:
            ValueError: a malformed action, or a step past the limit of 400.
        """
        scene = self._current()
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (len(_CHANNELS),) or not np.isfinite(action).all():
            raise ValueError(f"expected {len(_CHANNELS)} finite action numbers, got shape {action.shape}: {action}")
        if self._steps >= STEP_LIMIT:
            raise ValueError(f"the episode ended at its limit of {STEP_LIMIT} steps; reset before stepping on")
        # The package's environment renders three pictures of 640x480 at every step, so its parts are used instead.
        scene.task.before_step(action.astype(np.float64), scene.physics)
        scene.physics.step(round(1 / CONTROL_HZ / scene.physics.timestep()))
        self._steps += 1
        reward = float(scene.task.get_reward(scene.physics))
        return StepOutcome(
            reward=reward, success=reward == SOLVED_REWARD, terminated=False, truncated=self._steps >= STEP_LIMIT
        )

    def render(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """One upright image per camera."""
        scene = self._current()
        self._renderer.make_current()
        return {name: scene.loaded.render(scene.data, name) for name in self._factory.cameras}

    def geom_ids(self) -> dict[str, np.ndarray]:
        """The geom seen at each pixel of each camera's image, int `[h, w]`, -1 where there is none."""
        scene = self._current()
        self._renderer.make_current()
        return {name: scene.loaded.geom_ids(scene.data, name) for name in self._factory.cameras}

    def camera_matrices(self) -> dict[str, CameraMatrices]:
        """Matrices of the images; cameras at the wrists move, so ask at every frame."""
        scene, factory = self._current(), self._factory
        return {
            name: camera_matrices(scene.model, scene.data, name, factory.height, factory.width)
            for name in factory.cameras
        }

    def contacts(self) -> list[Contact]:
        """Contacts of the four fingers."""
        scene = self._current()
        return find_contacts(scene.model, scene.data, scene.pads)

    def demonstrate_action(self) -> Float32[np.ndarray, "a"]:
        """What our scripted demonstrator, which sees where objects are, would do now. Ask once before every step.

        Raises:
            ValueError: an object is out of reach.
        """
        scene = self._current()
        if self._script is None:
            self._script = SCRIPTS[self._task](scene.model, scene.data, self.state())
        return next(self._script)

    def close(self) -> None:
        """Free scenes and the GL context; closing twice is fine."""
        for scene in self._scenes.values():
            scene.loaded.close()
            scene.physics.free()
        self._scenes.clear()
        self._scene = None
        self._renderer.close()

    def _current(self) -> _Scene:
        if self._scene is None:
            raise ValueError("no episode: call reset first")
        return self._scene

    def _load(self, task: str) -> _Scene:
        if task not in self._scenes:
            info = task_info(task)
            physics = self._make_physics(str(self._package.constants.ASSETS_DIR / info.scene))
            model = physics.model.ptr
            # All four fingers, by both names that the package has for them.
            fingers = [f"vx300s_{arm}/10_{finger}_gripper_finger" for arm in SIDES for finger in SIDES]
            self._scenes[task] = _Scene(
                physics=physics,
                task=getattr(self._package.tasks.sim, info.task)(),
                # No coarse meshes: the cameras at the wrists see the hands from a few centimetres.
                loaded=self._renderer.load(model),
                pads=frozenset(int(model.geom(name).id) for name in fingers),
            )
        return self._scenes[task]
