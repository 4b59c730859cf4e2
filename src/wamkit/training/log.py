"""Metrics as JSON lines that a resumed run continues exactly, and progress for people."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from wamkit.atomic import atomic_file

logger = logging.getLogger(__name__)


class MetricsLog:
    """One JSON object per optimiser step in a file.

    On opening, lines after a given position are dropped (they belong to steps that will be run again), as is a line cut
    short by a kill; so the file of an interrupted run equals that of an uninterrupted one, timings aside.

    Args:
        path: the file; made when missing.
        stages: stage names in order.
        position: stage name and completed steps of the checkpoint that is resumed from; `None` starts afresh.
    """

    def __init__(self, path: Path, stages: Sequence[str], position: tuple[str, int] | None) -> None:
        self.path = path
        kept = [] if position is None or not path.exists() else _lines_up_to(path, list(stages), position)
        with atomic_file(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line; readers see it at once."""
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Bring all lines to the disk; called before a checkpoint that counts on them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TrainProgress:
    """A bar with losses, rate and time left on a terminal; elsewhere a log line about every ten seconds.

    Args:
        console: where the bar goes; standard error by default, so that standard output stays a program's answer.
        interval_s: seconds between log lines when there is no terminal.
    """

    def __init__(self, console: Console | None = None, interval_s: float = 10.0) -> None:
        console = console or Console(stderr=True)
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[losses]}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
            )
        self._task: TaskID | None = None
        self._interval_s = interval_s
        self._last_s = -math.inf
        self._stage, self._total = "", 0
        self._started_s, self._first = 0.0, 0

    def __enter__(self) -> TrainProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start_stage(self, title: str, done: int, total: int) -> None:
        """Begin a stage.

        Args:
            title: for instance `1/3 video`.
            done: steps completed before.
            total: steps of the stage.
        """
        self._stage, self._total, self._first, self._started_s = title, total, done, time.monotonic()
        self._last_s = -math.inf
        if self._bar is not None:
            if self._task is not None:
                self._bar.stop_task(self._task)
            self._task = self._bar.add_task(title, total=total, completed=done, losses="", rate="")

    def step(self, done: int, losses: Mapping[str, float], samples_per_s: float) -> None:
        """Show a completed step.

        Args:
            done: steps of the stage completed now.
            losses: name -> value.
            samples_per_s: windows per second.
        """
        shown = " ".join(f"{name} {value:.4g}" for name, value in losses.items())
        rate = f"{samples_per_s:.1f} samples/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, losses=shown, rate=rate)
            return
        now_s = time.monotonic()
        if now_s - self._last_s < self._interval_s and done < self._total:
            return
        self._last_s = now_s
        left_s = (now_s - self._started_s) / max(done - self._first, 1) * (self._total - done)
        logger.info("%s: step %d/%d, %s, %s, %s left", self._stage, done, self._total, shown, rate, _duration(left_s))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut short is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line before the last is damaged; the message names it.
    """
    return [row for _, row in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line with its row, in order; a last line cut short is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, got {line[:80]!r}; remove the line"
            ) from error
        yield line, row


def _lines_up_to(path: Path, stages: list[str], position: tuple[str, int]) -> list[str]:
    last = (stages.index(position[0]), position[1])
    kept = []
    # Lines up to the checkpoint were brought to the disk with it; what follows may be damaged and is not looked at.
    for line, row in _rows(path):
        here = (stages.index(row["stage"]), row["step"])
        if here <= last:
            kept.append(line)
        if here >= last:
            break
    return kept


def _finite(value: Any) -> Any:
    """JSON has no NaN: an undefined metric is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
