"""Look through a whole dataset once and report what would spoil training: files, numbers, frames, statistics.

Opening a dataset stops at the first thing that is wrong; this goes on, and says what could not be looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.data import features as words
from wamkit.data.episode_stats import column_stats
from wamkit.data.findings import Finding, Kind, Report, Severity, TaskSummary
from wamkit.data.layout import DatasetError
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE
from wamkit.data.stats import STATISTICS_PATH
from wamkit.data.video import VideoError, VideoReader

# Standard deviation of a frame's pixels (of 255) below which nothing can be seen on it: a black GL context gives 0.
_BLANK_STD = 1.0
_TIME_TOLERANCE_S = 1e-3
_RATE_TOLERANCE = 0.01
_STATISTICS_TOLERANCE = 1e-3  # others compute means in float32
_RECORD_AGAIN = "record these episodes again or exclude them"


def inspect(root: Path | str, *, progress: Callable[[int, int], None] | None = None) -> Report:
    """Check every file, row and frame of a dataset.

    Args:
        root: dataset folder.
        progress: called with (steps done, steps), a step being a video file or an episode's rows.

    Raises:
        FileNotFoundError: no such folder, not a dataset, or no episode table.
        DatasetError: the metadata cannot be read at all; nothing else can be looked at then.
    """
    return _Inspection(LeRobotDataset(root, check=False), progress).run()


class _Inspection:
    """The state of one pass: findings so far, and what is compared across episodes."""

    def __init__(self, dataset: LeRobotDataset, progress: Callable[[int, int], None] | None) -> None:
        self._dataset, self._progress = dataset, progress
        self._findings: list[Finding] = []
        self._rows: dict[Path, list[int]] = defaultdict(list)
        self._videos: dict[tuple[Path, str], list[int]] = defaultdict(list)
        for record in dataset.episodes:
            place = dataset.place(record.index)
            self._rows[place.data].append(record.index)
            for key, video in place.videos.items():
                self._videos[video.path, key].append(record.index)
        self._firsts = np.cumsum([0, *(record.length for record in dataset.episodes)])
        self._solved: dict[int, bool] = {}
        self._ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._hashes: dict[str, list[int]] = defaultdict(list)
        self._stored = dataset.episode_statistics()
        self._differing: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._steps = [0, len(self._videos) + dataset.num_episodes]

    def run(self) -> Report:
        self._tasks = self._read_tasks()
        self._check_metadata()
        for (path, key), episodes in self._videos.items():
            self._check_video(path, key, episodes)
            self._step()
        for path, episodes in self._rows.items():
            readable = self._check_data_file(path, episodes)
            for episode in episodes:
                if readable is not None:
                    self._check_rows(episode, readable)
                self._step()
        self._check_ranges()
        self._check_duplicates()
        self._check_statistics()
        self._check_leftovers()
        return self._report()

    def _step(self) -> None:
        self._steps[0] += 1
        if self._progress is not None:
            self._progress(self._steps[0], self._steps[1])

    def _add(
        self,
        kind: Kind,
        where: str,
        what: str,
        remedy: str,
        *,
        severity: Severity = "error",
        episode: int | None = None,
    ) -> None:
        self._findings.append(
            Finding(kind=kind, severity=severity, where=where, what=what, remedy=remedy, episode=episode)
        )

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._dataset.root))

    # -- metadata ------------------------------------------------------------------------------------------------------

    def _read_tasks(self) -> list[str] | None:
        where = "/".join(self._dataset.tasks_path.parts[-2:])
        try:
            return self._dataset.read_tasks() if self._dataset.num_episodes else []
        except FileNotFoundError:
            self._add("missing_file", where, "expected the task table, found none", "copy the dataset again")
        except DatasetError as error:
            self._add("damaged_file", where, str(error), "copy the dataset again")
        return None

    def _check_metadata(self) -> None:
        dataset = self._dataset
        totals = {"total_frames": dataset.num_frames}
        if self._tasks is not None and "total_tasks" in dataset.info:
            totals["total_tasks"] = len(self._tasks)
        for key, counted in totals.items():
            if dataset.info[key] != counted:
                what = f"{key}: expected {counted} by the tables, got {dataset.info[key]}"
                self._add("metadata", words.INFO, what, "correct the number or copy the metadata again")
        widths = {key: int(np.prod(feature["shape"])) for key, feature in dataset.features.items()}
        for key in (words.ACTION, words.STATE):
            if key not in widths:
                what = f"expected a column {key!r}, got {sorted(widths)}"
                self._add(
                    "missing_column", words.INFO, what, "training needs it: record or rename it", severity="warning"
                )
        for key in dataset.wamkit.get("columns", []):
            if key not in widths:
                what = f"expected the added column {key!r} among the features, got {sorted(widths)}"
                self._add("missing_column", words.INFO, what, _remedy_for_column(key))
        robot = dataset.robot
        if robot is None:
            return
        for key, channels in ((words.ACTION, robot.action), (words.STATE, robot.state)):
            if key in widths and widths[key] != len(channels):
                what = f"{key}: expected {len(channels)} channels by the robot spec, got {widths[key]} in the features"
                self._add("width", words.INFO, what, "correct whichever is wrong, or record again")
        if robot.control_hz != dataset.fps:
            what = f"expected control_hz and fps to agree, got {robot.control_hz:g} and {dataset.fps:g}"
            self._add("rate", words.INFO, what, "correct whichever is wrong", severity="warning")
        for camera in robot.cameras:
            known = camera.name in dataset.cameras
            size = words.image_size(dataset.features[dataset.camera_key(camera.name)]) if known else None
            if size != (camera.height, camera.width):
                got = f"{size[0]}x{size[1]}" if size else "no such camera"
                what = f"camera {camera.name!r}: expected {camera.height}x{camera.width} by the robot spec, got {got}"
                self._add("size", words.INFO, what, "correct whichever is wrong, or record again")

    # -- videos --------------------------------------------------------------------------------------------------------

    def _check_video(self, path: Path, key: str, episodes: list[int]) -> None:
        dataset, where = self._dataset, f"{self._name(path)} ({_listed(episodes)})"
        starts = {episode: round(dataset.place(episode).videos[key].start_s * dataset.fps) for episode in episodes}
        needed = max(starts[episode] + dataset.episodes[episode].length for episode in episodes)
        try:
            with VideoReader(path) as reader:
                info, counted = reader.info, reader.count_frames()
        except FileNotFoundError:
            self._add("missing_file", where, "expected a video, found no file", f"copy it again, or {_RECORD_AGAIN}")
            return
        except VideoError as error:
            self._add("damaged_file", where, str(error), f"copy it again, or {_RECORD_AGAIN}")
            return
        if counted < needed:
            what = f"expected {needed} frames by the episode table, got {counted}"
            self._add("length", where, what, f"copy it again, or {_RECORD_AGAIN}")
        elif counted > needed:
            what = f"expected {needed} frames by the episode table, got {counted}; the rest is unused"
            self._add("length", where, what, "check that the episode table belongs to the video", severity="warning")
        if abs(info.fps - dataset.fps) > _RATE_TOLERANCE:
            what = f"expected {dataset.fps:g} frames/s by {words.INFO}, got {info.fps:g}"
            self._add("rate", where, what, "encode the video again at the dataset's rate, or correct fps")
        shape = words.image_size(dataset.features[key])
        if (info.height, info.width) != shape:
            what = f"expected {shape[0]}x{shape[1]} pixels by the features, got {info.height}x{info.width}"
            self._add("size", where, what, _RECORD_AGAIN)
        # A short video or another rate is reported already; its frames are not where they are looked for.
        if counted >= needed and abs(info.fps - dataset.fps) <= _RATE_TOLERANCE:
            for episode in episodes:
                self._check_picture(episode, key, path)

    def _check_picture(self, episode: int, key: str, path: Path) -> None:
        """Is there anything to see half way through the episode?"""
        middle = self._dataset.episodes[episode].length // 2
        try:
            frame = self._dataset.frames(episode, self._dataset.camera_name(key), [middle])[0]
        except VideoError as error:
            where = f"episode {episode}, camera {self._dataset.camera_name(key)}"
            self._add("damaged_file", where, str(error), f"copy it again, or {_RECORD_AGAIN}", episode=episode)
            return
        if frame.std() < _BLANK_STD:
            colour = frame.mean((0, 1)).round().astype(int).tolist()
            what = f"expected a picture, got the one colour {colour} in frame {middle}"
            where = f"{self._name(path)} (episode {episode})"
            remedy = "check the camera or the simulator's GL (`wamkit doctor`) and record again"
            self._add("blank_video", where, what, remedy, severity="warning", episode=episode)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _check_data_file(self, path: Path, episodes: list[int]) -> list[str] | None:
        """The columns that can be read; `None` when the file cannot."""
        dataset, where = self._dataset, f"{self._name(path)} ({_listed(episodes)})"
        try:
            with pq.ParquetFile(path) as file:
                names, rows = file.schema_arrow.names, file.metadata.num_rows
        except FileNotFoundError:
            self._add("missing_file", where, "expected a data file, found none", f"copy it again, or {_RECORD_AGAIN}")
            return None
        except (OSError, pa.ArrowException) as error:
            what = f"expected a complete Parquet file, got one that cannot be read ({error})"
            self._add("damaged_file", where, what, f"copy it again, or {_RECORD_AGAIN}")
            return None
        expected = sum(dataset.episodes[episode].length for episode in episodes)
        if rows != expected:
            what = f"expected {expected} rows by the episode table, got {rows}"
            self._add("length", where, what, f"copy it again, or {_RECORD_AGAIN}")
        declared = [key for key, feature in dataset.features.items() if not words.is_video(feature)]
        found = [key for key in declared if dataset.stored_name(key) in names]
        missing = [key for key in declared if key not in found]
        for key in missing:
            self._add("missing_column", where, f"expected the column {key!r}, got {names}", _remedy_for_column(key))
        return [key for key in declared if key in found and not words.is_camera(dataset.features[key])]

    def _check_rows(self, episode: int, names: list[str]) -> None:
        try:
            columns = self._dataset.columns(episode, names)
        except DatasetError:
            columns = self._read_one_by_one(episode, names)
        for name, values in columns.items():
            self._check_numbers(episode, name, values)
            self._compare_statistics(episode, name, values)
        self._check_indices(episode, columns)
        if words.SUCCESS in columns:
            self._solved[episode] = bool(columns[words.SUCCESS].any())
        movement = [columns[key].tobytes() for key in (words.ACTION, words.STATE) if key in columns]
        if movement:
            self._hashes[hashlib.sha256(b"|".join(movement)).hexdigest()].append(episode)

    def _read_one_by_one(self, episode: int, names: list[str]) -> dict[str, np.ndarray]:
        """What can be read of an episode of which something cannot; each message is reported once."""
        columns: dict[str, np.ndarray] = {}
        messages: dict[str, str] = {}
        for name in names:
            try:
                columns |= self._dataset.columns(episode, [name])
            except DatasetError as error:
                messages.setdefault(str(error), name)
        for message, name in messages.items():
            kind: Kind = "width" if f"column {name!r}" in message else "length"
            self._add(kind, f"episode {episode}", message, _RECORD_AGAIN, episode=episode)
        return columns

    def _check_numbers(self, episode: int, name: str, values: np.ndarray) -> None:
        if not np.issubdtype(values.dtype, np.floating):
            return
        rows = values.reshape(len(values), -1)
        finite = np.isfinite(rows)
        if not finite.all():
            channels = [self._channel(name, int(index)) for index in np.flatnonzero(~finite.all(0))]
            bad = np.flatnonzero(~finite.all(1))
            what = f"expected finite numbers, got NaN or infinity in {len(bad)} rows, first in row {bad[0]}"
            where = f"episode {episode}, {name} ({', '.join(channels)})"
            self._add("non_finite", where, what, _RECORD_AGAIN, episode=episode)
        low, high = np.nanmin(rows, 0, initial=np.inf), np.nanmax(rows, 0, initial=-np.inf)
        before = self._ranges.get(name, (low, high))
        self._ranges[name] = (np.minimum(before[0], low), np.maximum(before[1], high))

    def _compare_statistics(self, episode: int, name: str, values: np.ndarray) -> None:
        """Do the rows have the statistics that were stored when they were recorded?"""
        stored = self._stored[episode].get(name, {})
        if values.dtype == object or not np.isfinite(values.astype(np.float64)).all():
            return
        found = column_stats(values)
        scale = max(1.0, float(np.abs(found["min"]).max()), float(np.abs(found["max"]).max()))
        for statistic in ("min", "max", "mean"):
            kept, now = np.asarray(stored.get(statistic, found[statistic]), dtype=np.float64), found[statistic]
            if kept.size != now.size or np.abs(kept.ravel() - now).max() > _STATISTICS_TOLERANCE * scale:
                what = f"expected a {statistic} of {_short(kept)} by the episode table, got {_short(now)}"
                self._differing[name].append((episode, what))
                return

    def _check_indices(self, episode: int, columns: dict[str, np.ndarray]) -> None:
        dataset, record, where = self._dataset, self._dataset.episodes[episode], f"episode {episode}"
        rows = np.arange(record.length)
        for name, expected in {"frame_index": rows, "index": rows + self._firsts[episode]}.items():
            values = columns.get(name)
            if values is not None and not np.array_equal(values, expected):
                row = int(np.flatnonzero(values != expected)[0])
                what = f"{name}: expected {expected[row]} in row {row}, got {values[row]}"
                self._add(
                    "inconsistent", where, what, "rows are missing or out of order: record again", episode=episode
                )
        if "timestamp" in columns:
            error = np.abs(columns["timestamp"] - rows / dataset.fps)
            if error.max() > _TIME_TOLERANCE_S:
                row = int(np.argmax(error > _TIME_TOLERANCE_S))
                what = f"timestamp: expected {row / dataset.fps:.4f} s in row {row} at {dataset.fps:g} rows/s, "
                what += f"got {columns['timestamp'][row]:.4f} s"
                self._add("rate", where, what, "correct fps, or record again at a steady rate", episode=episode)
        if words.DONE in columns and columns[words.DONE][:-1].any():
            row = int(np.argmax(columns[words.DONE]))
            what = f"{words.DONE}: expected only in the last row {record.length - 1}, got in row {row}"
            remedy = "check where episodes were cut"
            self._add("inconsistent", where, what, remedy, severity="warning", episode=episode)
        if "task_index" in columns and self._tasks is not None:
            used = sorted(set(columns["task_index"].tolist()))
            sentences = [self._tasks[index] if 0 <= index < len(self._tasks) else None for index in used]
            if not set(sentences) <= set(record.tasks):
                what = f"task_index {used}: expected {list(record.tasks)} by the episode table, got {sentences}"
                self._add("inconsistent", where, what, "copy the metadata again", episode=episode)

    # -- across episodes -----------------------------------------------------------------------------------------------

    def _check_ranges(self) -> None:
        for name, (low, high) in self._ranges.items():
            if name == "timestamp" or name.startswith("next."):
                continue
            for index in np.flatnonzero(low == high):
                what = f"expected a channel that varies, got {low[index]:g} in every row of the dataset"
                remedy = "check the sensor or the channel's order; drop the channel if it means nothing"
                where = f"{name} ({self._channel(name, int(index))})"
                self._add("constant_channel", where, what, remedy, severity="warning")

    def _check_duplicates(self) -> None:
        for episodes in self._hashes.values():
            if len(episodes) > 1:
                what = f"expected different episodes, got the same actions and states in {_listed(episodes)}"
                remedy = f"exclude all but one; were layouts or seeds repeated in recording? {_RECORD_AGAIN}"
                self._add("duplicate", _listed(episodes), what, remedy, severity="warning", episode=episodes[1])

    def _check_statistics(self) -> None:
        dataset = self._dataset
        ours, theirs = dataset.root / STATISTICS_PATH, dataset.root / words.STATS
        if ours.is_file():
            stored = _read_json(ours)
            what, found = "", stored.get("features", {})
            counts = {name: feature.get("count") for name, feature in found.items() if name in ("action", "state")}
            if not counts or any(count != dataset.num_frames for count in counts.values()):
                what = f"expected statistics of {dataset.num_frames} rows, got {counts}"
            elif self._is_changed(stored.get("fingerprint")):
                what = "expected statistics of the dataset as it is, got those from before it was changed"
            elif (VALUE in dataset.features) != (VALUE in found):
                what = f"expected statistics of the columns there are, got {sorted(found)}"
            if what:
                self._add("stale_statistics", STATISTICS_PATH, what, f"run `wamkit data stats {dataset.root}`")
        faulty = {finding.episode for finding in self._findings if finding.severity == "error"}
        for name, differing in self._differing.items():
            cases = [case for case in differing if case[0] not in faulty]
            if not cases:
                continue
            episode, what = cases[0]
            where = f"{name} of {_listed(case for case, _ in cases)}"
            remedy = "the rows were changed after they were recorded: copy the dataset again if that was not meant; "
            remedy += "LeRobot's tools would normalize wrongly"
            self._add(
                "stale_statistics", where, f"episode {episode}: {what}", remedy, severity="warning", episode=episode
            )
        if theirs.is_file():
            action = dataset.stored_name(words.ACTION) if words.ACTION in dataset.features else words.ACTION
            kept = _read_json(theirs).get(action)
            count = kept.get("count") if isinstance(kept, dict) else None
            is_counted = count is not None or dataset.info["codebase_version"] == words.VERSION  # v2.0 does not say
            if is_counted and count != [dataset.num_frames]:
                what = f"expected a count of [{dataset.num_frames}] for {words.ACTION!r}, got {count}"
                remedy = "LeRobot's tools would normalize wrongly: copy the file again"
                self._add("stale_statistics", words.STATS, what, remedy, severity="warning")

    def _is_changed(self, fingerprint: str | None) -> bool:
        """Is it another dataset? Not asked of one with errors: mending them changes files once more."""
        if any(finding.severity == "error" for finding in self._findings):
            return False
        return fingerprint != self._dataset.fingerprint()

    def _check_leftovers(self) -> None:
        root = self._dataset.root
        known = set(self._rows) | {path for path, _ in self._videos}
        files = [path for folder in ("data", "videos") for path in (root / folder).rglob("*") if path.is_file()]
        left = [path for path in files if path not in known] + list((root / "meta").rglob(".*.partial"))
        for path in sorted(left):
            remedy = "delete it, or open the recording once more, which cleans up"
            self._add("leftover", self._name(path), "expected only files of episodes", remedy, severity="warning")

    def _channel(self, name: str, index: int) -> str:
        names = self._dataset.features[name].get("names")
        if isinstance(names, dict):
            names = [part for parts in names.values() for part in (parts if isinstance(parts, list) else [parts])]
        return str(names[index]) if names and index < len(names) else f"channel {index}"

    def _report(self) -> Report:
        dataset = self._dataset
        lengths = [record.length for record in dataset.episodes]
        knows = len(self._solved) > 0
        tasks = []
        for task in dict.fromkeys(record.task for record in dataset.episodes):
            records = [record for record in dataset.episodes if record.task == task]
            solved = sum(self._solved.get(record.index, False) for record in records) if knows else None
            frames = sum(record.length for record in records)
            tasks.append(TaskSummary(task=task, episodes=len(records), frames=frames, successes=solved))
        sizes = {name: words.image_size(dataset.features[dataset.camera_key(name)]) for name in dataset.cameras}
        visual = {dataset.camera_key(name) for name in dataset.cameras}
        robot = dataset.robot
        return Report(
            root=str(dataset.root),
            version=dataset.info["codebase_version"],
            robot=None if robot is None else robot.name,
            fps=dataset.fps,
            num_episodes=dataset.num_episodes,
            num_frames=dataset.num_frames,
            cameras=sizes,
            columns={key: int(np.prod(f["shape"])) for key, f in dataset.features.items() if key not in visual},
            tasks=tuple(tasks),
            lengths=(min(lengths), float(np.median(lengths)), max(lengths)) if lengths else None,
            success_rate=sum(self._solved.values()) / len(self._solved) if knows else None,
            findings=tuple(sorted(self._findings, key=lambda finding: finding.severity)),
        )


def _listed(episodes: Iterable[int]) -> str:
    """`episodes 0, 3 to 7`: consecutive ones as a range."""
    runs: list[list[int]] = []
    for episode in sorted(episodes):
        if runs and episode == runs[-1][1] + 1:
            runs[-1][1] = episode
        else:
            runs.append([episode, episode])
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    is_one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"{'episode' if is_one else 'episodes'} {', '.join(parts)}"


def _short(numbers: np.ndarray) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers.ravel())}]"


def _remedy_for_column(key: str) -> str:
    return "run `wamkit data values` again" if key == VALUE else f"copy the data again, or {_RECORD_AGAIN}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
