"""LeRobot v2.0 and v2.1: one data file and one video per episode and camera, metadata as lines of JSON.

The public trainer of WAV reads folders of the same form. They may have only what it asks for, and one table of
sentences for several datasets that lie side by side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wamkit.data import features as words
from wamkit.data.layout import DatasetError, EpisodePlace, EpisodeRecord, VideoPlace, require_numbered

EPISODES = "meta/episodes.jsonl"
TASKS = "meta/tasks.jsonl"
STATISTICS = "meta/episodes_stats.jsonl"
"""Of v2.1; v2.0 has `meta/stats.json` alone, over the whole dataset."""

_OWN_KEYS = ("episode_index", "tasks", "length")


class LayoutV2:
    """LeRobot v2.0 and v2.1.

    Args:
        root: dataset folder.
        info: content of `meta/info.json`.

    Raises:
        FileNotFoundError: the table of episodes is missing.
        DatasetError: a line of it cannot be read, or it does not number the episodes from 0.
    """

    is_one_per_file = True

    def __init__(self, root: Path, info: dict[str, Any]) -> None:
        self._root, self._info = root, info
        self._video_keys = [key for key, feature in info["features"].items() if words.is_video(feature)]
        beside = root.absolute().parent / TASKS
        self.tasks_path = beside if beside.is_file() and not (root / TASKS).is_file() else root / TASKS
        total = int(info["total_episodes"])
        path = root / EPISODES
        if not path.is_file() and total:
            raise FileNotFoundError(f"expected the table of episodes {path}, found none; copy the dataset again")
        rows = sorted((row for _, row in _lines(path, "episode_index")), key=lambda row: row["episode_index"])[:total]
        require_numbered(rows, total, str(path))
        self.episodes = [_record(path, row) for row in rows]

    def place(self, episode: int) -> EpisodePlace:
        """Where an episode's rows and frames are."""
        fields = {"episode_chunk": episode // int(self._info["chunks_size"]), "episode_index": episode}
        return EpisodePlace(
            data=self._root / self._info["data_path"].format(**fields),
            first_row=0,
            videos={
                key: VideoPlace(path=self._root / self._info["video_path"].format(video_key=key, **fields), start_s=0.0)
                for key in self._video_keys
            },
        )

    def statistics_rows(self) -> list[dict[str, Any]]:
        """Per episode, `stats/<feature>/<statistic>`; empty dicts where `meta/episodes_stats.jsonl` has none.

        Raises:
            DatasetError: a line of it cannot be read.
        """
        path = self._root / STATISTICS
        stored = {}
        for number, line in _lines(path, "episode_index"):
            features = line.get("stats")
            if not isinstance(features, dict) or not all(isinstance(one, dict) for one in features.values()):
                raise _broken_line(path, number, "an object of features as stats", features)
            stored[line["episode_index"]] = {
                f"stats/{key}/{name}": value for key, one in features.items() for name, value in one.items()
            }
        return [stored.get(record.index, {}) for record in self.episodes]

    def read_tasks(self) -> list[str]:
        """Sentences by their index.

        Raises:
            FileNotFoundError: there is no table of sentences.
            DatasetError: a line of it cannot be read, or it does not number the sentences from 0.
        """
        path = self.tasks_path
        if not path.is_file():
            raise FileNotFoundError(f"expected the task table {path}, found none; copy the dataset again")
        sentences = {}
        for number, line in _lines(path, "task_index"):
            if not isinstance(line.get("task"), str):
                raise _broken_line(path, number, "a sentence as task", line.get("task"))
            sentences[line["task_index"]] = line["task"]
        if sorted(sentences) != list(range(len(sentences))):
            raise DatasetError(
                f"{path}: expected the task indices 0 to {len(sentences) - 1}, got {sorted(sentences)}; copy it again"
            )
        return [sentences[index] for index in range(len(sentences))]


def total_counts(root: Path) -> dict[str, int]:
    """What `meta/info.json` says of a LeRobot dataset's size, counted in the table of episodes.

    Raises:
        DatasetError: a line of it cannot be read.
    """
    path = root / EPISODES
    records = [_record(path, row) for _, row in _lines(path, "episode_index")]
    return {"total_episodes": len(records), "total_frames": sum(record.length for record in records)}


def _lines(path: Path, index: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each line that is not empty; nothing for a file that is not there."""
    if not path.is_file():
        return
    seen: dict[int, int] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: expected lines of JSON, got something else ({error}); copy it again") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _broken_line(path, number, "a JSON object", line) from error
        value = row.get(index) if isinstance(row, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _broken_line(path, number, f"a JSON object with a whole number as {index}", line)
        if value in seen:
            raise DatasetError(
                f"{path}, line {number}: expected each {index} once, got {value} here and in line {seen[value]}; "
                "remove the wrong line or copy the file again"
            )
        seen[value] = number
        yield number, row


def _record(path: Path, row: dict[str, Any]) -> EpisodeRecord:
    index, length, tasks = row["episode_index"], row.get("length"), row.get("tasks", [])
    tasks = [tasks] if isinstance(tasks, str) else tasks
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise DatasetError(f"{path}: expected a length of 1 or more rows for episode {index}, got {length!r}")
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise DatasetError(f"{path}: expected a sentence or a list of them as tasks of episode {index}, got {tasks!r}")
    tasks = tasks or [""]
    metadata = {key: value for key, value in row.items() if key not in _OWN_KEYS}
    return EpisodeRecord(index=index, length=length, task=tasks[0], tasks=tuple(tasks), metadata=metadata)


def _broken_line(path: Path, number: int, expected: str, got: Any) -> DatasetError:
    shown = got if isinstance(got, str) else repr(got)
    return DatasetError(
        f"{path}, line {number}: expected {expected}, got {shown[:80]!r}; correct the line or copy the file again"
    )
