"""One demonstration or rollout in memory: the word that environments, datasets and recorders share (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T control steps. Row t holds the observation *before* action t, that action, and what it earned.

    Args:
        actions: float32 `[T, a]`, physical units: as they were executed or, in a demonstration with action noise, the
            demonstrator's own ones without it; then the metadata's `record_actions` says which.
        state: float32 `[T, s]`, physical units; `[T, 0]` of a robot without state channels.
        video: camera name -> uint8 `[T, h, w, 3]`, upright.
        reward: float32 `[T]`, the simulator's reward for action t; `None` where nobody said.
        success: bool `[T]`, whether the task was solved after action t; `None` where nobody said.
        task: the task sentence.
        metadata: JSON-ready facts (simulator task name, layout, seed, demonstrator, noise).
    """

    actions: np.ndarray
    state: np.ndarray
    video: dict[str, np.ndarray]
    reward: np.ndarray | None
    success: np.ndarray | None
    task: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        outcome = {"reward": self.reward, "success": self.success}
        lengths = {"actions": len(self.actions), "state": len(self.state)}
        lengths |= {name: len(column) for name, column in outcome.items() if column is not None}
        lengths |= {name: len(frames) for name, frames in self.video.items()}
        if len(set(lengths.values())) != 1 or len(self.actions) == 0:
            raise ValueError(f"expected an episode whose columns all have the same length of 1 or more, got {lengths}")

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def is_success(self) -> bool:
        """Whether the task is known to have been solved at any step."""
        return self.success is not None and bool(self.success.any())
