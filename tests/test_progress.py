"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from wamkit.progress import ProgressBar


def test_a_log_gets_the_first_the_last_and_a_line_every_interval(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wamkit")
    with ProgressBar("writing", 100, unit="rows", console=Console(file=io.StringIO()), interval_s=60.0) as bar:
        for done in range(1, 101):
            bar.update(done, note="loss 0.5")
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("writing: 1/100 rows, loss 0.5, ")
    assert last.startswith("writing: 100/100 rows, loss 0.5, ") and last.endswith(" 0 s left")


def test_work_that_tells_its_total_late(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wamkit")
    with ProgressBar("reading", unit="files", console=Console(file=io.StringIO()), interval_s=0.0) as bar:
        bar.show(1, 3)
    assert "reading: 1/3 files" in caplog.text


def test_an_earlier_run_does_not_count_for_the_rate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wamkit")
    with ProgressBar("recording", 10, unit="episodes", console=Console(file=io.StringIO()), interval_s=0.0) as bar:
        bar.resume(9)
        bar.update(9)
    assert "9/10 episodes, 0.0/min, time left unknown" in caplog.text


def test_a_terminal_gets_a_bar_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wamkit")
    terminal = io.StringIO()
    with ProgressBar("writing", 2, unit="rows", console=Console(file=terminal, force_terminal=True)) as bar:
        bar.update(2, note="loss 0.5")
    assert "writing" in terminal.getvalue() and "2/2" in terminal.getvalue() and "loss 0.5" in terminal.getvalue()
    assert not caplog.records
