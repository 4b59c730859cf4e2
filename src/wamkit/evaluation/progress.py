"""How an evaluation is going: a bar on a terminal, a log line per episode elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wamkit.evaluation.results import EpisodeRecord

logger = logging.getLogger(__name__)


class EvaluationProgress:
    """Finished episodes, successes so far, rate and time left.

    Args:
        title: the protocol's.
        total: episodes in all.
        finished: those that were finished before this start.
        is_visible: `False` shows nothing.
        console: where the bar goes; standard error by default, so that standard output stays a program's answer.
    """

    def __init__(
        self,
        title: str,
        total: int,
        finished: Sequence[EpisodeRecord] = (),
        *,
        is_visible: bool = True,
        console: Console | None = None,
    ) -> None:
        console = console or Console(stderr=True)
        self._total, self._is_visible = total, is_visible
        self._records = list(finished)
        self._num_before, self._steps = len(finished), 0
        self._begun = time.perf_counter()
        self._bar = None
        if is_visible and console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[success]}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
                expand=True,
            )
            success = self._success if finished else ""
            self._task = self._bar.add_task(title, total=total, completed=len(finished), success=success, rate="")
        elif is_visible and finished:
            logger.info("%s: %d of %d episodes are finished already, %s", title, len(finished), total, self._success)

    def __enter__(self) -> Self:
        self._begun = time.perf_counter()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, record: EpisodeRecord) -> None:
        """Count a finished episode."""
        self._records.append(record)
        done = len(self._records)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, success=self._success)
        elif self._is_visible:
            seconds = time.perf_counter() - self._begun
            left = seconds / (done - self._num_before) * (self._total - done)
            how = "lost to a simulator error" if record.error else "solved" if record.success else "not solved"
            episode = f"{record.task}, layout {record.layout}: {how} after {record.steps} steps"
            logger.info("%d/%d %s; %s, %s, %.0f s left", done, self._total, episode, self._success, self._rate, left)

    def count_steps(self, steps: int) -> None:
        """Count control steps."""
        self._steps += steps
        if self._bar is not None:
            self._bar.update(self._task, rate=self._rate)

    @property
    def _success(self) -> str:
        trials = sum(record.error is None for record in self._records)
        solved = sum(record.success for record in self._records)
        return f"solved {solved}/{trials}" + (f" ({solved / trials:.0%})" if trials else "")

    @property
    def _rate(self) -> str:
        return f"{self._steps / (time.perf_counter() - self._begun):.0f} steps/s"
