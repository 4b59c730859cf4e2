"""A real policy in the real simulator: the same episodes, bit for bit, whatever surrounds them."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wamkit.evaluation.results import EpisodeKey, EpisodeLog

pytestmark = pytest.mark.sim
BESIDE = ("wall_seconds", "elapsed_seconds", "latency_seconds", "batch_sizes", "session", "recorded", "folder")


@pytest.fixture(scope="session")
def sawyer(line_world: ModuleType) -> ModuleType:
    import tiny_sawyer

    return tiny_sawyer


@pytest.fixture(scope="module", params=[False, True], ids=["drawn", "planned"])
def alone(request: pytest.FixtureRequest, sawyer: ModuleType, tmp_path_factory: Any) -> tuple[bool, Path]:
    """One robot after the other, none recorded."""
    folder: Path = tmp_path_factory.mktemp("alone")
    sawyer.run(folder, is_planned=request.param, workers=1, record_episodes=0)
    return request.param, folder


def courses(out: Path) -> dict[EpisodeKey, dict[str, Any]]:
    """Everything that must not depend on what ran beside an episode, on recording, or on time."""
    records = EpisodeLog(out).read()
    assert all(len(record.digest) == 16 and record.steps == 11 for record in records.values())
    return {
        key: {name: value for name, value in dataclasses.asdict(record).items() if name not in BESIDE}
        for key, record in records.items()
    }


def test_any_number_of_workers_here_or_in_processes(
    sawyer: ModuleType, alone: tuple[bool, Path], tmp_path: Path
) -> None:
    is_planned, folder = alone
    expected = courses(folder)
    assert len({course["digest"] for course in expected.values()}) == 4, "four different episodes"
    for workers, recorded in ((0, 1), (3, 0)):
        out = tmp_path / str(workers)
        results = sawyer.run(out, is_planned=is_planned, workers=workers, record_episodes=recorded)
        assert courses(out) == expected, f"{workers} workers"
        assert results.batching == "exact" and results.overall.trials == 4


@pytest.mark.slow
def test_killed_at_a_random_moment_and_resumed(sawyer: ModuleType, alone: tuple[bool, Path], tmp_path: Path) -> None:
    is_planned, folder = alone
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, sawyer.__file__, str(tmp_path), str(is_planned), "2"]
    process = subprocess.Popen(command, env=environment)
    log = tmp_path / "episodes.jsonl"
    wanted, limit = random.randint(1, 3), time.monotonic() + 240
    while not (log.is_file() and log.read_text().count("\n") >= wanted):
        assert process.poll() is None, "the evaluation ended before it was killed"
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = log.read_text()
    sawyer.run(tmp_path, is_planned=is_planned, workers=1)
    assert log.read_text().startswith(before[: before.rfind("\n") + 1])
    assert courses(tmp_path) == courses(folder), f"killed after {wanted} episodes"


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True], ids=["planned"], indirect=True)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (wamkit[ray])")
def test_on_a_ray_cluster(sawyer: ModuleType, alone: tuple[bool, Path], tmp_path: Path) -> None:
    from wamkit.envs.ray_pool import RayPool

    is_planned, folder = alone
    sawyer.run(tmp_path, is_planned=is_planned, workers=2, make_pool=RayPool)
    assert courses(tmp_path) == courses(folder)
