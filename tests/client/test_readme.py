"""What the client's README tells people to write runs, as it stands, against a real server."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wamkit.serving.server import Server

from ..policies import EPISODE
from ..serving.conftest import named

README = Path(__file__).parents[2] / "packages" / "wamkit-client" / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet: str, server: Server) -> None:
    rows = itertools.cycle(range(len(EPISODE)))
    moved: list[Any] = []
    held: list[int] = []
    robot = {
        "observe": lambda: named(next(rows)),
        "move": moved.append,
        "hold": lambda: held.append(1),
        "print": lambda *told: moved.append(told),
    }
    code = compile(snippet.replace("ws://localhost:8000", server.url), str(README), "exec")
    exec(code, robot)  # noqa: S102, our own README
    assert moved or held or "answer" in robot
    for action in moved:
        assert isinstance(action, tuple) or (np.shape(action) == (3,) and np.isfinite(action).all())
    assert "correct the request" not in str(moved)


def test_the_table_says_what_was_measured() -> None:
    measured = json.loads((README.parents[2] / "results" / "realtime" / "results.json").read_text())
    rows = {(row["delay_ms"], row["method"]): row for row in measured["virtual_clock"]["all_tasks"]}
    for delay in {delay for delay, _ in rows} - {"instant"}:
        cells = [f"{float(delay) + measured['settings']['compute_ms']:.0f} ms"]
        for row in (rows[delay, "wait"], rows[delay, "ahead, blend 2"]):
            solved = f"{row['successes']}/{row['episodes']}"
            cells.append(f"{solved}, {row['mean_seconds_to_success']:.1f} s, {100 * row['idle_share']:.0f} %")
        assert f"| {' | '.join(cells)} |" in README.read_text()


def test_snippets_were_found() -> None:
    assert len(SNIPPETS) == README.read_text().count("```python") >= 6
