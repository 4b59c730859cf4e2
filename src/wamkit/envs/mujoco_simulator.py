"""What our simulators on MuJoCo have in common: cameras, pictures, contacts, scenes that are kept, checked actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8

from wamkit.envs import choices_error
from wamkit.envs.base import CameraMatrices, Contact, EpisodeRequest, StepOutcome
from wamkit.envs.render import (
    RENDERING_NAMES,
    LoadedScene,
    OffscreenRenderer,
    Rendering,
    camera_intrinsics,
    camera_matrices,
    find_contacts,
)
from wamkit.spec import CameraSpec, RobotSpec

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class CameraInfo:
    """One camera of a package's scenes.

    Args:
        fovy_degrees: vertical field of view.
        pose: camera to world of the upright picture (OpenCV axes, metres), first three rows; `None` where it moves.
        is_upside_down: whether the package hangs it upside down, so that its pictures are turned.
    """

    fovy_degrees: float
    pose: Rows | None = None
    is_upside_down: bool = False

    def spec(self, name: str, height: int, width: int) -> CameraSpec:
        """What the camera publishes: its picture's size and intrinsics, and its pose unless it moves."""
        rows = camera_intrinsics(self.fovy_degrees, height, width)
        intrinsics = tuple(tuple(float(number) for number in row) for row in rows)
        pose = None if self.pose is None else (*self.pose, (0.0, 0.0, 0.0, 1.0))
        return CameraSpec(name=name, height=height, width=width, intrinsics=intrinsics, pose=pose)


@dataclass(frozen=True, kw_only=True)
class MujocoFactory(ABC):
    """Makes a simulator inside the process that will run it.

    Args:
        cameras: the package's cameras, in view order.
        height: pixels.
        width: pixels.
        rendering: `low_cost`, or `stock`, the package's own look (ten times slower on a CPU); part of the observation.

    Raises:
        ValueError: no camera, a repeated or unknown one, an unknown rendering, or a size that is not positive.
    """

    suite: ClassVar[str]
    """For messages."""
    known_cameras: ClassVar[tuple[str, ...]]

    cameras: tuple[str, ...]
    height: int = 64
    width: int = 64
    rendering: Rendering = "low_cost"

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(
                f"expected distinct cameras, at least one, got {self.cameras}; choose among: "
                f"{', '.join(self.known_cameras)}"
            )
        for name in self.cameras:
            if name not in self.known_cameras:
                raise choices_error(f"{self.suite} camera", name, self.known_cameras)
        if self.rendering not in RENDERING_NAMES:
            raise ValueError(f"expected rendering to be one of {list(RENDERING_NAMES)}, got {self.rendering!r}")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"expected a positive image size, got {self.height}x{self.width}")

    @property
    @abstractmethod
    def robot(self) -> RobotSpec:
        """What the simulator will publish, known without starting it."""

    @abstractmethod
    def __call__(self) -> MujocoSimulator[Any]:
        """Make it."""

    def camera_specs(self, infos: Mapping[str, CameraInfo]) -> tuple[CameraSpec, ...]:
        """Of the chosen cameras."""
        return tuple(infos[name].spec(name, self.height, self.width) for name in self.cameras)


class MujocoScene(ABC):
    """A task's model and state, and the GL resources for its pictures."""

    loaded: LoadedScene
    pads: frozenset[int]
    """Geoms of the fingers, of which `contacts` tells."""

    @property
    @abstractmethod
    def model(self) -> Any:
        """MuJoCo's model."""

    @property
    @abstractmethod
    def data(self) -> Any:
        """MuJoCo's data."""

    @abstractmethod
    def free(self) -> None:
        """Give back what the package holds."""


S = TypeVar("S", bound=MujocoScene)


class MujocoSimulator(ABC, Generic[S]):
    """One robot; see `wamkit.envs.base.Simulator`.

    A subclass makes scenes, puts things in place, steps, reads the state, and says which way pictures are turned.
    """

    step_limit: ClassVar[int]
    """Control steps of an episode."""
    scenes_kept: ClassVar[int]
    """Models with their GL resources that are kept, so that alternating tasks need no rebuild."""

    def __init__(self, factory: MujocoFactory) -> None:
        self.robot = factory.robot
        self._factory = factory
        self._renderer = OffscreenRenderer(factory.height, factory.width, factory.rendering)
        self._scenes: OrderedDict[str, S] = OrderedDict()
        self._scene: S | None = None
        self._task, self._steps = "", 0

    @property
    def sentence(self) -> str:
        """The sentence of the current task; empty before the first reset."""
        return self._sentence(self._task) if self._task else ""

    @abstractmethod
    def _sentence(self, task: str) -> str: ...

    @abstractmethod
    def reset(self, request: EpisodeRequest) -> None:
        """Put the robot and the objects of a layout in place."""

    @abstractmethod
    def state(self) -> Float32[np.ndarray, "s"]:
        """The robot's own state."""

    @abstractmethod
    def step(self, action: Float32[np.ndarray, "a"]) -> StepOutcome:
        """One control step."""

    @abstractmethod
    def demonstrate_action(self) -> Float32[np.ndarray, "a"]:
        """What a demonstrator would do now."""

    @abstractmethod
    def _make(self, task: str) -> S:
        """A scene."""

    def action_bounds(self) -> Float32[np.ndarray, "2 a"]:
        """-1 and 1 in every channel."""
        return np.array([[-1.0], [1.0]], dtype=np.float32).repeat(len(self.robot.action), axis=1)

    def render(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """One picture per camera."""
        scene = self._current()
        self._renderer.make_current()
        return {name: self._turned(scene.loaded.render(scene.data, name), name) for name in self._factory.cameras}

    def geom_ids(self) -> dict[str, np.ndarray]:
        """The geom seen at each pixel of each camera's picture, int `[h, w]`, -1 where there is none."""
        scene = self._current()
        self._renderer.make_current()
        return {name: self._turned(scene.loaded.geom_ids(scene.data, name), name) for name in self._factory.cameras}

    def camera_matrices(self) -> dict[str, CameraMatrices]:
        """Matrices of the pictures; some cameras move with the robot, so ask at every frame."""
        scene, height, width = self._current(), self._factory.height, self._factory.width
        return {
            name: self._turned_matrices(camera_matrices(scene.model, scene.data, name, height, width), name)
            for name in self._factory.cameras
        }

    def contacts(self) -> list[Contact]:
        """Contacts of the fingers."""
        scene = self._current()
        return find_contacts(scene.model, scene.data, scene.pads)

    def close(self) -> None:
        """Free scenes and the GL context; closing twice is fine."""
        while self._scenes:
            self._drop_oldest()
        self._scene = None
        self._renderer.close()

    def _turned(self, image: np.ndarray, camera: str) -> np.ndarray:
        """A picture `[h, w, …]` the way round in which policies see it. The only place where pictures are turned."""
        return image

    def _turned_matrices(self, matrices: CameraMatrices, camera: str) -> CameraMatrices:
        """The matrices of the turned picture."""
        return matrices

    def _current(self) -> S:
        if self._scene is None:
            raise ValueError("no episode: call reset first")
        return self._scene

    def _begin(self, scene: S, task: str) -> None:
        """An episode begins in this scene."""
        self._scene, self._task, self._steps = scene, task, 0

    def _count_step(self, action: Float32[np.ndarray, "a"]) -> Float32[np.ndarray, "a"]:
        """Begin a step with an action that can be carried out.

        Raises:
            ValueError: no episode, a malformed action, or a step past the limit.
        """
        self._current()
        width = len(self.robot.action)
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (width,) or not np.isfinite(action).all():
            raise ValueError(f"expected {width} finite action numbers, got shape {action.shape}: {action}")
        if self._is_over:
            raise ValueError(f"the episode ended at its limit of {self.step_limit} steps; reset before stepping on")
        self._steps += 1
        return action

    @property
    def _is_over(self) -> bool:
        return self._steps >= self.step_limit

    def _load(self, task: str) -> S:
        if task not in self._scenes:
            while len(self._scenes) >= self.scenes_kept:
                self._drop_oldest()
            self._scenes[task] = self._make(task)
        self._scenes.move_to_end(task)
        return self._scenes[task]

    def _drop_oldest(self) -> None:
        _, oldest = self._scenes.popitem(last=False)
        oldest.loaded.close()
        oldest.free()
