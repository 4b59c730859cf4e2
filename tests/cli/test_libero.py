"""LIBERO through the command line, on scene assets made here: recorded, inspected, labelled, trained on, evaluated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from wamkit.cli.main import main
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE
from wamkit.envs.libero import LiberoFactory
from wamkit.envs.libero_assets import ASSETS_VARIABLE

SOUP = "libero_object/0"
MODEL = (
    *("--model.action-dim", "7", "--model.state-dim", "8", "--model.codec.text-length", "12"),
    *("model.network.value:expert-config", "--model.network.value.channels", "10"),
    *("model.network.action:expert-config", "--model.network.action.channels", "15"),
)


def write_pack(folder: Path) -> Path:
    path = Path(__file__).parents[1] / "envs" / "libero_pack.py"
    spec = importlib.util.spec_from_file_location("libero_pack", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written: Path = module.write_pack(folder)
    return written


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("robosuite") is None, reason="LIBERO is not installed (bash runs/setup_extras.sh libero)"
)
def test_from_a_demonstration_to_an_evaluated_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ASSETS_VARIABLE, str(write_pack(tmp_path / "assets")))
    dataset, trained, evaluated = tmp_path / "dataset", tmp_path / "run", tmp_path / "evaluation"
    record = ("record", SOUP, "--suite", "libero", "--output", str(dataset), "--episodes", "1")
    assert main([*record, "--size", "32", "--settle-steps", "1", "--workers", "1", "--noise-std", "0.05"]) == 0
    assert f"{SOUP}: 1/1 episodes" in capsys.readouterr().out
    source = LeRobotDataset(dataset)
    assert source.robot == LiberoFactory(height=32, width=32).robot and source.fps == 20
    assert source.episodes[0].task == "pick up the alphabet soup and place it in the basket"
    assert main(["data", "inspect", str(dataset), "--json"]) == 0
    assert not [found for found in json.loads(capsys.readouterr().out)["findings"] if found["severity"] == "error"]

    assert main(["data", "values", str(dataset), "--image-size", "0"]) == 0
    values = LeRobotDataset(dataset).columns(0)[VALUE]
    assert values.shape[1] == 10 and np.isfinite(values).all()
    assert main(["train", "debug", "--data.root", str(dataset), "--output", str(trained), *MODEL]) == 0

    evaluate = ["evaluate", str(trained / "policy"), "--output", str(evaluated), "--num-steps", "1", "--workers", "1"]
    short = ["--tasks", SOUP, "--episodes", "1", "--max-steps", "12"]
    standard = [*evaluate, *short, "--protocol", "libero/standard"]
    assert main(standard) == 2  # the protocol renders as the benchmark does, the policy saw the low-cost look
    assert "renders with 'mujoco-stock', but the policy was trained on 'mujoco-low-cost'" in capsys.readouterr().err
    assert main([*standard, "--rendering", "low_cost"]) == 0
    results = json.loads((evaluated / "results.json").read_text())
    assert results["protocol"] == "libero/standard (max_steps=12, rendering=mujoco-low-cost)"
    score = results["tasks"][SOUP]
    assert (score["trials"], score["successes"], score["mean_steps"]) == (1, 0, 12)
    assert results["versions"]["robosuite"] == "1.4.0"
