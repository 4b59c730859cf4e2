"""Where the parts of a LeRobot dataset lie on disk: one `Layout` per format version, read from the metadata alone."""

from __future__ import annotations

import json
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
    """One version of the format. Reading the metadata is all it does; it opens no data file and no video.

    Its `tasks_path` is the table of sentences; `is_one_per_file` says that a file holds one episode and nothing else.
    """

    episodes: list[EpisodeRecord]

    tasks_path: Path

    is_one_per_file: bool

    def place(self, episode: int) -> EpisodePlace: ...

    def statistics_rows(self) -> list[dict[str, Any]]: ...

    def read_tasks(self) -> list[str]: ...


class LayoutV3:
    """LeRobot v3.0: many episodes per file, a Parquet table of episodes.

    Args:
        root: dataset folder.
        info: content of `meta/info.json`.

    Raises:
        FileNotFoundError: the episode table is missing.
        DatasetError: it cannot be read, lacks a column, or does not number the episodes from 0.
    """

    is_one_per_file = False

    def __init__(self, root: Path, info: dict[str, Any]) -> None:
        self._root, self._info = root, info
        self.tasks_path = root / words.TASKS
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

    def read_tasks(self) -> list[str]:
        """Sentences by their index."""
        return read_tasks(self._root)

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
        require_numbered(rows, total, f"episode table in {folder}")
        missing = sorted(self._needed(keep) - set(rows[0])) if rows else []
        if missing:
            raise DatasetError(f"episode table in {folder}: expected the columns {missing}, found {sorted(rows[0])}")
        return rows

    def _needed(self, keep: Callable[[str], bool]) -> set[str]:
        parts = ("chunk_index", "file_index", "from_timestamp")
        needed = {f"videos/{key}/{part}" for key in self._video_keys for part in parts}
        needed |= {"tasks", "length", "data/chunk_index", "data/file_index", "dataset_from_index"}
        return {name for name in needed if keep(name)}


def require_numbered(rows: list[dict[str, Any]], total: int, table: str) -> None:
    """Refuse rows of episodes that are not 0 to `total - 1`, in order.

    Raises:
        DatasetError: naming the table and the first episode that is missing or doubled.
    """
    numbers = [row.get("episode_index") for row in rows]
    if numbers != list(range(total)):
        gap = next((place for place, number in enumerate(numbers) if number != place), len(numbers))
        raise DatasetError(
            f"{table}: expected the episodes 0 to {total - 1} once each, got {len(numbers)} rows (episode {gap} is "
            "missing or doubled); copy the dataset again or record it again"
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
        names.sort(key=lambda name: name not in ("task", "__index_level_0__"))  # others may stand beside it
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
