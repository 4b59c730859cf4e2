"""Robots that come, go and vanish: each request is answered once, and histories never mix."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wamkit.serving.inference import Batching

from .conftest import alone, serving
from .test_server import gauge

RUNS = Path(__file__).parents[2] / "runs"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RUNS))
    return importlib.import_module("serving_soak")


def test_robots_that_vanish(types_unchecked: None, run: Any, caplog: pytest.LogCaptureFixture) -> None:
    plans = {1: [3, 8, 20], 2: [5], 3: [0, 4]}
    planned = [
        run.Planned(seed=seed, rows=tuple(rows), chunks=alone(rows, seed=seed, executed=4))
        for seed, rows in plans.items()
    ]
    with serving(batching=Batching(exact=True)) as server:
        tally = asyncio.run(run.soak(server.url, planned, robots=8, seconds=3, exact=True, pause_s=0.02))
        until = time.monotonic() + 5
        while gauge(server, "wamkit_connections{") and time.monotonic() < until:
            time.sleep(0.05)
        assert gauge(server, "wamkit_connections{") == 0
    assert not tally.faults and tally.answered > 10 and tally.cut > 0 and tally.largest_difference == 0
    assert len(tally.endings) > 3 and "Traceback" not in caplog.text


@pytest.mark.slow
def test_many_robots(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, str(RUNS / "serving_soak.py"), "--seconds", "40", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(output.read_text())
    for batching in ("exact", "free"):
        assert result[batching]["answers"] > 100 and result[batching]["left_before_the_answer"] > 10
