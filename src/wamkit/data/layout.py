"""Where the parts of a LeRobot dataset lie on disk: one `Layout` per format version, read from the metadata alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.data import features as words


class DatasetError(ValueError):
    """A dataset's files and its metadata disagree; the message names the file, expected, got and remedy."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """What the metadata say about one episode.

    Args:
        index: position in the dataset, from 0.
        length: rows (frames).
        task: its sentence; the first when it has several.
        tasks: all its sentences.
        metadata: facts a recorder stored (simulator task name, layout, seed); empty for foreign datasets.
    """

    index: int
    length: int
    task: str
    tasks: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VideoPlace:
    """An episode's part of a video file: it starts `start_s` seconds into `path`."""

    path: Path
    start_s: float


@dataclass(frozen=True, kw_only=True)
class EpisodePlace:
    """An episode's part of the files.

    Args:
        data: Parquet file of its rows.
        first_row: row of `data` at which the episode starts.
        videos: feature key -> part of a video file; only features of dtype `video`.
    """

    data: Path
    first_row: int
    videos: dict[str, VideoPlace]


class Layout(Protocol):
    """One version of the format. Reading the metadata is all it does; it opens no data file and no video."""

    episodes: list[EpisodeRecord]

    def place(self, episode: int) -> EpisodePlace: ...

    def statistics_rows(self) -> list[dict[str, Any]]: ...


class LayoutV3:
    """LeRobot v3.0: many episodes per file, a Parquet table of episodes.

    Args:
        root: dataset folder.
        info: content of `meta/info.json`.

    Raises:
        FileNotFoundError: the episode table is missing.
        DatasetError: it cannot be read, lacks a column, or does not number the episodes from 0.
    """

    def __init__(self, root: Path, info: dict[str, Any]) -> None:
        self._root, self._info = root, info
        self._video_keys = [key for key, feature in info["features"].items() if words.is_video(feature)]
        rows = self._read_rows(lambda name: not name.startswith("stats/"))
        self._rows = rows
        self.episodes = [_record(row) for row in rows]
        starts: dict[tuple[int, int], int] = {}
        for row in rows:
            file = (row["data/chunk_index"], row["data/file_index"])
            starts[file] = min(starts.get(file, row["dataset_from_index"]), row["dataset_from_index"])
        self._file_starts = starts

    def place(self, episode: int) -> EpisodePlace:
        """Where an episode's rows and frames are."""
        row = self._rows[episode]
        chunk, file = row["data/chunk_index"], row["data/file_index"]
        data = self._root / self._info["data_path"].format(chunk_index=chunk, file_index=file)
        videos = {}
        for key in self._video_keys:
            column = f"videos/{key}/"
            path = self._info["video_path"].format(
                video_key=key, chunk_index=row[f"{column}chunk_index"], file_index=row[f"{column}file_index"]
            )
            videos[key] = VideoPlace(path=self._root / path, start_s=float(row[f"{column}from_timestamp"]))
        first_row = row["dataset_from_index"] - self._file_starts[chunk, file]
        return EpisodePlace(data=data, first_row=first_row, videos=videos)

    def statistics_rows(self) -> list[dict[str, Any]]:
        """Per episode, its `stats/<feature>/<statistic>` columns; empty dicts when the dataset has none."""
        return self._read_rows(lambda name: name.startswith("stats/") or name == "episode_index")

    def all_rows(self) -> list[dict[str, Any]]:
        """The episode table, all columns."""
        return self._read_rows(lambda name: True)

    def _read_rows(self, keep: Callable[[str], bool]) -> list[dict[str, Any]]:
        folder = self._root / "meta" / "episodes"
        files = sorted(folder.glob("chunk-*/file-*.parquet"))
        total = int(self._info["total_episodes"])
        if not files and total:
            raise FileNotFoundError(
                f"expected the episode table {folder}/chunk-000/file-000.parquet, found none; copy the dataset again"
            )
        rows: list[dict[str, Any]] = []
        for path in files:
            try:
                names = [name for name in pq.read_schema(path).names if keep(name)]
                rows += pq.read_table(path, columns=names).to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise DatasetError(
                    f"episode table {path}: expected a complete Parquet file, got one that cannot be read ({error}); "
                    "copy the dataset again"
                ) from error
        rows.sort(key=lambda row: row.get("episode_index", -1))
        # Rows past the total belong to an episode whose writer was killed before it finished.
        rows = rows[:total]
        numbers = [row.get("episode_index") for row in rows]
        if numbers != list(range(total)):
            raise DatasetError(
                f"episode table in {folder}: expected the episodes 0 to {total - 1} once each, "
                f"got {len(numbers)} rows ({_first_gap(numbers)}); copy the dataset again or record it again"
            )
        missing = sorted(self._needed(keep) - set(rows[0])) if rows else []
        if missing:
            raise DatasetError(f"episode table in {folder}: expected the columns {missing}, found {sorted(rows[0])}")
        return rows

    def _needed(self, keep: Callable[[str], bool]) -> set[str]:
        parts = ("chunk_index", "file_index", "from_timestamp")
        needed = {f"videos/{key}/{part}" for key in self._video_keys for part in parts}
        needed |= {"tasks", "length", "data/chunk_index", "data/file_index", "dataset_from_index"}
        return {name for name in needed if keep(name)}


LAYOUTS: dict[str, type[LayoutV3]] = {words.VERSION: LayoutV3}


def read_info(root: Path) -> dict[str, Any]:
    """Read `meta/info.json`; unknown keys are kept.

    Raises:
        FileNotFoundError: no such folder, or not a LeRobot dataset.
        DatasetError: not JSON, a key is missing, or the version is not supported.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"expected a dataset folder at {root}, found none; check the path or record it first")
    path = root / words.INFO
    if not path.is_file():
        found = sorted(entry.name for entry in root.iterdir())[:8]
        raise FileNotFoundError(
            f"expected a LeRobot dataset with {words.INFO} in {root}, found {found or 'an empty folder'}; "
            "give the folder that holds meta/"
        )
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path}: expected JSON, got something else ({error}); copy the dataset again") from error
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version not in LAYOUTS:
        raise DatasetError(
            f"{path}: expected a LeRobot version in {sorted(LAYOUTS)}, got {version!r}; convert the dataset with "
            "LeRobot's own conversion script"
        )
    needed = {"fps", "features", "total_episodes", "total_frames", "data_path"}
    missing = sorted(needed - info.keys())
    if missing:
        raise DatasetError(f"{path}: expected the keys {sorted(needed)}, {missing} are missing; copy the dataset again")
    for key, expected, is_right in _KEYS:
        if key in info and not is_right(info[key]):
            raise DatasetError(f"{path}: expected {expected} as {key}, got {info[key]!r}; copy the dataset again")
    for name, feature in info["features"].items():
        _check_feature(path, name, feature)
    if any(map(words.is_video, info["features"].values())) and not info.get("video_path"):
        raise DatasetError(f"{path}: expected the key 'video_path', since there are videos; copy the dataset again")
    return info


def _check_feature(path: Path, name: str, feature: Any) -> None:
    shape = feature.get("shape") if isinstance(feature, dict) else None
    is_right = isinstance(shape, list) and all(map(_is_count, shape)) and isinstance(feature.get("dtype"), str)
    if not is_right or (words.camera_name(name) != name and len(shape or ()) != 3):
        raise DatasetError(
            f"{path}: expected a dtype and a shape (a list of whole numbers, three for a camera) as features.{name}, "
            f"got {feature!r}; copy the dataset again"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_path(value: Any) -> bool:
    try:
        return bool(value.format(chunk_index=0, file_index=0, video_key="camera"))
    except (AttributeError, LookupError, ValueError, TypeError):
        return False


def _is_own_part(value: Any) -> bool:
    """Whether our part of `info.json` has the form that other code relies on."""
    if not isinstance(value, dict) or not isinstance(value.get("columns", []), list):
        return False
    return all(isinstance(value.get(key, {}), dict) for key in ("robot", "video", "notes"))


_KEYS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("fps", "a positive number", _is_rate),
    ("features", "an object", lambda value: isinstance(value, dict)),
    ("total_episodes", "a whole number", _is_count),
    ("total_frames", "a whole number", _is_count),
    ("total_tasks", "a whole number", _is_count),
    ("data_path", "a path with {chunk_index} and {file_index}", _is_path),
    (
        "video_path",
        "a path with {video_key}, {chunk_index} and {file_index}",
        lambda value: value is None or _is_path(value),
    ),
    (words.WAMKIT, "an object (with objects as robot, video and notes, and a list as columns)", _is_own_part),
)


def read_tasks(root: Path) -> list[str]:
    """Sentences of `meta/tasks.parquet`, in the order of their index; the sentence column may have any name.

    Raises:
        FileNotFoundError: the file is missing.
        DatasetError: it cannot be read, or does not number the sentences from 0.
    """
    path = root / words.TASKS
    try:
        table = pq.read_table(path)
        names = [name for name in table.column_names if name != "task_index"]
        pairs = sorted(zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True))
    except FileNotFoundError:
        raise FileNotFoundError(f"expected the task table {path}, found none; copy the dataset again") from None
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        raise DatasetError(
            f"task table {path}: expected a Parquet table of sentences and task_index, got something else ({error}); "
            "copy the dataset again"
        ) from error
    if [index for index, _ in pairs] != list(range(len(pairs))):
        raise DatasetError(f"task table {path}: expected the indices 0 to {len(pairs) - 1}, got {pairs[:5]}")
    return [sentence for _, sentence in pairs]


def _record(row: dict[str, Any]) -> EpisodeRecord:
    tasks = tuple(row["tasks"] or ("",))
    metadata = json.loads(row.get(words.METADATA_COLUMN) or "{}")
    return EpisodeRecord(
        index=row["episode_index"], length=row["length"], task=tasks[0], tasks=tasks, metadata=metadata
    )


def _first_gap(numbers: list[Any]) -> str:
    gap = next((place for place, number in enumerate(numbers) if number != place), len(numbers))
    return f"episode {gap} is missing or doubled"
