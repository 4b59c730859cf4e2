"""Bring a LeRobot dataset from v2.0 or v2.1 to v3.0 without losing anything.

Each episode keeps its own data file and its own videos, which v3.0 allows, so that videos are copied bit by bit. One
whose frames are not shown at whole multiples of 1/fps could not be read exactly; its frames are encoded anew in order.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit import __version__
from wamkit.data import features as words
from wamkit.data import layout_v2
from wamkit.data.added_columns import is_of_this_recording
from wamkit.data.atomic import write_json_atomically
from wamkit.data.conversion import NOTES, ConversionReport, new_dataset
from wamkit.data.episode_stats import STATISTICS, Stats, block_image_stats, column_stats, merge_stats, to_columns
from wamkit.data.exclusions import EXCLUDE_PATH, open_usable, read_exclusions, without_excluded
from wamkit.data.layout import EpisodeRecord
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.stats import STATISTICS_PATH
from wamkit.data.video import TIME_TOLERANCE_S, VideoError, VideoReader, VideoSettings, encode_video
from wamkit.data.writer import EPISODES_PER_TABLE, FILES_PER_CHUNK
from wamkit.spec import RobotSpec

_BLOCK = 64  # frames decoded at a time for statistics
_STORED_STATISTICS = {"min", "max", "mean", "std", "count"}
# Metadata that are written anew, or that describe files which are, or episodes that are left out.
_REPLACED = (
    words.INFO,
    layout_v2.EPISODES,
    layout_v2.TASKS,
    layout_v2.STATISTICS,
    words.STATS,
    STATISTICS_PATH,
    EXCLUDE_PATH,
)
_V2_KEYS = ("total_chunks", "total_videos")


def convert_v2(
    source: Path | str,
    output: Path | str,
    *,
    robot: RobotSpec | None = None,
    renamed: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Make a v3.0 dataset of a v2.0 or v2.1 dataset: every column, picture, sentence and note of it.

    Statistics per episode are computed from the rows; those of pictures are the stored ones where every episode has
    them (v2.1), else they are computed from all frames.

    Episodes that the list in `meta/wamkit_exclude.json` names are left out, and those after them get new numbers; the
    notes of the new dataset keep the old numbers of what was left out, with the reasons. A log line names them too.

    Args:
        source: dataset folder.
        output: a folder that does not exist, or an empty one.
        robot: stored as the robot of the dataset, which training needs.
        renamed: the dataset's own names of cameras -> the names to read them under; files and features keep theirs.
        progress: called with (episodes done, episodes).

    Raises:
        FileNotFoundError: no dataset, or a file of it is missing.
        FileExistsError: there is something at `output`.
        DatasetError: metadata and data disagree, or the list of excluded episodes is damaged or names all of them.
        VideoError: a video cannot be read, or holds neither the right frames nor the right number of them.
        ValueError: the dataset is v3.0 already, `robot` has other cameras or widths, or `renamed` does not fit.
        OSError: writing failed.
    """
    source, output = Path(source), Path(output)
    dataset = open_usable(source)
    if dataset.info["codebase_version"] == words.VERSION:
        raise ValueError(f"{source} is a dataset in LeRobot {words.VERSION} already; there is nothing to convert")
    kept = {entry.index for entry in without_excluded(dataset).episodes}
    if renamed is not None:  # its files were looked at already
        dataset = LeRobotDataset(source, check=False, ignored=dataset.ignored, renamed=renamed)
    if robot is not None:
        require_robot(dataset, robot)
    with new_dataset(output, source) as folder:
        return _Conversion(dataset, folder, robot, kept).run(output, progress)


def require_robot(dataset: LeRobotDataset, robot: RobotSpec) -> None:
    """Refuse a robot that cannot have recorded a dataset.

    Raises:
        ValueError: listing the cameras, sizes and widths that differ.
    """
    wrong = []
    for camera in robot.cameras:
        known = camera.name in dataset.cameras
        size = words.image_size(dataset.features[dataset.camera_key(camera.name)]) if known else None
        if size != (camera.height, camera.width):
            found = f"{size[0]}x{size[1]}" if size else f"the cameras {list(dataset.cameras)}"
            wrong.append(f"camera {camera.name!r} of {camera.height}x{camera.width}: the dataset has {found}")
    for key, channels in ((words.ACTION, robot.action), (words.STATE, robot.state)):
        shape = dataset.features.get(key, {}).get("shape")
        if shape is None or int(np.prod(shape)) != len(channels):
            wrong.append(f"{key} of {len(channels)} channels: the dataset has {shape}")
    if wrong:
        listed = "\n  - ".join(wrong)
        raise ValueError(
            f"robot {robot.name!r} and dataset {dataset.root} do not fit; the robot has\n  - {listed}\n"
            "Give the robot that recorded the dataset."
        )


class _Conversion:
    """The state of one pass over the episodes."""

    def __init__(self, dataset: LeRobotDataset, folder: Path, robot: RobotSpec | None, kept: set[int]) -> None:
        self._dataset, self._folder, self._robot = dataset, folder, robot
        self._records = [record for record in dataset.episodes if record.index in kept]
        self._is_renumbered = len(self._records) < dataset.num_episodes
        self._tasks = dataset.read_tasks() if dataset.num_episodes else []
        # Rows must have what v3.0 always has; folders for WAV's trainer may lack it.
        kinds = {"timestamp": "float32"} | dict.fromkeys(words.INDEX_FEATURES[1:], "int64")
        self._features: dict[str, dict[str, Any]] = dataset.info["features"] | {
            key: words.scalar_feature(kind) for key, kind in kinds.items() if key not in dataset.info["features"]
        }
        stored = dataset.episode_statistics()
        self._stored = stored
        self._has_stored = {
            key: all(stored[record.index].get(key, {}).keys() >= _STORED_STATISTICS for record in self._records)
            for key, feature in self._features.items()
            if words.is_camera(feature)
        }
        self._copied = self._encoded = 0

    def run(self, output: Path, progress: Callable[[int, int], None] | None) -> ConversionReport:
        dataset = self._dataset
        rows: list[dict[str, Any]] = []
        kept: dict[str, list[Stats]] = {}
        first = 0
        for number, record in enumerate(self._records):
            stats = self._write_rows(record, number, first) | self._write_pictures(record, number)
            for key, one in stats.items():
                kept.setdefault(key, []).append(one)
            rows.append(self._row(record, number, first, stats))
            first += record.length
            if progress is not None:
                progress(number + 1, len(self._records))
        self._write_episodes(rows)
        merged = {key: merge_stats(parts) for key, parts in kept.items()}
        plain = {key: {name: value.tolist() for name, value in one.items()} for key, one in merged.items()}
        write_json_atomically(self._folder / words.STATS, plain)
        if rows:
            pq.write_table(words.tasks_table(self._tasks), self._folder / words.TASKS)
        self._copy_other_metadata()
        notes = self._write_info()
        LeRobotDataset(self._folder)  # every file and length once more, before it gets its name
        return ConversionReport(
            output=output,
            source=f"LeRobot {dataset.info['codebase_version']}",
            episodes=len(rows),
            frames=first,
            left_out=dataset.num_episodes - len(rows),
            copied_videos=self._copied,
            encoded_videos=self._encoded,
            notes=notes,
        )

    # -- one episode ---------------------------------------------------------------------------------------------------

    def _write_rows(self, record: EpisodeRecord, number: int, first: int) -> dict[str, Stats]:
        """The data file of an episode under its new number; gives the statistics of its numbers."""
        path = self._dataset.data_path(record.index)
        with pq.ParquetFile(path) as file:
            table = file.read()
        frame = np.arange(record.length)
        made: dict[str, np.ndarray] = {
            "timestamp": (frame / self._dataset.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(record.length, number),
            "index": frame + first,
            "task_index": np.full(record.length, self._task_index(record)),
        }
        columns = {name: table[name] for name in table.column_names if not name.startswith("__index_level_")}
        for name, numbers in made.items():
            columns.setdefault(name, pa.array(numbers))
        # What is counted over the episodes changes where some are left out; else it stays as it was stored.
        counted = {name: made[name] for name in ("episode_index", "index") if self._is_renumbered}
        columns |= {name: pa.array(numbers) for name, numbers in counted.items()}
        declared = [key for key, feature in self._features.items() if not words.is_video(feature)]
        # Reading them refuses what does not have the features' shape.
        read = self._dataset.columns(record.index)
        values = made | {self._dataset.stored_name(key): column for key, column in read.items()} | counted
        order = [*declared, *(name for name in columns if name not in declared)]
        arrays = [_as_v3(columns[name], self._features.get(name)) for name in order]
        target = self._folder / words.DATA_PATH.format(**_position(number))
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(arrays, names=order), target, compression="snappy", row_group_size=record.length)
        numeric = [key for key in declared if key in values and values[key].dtype != object]
        return {key: _shaped(column_stats(values[key]), self._features[key]["shape"]) for key in numeric}

    def _task_index(self, record: EpisodeRecord) -> int:
        if record.task not in self._tasks:
            self._tasks.append(record.task)
        return self._tasks.index(record.task)

    def _write_pictures(self, record: EpisodeRecord, number: int) -> dict[str, Stats]:
        """The videos of an episode under its new number; gives the statistics of its pictures, embedded ones too."""
        stats = {}
        for camera in self._dataset.cameras:
            key = self._dataset.camera_key(camera)
            path = self._dataset.video_path(record.index, camera)
            if path is not None:
                target = self._folder / words.VIDEO_PATH.format(video_key=key, **_position(number))
                target.parent.mkdir(parents=True, exist_ok=True)
                self._write_video(path, target, record.length)
            if self._has_stored[key]:
                stats[key] = {name: self._stored[record.index][key][name] for name in sorted(_STORED_STATISTICS)}
            else:
                stats[key] = block_image_stats(self._blocks(record, camera))
        return stats

    def _blocks(self, record: EpisodeRecord, camera: str) -> Iterator[np.ndarray]:
        path = self._dataset.video_path(record.index, camera)
        for start in range(0, record.length, _BLOCK):
            rows = range(start, min(start + _BLOCK, record.length))
            if path is None:
                yield self._dataset.frames(record.index, camera, rows)
            else:
                with VideoReader(path) as reader:
                    times = reader.times()
                    yield reader.read([times[row] for row in rows])

    def _write_video(self, path: Path, target: Path, length: int) -> None:
        fps = self._dataset.fps
        with VideoReader(path) as reader:
            times = reader.times()
            wanted = np.arange(min(length, len(times))) / fps
            off = np.flatnonzero(np.abs(np.array(times[:length]) - wanted) > TIME_TOLERANCE_S)
            if len(times) >= length and len(off) == 0:
                shutil.copyfile(path, target)
                self._copied += 1
                return
            if len(times) != length or fps != int(fps):
                row = int(off[0]) if len(off) else len(times)
                got = f"{times[row]:.6f} s" if row < len(times) else "the end of the video"
                raise VideoError(
                    f"video {path}: expected frame {row} at {row / fps:.6f} s ({length} frames at {fps:g} per second), "
                    f"got {got} ({len(times)} frames); correct fps, or leave the episode out"
                )
            frames, info = reader.read(times), reader.info
        is_odd = info.height % 2 or info.width % 2
        settings = VideoSettings(crf=18, pixel_format="yuv444p" if is_odd else "yuv420p")
        target.write_bytes(encode_video(frames, fps=int(fps), settings=settings))
        self._encoded += 1

    def _row(self, record: EpisodeRecord, number: int, first: int, stats: dict[str, Stats]) -> dict[str, Any]:
        position = _position(number)
        row: dict[str, Any] = {"episode_index": number, "tasks": list(record.tasks), "length": record.length}
        row |= {f"data/{part}": value for part, value in position.items()}
        row |= {"dataset_from_index": first, "dataset_to_index": first + record.length}
        for key, feature in self._features.items():
            if words.is_video(feature):
                row |= {f"videos/{key}/{part}": value for part, value in position.items()}
                ends = {"from_timestamp": 0.0, "to_timestamp": record.length / self._dataset.fps}
                row |= {f"videos/{key}/{part}": value for part, value in ends.items()}
        row |= to_columns(stats)
        table = number // EPISODES_PER_TABLE
        row |= {f"meta/episodes/{part}": value for part, value in _position(table).items()}
        return row | {words.METADATA_COLUMN: json.dumps(record.metadata, sort_keys=True)}

    # -- the whole dataset ---------------------------------------------------------------------------------------------

    def _write_episodes(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        schema = words.episode_schema(self._features, STATISTICS)
        schema = pa.schema([entry for entry in schema if entry.name in rows[0]])
        for start in range(0, len(rows), EPISODES_PER_TABLE):
            part = rows[start : start + EPISODES_PER_TABLE]
            path = self._folder / words.EPISODES_PATH.format(**_position(start // EPISODES_PER_TABLE))
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(part, schema=schema), path, compression="snappy")

    def _copy_other_metadata(self) -> None:
        meta = self._dataset.root / "meta"
        replaced = {self._dataset.root / name for name in _REPLACED}
        for path in sorted(meta.rglob("*")):
            if path.is_file() and path not in replaced:
                target = self._folder / "meta" / path.relative_to(meta)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def _write_info(self) -> dict[str, Any]:
        old, dataset = self._dataset.info, self._dataset
        own = dict(dataset.wamkit)
        notes: dict[str, Any] = {
            "name": dataset.root.resolve().name,
            "version": old["codebase_version"],
            "encoded_videos": self._encoded,
            "wamkit": __version__,
        }
        if self._is_renumbered:
            reasons = read_exclusions(dataset.root, num_episodes=dataset.num_episodes).episodes
            notes["excluded_episodes"] = {str(number): reason for number, reason in reasons.items()}
        # Files with new fingerprints: an added column that was current no longer says of what, a stale one stays stale.
        sources = own.pop(words.SOURCES, {})
        if stale := {name: one for name, one in sources.items() if is_of_this_recording(dataset, name) is False}:
            own[words.SOURCES] = stale
        own["notes"] = own.get("notes", {}) | {NOTES: notes}
        if self._robot is not None:
            own["robot"] = self._robot.to_dict()
        info = {key: value for key, value in old.items() if key not in _V2_KEYS} | {
            "codebase_version": words.VERSION,
            "total_episodes": len(self._records),
            "total_frames": sum(record.length for record in self._records),
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": int(dataset.fps) if dataset.fps == int(dataset.fps) else dataset.fps,
            "data_path": words.DATA_PATH,
            "video_path": words.VIDEO_PATH if any(map(words.is_video, self._features.values())) else None,
            "features": self._features,
            words.WAMKIT: own,
        }
        if self._is_renumbered and isinstance(info.get("splits"), dict):
            info["splits"] = {name: self._renumbered(part) for name, part in info["splits"].items()}
        write_json_atomically(self._folder / words.INFO, info)
        return notes

    def _renumbered(self, split: Any) -> Any:
        """A range of episodes, as 0:12, under the new numbers; anything else as it is."""
        ends = re.fullmatch(r"(\d+):(\d+)", split) if isinstance(split, str) else None
        if ends is None:
            return split
        return ":".join(str(sum(record.index < int(end) for record in self._records)) for end in ends.groups())


def _position(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _as_v3(column: pa.ChunkedArray | pa.Array, feature: dict[str, Any] | None) -> pa.ChunkedArray | pa.Array:
    """A vector as a list of fixed size, one number as a plain scalar; its numbers stay as they are."""
    kind = column.type
    if feature is None or len(feature["shape"]) != 1 or not _is_list(kind):
        return column
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    while _is_list(values.type):
        values = values.flatten()
    width = feature["shape"][0]
    return values if width == 1 else pa.FixedSizeListArray.from_arrays(values, width)


def _shaped(stats: Stats, shape: list[int]) -> Stats:
    """Statistics in the shape of their feature, which may have several axes."""
    return {name: value if name == "count" else value.reshape(shape) for name, value in stats.items()}


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
