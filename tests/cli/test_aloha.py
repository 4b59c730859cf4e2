"""Two real arms through the command line: recorded, inspected, labelled, trained on and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wamkit.cli.main import main
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE
from wamkit.envs.aloha import AlohaFactory

CAMERAS = ("top", "left_wrist", "right_wrist")
MODEL = (
    *("--model.num-views", "3", "--model.action-dim", "14", "--model.state-dim", "14"),
    *("model.network.value:expert-config", "--model.network.value.channels", "17"),
    *("model.network.action:expert-config", "--model.network.action.channels", "28"),
)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.sim
@pytest.mark.slow
def test_from_a_demonstration_to_an_evaluated_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, trained, evaluated = tmp_path / "dataset", tmp_path / "run", tmp_path / "evaluation"
    record = ("record", "transfer-cube", "--suite", "aloha", "--output", str(dataset), "--episodes", "1")
    assert main([*record, "--size", "32", "--settle-steps", "1", "--workers", "1", "--noise-std", "0.005"]) == 0
    assert "transfer-cube: 1/1 episodes" in capsys.readouterr().out
    source = LeRobotDataset(dataset)
    assert source.robot == AlohaFactory(height=32, width=32).robot and source.robot.camera_names == CAMERAS
    assert len(source.columns(0)["action"]) < 250
    assert main(["data", "inspect", str(dataset), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {(finding["severity"], finding["kind"]) for finding in findings} <= {("warning", "constant_channel")}

    assert main(["data", "values", str(dataset), "--image-size", "0"]) == 0
    values = LeRobotDataset(dataset).columns(0)[VALUE]
    assert values.shape[1] == 17 and np.isfinite(values).all()
    stored = LeRobotDataset(dataset).wamkit[VALUE]
    assert stored["third_person"] == "top" and [arm["wrist_camera"] for arm in stored["arms"]] == [*CAMERAS[1:]]
    assert stored["arms"][1]["state"] == [*range(7, 14)]

    assert (
        main(["train", "debug", "--data.root", str(dataset), "--output", str(trained), "--device", "cpu", *MODEL]) == 0
    )
    evaluate = ("evaluate", str(trained / "policy"), "--protocol", "aloha/v1", "--output", str(evaluated))
    short = ("--tasks", "transfer-cube", "--episodes", "1", "--max-steps", "5", "--num-steps", "1", "--workers", "1")
    assert main([*evaluate, *short]) == 0
    results = json.loads((evaluated / "results.json").read_text())
    assert results["protocol"] == "aloha/v1 (max_steps=5)"
    assert results["tasks"]["transfer-cube"]["trials"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("transfer-cub",), "unknown aloha task 'transfer-cub'; did you mean 'transfer-cube'"),
        (("transfer-cube", "--cameras", "corner2"), "unknown ALOHA camera 'corner2'"),
    ],
)
def test_bad_recordings_are_refused_before_a_dataset_is_made(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "dataset"
    assert main(["record", *arguments, "--suite", "aloha", "--output", str(output)]) == 2
    assert message in capsys.readouterr().err and not output.exists()
