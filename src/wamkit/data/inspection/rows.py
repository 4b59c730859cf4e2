"""Look through one data file: the rows of its episodes, column by column."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wamkit.data import features as words
from wamkit.data.episode_stats import Stats, column_stats
from wamkit.data.file_facts import read_footer
from wamkit.data.findings import RECORD_AGAIN, Finding, Kind, Severity, listed_episodes
from wamkit.data.layout import DatasetError
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE

_COPY = f"copy it again, or {RECORD_AGAIN}"
_TIME_TOLERANCE_S = 1e-3
_STATISTICS_TOLERANCE = 1e-3  # others compute means in float32


@dataclass(kw_only=True)
class RowFacts:
    """What an episode's rows hold, to be compared with other episodes and with statistics.

    Args:
        episode: its number.
        findings: of this episode alone.
        solved: whether it says that the task was solved; `None` when it does not say.
        movement: a hash of actions and states.
        extremes: smallest and largest value of each channel of each column of numbers.
        kept: actions and states, finite float32 `[T, c]`.
        differing: column and what differs from the statistics stored when it was recorded.
    """

    episode: int
    findings: list[Finding] = field(default_factory=list)
    solved: bool | None = None
    movement: str | None = None
    extremes: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    differing: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RowChecks:
    """What rows are held against.

    Args:
        dataset: opened unchecked.
        tasks: its sentences; `None` when they cannot be read.
        stored: statistics of each episode from when it was recorded.
        first_rows: number in the dataset of each episode's first row.
    """

    dataset: LeRobotDataset
    tasks: list[str] | None
    stored: Sequence[dict[str, Stats]]
    first_rows: np.ndarray

    def check_file(self, path: Path, episodes: Sequence[int]) -> tuple[list[Finding], list[RowFacts]]:
        """Read a data file once: findings of the file, and what each episode holds.

        Args:
            path: a data file.
            episodes: whose rows lie in it.
        """
        dataset, name = self.dataset, str(path.relative_to(self.dataset.root))

        def found(kind: Kind, what: str, remedy: str, affected: Sequence[int] = episodes) -> Finding:
            where = f"{name} ({listed_episodes(affected)})"
            return Finding(
                kind=kind, severity="error", where=where, what=what, remedy=remedy, episodes=tuple(sorted(affected))
            )

        try:
            footer = read_footer(path)
        except FileNotFoundError:
            return [found("missing_file", "expected a data file, found none", _COPY)], []
        except DatasetError as error:
            what = f"expected a complete Parquet file, got one that cannot be read ({error.__cause__ or error})"
            return [found("damaged_file", what, _COPY)], []
        findings = []
        names, rows = footer.schema.to_arrow_schema().names, footer.num_rows
        expected = sum(dataset.episodes[episode].length for episode in episodes)
        if rows != expected:
            ends = {one: dataset.place(one).first_row + dataset.episodes[one].length for one in episodes}
            lacking = [one for one, end in ends.items() if end > rows]
            what = f"expected {expected} rows by the episode table, got {rows}"
            findings.append(found("length", what, _COPY, lacking or episodes))
        declared = [key for key, feature in dataset.features.items() if not words.is_video(feature)]
        present = [key for key in declared if dataset.stored_name(key) in names]
        for key in declared:
            if key not in present:
                what = f"expected the column {key!r}, got {names}"
                findings.append(found("missing_column", what, remedy_for_column(key)))
        readable = [key for key in present if not words.is_camera(dataset.features[key])]
        images = [key for key in present if words.is_camera(dataset.features[key])]
        return findings, [self._check_episode(episode, readable, images) for episode in episodes]

    def _check_episode(self, episode: int, names: list[str], images: list[str]) -> RowFacts:
        facts = RowFacts(episode=episode)
        try:
            columns = self.dataset.columns(episode, names)
        except DatasetError:
            columns = self._read_one_by_one(facts, names)
        for name, values in columns.items():
            self._check_numbers(facts, name, values)
            self._compare_statistics(facts, name, values)
        self._check_indices(facts, columns)
        self._check_times(facts, columns)
        self._check_task(facts, columns)
        for key in images:
            self._check_images(facts, key)
        if words.SUCCESS in columns:
            facts.solved = bool(columns[words.SUCCESS].any())
        movement = [columns[key].tobytes() for key in (words.ACTION, words.STATE) if key in columns]
        if movement:
            facts.movement = hashlib.sha256(b"|".join(movement)).hexdigest()
        return facts

    def _add(self, facts: RowFacts, kind: Kind, what: str, remedy: str, severity: Severity = "error") -> None:
        where = f"episode {facts.episode}"
        facts.findings.append(
            Finding(kind=kind, severity=severity, where=where, what=what, remedy=remedy, episodes=(facts.episode,))
        )

    def _read_one_by_one(self, facts: RowFacts, names: list[str]) -> dict[str, np.ndarray]:
        """What can be read of an episode of which something cannot; each message is reported once."""
        columns: dict[str, np.ndarray] = {}
        messages: dict[str, str] = {}
        for name in names:
            try:
                columns |= self.dataset.columns(facts.episode, [name])
            except DatasetError as error:
                messages.setdefault(str(error), name)
        for message, name in messages.items():
            is_column = f"column {name!r}" in message
            kind: Kind = "non_finite" if "empty cells" in message else "width" if is_column else "length"
            self._add(facts, kind, message, RECORD_AGAIN)
        return columns

    def _check_numbers(self, facts: RowFacts, name: str, values: np.ndarray) -> None:
        if not np.issubdtype(values.dtype, np.floating):
            return
        rows = values.reshape(len(values), -1)
        finite = np.isfinite(rows)
        if not finite.all():
            channels = [channel_name(self.dataset, name, int(index)) for index in np.flatnonzero(~finite.all(0))]
            bad = np.flatnonzero(~finite.all(1))
            what = f"expected finite numbers, got NaN or infinity in {len(bad)} rows, first in row {bad[0]}"
            where = f"episode {facts.episode}, {name} ({', '.join(channels)})"
            remedy = "run `wamkit data values` again" if name == VALUE else RECORD_AGAIN
            facts.findings.append(
                Finding(
                    kind="non_finite",
                    severity="error",
                    where=where,
                    what=what,
                    remedy=remedy,
                    episodes=(facts.episode,),
                )
            )
            rows = rows[finite.all(1)]
        if len(rows):
            facts.extremes[name] = (rows.min(0), rows.max(0))
            if name in (words.ACTION, words.STATE):
                facts.kept[name] = rows.astype(np.float32, copy=False)

    def _compare_statistics(self, facts: RowFacts, name: str, values: np.ndarray) -> None:
        """Do the rows have the statistics that were stored when they were recorded?"""
        stored = self.stored[facts.episode].get(name, {})
        if not stored or values.dtype == object or not np.isfinite(values.astype(np.float64)).all():
            return
        found = column_stats(values, with_quantiles=False)
        scale = max(1.0, float(np.abs(found["min"]).max()), float(np.abs(found["max"]).max()))
        for statistic in ("min", "max", "mean"):
            kept, now = np.asarray(stored.get(statistic, found[statistic]), dtype=np.float64), found[statistic]
            if kept.size != now.size or np.abs(kept.ravel() - now).max() > _STATISTICS_TOLERANCE * scale:
                what = f"expected a {statistic} of {short(kept)} by the episode table, got {short(now)}"
                facts.differing.append((name, what))
                return

    def _check_indices(self, facts: RowFacts, columns: dict[str, np.ndarray]) -> None:
        length = self.dataset.episodes[facts.episode].length
        rows = np.arange(length)
        for name, expected in {"frame_index": rows, "index": rows + self.first_rows[facts.episode]}.items():
            values = columns.get(name)
            if values is not None and not np.array_equal(values, expected):
                row = int(np.flatnonzero(values != expected)[0])
                what = f"{name}: expected {expected[row]} in row {row}, got {values[row]}"
                self._add(facts, "inconsistent", what, "rows are missing or out of order: record again")
        if words.DONE in columns and columns[words.DONE][:-1].any():
            row = int(np.argmax(columns[words.DONE]))
            what = f"{words.DONE}: expected only in the last row {length - 1}, got in row {row}"
            self._add(facts, "inconsistent", what, "check where episodes were cut", "warning")
        if length < 2:
            what = f"expected 2 or more rows, got {length}: no window can be cut out of it"
            self._add(facts, "too_short", what, "it is never drawn in training; leave it out", "warning")

    def _check_times(self, facts: RowFacts, columns: dict[str, np.ndarray]) -> None:
        times = columns.get("timestamp")
        if times is None or not np.isfinite(times).all():
            return
        falling = np.flatnonzero(np.diff(times) <= 0)
        if len(falling):
            row = int(falling[0]) + 1
            what = f"timestamp: expected rising times, got {times[row]:.4f} s in row {row} after {times[row - 1]:.4f} s"
            self._add(facts, "rate", what, "rows are out of order, or a clock was set: record again")
            return
        fps = self.dataset.fps
        error = np.abs(times - np.arange(len(times)) / fps)
        if error.max() > _TIME_TOLERANCE_S:
            row = int(np.argmax(error > _TIME_TOLERANCE_S))
            what = f"timestamp: expected {row / fps:.4f} s in row {row} at {fps:g} rows/s, got {times[row]:.4f} s"
            self._add(facts, "rate", what, "correct fps, or record again at a steady rate")

    def _check_task(self, facts: RowFacts, columns: dict[str, np.ndarray]) -> None:
        if "task_index" not in columns or self.tasks is None:
            return
        wanted = list(self.dataset.episodes[facts.episode].tasks)
        used = sorted(set(columns["task_index"].tolist()))
        unknown = [index for index in used if not 0 <= index < len(self.tasks)]
        if unknown:
            what = f"task_index: expected 0 to {len(self.tasks) - 1}, got {unknown}"
            self._add(facts, "task", what, "copy the metadata again, or correct the column")
            return
        sentences = [self.tasks[index] for index in used]
        if not set(sentences) <= set(wanted):
            what = f"task_index {used}: expected {wanted} by the episode table, got {sentences}"
            self._add(facts, "inconsistent", what, "copy the metadata again")

    def _check_images(self, facts: RowFacts, key: str) -> None:
        """Pictures that lie in the data file: first, middle and last, each of the right size and whole."""
        length = self.dataset.episodes[facts.episode].length
        looked_at = sorted({0, length // 2, length - 1})
        try:
            frames = self.dataset.frames(facts.episode, self.dataset.camera_name(key), looked_at)
        except ValueError as error:  # damaged, or of several sizes
            self._add(facts, "damaged_file", f"{key}: {error}", RECORD_AGAIN)
            return
        shape = words.image_size(self.dataset.features[key])
        if frames.shape[1:3] != shape:
            what = f"{key}: expected {shape[0]}x{shape[1]} pixels by the features, got "
            what += f"{frames.shape[1]}x{frames.shape[2]}"
            self._add(facts, "size", what, RECORD_AGAIN)
        if frames.std(axis=(1, 2)).max() < 1:
            colour = frames[0].mean((0, 1)).round().astype(int).tolist()
            what = f"{key}: expected pictures, got the one colour {colour} in every frame looked at"
            self._add(facts, "blank_video", what, "check the camera and record again", "warning")


def channel_name(dataset: LeRobotDataset, feature: str, index: int) -> str:
    """How a channel of a feature is called, as far as the dataset says."""
    names = dataset.features[feature].get("names")
    if isinstance(names, dict):
        names = [part for parts in names.values() for part in (parts if isinstance(parts, list) else [parts])]
    return str(names[index]) if names and index < len(names) else f"channel {index}"


def short(numbers: np.ndarray) -> str:
    """Numbers in a message."""
    shown = [f"{number:g}" for number in numbers.ravel()[:12]]
    return f"[{', '.join(shown)}{', …' if numbers.size > 12 else ''}]"


def remedy_for_column(key: str) -> str:
    """What to do about a column that is not there."""
    return "run `wamkit data values` again" if key == VALUE else f"copy the data again, or {RECORD_AGAIN}"
