"""Hostile frames and slow clients: honest robots are answered as ever, and nothing stays behind."""

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
SLOW = ("sends nothing", "sends a head slowly", "sends a body slowly", "sends a message slowly", "asks nothing")


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RUNS))
    return importlib.import_module("serving_fuzz")


def test_every_frame_follows_from_its_number(fuzz: Any) -> None:
    made = [fuzz.attempt(number, 0) for number in range(60)]
    assert made == [fuzz.attempt(number, 0) for number in range(60)] and made[7] != fuzz.attempt(7, 1)
    assert len({each.kind for each in made}) > 10


def test_some_hostile_frames(types_unchecked: None, fuzz: Any, caplog: pytest.LogCaptureFixture) -> None:
    told = {seed: alone(list(fuzz.HONEST_ROWS), seed=seed, executed=4) for seed in (1, 2)}
    with serving(batching=Batching(exact=True), transfer_s=0.5, idle_s=1.0) as server:
        report = asyncio.run(
            fuzz.attack(server.url, told, frames=60, workers=4, slow_names=SLOW, slow_bound_s=10, bound_s=10)
        )
        until = time.monotonic() + 5
        while gauge(server, "wamkit_connections{") and time.monotonic() < until:
            time.sleep(0.1)
        assert gauge(server, "wamkit_connections{") == 0
    assert not report.faults and report.done == 60 and set(report.slow) == set(SLOW)
    assert report.honest["openpi"] and "Traceback" not in caplog.text


@pytest.mark.slow
def test_hostile_frames(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [
        sys.executable,
        str(RUNS / "serving_fuzz.py"),
        "--frames",
        "2000",
        "--seed",
        "1",
        "--output",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(output.read_text())
    assert result["outcomes"]["answered"] > 20 and result["outcomes"]["refused (bad_request)"] > 200
    assert sum(result["outcomes"].values()) == 2000 and min(result["honest"]["answers"].values()) > 0
