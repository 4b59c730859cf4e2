"""Write value targets into a LeRobot dataset as its column `value`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wamkit.data.added_columns import is_of_this_recording, write_column
from wamkit.data.features import ACTION, STATE, SUCCESS
from wamkit.data.layout import DatasetError, EpisodeRecord
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE, EpisodeEntry, EpisodeSource, numeric_column
from wamkit.data.value_rewards import (
    ArmChannels,
    DenseValueSettings,
    SparseValueSettings,
    ValueSettings,
    dense_values,
    settings_from_dict,
    sparse_values,
)

__all__ = [
    "ArmChannels",
    "DenseValueSettings",
    "SparseValueSettings",
    "ValueSettings",
    "episode_values",
    "is_labelled",
    "label_values",
    "stored_settings",
]


def stored_settings(dataset: LeRobotDataset) -> ValueSettings | None:
    """The settings that the dataset's value column was written with; `None` when it has none, or not from us.

    Raises:
        ValueError: the settings are of another version.
    """
    stored = dataset.wamkit.get(VALUE)
    return None if stored is None or VALUE not in dataset.features else settings_from_dict(stored)


def label_values(
    dataset: LeRobotDataset, settings: ValueSettings, *, progress: Callable[[int, int], None] | None = None
) -> LeRobotDataset:
    """Write the column `value`, and its settings into `info.json`; a column written earlier is replaced.

    Episodes that the dataset was opened to ignore get no values: their rows are NaN, and damaged files stay as they
    are.

    All values are computed before anything is written, and `info.json` declares them last. Killed at any moment, the
    dataset is readable, at worst without values, and running again completes it.

    Args:
        dataset: to label.
        settings: dense or sparse.
        progress: called with (episodes computed, episodes).

    Returns:
        The dataset opened anew.

    Raises:
        ValueError: the settings do not fit the dataset's cameras or channels, or (dense) an episode never succeeded.
        DatasetError: rows or videos are damaged, or `value` is a recorded column.
        OSError: writing failed, for instance on a full disk.
        BlockingIOError: something else is writing into the folder.
    """
    values = {}
    wanted = _wanted(dataset)
    # Earlier values are not read: the file of an episode that was ignored then may have none.
    names = [name for name in (STATE, ACTION, SUCCESS) if name in dataset.features]
    for number, entry in enumerate(wanted):
        values[entry.index] = _values(dataset, entry, settings, dataset.columns(entry.index, names))
        if progress is not None:
            progress(number + 1, len(wanted))
    write_column(
        *(dataset.root, VALUE, values.__getitem__),
        channels=settings.channel_names,
        settings=settings.to_dict(),
        ignored=dataset.ignored,
    )
    return LeRobotDataset(dataset.root, ignored=dataset.ignored)


def is_labelled(dataset: LeRobotDataset, settings: ValueSettings) -> bool:
    """Whether every episode that is not ignored has values of these settings, computed from what is recorded now.

    Raises:
        FileNotFoundError: a file is missing.
        DatasetError: a data file cannot be read.
        ValueError: the stored settings are of another version.
    """
    if stored_settings(dataset) != settings:
        return False
    known = is_of_this_recording(dataset, VALUE)
    if known is not None:
        return known
    try:
        return all(np.isfinite(dataset.columns(entry.index, [VALUE])[VALUE]).all() for entry in _wanted(dataset))
    except DatasetError:
        return False  # labelling names the damage


def _wanted(dataset: LeRobotDataset) -> list[EpisodeRecord]:
    return [entry for entry in dataset.episodes if entry.index not in dataset.ignored]


def episode_values(dataset: EpisodeSource, entry: EpisodeEntry, settings: ValueSettings) -> np.ndarray:
    """Value targets of one episode, float32 `[T, r]`.

    Args:
        dataset: where it comes from.
        entry: the episode.
        settings: dense or sparse.

    Raises:
        ValueError: the settings do not fit, a number is not finite, or (dense) the episode never succeeded.
    """
    return _values(dataset, entry, settings, dataset.columns(entry.index))


def _values(
    dataset: EpisodeSource, entry: EpisodeEntry, settings: ValueSettings, columns: dict[str, np.ndarray]
) -> np.ndarray:
    success = columns.get(SUCCESS)
    if isinstance(settings, SparseValueSettings):
        # A dataset without this column is one of demonstrations: each ends solved.
        solved = np.arange(entry.length) == entry.length - 1 if success is None else success.astype(bool)
        return sparse_values(solved, settings)
    if success is not None and not success.any():
        raise ValueError(
            f"episode {entry.index}: expected a successful demonstration, because dense values compare every row "
            "with the last, got one that never succeeds; leave it out or choose sparse values"
        )
    unknown = [camera for camera in settings.cameras if camera not in tuple(dataset.cameras)]
    if unknown:
        raise ValueError(
            f"dense values: expected cameras among {list(dataset.cameras)}, got {unknown}; "
            "name them in third_person and arms"
        )
    return dense_values(
        state=numeric_column(columns, STATE, entry, source=dataset),
        action=numeric_column(columns, ACTION, entry, source=dataset),
        frames={camera: dataset.frames(entry.index, camera, range(entry.length)) for camera in settings.cameras},
        settings=settings,
    )
