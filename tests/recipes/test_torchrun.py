"""The command line under `torchrun`: two processes, one dataset, one run, one policy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_bad_data import damaged

import wamkit
from wamkit.cli.main import main
from wamkit.data.encoded import read_manifest
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.value_labels import ArmChannels, DenseValueSettings, label_values
from wamkit.data.writer import LeRobotWriter
from wamkit.policy import load_policy
from wamkit.training.log import read_metrics

pytestmark = pytest.mark.slow

EXPERT = ("--model.network.{0}.num-heads", "2", "--model.network.{0}.head-dim", "8", "--model.network.{0}.channels")
FITTED = (  # the debug recipe's model on the synthetic robot, which has three channels
    *("--model.action-dim", "3", "--model.state-dim", "3", "--device", "cpu"),
    *("model.network.value:expert-config", *(word.format("value") for word in EXPERT), "10"),
    *("model.network.action:expert-config", *(word.format("action") for word in EXPERT), "6"),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("square") / "dataset"
    with LeRobotWriter(root, synthetic_robot()) as writer:
        for episode in synthetic_episodes(4, length=24):
            writer.add(episode)
    arms = (ArmChannels(name="", wrist_camera="wrist", state=(0, 1), action=(0, 1)),)
    label_values(LeRobotDataset(root), DenseValueSettings(third_person="front", arms=arms, image_size=None))
    return root


def torchrun(arguments: list[str], timeout_s: float = 600) -> tuple[int, str, str]:
    """Two processes under torchrun; none of them is left behind."""
    environment = {**os.environ, "PYTHONPATH": str(Path(wamkit.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    process = subprocess.Popen(
        [*launcher, "wamkit.cli.main", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed, errors


def test_two_processes_train_what_one_trains(dataset: Path, tmp_path: Path) -> None:
    def arguments(name: str) -> list[str]:
        held_out = ("--validation.every", "2", "--validation.episodes", "1", "--validation.num-steps", "2")
        return ["train", "debug", "--data.root", str(dataset), "--output", str(tmp_path / name), *held_out, *FITTED]

    status, printed, errors = torchrun(arguments("two"))
    assert status == 0, errors[-3000:]
    assert printed.count("trained 12 steps") == 1, "one process speaks for both"
    assert errors.count("3/3 action_full: 4/4 steps") == 1
    assert main(arguments("one")) == 0
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], rel=1e-5)
    errors = [read_metrics(tmp_path / name / "validation.jsonl") for name in ("one", "two")]
    assert [(row["stage"], row["step"]) for row in errors[0]] == [(row["stage"], row["step"]) for row in errors[1]]
    assert len(errors[0]) == 6
    assert [row["video_loss"] for row in errors[1]] == pytest.approx([row["video_loss"] for row in errors[0]], rel=1e-3)
    one, two = (load_policy(tmp_path / name / "policy").model.network.state_dict() for name in ("one", "two"))
    for name, tensor in one.items():
        # Adam's first updates are as large as the learning rate however small a gradient is, so rounding shows.
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-4, msg=name)
    assert main(arguments("two")) == 0, "one process finds the run of two complete"


def test_what_is_wrong_is_said_once(dataset: Path, tmp_path: Path) -> None:
    arguments = ["train", "debug", "--data.root", str(dataset), "--output", str(tmp_path / "run"), "--device", "cpu"]
    status, _, errors = torchrun(arguments)
    assert status != 0 and errors.count("action channels: model 4, dataset 3") == 1
    assert "Traceback" not in errors.split("wamkit train: error")[0]


def test_nan_in_the_data_stops_every_process_before_training(dataset: Path, tmp_path: Path) -> None:
    path = damaged(dataset, tmp_path / "copy", "action", 3, 5, 0)
    arguments = ["--data.root", str(tmp_path / "copy"), "--output", str(tmp_path / "run"), *FITTED]
    status, _, errors = torchrun(["train", "debug", *arguments])
    message = f"wamkit train: error: {path}: episode 3, row 5: expected finite numbers in column 'action', got nan"
    assert status != 0 and errors.count(message) == 1
    assert not (tmp_path / "run").exists()


def test_two_processes_encode_one_cache(dataset: Path, tmp_path: Path) -> None:
    """Each takes some of the episodes; the files are those of one process."""

    def arguments(name: str) -> list[str]:
        return ["debug", "--data.root", str(dataset), "--data.cache", str(tmp_path / name), *FITTED]

    status, printed, errors = torchrun(["data", "encode", *arguments("two")])
    assert status == 0, errors[-3000:]
    assert printed.count("holds 4 episodes") == 1
    assert main(["data", "encode", *arguments("one")]) == 0
    for file in sorted((tmp_path / "one" / "episodes").iterdir()):
        expected = load_file(file)
        found = load_file(tmp_path / "two" / "episodes" / file.name)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert read_manifest(tmp_path / "one") == read_manifest(tmp_path / "two")
