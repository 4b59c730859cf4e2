"""A Gymnasium vector environment on a pool of simulator processes, for code that expects one.

wamkit's own rollouts talk to the `WorkerPool`, which runs whole chunks of actions in the workers; this is the same
simulators behind the interface that everybody knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wamkit.envs import choices_error
from wamkit.envs.base import ChunkOutcome, EpisodeRequest, Frame
from wamkit.envs.workers import WorkerError, WorkerPool
from wamkit.spec import RobotSpec

Observations = dict[str, Any]


class SimulatorVectorEnv(VectorEnv):
    """One sub-environment per worker of a pool.

    Observations are `{"pixels": {camera: uint8 [n, h, w, 3]}, "agent_pos": float32 [n, s]}`. A sub-environment
    terminates when its task is solved, and `info["is_success"]` says so at every step. Nothing is reset by itself
    (`AutoresetMode.DISABLED`): call `reset(options={"reset_mask": mask})` for those that ended. A sub-environment whose
    worker died or hung is truncated, keeps its last observation, and has its message in `info["error"]`; its worker is
    replaced, and it goes on after a reset.

    Args:
        pool: idle workers; closed with the environment.
        tasks: task ids; sub-environment i runs `tasks[i % len(tasks)]` unless a request says otherwise.
        layout_seed: seed of the family of layouts.
        max_episode_steps: the suite's step limit, for information.
        known_tasks: all tasks of the suite (`wamkit.envs.suite_tasks`). When given, an unknown task is refused before
            any simulator is asked to reset; otherwise the simulator that gets it refuses it.

    Raises:
        ValueError: no task, or one that is not known.
        WorkerError: the first simulator cannot tell its actions' bounds.
    """

    def __init__(
        self,
        pool: WorkerPool,
        tasks: Sequence[str],
        *,
        layout_seed: int = 42,
        max_episode_steps: int = 500,
        known_tasks: Sequence[str] = (),
    ) -> None:
        if not tasks:
            raise ValueError("expected at least one task, got none")
        self._known_tasks = tuple(known_tasks)
        self._require_known(tasks)
        self.pool = pool
        self.num_envs = len(pool)
        self.robot: RobotSpec = pool.robot
        self.metadata = {
            "autoreset_mode": AutoresetMode.DISABLED,
            "render_modes": ["rgb_array"],
            "render_fps": self.robot.control_hz,
        }
        self.render_mode = "rgb_array"
        self.single_observation_space = observation_space(self.robot)
        lowest, highest = pool.call(0, "action_bounds")
        self.single_action_space = spaces.Box(lowest, highest, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._max_episode_steps = max_episode_steps
        self._tasks, self._layout_seed, self._seed = tuple(tasks), layout_seed, 0
        self._rounds = [0] * self.num_envs
        self._requests: list[EpisodeRequest | None] = [None] * self.num_envs
        self._frames: list[Frame | None] = [None] * self.num_envs
        self._needs_reset = np.ones(self.num_envs, dtype=bool)

    @property
    def needs_reset(self) -> np.ndarray:
        """Bool `[n]`: sub-environments that must be reset before the next step; good as a `reset_mask`."""
        return self._needs_reset.copy()

    @property
    def task(self) -> tuple[str, ...]:
        """The task id of each sub-environment."""
        return tuple(
            request.task if request else self._tasks[index % len(self._tasks)]
            for index, request in enumerate(self._requests)
        )

    @property
    def task_description(self) -> tuple[str, ...]:
        """The task sentence of each sub-environment."""
        return tuple(frame.sentence for frame in self._last_frames())

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start episodes.

        Args:
            seed: starts the default sequence of episodes again: the k-th episode of sub-environment i has layout
                `i + k * num_envs` and seed `seed + i` (or `seed[i]`). Layouts follow from `layout_seed` alone.
            options: `reset_mask`, bool `[n]`, resets only those; `requests`, one `EpisodeRequest` per reset
                sub-environment in order, says which episodes instead of the default sequence.

        Raises:
            ValueError: an unknown option, a mask or a list of requests of the wrong length, or a task that is not among
                `known_tasks`; nothing was reset.
            RuntimeError: simulators failed while resetting. The others are ready, and `needs_reset` names those to
                reset again; their default sequence goes on where it was.
        """
        options = options or {}
        unknown = sorted(set(options) - {"reset_mask", "requests"})
        if unknown:
            raise ValueError(f"unknown reset options {unknown}; the options are reset_mask and requests")
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs)), dtype=bool)
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"expected a reset_mask of {self.num_envs} entries, at least one of them true, got {mask}")
        chosen = [int(index) for index in np.flatnonzero(mask)]
        if seed is not None:
            self._rounds = [0] * self.num_envs
        requests = options.get("requests")
        is_default = requests is None
        if requests is None:
            requests = [self._next_request(index, seed) for index in chosen]
        if len(requests) != len(chosen):
            raise ValueError(f"expected {len(chosen)} requests, one per reset sub-environment, got {len(requests)}")
        self._require_known([request.task for request in requests])
        # What a sub-environment was doing is over from here on, whether or not its reset succeeds.
        self._needs_reset[chosen] = True
        answers = self.pool.gather({index: ("reset", item) for index, item in zip(chosen, requests, strict=True)})
        failed: list[str] = []
        for index, request in zip(chosen, requests, strict=True):
            answer = answers[index]
            if isinstance(answer, WorkerError):
                failed.append(f"sub-environment {index} (task {request.task}, layout {request.layout}): {answer}")
                continue
            self._requests[index], self._frames[index] = request, answer
            self._needs_reset[index] = False
            self._rounds[index] += is_default
        if failed:
            raise RuntimeError(
                f"{len(failed)} of {len(chosen)} simulators failed while resetting ({'; '.join(failed)}); the others "
                "are ready; call reset(options={'reset_mask': environment.needs_reset}) for the rest"
            )
        return self._observations(), self._info(np.zeros(self.num_envs, dtype=bool))

    def step(self, actions: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step of every sub-environment, with actions in physical units, `[n, a]`.

        Raises:
            ValueError: actions of the wrong shape or not finite, or a sub-environment that ended and was not reset.
        """
        actions = np.asarray(actions, dtype=np.float32)
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            raise ValueError(f"expected finite actions of shape {self.action_space.shape}, got shape {actions.shape}")
        if self._needs_reset.any():
            raise ValueError(
                f"sub-environments {np.flatnonzero(self._needs_reset).tolist()} ended or were never reset; call "
                "reset(options={'reset_mask': mask}) for them first"
            )
        answers = self.pool.gather({index: ("run_chunk", action[None]) for index, action in enumerate(actions)})
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        success, terminated, truncated = (np.zeros(self.num_envs, dtype=bool) for _ in range(3))
        errors = np.full(self.num_envs, None, dtype=object)
        for index, answer in answers.items():
            if isinstance(answer, WorkerError):
                truncated[index], errors[index] = True, str(answer)
                continue
            assert isinstance(answer, ChunkOutcome)
            self._frames[index] = answer.frame
            rewards[index], success[index] = answer.rewards[-1], answer.success[-1]
            terminated[index], truncated[index] = answer.terminated, answer.truncated
        self._needs_reset = terminated | truncated
        info = self._info(success)
        if any(error is not None for error in errors):
            info |= {"error": errors, "_error": errors != None}  # noqa: E711 (elementwise)
        return self._observations(), rewards, terminated, truncated, info

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """A property of each sub-environment (`task`, `task_description`, `_max_episode_steps`), or a simulator method.

        Raises:
            ValueError: keyword arguments, which simulator methods do not take.
            WorkerError: the method failed.
        """
        if name in ("task", "task_description"):
            return tuple(getattr(self, name))
        if name == "_max_episode_steps":
            return (self._max_episode_steps,) * self.num_envs
        if kwargs:
            raise ValueError(f"expected positional arguments for {name!r}, got keywords {sorted(kwargs)}")
        answers = self.pool.call_all(dict.fromkeys(range(self.num_envs), (name, *args)))
        return tuple(answers[index] for index in range(self.num_envs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The same as `call` without arguments."""
        return self.call(name)

    def render(self) -> tuple[np.ndarray, ...]:
        """The newest image of the first camera of each sub-environment."""
        return tuple(frame.video[self.robot.camera_names[0]] for frame in self._last_frames())

    def close_extras(self, **kwargs: Any) -> None:
        """Close the pool."""
        self.pool.close()

    def _next_request(self, index: int, seed: int | Sequence[int | None] | None) -> EpisodeRequest:
        if isinstance(seed, int):
            self._seed = seed
        own = seed[index] if isinstance(seed, Sequence) else None
        return EpisodeRequest(
            task=self._tasks[index % len(self._tasks)],
            layout=index + self._rounds[index] * self.num_envs,
            layout_seed=self._layout_seed,
            seed=self._seed + index if own is None else own,
        )

    def _require_known(self, tasks: Sequence[str]) -> None:
        for task in tasks:
            if self._known_tasks and task not in self._known_tasks:
                raise choices_error("task", task, self._known_tasks)

    def _last_frames(self) -> list[Frame]:
        frames = [frame for frame in self._frames if frame is not None]
        if len(frames) < self.num_envs:
            raise ValueError("some sub-environments have no episode yet; call reset() first")
        return frames

    def _observations(self) -> Observations:
        frames = self._last_frames()
        return {
            "pixels": {name: np.stack([frame.video[name] for frame in frames]) for name in self.robot.camera_names},
            "agent_pos": np.stack([frame.state for frame in frames]),
        }

    def _info(self, success: np.ndarray) -> dict[str, Any]:
        return {"is_success": success, "_is_success": np.ones(self.num_envs, dtype=bool)}


def observation_space(robot: RobotSpec) -> spaces.Space[Any]:
    """The space of one robot's observations."""
    pixels: dict[str, spaces.Space[Any]] = {
        camera.name: spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8) for camera in robot.cameras
    }
    state = spaces.Box(-np.inf, np.inf, (len(robot.state),), np.float32)
    return spaces.Dict({"pixels": spaces.Dict(pixels), "agent_pos": state})
