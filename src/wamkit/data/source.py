"""What statistics, value labels and loaders need of a dataset: a small protocol, and checked columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, runtime_checkable

import numpy as np

from wamkit.spec import RobotSpec

VALUE: Final = "value"
"""Column of the value targets."""


@runtime_checkable
class EpisodeEntry(Protocol):
    """One line of a dataset's episode table."""

    @property
    def index(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def task(self) -> str: ...


@runtime_checkable
class EpisodeSource(Protocol):
    """A dataset of episodes: numbers by column, frames by camera and row."""

    @property
    def robot(self) -> RobotSpec | None: ...

    @property
    def cameras(self) -> Iterable[str]: ...

    @property
    def episodes(self) -> Sequence[EpisodeEntry]: ...

    def columns(self, episode: int) -> dict[str, np.ndarray]:
        """Columns of an episode, `[T]` or `[T, c]` each."""
        ...

    def frames(self, episode: int, camera: str, indices: Sequence[int]) -> np.ndarray:
        """The named rows' frames, uint8 `[t, h, w, 3]`."""
        ...


def numeric_column(columns: dict[str, np.ndarray], key: str, entry: EpisodeEntry, *, advice: str = "") -> np.ndarray:
    """A column as float32 `[T, c]`, checked.

    Args:
        columns: the episode's columns.
        key: the column wanted.
        entry: the episode, for its length and for messages.
        advice: what to do when the column is missing.

    Raises:
        ValueError: the column is missing, has another length than the episode, is not a table of numbers, or holds a
            number that is not finite; the message names episode and row.
    """
    if key not in columns:
        raise ValueError(
            f"episode {entry.index}: expected a column {key!r}, got {sorted(columns)}"
            + (f"; {advice}" if advice else "; record it, or choose a dataset that has it")
        )
    values = np.asarray(columns[key])
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != entry.length or not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"episode {entry.index}: expected column {key!r} to hold {entry.length} rows of numbers, "
            f"got {values.dtype} of shape {values.shape}; write the episode again or leave it out"
        )
    values = values.astype(np.float32, copy=False)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"episode {entry.index}, row {row}: expected finite numbers in column {key!r}, got {values[row].tolist()}; "
            "repair the row or leave the episode out"
        )
    return values
