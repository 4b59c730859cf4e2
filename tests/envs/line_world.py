"""A complete simulator without physics or GL: a hand on a line that must reach a goal. It can misbehave on request."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from wamkit.envs.base import CameraMatrices, Contact, EpisodeRequest, StepOutcome
from wamkit.spec import CameraSpec, ChannelSpec, RobotSpec

STEP_LIMIT = 30
ROBOT = RobotSpec(
    name="hand/line",
    cameras=(CameraSpec(name="front", height=4, width=6),),
    state=(ChannelSpec(name="x", unit="m"),),
    action=(ChannelSpec(name="dx"), ChannelSpec(name="gripper")),
    action_kind="delta",
    gripper_channels=(1,),
    gripper_sign="close_positive",
    control_hz=10.0,
    rendering="painted",
)


@dataclass(frozen=True, kw_only=True)
class LineFactory:
    """Makes a `LineSimulator`; `fail_at_start` makes it raise, `fail_if_exists` once that file is there.

    `trouble` (die, hang, nan_state, nan_reward) comes at the third step of layout `trouble_at`. Resets are written to
    the file `log`, if there is one. With `is_counted` the pictures after n steps have a brightness of 8 n.
    """

    fail_at_start: str = ""
    fail_if_exists: str = ""
    robot: RobotSpec = ROBOT
    trouble: str = ""
    trouble_at: int = 1
    log: str = ""
    is_counted: bool = False

    def __call__(self) -> LineSimulator:
        if self.fail_at_start == "exit":
            os._exit(7)
        if self.fail_at_start == "hang":
            time.sleep(60)
        if self.fail_at_start:
            raise RuntimeError(self.fail_at_start)
        if self.fail_if_exists and os.path.exists(self.fail_if_exists):
            raise RuntimeError("the licence server is gone")
        print("line world ready")  # as some simulators do; must not reach the parent's standard output
        return LineSimulator(robot=self.robot, factory=self)


@dataclass
class LineSimulator:
    """The hand starts at 0; the goal is at `0.1 * (layout + 1)`; an action of 1 moves it by 0.02."""

    robot: RobotSpec = ROBOT
    factory: LineFactory = field(default_factory=LineFactory)
    layout: int = 0
    position: float = 0.0
    goal: float = 0.0
    steps: int = 0
    reach: float = 1.0
    log: list[float] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        return "go to the goal"

    def reset(self, request: EpisodeRequest) -> None:
        if request.task.split("/")[0] != "line":
            raise ValueError(f"unknown task {request.task!r}")
        if self.factory.log:
            with open(self.factory.log, "a") as file:
                file.write(f"{request.layout}\n")
        self.layout = request.layout
        self.position, self.goal, self.steps = 0.0, 0.1 * (request.layout + 1), 0

    def state(self) -> np.ndarray:
        return np.array([np.nan if self.has_trouble("nan_state") else self.position], dtype=np.float32)

    def has_trouble(self, kind: str) -> bool:
        return self.factory.trouble == kind and self.layout == self.factory.trouble_at and self.steps >= 3

    def action_bounds(self) -> np.ndarray:
        return np.array([[-self.reach, 0.0], [self.reach, 1.0]], dtype=np.float32)

    def step(self, action: np.ndarray) -> StepOutcome:
        if self.steps >= STEP_LIMIT:
            raise ValueError("the episode ended")
        self.position += 0.02 * float(action[0])
        self.steps += 1
        if self.has_trouble("die"):
            os.kill(os.getpid(), 11)
        if self.has_trouble("hang"):
            time.sleep(60)
        distance = abs(self.goal - self.position)
        return StepOutcome(
            reward=float("nan") if self.has_trouble("nan_reward") else -distance,
            success=distance < 0.011,
            terminated=False,
            truncated=self.steps >= STEP_LIMIT,
        )

    def render(self) -> dict[str, np.ndarray]:
        images = {}
        for camera in self.robot.cameras:
            images[camera.name] = np.zeros((camera.height, camera.width, 3), dtype=np.uint8)
            images[camera.name][:, min(5, int(self.position * 10))] = 255
            if self.factory.is_counted:
                images[camera.name][:] = 8 * self.steps
        return images

    def camera_matrices(self) -> dict[str, CameraMatrices]:
        return {"front": CameraMatrices(intrinsics=np.eye(3), pose=np.eye(4))}

    def contacts(self) -> list[Contact]:
        return []

    def demonstrate_action(self) -> np.ndarray:
        towards = np.clip((self.goal - self.position) / 0.02, -1.0, 1.0)
        return np.array([towards, 1.0], dtype=np.float32)

    def close(self) -> None:
        self.log.clear()

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def loaded_modules(self) -> list[str]:
        return sorted(sys.modules)

    def crash(self) -> None:
        os.kill(os.getpid(), 11)


@dataclass(frozen=True, kw_only=True)
class ModulesOfMetaWorld:
    """A Meta-World simulator that can also tell which modules its process has loaded."""

    def __call__(self) -> object:
        from wamkit.envs.metaworld import MetaWorldFactory

        simulator = MetaWorldFactory()()
        simulator.loaded_modules = lambda: sorted(sys.modules)
        return simulator
