"""Words of the environments: what a simulator is asked, what it answers, and the protocol it follows.

A simulator lives inside a worker process (`workers.py`) and imports no torch. Everything here is plain numpy and
pickles, so that it can cross a pipe between our own processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from wamkit.episode import Episode
from wamkit.spec import RobotSpec

RecordedActions = Literal["clean", "executed"]


class BrokenSimulator(RuntimeError):
    """A simulator gave numbers that are not finite: its episode says nothing, and it must be made anew."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRequest:
    """Which episode to reset to; equal requests give equal first frames, states and demonstrations, bit for bit.

    Args:
        task: the suite's task id, for instance `drawer-open-v3`.
        layout: number of the initial layout (object and goal positions), from 0.
        layout_seed: seed of the family of layouts; recordings and evaluations use different ones.
        seed: seed of everything random during the episode (exploration noise of a demonstration).
    """

    task: str
    layout: int
    layout_seed: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("layout", "layout_seed", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"episode request: expected {name} >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one control step gave.

    Args:
        reward: the simulator's reward.
        success: whether the task is solved after this step.
        terminated: whether the simulator itself ended the episode (Meta-World never does).
        truncated: whether the step limit was reached; stepping on raises.
    """

    reward: float
    success: bool
    terminated: bool
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class CameraMatrices:
    """Pinhole matrices of one delivered (upright) image.

    A world point `p` in metres has camera coordinates `q = rotation.T @ (p - position)` with `pose = [rotation,
    position]` (OpenCV axes: x right, y down, z forward) and pixel `intrinsics @ q / q[2]`; integer pixel coordinates
    are pixel centres, column first.

    Args:
        intrinsics: 3x3, pixels.
        pose: 4x4, camera to world, metres.
    """

    intrinsics: Float64[np.ndarray, "3 3"]
    pose: Float64[np.ndarray, "4 4"]

    def project(self, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """Pixel column, pixel row and depth (metres along the viewing axis) of world points (metres)."""
        local = (points - self.pose[:3, 3]) @ self.pose[:3, :3]
        pixels = local @ self.intrinsics.T
        return np.concatenate([pixels[:, :2] / pixels[:, 2:], local[:, 2:]], axis=1)


@dataclass(frozen=True, kw_only=True)
class Contact:
    """One contact point.

    Args:
        position: world coordinates, metres.
        normal_force: newtons.
        distance: metres between the surfaces; negative when they interpenetrate.
        bodies: names of the two bodies.
        is_pad: whether one of them is a finger pad of a gripper.
    """

    position: tuple[float, float, float]
    normal_force: float
    distance: float
    bodies: tuple[str, str]
    is_pad: bool


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a robot sees and feels at one moment, and what it is asked to do.

    Args:
        video: camera name -> uint8 `[h, w, 3]`, upright.
        state: float32 `[s]`, physical units.
        sentence: the task sentence.
    """

    video: dict[str, UInt8[np.ndarray, "h w 3"]]
    state: Float32[np.ndarray, "s"]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class RecordedChunk:
    """The moments *after* each executed action of a chunk; the last one is `ChunkOutcome.frame`.

    Args:
        video: camera name -> uint8 `[k, h, w, 3]`, upright.
        state: float32 `[k, s]`, physical units.
    """

    video: dict[str, UInt8[np.ndarray, "k h w 3"]]
    state: Float32[np.ndarray, "k s"]


@dataclass(frozen=True, kw_only=True)
class ChunkOutcome:
    """What running a chunk of actions gave; it stops early at success, at the episode's end and at the step limit.

    Args:
        frame: the moment after the last executed action.
        executed: how many of the actions were executed, k.
        rewards: one per executed action.
        success: whether the task was solved after each executed action.
        terminated: whether the episode is over by the task: solved, or ended by the simulator.
        truncated: whether the step limit was reached.
        recorded: every moment, when asked for.
        before: moments before the last one that were asked for, in order, each with the number of actions executed
            since the one before it, the first since the chunk began; none once the episode is over.
    """

    frame: Frame
    executed: int
    rewards: Float32[np.ndarray, "k"]
    success: Bool[np.ndarray, "k"]
    terminated: bool
    truncated: bool
    recorded: RecordedChunk | None = None
    before: tuple[tuple[Frame, int], ...] = ()

    @property
    def executed_after(self) -> int:
        """How many of the actions were executed after the last moment of `before`."""
        return self.executed - sum(executed for _, executed in self.before)


@dataclass(frozen=True, kw_only=True)
class DemonstrationOptions:
    """How to run a scripted demonstrator.

    Args:
        noise_std: standard deviation of Gaussian noise added to the executed actions, except to gripper channels
            (action units), within the simulator's `action_bounds`. It takes the robot to states that a flawless
            demonstrator never visits.
        max_steps: give up after this many control steps.
        settle_steps: steps recorded after the first success, so that policies learn to stay there.
        record_actions: `clean` records what the demonstrator wanted while the noisy action is executed: the label stays
            the right thing to do in the disturbed state (noise injection as in DART, arXiv 1703.09327), which imitates
            better; `executed` records the noisy action, which is what a dynamics model must see. Without noise the two
            are the same.
        record_video: whether to render; without, the episode has states and actions only.
    """

    noise_std: float = 0.0
    max_steps: int = 500
    settle_steps: int = 5
    record_actions: RecordedActions = "clean"
    record_video: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.noise_std < math.inf or self.max_steps < 1 or self.settle_steps < 0:
            raise ValueError(
                "demonstration: expected a finite noise_std >= 0, max_steps >= 1 and settle_steps >= 0, got "
                f"{self.noise_std}, {self.max_steps} and {self.settle_steps}"
            )
        if self.record_actions not in ("clean", "executed"):
            raise ValueError(
                f"demonstration: expected record_actions 'clean' or 'executed', got {self.record_actions!r}"
            )


@runtime_checkable
class Simulator(Protocol):
    """One robot in one simulated scene."""

    robot: RobotSpec

    @property
    def sentence(self) -> str:
        """The sentence of the current task."""
        ...

    def reset(self, request: EpisodeRequest) -> None:
        """Start an episode. Raises `ValueError` for a task the suite does not have."""
        ...

    def state(self) -> Float32[np.ndarray, "s"]:
        """Proprioception in physical units; never object or goal coordinates."""
        ...

    def action_bounds(self) -> Float32[np.ndarray, "2 a"]:
        """The lowest and the highest action that makes a difference, in physical units; needs no episode."""
        ...

    def step(self, action: Float32[np.ndarray, "a"]) -> StepOutcome:
        """Run one control step. Raises `ValueError` past the end of the episode or for a malformed action."""
        ...

    def render(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """One upright image per camera."""
        ...

    def camera_matrices(self) -> dict[str, CameraMatrices]:
        """Matrices of the images that `render` gives now."""
        ...

    def contacts(self) -> list[Contact]:
        """Contacts of the finger pads now."""
        ...

    def demonstrate_action(self) -> Float32[np.ndarray, "a"]:
        """What the scripted demonstrator, which sees the privileged state, would do now."""
        ...

    def close(self) -> None:
        """Free the scene and its GL context."""
        ...


@runtime_checkable
class SimulatorFactory(Protocol):
    """A frozen, picklable dataclass that makes a simulator inside the process that will run it."""

    def __call__(self) -> Simulator: ...


def observe(simulator: Simulator) -> Frame:
    """What the robot sees and feels now.

    Raises:
        BrokenSimulator: the state is not finite.
    """
    return Frame(video=simulator.render(), state=_finite_state(simulator), sentence=simulator.sentence)


def reset(simulator: Simulator, request: EpisodeRequest) -> Frame:
    """Start an episode and give its first frame."""
    simulator.reset(request)
    return observe(simulator)


def run_chunk(
    simulator: Simulator, actions: Float32[np.ndarray, "p a"], record: bool = False, tell: Sequence[int] = ()
) -> ChunkOutcome:
    """Execute actions one by one; stop early at success, at the simulator's end of the episode and at the step limit.

    Args:
        simulator: a simulator that was reset.
        actions: physical units.
        record: whether to render and keep every moment instead of the last one only.
        tell: after how many actions to render and keep a moment too, for `ChunkOutcome.before`; ascending, 1 or more,
            fewer than there are actions.

    Raises:
        ValueError: there is no action, one is malformed, or `tell` names other moments.
        BrokenSimulator: a state or reward is not finite.
    """
    if actions.ndim != 2 or len(actions) == 0:
        raise ValueError(f"expected a chunk of at least one action, shape [k, a], got shape {actions.shape}")
    if list(tell) != sorted(set(tell)) or not all(0 < count < len(actions) for count in tell):
        raise ValueError(
            f"expected moments to tell of after 1 to {len(actions) - 1} of the {len(actions)} actions, ascending, "
            f"got {list(tell)}"
        )
    outcomes: list[StepOutcome] = []
    frames: list[Frame] = []
    told: list[Frame] = []
    is_over = False
    for count, action in enumerate(actions, start=1):
        outcomes.append(_finite_step(simulator, action))
        if record:
            frames.append(observe(simulator))
        is_over = outcomes[-1].success or outcomes[-1].terminated or outcomes[-1].truncated
        if is_over:
            break
        if count in tell:
            told.append(frames[-1] if record else observe(simulator))
    last = outcomes[-1]
    gaps = [count - earlier for earlier, count in zip((0, *tell), tell, strict=False)]
    return ChunkOutcome(
        frame=frames[-1] if record else observe(simulator),
        executed=len(outcomes),
        rewards=np.array([outcome.reward for outcome in outcomes], dtype=np.float32),
        success=np.array([outcome.success for outcome in outcomes], dtype=bool),
        terminated=last.success or last.terminated,
        truncated=last.truncated,
        recorded=RecordedChunk(video=_stack_video(frames), state=_stack_state(frames)) if record else None,
        before=() if is_over else tuple(zip(told, gaps, strict=True)),
    )


def demonstrate(simulator: Simulator, request: EpisodeRequest, options: DemonstrationOptions) -> Episode:
    """One demonstration by the scripted demonstrator, solved or not (`Episode.is_success`).

    Row t of the episode holds the observation before action t, that action (see `record_actions`), and what it earned.
    `metadata` says which action was recorded, the noise, and everything needed to repeat the episode.

    Raises:
        BrokenSimulator: a state or reward is not finite.
    """
    simulator.reset(request)
    random = np.random.default_rng(request.seed)
    noise_scale = np.full(len(simulator.robot.action), options.noise_std)
    noise_scale[list(simulator.robot.gripper_channels)] = 0.0
    lowest, highest = simulator.action_bounds()
    videos: list[dict[str, np.ndarray]] = []
    states, actions, rewards, successes = [], [], [], []
    remaining = options.max_steps
    while remaining > 0:
        if options.record_video:
            videos.append(simulator.render())
        states.append(_finite_state(simulator))
        clean = simulator.demonstrate_action()
        noise = noise_scale * random.standard_normal(len(noise_scale))
        executed = np.clip(clean + noise, lowest, highest).astype(np.float32) if options.noise_std else clean
        outcome = _finite_step(simulator, executed)
        actions.append(clean if options.record_actions == "clean" else executed)
        rewards.append(outcome.reward)
        successes.append(outcome.success)
        remaining -= 1
        if outcome.terminated or outcome.truncated:
            break
        if outcome.success and sum(successes) == 1:
            remaining = min(remaining, options.settle_steps)
    return Episode(
        actions=np.stack(actions),
        state=np.stack(states),
        video={name: np.stack([video[name] for video in videos]) for name in videos[0]} if videos else {},
        reward=np.array(rewards, dtype=np.float32),
        success=np.array(successes, dtype=bool),
        task=simulator.sentence,
        metadata={
            "task_id": request.task,
            "layout": request.layout,
            "layout_seed": request.layout_seed,
            "seed": request.seed,
            "demonstrator": "scripted",
            "noise_std": options.noise_std,
            "settle_steps": options.settle_steps,
            "record_actions": options.record_actions,
        },
    )


def handle(simulator: Simulator, method: str, args: tuple[Any, ...]) -> Any:
    """What a worker does with a request.

    Args:
        simulator: the worker's.
        method: a function of this module that takes the simulator first (`reset`, `run_chunk`, `demonstrate`), or a
            method of the simulator.
        args: arguments after the simulator.
    """
    known: dict[str, Callable[..., Any]] = {"reset": reset, "run_chunk": run_chunk, "demonstrate": demonstrate}
    return known[method](simulator, *args) if method in known else getattr(simulator, method)(*args)


def _finite_state(simulator: Simulator) -> np.ndarray:
    state = simulator.state()
    if not np.isfinite(state).all():
        channels = zip(simulator.robot.state, state, strict=True)
        wrong = ", ".join(channel.name for channel, number in channels if not np.isfinite(number))
        raise BrokenSimulator(f"expected finite states from the simulator, got NaN or infinity in {wrong}")
    return state


def _finite_step(simulator: Simulator, action: np.ndarray) -> StepOutcome:
    outcome = simulator.step(action)
    if not math.isfinite(outcome.reward):
        raise BrokenSimulator(f"expected finite rewards from the simulator, got {outcome.reward}")
    return outcome


def _stack_video(frames: list[Frame]) -> dict[str, np.ndarray]:
    return {name: np.stack([frame.video[name] for frame in frames]) for name in frames[0].video}


def _stack_state(frames: list[Frame]) -> np.ndarray:
    return np.stack([frame.state for frame in frames])
