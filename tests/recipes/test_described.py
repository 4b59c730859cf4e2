"""A dataset of another program is refused until its robot is described, and is then trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_augmentation import tiny_run, write_dataset

from wamkit.cli.main import main
from wamkit.policy import load_policy
from wamkit.recipes.execute import execute


def test_a_foreign_dataset_is_described_and_trained_on(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "foreign")
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    del info["wamkit"]["robot"]
    path.write_text(json.dumps(info))
    run = tiny_run(root, tmp_path / "run")
    with pytest.raises(ValueError, match=f"says nothing of its robot; describe it with `wamkit data describe {root}`"):
        execute(run)
    assert main(["data", "describe", str(root), "--action-kind", "delta", "--gripper-sign", "close_positive"]) == 0
    assert execute(run).steps == 6
    robot = load_policy(run.output / "policy").spec.robot
    assert (robot.gripper_channels, robot.camera_names) == ((2,), ("front", "wrist"))
