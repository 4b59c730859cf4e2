"""What statistics, value labels and loaders need of a dataset: a small protocol, and checked columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np

from wamkit.data.features import ACTION, STATE
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


@runtime_checkable
class OnDisk(Protocol):
    """A dataset whose rows lie in files."""

    def data_path(self, episode: int) -> Path:
        """The file that holds an episode's rows."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A dataset that can be told from others by what it holds."""

    def fingerprint(self) -> str:
        """A hash of what is in the dataset."""
        ...


@runtime_checkable
class Composed(Protocol):
    """A dataset made of others, which knows how they name an episode."""

    def place_name(self, episode: int) -> str:
        """How messages name an episode."""
        ...


def where(source: EpisodeSource, episode: int) -> str:
    """How messages name an episode: with its file and the number that it has there, as far as these are known."""
    if isinstance(source, Composed):
        return source.place_name(episode)
    file = f"{source.data_path(episode)}: " if isinstance(source, OnDisk) else ""
    return f"{file}episode {episode}"


def numeric_column(
    columns: dict[str, np.ndarray],
    key: str,
    entry: EpisodeEntry,
    *,
    advice: str = "",
    source: EpisodeSource | None = None,
) -> np.ndarray:
    """A column as float32 `[T, c]`, checked.

    Args:
        columns: the episode's columns.
        key: the column wanted.
        entry: the episode, for its length and for messages.
        advice: what to do when the column is missing.
        source: where the episode comes from; messages then name its file and its channels.

    Raises:
        ValueError: the column is missing, has another length than the episode, is not a table of numbers, or holds a
            number that is not finite; the message names file, episode, row and channel.
    """
    named = f"episode {entry.index}" if source is None else where(source, entry.index)
    if key not in columns:
        raise ValueError(
            f"{named}: expected a column {key!r}, got {sorted(columns)}"
            + (f"; {advice}" if advice else "; record it, or choose a dataset that has it")
        )
    values = np.asarray(columns[key])
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != entry.length or not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"{named}: expected column {key!r} to hold {entry.length} rows of numbers, "
            f"got {values.dtype} of shape {values.shape}; write the episode again or leave it out"
        )
    values = values.astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        row, channel = (int(index) for index in np.argwhere(~finite)[0])
        name = _channel_name(source, key, channel)
        raise ValueError(
            f"{named}, row {row}: expected finite numbers in column {key!r}, got "
            f"{values[row, channel]} in channel {channel}{name} ({(~finite).sum()} of the episode's {finite.size} "
            "numbers are not finite); repair the row or leave the episode out"
        )
    return values


def _channel_name(source: EpisodeSource | None, key: str, channel: int) -> str:
    robot = None if source is None else source.robot
    channels = {} if robot is None else {ACTION: robot.action, STATE: robot.state}
    named = channels.get(key, ())
    return f" {named[channel].name!r}" if channel < len(named) else ""
