"""`wamkit report` as a process: fast, without torch, one message when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from wamkit.evaluation.results import (
    EpisodeLog,
    EpisodeRecord,
    PolicyIdentity,
    Results,
    measure_latency,
    score_episodes,
)

RUN = """
import sys
from wamkit.cli.main import Command, main
code = main(commands={"report": Command("wamkit.cli.report", "write a page")})
print("torch" in sys.modules)
sys.exit(code)
"""


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", RUN, "report", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def finish(folder: Path) -> None:
    """A finished evaluation without recordings."""
    folder.mkdir()
    record = EpisodeRecord(
        task="push-v3",
        layout=0,
        layout_seed=1042,
        seed=0,
        success=True,
        steps=20,
        reward_sum=1.0,
        wall_seconds=1.0,
        session=0,
        elapsed_seconds=1.0,
        latency_seconds=(0.1,),
        batch_sizes=(1,),
    )
    EpisodeLog(folder).append(record)
    score = score_episodes([record])
    Results(
        protocol="metaworld/v1",
        protocol_settings={"rendering": "mujoco-low-cost"},
        execution_horizon=8,
        policy=PolicyIdentity(name="p", fingerprint="f"),
        robot="sawyer/metaworld",
        tasks={"push-v3": score},
        overall=score,
        latency=measure_latency([record]),
        wall_seconds=1.0,
        versions={"mujoco": "3.3.0"},
        gl_backend="egl",
        machine={},
    ).save(folder)


def test_a_page_is_written_without_loading_torch(tmp_path: Path) -> None:
    finish(tmp_path / "plain")
    done = report(tmp_path / "plain", "--output", tmp_path / "page.html", "--title", "Pushing")
    assert done.returncode == 0, done.stderr
    wrote, has_torch = done.stdout.splitlines()
    assert wrote.startswith(f"wrote {tmp_path / 'page.html'}") and has_torch == "False"
    assert "<h1>Pushing</h1>" in (tmp_path / "page.html").read_text()


def test_an_unfinished_evaluation_is_one_message(tmp_path: Path) -> None:
    done = report(tmp_path, "--output", tmp_path / "page.html")
    assert done.returncode == 2
    assert "holds no results.json" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_what_is_missing_or_wrong_is_told(tmp_path: Path) -> None:
    finish(tmp_path / "plain")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "openloop.json").write_text("{}")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    page = tmp_path / "page.html"
    for arguments, message in (
        ((tmp_path / "absent",), "no such folder; check the path"),
        ((tmp_path / "open",), "name it with --openloop"),
        ((tmp_path / "begun",), "run it again to resume"),
        ((tmp_path / "plain", "--metrics", tmp_path / "absent"), "expected training metrics"),
        ((tmp_path / "plain", "--films", -1), "expected 0 or more films"),
        ((tmp_path / "plain", "--openloop", tmp_path / "plain"), "make it with `wamkit openloop`"),
        ((), "--openloop"),
    ):
        done = report(*arguments, "--output", page)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert not page.exists()
    done = report(tmp_path / "plain", "--output", tmp_path)
    assert done.returncode == 2 and "expected a file name for the page" in done.stderr
