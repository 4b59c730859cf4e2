"""Which rows of an episode make one training window: memory rows, future frames and the prediction window.

Numbers only (no frames, no torch), so that the rule can be read and checked on its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

logger = logging.getLogger(__name__)

Pick = Literal["random", "uniform", "spaced"]


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How windows are cut out of episodes.

    Args:
        context: P, memory frames; the last one is the current frame.
        chunk: future frames, `stride` rows apart.
        action_horizon: A, rows of the prediction window; without `future_stride` a multiple of `chunk`.
        future_stride: rows between two future frames; by default they are evenly spread over the prediction window.
        sample_n_frames: R, rows of the stretch that a window and its memory candidates are taken from; more than A.
        pick: how the memory is chosen. `random`: distinct candidates, sorted. `uniform`: evenly over the candidates.
            `spaced`: `spacing` rows apart back from the current one, as the closed loop fills its memory when it asks
            for a new chunk every `spacing` actions; `sample_n_frames` has no part in it.
        spacing: rows between two memory frames of `spaced`.
        action_offset: rows from the current frame to the first action. 1 is the published code's one-row lead; 0 pairs
            an observation with the action recorded beside it.
        first_row: the first row that is ever used. 1 is the published code, which never uses row 0 and also draws a
            window whose current row lies before the episode; 0 uses every row, and every window drawn has at
            least one action inside the episode.
        whole: draw only windows whose current row, actions and future frames are all rows of the episode, so that none
            is padded and every future frame is a real one. Memory may still begin before the episode. T rows give
            T - max(A - 1 + action_offset, chunk * stride) windows, and `first_row` fewer: T - A + 1 with
            `action_offset=0` when the future is shorter than the prediction window, and T - 1 for one action and the
            next frame, because the last row has no next one.

    Source: WAV 3.5 of the specification; Differs: `first_row=0`, `spaced`,
        `future_stride` and `whole` are ours.
    """

    context: int = 4
    chunk: int = 9
    action_horizon: int = 36
    sample_n_frames: int = 500
    pick: Pick = "random"
    spacing: int = 1
    action_offset: int = 1
    first_row: int = 0
    future_stride: int | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        for name in ("context", "chunk", "action_horizon", "spacing"):
            if getattr(self, name) < 1:
                raise ValueError(f"windows: expected {name} of 1 or more, got {getattr(self, name)}")
        if self.future_stride is not None and self.future_stride < 1:
            raise ValueError(
                f"windows: expected future_stride of 1 or more rows, or None for frames spread over the prediction "
                f"window, got {self.future_stride}"
            )
        if self.future_stride is None and self.action_horizon % self.chunk:
            raise ValueError(
                f"windows: expected action_horizon as a multiple of chunk = {self.chunk}, got {self.action_horizon}; "
                f"the next one is {(self.action_horizon // self.chunk + 1) * self.chunk}, or set future_stride"
            )
        if self.pick not in ("random", "uniform", "spaced"):
            raise ValueError(f"windows: expected pick to be 'random', 'uniform' or 'spaced', got {self.pick!r}")
        if self.pick != "spaced" and self.sample_n_frames <= self.action_horizon:
            raise ValueError(
                f"windows: expected sample_n_frames above action_horizon = {self.action_horizon}, so that a "
                f"current row is left, got {self.sample_n_frames}"
            )
        if self.action_offset not in (0, 1) or self.first_row not in (0, 1):
            raise ValueError(
                "windows: expected action_offset and first_row of 0 or 1, "
                f"got {self.action_offset} and {self.first_row}"
            )
        if self.pick != "spaced" and self.spacing != 1:
            logger.warning("windows: spacing=%d has no effect with pick=%r", self.spacing, self.pick)

    @property
    def stride(self) -> int:
        """Rows between two future frames."""
        return self.action_horizon // self.chunk if self.future_stride is None else self.future_stride

    @property
    def min_length(self) -> int:
        """Rows of the shortest episode that has a window."""
        if self.whole:
            return self.first_row + _reach(self) + 1
        return 2 if self.first_row else 1 + self.action_offset


@dataclass(frozen=True, kw_only=True)
class WindowRows:
    """Rows of one window, clipped to the episode.

    Args:
        current: the row that the window looks ahead from, before clipping; -1 for one that begins before the episode.
        context: int64 `[P]`, non-decreasing, the current row last.
        future: int64 `[chunk]`.
        action: int64 `[A]`.
        is_padded: bool `[A]`, action rows past the end of the episode (they repeat its last row).
        is_repeated: bool `[P]`, memory rows before the first row that is used (they repeat it).
    """

    current: int
    context: np.ndarray
    future: np.ndarray
    action: np.ndarray
    is_padded: np.ndarray
    is_repeated: np.ndarray


def window_ends(length: int, config: WindowConfig) -> range:
    """Every `end` (one past the prediction window) that a window of an episode may have; empty when it is too short.

    Args:
        length: T, rows of the episode.
        config: how windows are cut.

    Returns:
        With `first_row=1` the published A … T+A; with `first_row=0` those whose current row and at least one action are
        inside the episode. With `whole`, those whose current row, actions and future frames all are.
    """
    horizon = config.action_horizon
    if config.whole:
        first = config.first_row + horizon + 1
        return range(first, max(first, length - _reach(config) + horizon + 1))
    if config.first_row == 1:
        return range(horizon, length + horizon + 1) if length >= 2 else range(0)
    return range(horizon + 1, max(horizon + 1, length + horizon + 1 - config.action_offset))


def num_windows(length: int, config: WindowConfig) -> int:
    """Number of distinct `end` values of an episode of `length` rows."""
    return len(window_ends(length, config))


def select_rows(length: int, end: int, config: WindowConfig, rng: np.random.Generator) -> WindowRows:
    """Rows of the window that ends before row `end`; its current row is `end - A - 1`.

    Args:
        length: T, rows of the episode, more than `first_row`.
        end: A … T+A, may lie past the episode.
        config: how windows are cut.
        rng: drawn from only by `pick="random"`.

    Raises:
        ValueError: `length` or `end` is out of range.

    Source: WAV 3.5 of the specification, steps 1 to 5.
    Differs: memory candidates are made up with the first row when fewer than P (the published rule says P-1, with which
        a draw of P-1 distinct ones besides the current one could fail); with `action_offset=0` future frames
        keep their rows, so that frame k is what is seen after `k * stride` actions.
    """
    horizon = config.action_horizon
    if length <= config.first_row:
        raise ValueError(f"expected an episode of more than {config.first_row} rows, got {length}")
    if not horizon <= end <= length + horizon:
        raise ValueError(f"expected end between {horizon} and {length + horizon} for {length} rows, got {end}")
    current = end - horizon - 1
    first, last = config.first_row, length - 1
    action = current + config.action_offset + np.arange(horizon)
    memory = _memory_rows(current, end, config, rng)
    return WindowRows(
        current=current,
        context=memory.clip(first, last),
        future=future_rows(length, current, config),
        action=action.clip(first, last),
        is_padded=action > last,
        is_repeated=memory < first,
    )


def future_rows(length: int, current: int, config: WindowConfig) -> np.ndarray:
    """Rows of the future frames of a current row, int64 `[chunk]`, clipped to an episode of `length` rows."""
    rows = current + config.stride * np.arange(1, config.chunk + 1)
    return rows.clip(config.first_row, length - 1)


def current_rows(length: int, config: WindowConfig) -> range:
    """Every current row that a window of an episode of `length` rows may have; only `first_row` matters to it."""
    return range(-1 if config.first_row else 0, length)


def _reach(config: WindowConfig) -> int:
    """Rows from the current one to the farthest action or future frame."""
    return max(config.action_horizon - 1 + config.action_offset, config.chunk * config.stride)


def _memory_rows(current: int, end: int, config: WindowConfig, rng: np.random.Generator) -> np.ndarray:
    """P memory rows before clipping, the current one last."""
    context = config.context
    if config.pick == "spaced":
        return current - config.spacing * np.arange(context - 1, -1, -1)
    candidates = np.arange(max(-context, end - config.sample_n_frames), current + 1)
    if len(candidates) < context:
        candidates = np.concatenate([np.full(context - 1, config.first_row), candidates])
    if config.pick == "uniform":
        positions = np.linspace(0, len(candidates) - 1, context).astype(np.int64)
        positions[-1] = len(candidates) - 1  # linspace of one point would give the oldest
    else:
        positions = np.sort(rng.choice(len(candidates) - 1, size=context - 1, replace=False))
        positions = np.append(positions, len(candidates) - 1)
    return candidates[positions]
