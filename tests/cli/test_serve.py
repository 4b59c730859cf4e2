"""`wamkit serve`, and `wamkit evaluate --server`, as a user starts them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wamkit_client import Client, pack
from websockets.sync.client import connect

from wamkit.cli.main import main
from wamkit.evaluation.results import EpisodeLog

from ..evaluation import tiny_sawyer
from ..policies import CONFIG, make_policy
from ..serving.conftest import observation

BESIDE = ("wall_seconds", "elapsed_seconds", "latency_seconds", "batch_sizes", "session", "folder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder of the synthetic robot."""
    config = dataclasses.asdict(CONFIG)
    return make_policy().save(tmp_path_factory.mktemp("policy") / "tiny", config=config, training={})


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "wamkit", "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving at ws://127.0.0.1:"), process.stderr.read()
        yield line.split()[2].rstrip(";"), process
    finally:
        process.terminate()
        process.communicate(timeout=240)


def test_served_asked_and_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(folder, "--num-steps", "2", "--planner", "wav", "--candidates", "4") as (url, process):
        with Client(url) as client:
            assert client.metadata["num_inference_steps"] == 2 and client.metadata["planner"]["num_videos"] == 4
            assert client.metadata["identity"]["planner"]["name"] == "wav"
            assert client.infer(observation())["actions"].shape == (1, 3)
        assert main(["client", url, "--calls", "3"]) == 0
        told = capsys.readouterr().out
        assert "9 actions of 3 (dx, dy, gripper)" in told and "rest " in told and "4 x 30" not in told
        assert main(["client", url, "--calls", "0", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["metadata"]["action_horizon"] == 9
        with urllib.request.urlopen(url.replace("ws", "http", 1) + "/", timeout=10) as page:
            assert b"wamkit" in page.read()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and "Traceback" not in err and out == ""
    assert re.search(r"^\d{4}-\d\d-\d\d [\d:,]+ warming up", err, re.MULTILINE) and "stopping: " in err


@pytest.mark.slow
def test_the_end_does_not_wait_for_a_long_search(folder: Path) -> None:
    search = {"explore_steps": 20, "dynamic_groups": 64, "value_groups": 32}
    with served(folder, "--grace-s", "0.2", "--max-search-work", str(2**30)) as (url, process):
        with connect(url) as connection:
            connection.recv()
            connection.send(pack(observation(explore_config=search, num_inference_steps=100)))
            time.sleep(1.0)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=240)
        assert time.monotonic() - begun < 10 and process.returncode == 0 and "it was not waited for" in err


@pytest.mark.slow
def test_options_that_are_given_several_times(folder: Path) -> None:
    options = ("--camera", "a=front", "--camera", "b=wrist", "--ignore-key", "x", "--ignore-key", "y")
    with served(folder, *options) as (url, _), Client(url) as client:
        front, wrist = observation()["obs"]
        seen = {key: value for key, value in observation().items() if key != "obs"}
        assert client.infer({**seen, "a": front, "b": wrist, "x": 1, "y": 2})["actions"].shape == (9, 3)
        assert "'b' is camera 'wrist'" in client.metadata["send"]


@pytest.mark.slow
def test_a_token_in_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMKIT_TOKEN", "s3cret")
    with served(folder) as (url, _):
        with pytest.raises(PermissionError):
            Client(url)
        with Client(url, token="s3cret") as client:
            assert client.metadata["server"] == "wamkit"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "70000"], "a port of 0 to 65535, got 70000"),
        (["--max-batch", "0"], "--max-batch of 1 or more, got 0"),
        (["--batch-wait-ms", "-1"], "max_wait_s of 0 to 1 second"),
        (["--max-message-mb", "0"], "--max-message-mb above 0"),
        (["--camera", "front"], "--camera as KEY=CAMERA, got 'front'"),
        (["--camera", "a=nowhere"], "keys for the policy's cameras ['front', 'wrist'], got {'a': 'nowhere'}"),
        (["--part", "front=front"], "--part as NAME=CAMERA:HEIGHTxWIDTH"),
        (["--part", "front=front:32x32"], "one part of /predict's form for each of the cameras"),
        (["--token-file", "/no/such/file"], "a file with a token at /no/such/file"),
        (["--certificate", "/no/such/file"], "a certificate and its key"),
        (["--certificate", "/no/a", "--key", "/no/b"], "a PEM file at /no/a"),
        (["--imagine-every-s", "-1"], "seconds between imaginations"),
        (["--max-search-work", "-1"], "--max-search-work of 0 or more"),
        (["--planner", "best"], "unknown planner 'best'"),
        (["--transfer-s", "0"], "times above 0 seconds, got 600.0 and 0.0"),
        (["--host", "203.0.113.7"], "cannot listen at 203.0.113.7"),
    ],
)
def test_wrong_options_are_told(
    folder: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folder), "--port", "0", *options]) == 2
    assert told in capsys.readouterr().err


def test_no_policy_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_client_without_a_server_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for options, wanted in (
        (["--calls", "-1"], "--calls of 0 or more"),
        (["gopher://x"], "an address such as ws://localhost:8000, got 'gopher://x'"),
        (["--token-file", "/no/such/file"], "a file with a token"),
    ):
        assert main(["client", *options]) == 2
        assert wanted in capsys.readouterr().err


def courses(out: Path) -> dict[Any, dict[str, Any]]:
    return {
        key: {name: value for name, value in dataclasses.asdict(record).items() if name not in BESIDE}
        for key, record in EpisodeLog(out).read().items()
    }


@pytest.mark.sim
@pytest.mark.slow
def test_an_evaluation_through_the_wire_is_the_same_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planner = tmp_path / "planner.json"
    planner.write_text(json.dumps(dataclasses.asdict(tiny_sawyer.PLANNER)))
    policy = tiny_sawyer.tiny_policy(None)
    config = dataclasses.asdict(policy.model.config)
    folder = policy.save(tmp_path / "sawyer", config=config, training={})
    running = ["--planner", str(planner), "--num-steps", "3", "--device", "cpu"]
    evaluation = ["--tasks", "drawer-open-v3", "--episodes", "3", "--max-steps", "11", "--record-episodes", "1"]
    assert main(["evaluate", str(folder), "--output", str(tmp_path / "here"), *running, *evaluation]) == 0
    with served(folder, *running) as (url, _):
        out = ["--output", str(tmp_path / "there"), "--workers", "2"]
        assert main(["evaluate", "--server", url, *out, *evaluation]) == 0
        # Either continues what the other began: it is one policy.
        assert main(["evaluate", "--server", url, "--output", str(tmp_path / "here"), *evaluation]) == 0
        refused = main(["evaluate", "--server", url, "--output", str(tmp_path / "no"), *running, *evaluation])
        assert refused == 2 and "give these options to wamkit serve" in capsys.readouterr().err
        assert main(["evaluate", str(folder), "--server", url, "--output", str(tmp_path / "no")]) == 2
        assert "got both" in capsys.readouterr().err
    assert courses(tmp_path / "here") == courses(tmp_path / "there") and len(courses(tmp_path / "there")) == 3
    traces = [next((tmp_path / name / "episodes").rglob("trace.npz")).read_bytes() for name in ("here", "there")]
    assert len(traces[0]) == len(traces[1]), "frames, values and scores were imagined there too"
    assert main(["evaluate", "--output", str(tmp_path / "no"), *evaluation]) == 2
    assert "got neither" in capsys.readouterr().err
    gone = main(["evaluate", "--server", url, "--output", str(tmp_path / "gone"), *evaluation])
    assert gone == 2 and "no policy server answers" in capsys.readouterr().err
