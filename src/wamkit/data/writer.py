"""Write LeRobot v3.0 datasets, one whole episode at a time.

Each episode gets its own data file and its own video files (valid v3.0, where a file holds one or many episodes), all
written beside their place and renamed; `meta/info.json`, renamed last, makes the episode count. Killing the process at
any moment therefore leaves a dataset of all episodes completed before, and opening it again continues.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.data import features as words
from wamkit.data.atomic import remove_partial_files, write_atomically, write_json_atomically
from wamkit.data.camera_names import CAMERAS
from wamkit.data.episode_stats import (
    STATISTICS,
    Stats,
    column_stats,
    from_columns,
    image_stats,
    merge_stats,
    to_columns,
)
from wamkit.data.info import read_info
from wamkit.data.layout import DatasetError, LayoutV3, read_tasks
from wamkit.data.video import VideoSettings, encode_video
from wamkit.episode import Episode
from wamkit.lock import LOCK_FILE, FolderLock
from wamkit.spec import RobotSpec, SpecMismatch, require_match

logger = logging.getLogger(__name__)

FILES_PER_CHUNK = 1000
# The episode table is rewritten with every episode; a bound on its rows keeps that cheap however long a recording gets.
EPISODES_PER_TABLE = 500


class LeRobotWriter:
    """Appends episodes to a dataset folder; a context manager.

    Args:
        root: dataset folder; created, or continued when it holds a dataset of the same robot. One without episodes
            counts as empty: it takes another robot, rate and video settings.
        robot: what is recorded; stored in `info.json`.
        fps: rows and frames per second; the robot's `control_hz` when `None`.
        video: how frames are encoded; the settings of the existing dataset when `None` and there is one.
        has_outcome: whether episodes say what they earned and whether they were solved. Without it there are no such
            columns, and readers take every episode for a demonstration that ends solved.

    Raises:
        SpecMismatch: the folder holds a dataset of another robot.
        ValueError: `fps` is not a whole number, the cameras' size cannot be encoded, or rate, video settings or
            `has_outcome` differ from the existing dataset's.
        DatasetError: the existing dataset was not written by wamkit, or cannot be read.
        FileExistsError: the folder holds other things.
        BlockingIOError: another process is writing to the folder.
    """

    def __init__(
        self,
        root: Path | str,
        robot: RobotSpec,
        fps: int | None = None,
        *,
        video: VideoSettings | None = None,
        has_outcome: bool = True,
    ) -> None:
        self.root, self.robot, self._has_outcome = Path(root), robot, has_outcome
        rate = robot.control_hz if fps is None else float(fps)
        if rate != int(rate):
            raise ValueError(f"expected a whole number of frames per second (LeRobot stores an integer), got {rate}")
        self._fps = int(rate)
        for camera in robot.cameras:
            (video or VideoSettings()).require_size(camera.height, camera.width)
        self._require_own_folder()
        self._lock = FolderLock(self.root)
        self._lock.take()
        try:
            removed = remove_partial_files(self.root)
            if (self.root / words.INFO).is_file():
                self._reopen(video)
            else:
                self._create(video or VideoSettings())
        except BaseException:
            self.close()
            raise
        if removed:
            logger.warning("removed %d partial files that an interrupted recording left in %s", len(removed), self.root)

    @property
    def num_episodes(self) -> int:
        """Complete episodes."""
        return int(self._info["total_episodes"])

    @property
    def num_frames(self) -> int:
        """Rows over all complete episodes."""
        return int(self._info["total_frames"])

    @property
    def notes(self) -> dict[str, Any]:
        """JSON facts that were stored together with the newest episode, or by `set_notes`."""
        return json.loads(json.dumps(self._info[words.WAMKIT].get("notes", {})))

    def add(self, episode: Episode, *, notes: dict[str, Any] | None = None) -> int:
        """Write one episode; when this returns it is part of the dataset.

        Args:
            episode: what happened; its cameras, widths and image sizes must be the robot's.
            notes: JSON facts that must change in the same instant as the episode count (a recorder's position).

        Returns:
            The episode's index.

        Raises:
            ValueError: the episode does not fit the robot or holds numbers that are not finite.
            OSError: writing failed; on a full disk the message says so. The dataset is as before the call.
        """
        self._require_fit(episode)
        metadata = _json_object(episode.metadata)
        index, at = self.num_episodes, self._position
        tasks = self._tasks if episode.task in self._tasks else [*self._tasks, episode.task]
        columns = self._columns(episode, task_index=tasks.index(episode.task))
        written: list[Path] = []
        try:
            stats = {}
            for camera in self.robot.cameras:
                key, frames = words.camera_key(camera.name), episode.video[camera.name]
                path = self.root / words.VIDEO_PATH.format(video_key=key, **at)
                written.append(path)
                write_atomically(path, encode_video(frames, fps=self._fps, settings=self._video))
                stats[key] = image_stats(frames)
            stats |= {key: column_stats(values) for key, values in columns.items()}
            path = self.root / words.DATA_PATH.format(**at)
            written.append(path)
            write_atomically(path, _parquet_bytes(self._data_table(columns)))
            self._commit(episode, tasks, stats, metadata, notes)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        return index

    def require_open_to_episodes(self) -> None:
        """Check, before anything is simulated, that recorded episodes can fill every column of the dataset.

        Raises:
            ValueError: columns were added, such as value labels.
        """
        added = sorted(self._info["features"].keys() - self._features().keys())
        if added:
            raise ValueError(
                f"{self.root} has the added columns {added}, which a recorded episode cannot fill; record all episodes "
                "into a new folder and add the columns there afterwards (`wamkit data values` adds value)"
            )

    def set_notes(self, notes: dict[str, Any]) -> None:
        """Store JSON facts without an episode.

        Raises:
            OSError: writing failed.
        """
        self._write_info(self._info | {words.WAMKIT: self._info[words.WAMKIT] | {"notes": notes}})

    def finalize(self) -> None:
        """Write `meta/stats.json` once more and give the folder free for other writers.

        Raises:
            OSError: writing failed.
        """
        self._write_stats(self._merged)
        self.close()

    def close(self) -> None:
        """Give the folder free for other writers; complete episodes stay."""
        self._lock.release()

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        self.close()

    # -- opening -------------------------------------------------------------------------------------------------------

    def _require_own_folder(self) -> None:
        """Refuse a folder that holds something else, before anything is written or removed there."""
        if not self.root.is_dir() or (self.root / words.INFO).is_file():
            return
        others = sorted(entry.name for entry in self.root.iterdir() if entry.name not in ("meta", LOCK_FILE))
        if others:
            raise FileExistsError(
                f"expected an empty folder or a dataset at {self.root}, found {others[:8]}; choose another folder"
            )

    def _create(self, video: VideoSettings) -> None:
        self._video = video
        self._tasks: list[str] = []
        self._table: pa.Table | None = None
        self._merged: dict[str, Stats] = {}
        self._position = {"chunk_index": 0, "file_index": 0}
        self._table_position = {"chunk_index": 0, "file_index": 0}
        features = self._features()
        self._write_info(
            {
                "codebase_version": words.VERSION,
                "robot_type": self.robot.name,
                "total_episodes": 0,
                "total_frames": 0,
                "total_tasks": 0,
                "chunks_size": FILES_PER_CHUNK,
                "data_files_size_in_mb": 100,
                "video_files_size_in_mb": 200,
                "fps": self._fps,
                "splits": {"train": "0:0"},
                "data_path": words.DATA_PATH,
                "video_path": words.VIDEO_PATH,
                "features": features,
                words.WAMKIT: {"robot": self.robot.to_dict(), "video": _settings_dict(video), "notes": {}},
            }
        )

    def _reopen(self, video: VideoSettings | None) -> None:
        info = read_info(self.root)
        own = info.get(words.WAMKIT, {})
        if info["codebase_version"] != words.VERSION:
            raise DatasetError(
                f"{self.root}: expected a dataset in LeRobot {words.VERSION}, found {info['codebase_version']}, which "
                "is read but not written; record into a new folder, or bring this one to "
                f"{words.VERSION} with `wamkit data convert`"
            )
        missing = [key for key in ("robot", "video") if key not in own]  # `wamkit data describe` writes a robot only
        if missing:
            raise DatasetError(
                f"{self.root}: expected a dataset recorded by wamkit, found one without its notes of {missing}; record "
                "into a new folder"
            )
        if own.get(CAMERAS):
            raise DatasetError(
                f"{self.root}: expected a dataset whose files call the cameras as the robot does, its cameras are read "
                f"under other names ({words.INFO}, {words.WAMKIT}.{CAMERAS}); record into a new folder"
            )
        stored = VideoSettings(**own["video"])
        robot = RobotSpec.from_dict(own["robot"])
        has_outcome = words.SUCCESS in info["features"]
        known = (robot, info["fps"], stored, has_outcome)
        is_changed = known != (self.robot, self._fps, video or stored, self._has_outcome)
        if is_changed and info["total_episodes"] == 0:
            self._create(video or VideoSettings())  # a recording failed before its first episode
            return
        _require_same_robot(self.robot, robot, self.root)
        if info["fps"] != self._fps:
            raise ValueError(f"{self.root} holds {info['fps']} frames/s, the recording {self._fps}; use another folder")
        if video is not None and video != stored:
            raise ValueError(
                f"{self.root} is encoded with {stored}, the recording asks for {video}; use another folder"
            )
        if has_outcome != self._has_outcome:
            said = {True: "say what they earned", False: "do not say what they earned"}
            raise ValueError(
                f"the episodes of {self.root} {said[has_outcome]}, the recording's {said[self._has_outcome]}; use "
                "another folder"
            )
        self._video, self._info = stored, info
        rows = LayoutV3(self.root, info).all_rows()
        self._tasks = read_tasks(self.root)[: int(info["total_tasks"])] if rows else []
        self._merged = {}
        for row in rows:
            self._merged = _merged(self._merged, from_columns(row))
        last = rows[-1] if rows else None
        self._position = _following(last, "data/")
        self._table_position = {"chunk_index": 0, "file_index": 0}
        self._table = None
        if last is not None:
            self._table_position = {part: last[f"meta/episodes/{part}"] for part in self._table_position}
            kept = [row for row in rows if all(row[f"meta/episodes/{p}"] == v for p, v in self._table_position.items())]
            self._table = pa.Table.from_pylist(kept, schema=self._table_schema())
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Delete the files of an episode that was interrupted between its first rename and the last."""
        paths = [self.root / words.DATA_PATH.format(**self._position)]
        paths += [
            self.root / words.VIDEO_PATH.format(video_key=words.camera_key(name), **self._position)
            for name in self.robot.camera_names
        ]
        for path in paths:
            if path.exists():
                logger.warning("removed %s of an interrupted episode", path)
                path.unlink()

    # -- writing -------------------------------------------------------------------------------------------------------

    def _require_fit(self, episode: Episode) -> None:
        self.require_open_to_episodes()
        widths = {"actions": len(self.robot.action), "state": len(self.robot.state)}
        for name, width in widths.items():
            values = getattr(episode, name)
            if values.ndim != 2 or values.shape[1] != width:
                raise ValueError(
                    f"{name}: expected [T, {width}] for robot {self.robot.name!r}, got {list(values.shape)}"
                )
        for name in ("reward", "success"):
            if (getattr(episode, name) is not None) != self._has_outcome:
                wanted, got = ("[T]", "none") if self._has_outcome else ("none", "some")
                raise ValueError(f"{name}: expected {wanted}, as in the dataset {self.root}, got {got}")
        for name in (*widths, *(("reward",) if self._has_outcome else ())):
            if not np.isfinite(getattr(episode, name)).all():
                row = int(np.argwhere(~np.isfinite(getattr(episode, name)))[0][0])
                raise ValueError(f"{name}: expected finite numbers, got NaN or infinity first in row {row}")
        if set(episode.video) != set(self.robot.camera_names):
            raise ValueError(f"expected the cameras {list(self.robot.camera_names)}, got {list(episode.video)}")
        for camera in self.robot.cameras:
            frames = episode.video[camera.name]
            if frames.dtype != np.uint8 or frames.shape[1:] != (camera.height, camera.width, 3):
                raise ValueError(
                    f"camera {camera.name!r}: expected uint8 [T, {camera.height}, {camera.width}, 3], "
                    f"got {frames.dtype} {list(frames.shape)}"
                )

    def _columns(self, episode: Episode, *, task_index: int) -> dict[str, np.ndarray]:
        rows = np.arange(len(episode))
        columns: dict[str, np.ndarray | None] = {
            words.STATE: episode.state.astype(np.float32) if self.robot.state else None,
            words.ACTION: episode.actions.astype(np.float32),
            words.REWARD: None if episode.reward is None else episode.reward.astype(np.float32),
            words.DONE: rows == len(rows) - 1,
            words.SUCCESS: None if episode.success is None else episode.success.astype(bool),
            "timestamp": (rows / self._fps).astype(np.float32),
            "frame_index": rows,
            "episode_index": np.full(len(rows), self.num_episodes),
            "index": rows + self.num_frames,
            "task_index": np.full(len(rows), task_index),
        }
        return {key: values for key, values in columns.items() if values is not None}

    def _data_table(self, columns: dict[str, np.ndarray]) -> pa.Table:
        schema = words.data_schema(self._info["features"])
        arrays = []
        for entry in schema:
            values = columns[entry.name]
            if pa.types.is_fixed_size_list(entry.type):
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=entry.type))
            else:
                arrays.append(pa.array(values.ravel(), entry.type))
        return pa.table(arrays, schema=schema)

    def _commit(
        self,
        episode: Episode,
        tasks: list[str],
        stats: dict[str, Stats],
        metadata: str,
        notes: dict[str, Any] | None,
    ) -> None:
        """Write the metadata; the rename of `info.json` is the moment the episode exists."""
        index, first, length = self.num_episodes, self.num_frames, len(episode)
        table, table_position = self._table, self._table_position
        if table is not None and len(table) >= EPISODES_PER_TABLE:
            table, table_position = None, _next_file(table_position)
        row: dict[str, Any] = {"episode_index": index, "tasks": [episode.task], "length": length}
        row |= {f"data/{part}": value for part, value in self._position.items()}
        row |= {"dataset_from_index": first, "dataset_to_index": first + length}
        for name in self.robot.camera_names:
            prefix = f"videos/{words.camera_key(name)}/"
            row |= {f"{prefix}{part}": value for part, value in self._position.items()}
            row |= {f"{prefix}from_timestamp": 0.0, f"{prefix}to_timestamp": length / self._fps}
        row |= to_columns(stats)
        row |= {f"meta/episodes/{part}": value for part, value in table_position.items()}
        row[words.METADATA_COLUMN] = metadata
        line = pa.Table.from_pylist([row], schema=self._table_schema())
        table = line if table is None else pa.concat_tables([table, line]).combine_chunks()
        merged = _merged(self._merged, stats)
        if len(tasks) != len(self._tasks):
            write_atomically(self.root / words.TASKS, _parquet_bytes(words.tasks_table(tasks)))
        write_atomically(self.root / words.EPISODES_PATH.format(**table_position), _parquet_bytes(table))
        self._write_stats(merged)
        totals: dict[str, Any] = {"total_episodes": index + 1, "total_frames": first + length}
        totals |= {"total_tasks": len(tasks), "splits": {"train": f"0:{index + 1}"}}
        if notes is not None:
            totals[words.WAMKIT] = self._info[words.WAMKIT] | {"notes": notes}
        self._write_info(self._info | totals)
        self._tasks, self._table, self._table_position, self._merged = tasks, table, table_position, merged
        self._position = _next_file(self._position)

    def _table_schema(self) -> pa.Schema:
        return words.episode_schema(self._features(), STATISTICS)

    def _features(self) -> dict[str, dict[str, Any]]:
        return words.robot_features(self.robot, fps=self._fps, video=self._video, has_outcome=self._has_outcome)

    def _write_info(self, info: dict[str, Any]) -> None:
        write_json_atomically(self.root / words.INFO, info)
        self._info = info

    def _write_stats(self, merged: dict[str, Stats]) -> None:
        plain = {
            key: {name: stats[name].tolist() for name in STATISTICS if name in stats} for key, stats in merged.items()
        }
        write_json_atomically(self.root / words.STATS, plain)


def _json_object(metadata: dict[str, Any]) -> str:
    try:
        return json.dumps(metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"metadata: expected JSON values (text, finite numbers, lists, objects), got {metadata} ({error}); "
            "convert numpy values first"
        ) from error


def _require_same_robot(robot: RobotSpec, stored: RobotSpec, root: Path) -> None:
    require_match(robot, stored, wanted_by="this recording", offered_by=f"the dataset {root}")
    if robot.camera_names != stored.camera_names:
        raise SpecMismatch(
            f"this recording has the cameras {list(robot.camera_names)}, the dataset {root} has "
            f"{list(stored.camera_names)}; record into a new folder or with the same cameras in the same order"
        )


def _merged(before: dict[str, Stats], new: dict[str, Stats]) -> dict[str, Stats]:
    return {key: merge_stats([before[key], stats]) if key in before else stats for key, stats in new.items()}


def _following(row: dict[str, Any] | None, prefix: str) -> dict[str, int]:
    if row is None:
        return {"chunk_index": 0, "file_index": 0}
    return _next_file({part: row[f"{prefix}{part}"] for part in ("chunk_index", "file_index")})


def _next_file(position: dict[str, int]) -> dict[str, int]:
    number = position["chunk_index"] * FILES_PER_CHUNK + position["file_index"] + 1
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _parquet_bytes(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy", row_group_size=max(1, len(table)))
    return memoryview(sink.getvalue())


def _settings_dict(video: VideoSettings) -> dict[str, Any]:
    return dict(vars(video))
