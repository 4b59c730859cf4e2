"""How a long piece of work is going: a bar on a terminal, a log line about every ten seconds elsewhere."""

from __future__ import annotations

import logging
import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class ProgressBar:
    """Counts towards a total, with a note, the rate and the time left; a context manager.

    Args:
        title: what is being done.
        total: how much there is to do; 0 until `show` tells.
        unit: what is counted, in the plural.
        console: where the bar goes; standard error by default, so that standard output stays a program's answer.
        interval_s: seconds between log lines where there is no terminal.
    """

    def __init__(
        self, title: str, total: int = 0, *, unit: str, console: Console | None = None, interval_s: float = 10.0
    ) -> None:
        console = console or Console(stderr=True)
        self._title, self._total, self._unit, self._interval_s = title, total, unit, interval_s
        self._started_s, self._first, self._logged_s = time.monotonic(), 0, -math.inf
        self._bar = None
        if console.is_terminal:
            columns = (TextColumn("{task.fields[note]}"), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            self._bar = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, console=console
            )
            self._task = self._bar.add_task(title, total=total, note="", rate="")

    def __enter__(self) -> ProgressBar:
        self._started_s = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def resume(self, done: int) -> None:
        """Count what an earlier run did, which says nothing about the rate of this one."""
        self._first = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def update(self, done: int, note: str = "") -> None:
        """Show how far the work is.

        Args:
            done: of the total, with what an earlier run did.
            note: how well it goes, for instance a loss or a count of failures.
        """
        now_s = time.monotonic()
        seconds = max(now_s - self._started_s, 1e-9)
        rate = (done - self._first) / seconds
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note, rate=shown)
        elif now_s - self._logged_s >= self._interval_s or done >= self._total:
            self._logged_s = now_s
            left = f"{(self._total - done) / rate:.0f} s left" if rate else "time left unknown"
            parts = [f"{self._title}: {done}/{self._total} {self._unit}", note, shown, left]
            logger.info("%s", ", ".join(filter(None, parts)))

    def show(self, done: int, total: int) -> None:
        """Like `update`, for work that tells its total as it goes."""
        if total != self._total:
            self._total = total
            if self._bar is not None:
                self._bar.update(self._task, total=total)
        self.update(done)
