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
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from wamkit.envs.aloha_arm import JOINT_LIMITS, JOINTS, SIDES
from wamkit.envs.aloha_cameras import CAMERAS
from wamkit.envs.aloha_demonstrator import SCRIPTS, Script
from wamkit.envs.aloha_tasks import TASKS, task_info
from wamkit.envs.base import EpisodeRequest, StepOutcome
from wamkit.envs.mujoco_simulator import MujocoFactory, MujocoScene, MujocoSimulator
from wamkit.envs.render import RENDERING_NAMES, LoadedScene, OffscreenRenderer
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
class AlohaFactory(MujocoFactory):
    """Makes a gym-aloha simulator; see `MujocoFactory`.

    Raises:
        ModuleNotFoundError: the package is not installed (when the simulator is made).
    """

    suite: ClassVar[str] = "ALOHA"
    known_cameras: ClassVar[tuple[str, ...]] = tuple(CAMERAS)

    cameras: tuple[str, ...] = DEFAULT_CAMERAS

    @property
    def robot(self) -> RobotSpec:
        """What the simulator will publish, known without starting it."""
        return RobotSpec(
            name="two vx300s/gym-aloha",
            cameras=self.camera_specs(CAMERAS),
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
class _Scene(MujocoScene):
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

    def free(self) -> None:
        self.physics.free()


class AlohaSimulator(MujocoSimulator[_Scene]):
    """Two arms of gym-aloha; see `wamkit.envs.base.Simulator`. Make it with `AlohaFactory`."""

    step_limit: ClassVar[int] = STEP_LIMIT
    scenes_kept: ClassVar[int] = len(TASKS)

    def __init__(self, factory: AlohaFactory) -> None:
        missing = [name for name in ("dm_control", "gym_aloha") if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(f"the suite aloha needs {', '.join(missing)}, not installed here: {_INSTALL}")
        super().__init__(factory)
        # After the GL backend is chosen: dm_control loads one when it is imported.
        import dm_control.mujoco
        import gym_aloha.constants
        import gym_aloha.tasks.sim
        import gym_aloha.utils

        # dm_control ends EGL when Python exits, and a context that nobody closed must be freed before that.
        atexit.register(_close, weakref.ref(self._renderer))
        self._make_physics, self._package = dm_control.mujoco.Physics.from_xml_path, gym_aloha
        self._script: Script | None = None

    def _sentence(self, task: str) -> str:
        return task_info(task).sentence

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
        self._begin(scene, request.task)
        self._script = None

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
        action = self._count_step(action)
        scene = self._current()
        # The package's environment renders three pictures of 640x480 at every step, so its parts are used instead.
        scene.task.before_step(action.astype(np.float64), scene.physics)
        scene.physics.step(round(1 / CONTROL_HZ / scene.physics.timestep()))
        reward = float(scene.task.get_reward(scene.physics))
        return StepOutcome(reward=reward, success=reward == SOLVED_REWARD, terminated=False, truncated=self._is_over)

    def demonstrate_action(self) -> Float32[np.ndarray, "a"]:
        """What our scripted demonstrator, which sees where objects are, would do now. Ask once before every step.

        Raises:
            ValueError: an object is out of reach.
        """
        scene = self._current()
        if self._script is None:
            self._script = SCRIPTS[self._task](scene.model, scene.data, self.state())
        return next(self._script)

    def _make(self, task: str) -> _Scene:
        info = task_info(task)
        physics = self._make_physics(str(self._package.constants.ASSETS_DIR / info.scene))
        model = physics.model.ptr
        # All four fingers, by both names that the package has for them.
        fingers = [f"vx300s_{arm}/10_{finger}_gripper_finger" for arm in SIDES for finger in SIDES]
        return _Scene(
            physics=physics,
            task=getattr(self._package.tasks.sim, info.task)(),
            # No coarse meshes: the cameras at the wrists see the hands from a few centimetres.
            loaded=self._renderer.load(model),
            pads=frozenset(int(model.geom(name).id) for name in fingers),
        )
