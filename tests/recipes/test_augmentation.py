"""Training on changed pictures: what a recipe's image settings do to a run, and what a policy remembers of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from wamkit.data.image_settings import ColorJitter
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.value_labels import SparseValueSettings, label_values
from wamkit.data.writer import LeRobotWriter
from wamkit.models.wav import config as wav
from wamkit.recipes import RECIPES
from wamkit.recipes.execute import execute
from wamkit.recipes.run import DataConfig, Run
from wamkit.training.log import read_metrics


def write_dataset(root: Path, *, height: int = 32, width: int = 32, num: int = 3) -> Path:
    """Demonstrations of a pushed square with sparse values."""
    with LeRobotWriter(root, synthetic_robot(height=height, width=width)) as writer:
        for episode in synthetic_episodes(num, length=20, height=height, width=width):
            writer.add(episode)
    label_values(LeRobotDataset(root), SparseValueSettings())
    return root


def tiny_run(dataset: Path, output: Path, **data: object) -> Run:
    """The debug recipe, two steps a stage, for the square."""
    base = RECIPES["debug"]()
    return dataclasses.replace(
        base,
        model=wav.tiny(action_dim=3, state_dim=3, value_channels=1),
        data=dataclasses.replace(DataConfig(root=dataset), **data),
        output=output,
        stages=tuple(dataclasses.replace(stage, steps=2) for stage in base.stages),
        device="cpu",
    )


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in read_metrics(run.output / "metrics.jsonl")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("square") / "dataset")


def test_color_jitter_changes_what_is_learnt_and_repeats(dataset: Path, tmp_path: Path) -> None:
    jitter = ColorJitter.published()
    runs = [
        tiny_run(dataset, tmp_path / "plain"),
        tiny_run(dataset, tmp_path / "first", color_jitter=jitter),
        tiny_run(dataset, tmp_path / "second", color_jitter=jitter),
    ]
    for run in runs:
        execute(run)
    plain, first, second = map(losses, runs)
    assert first == second
    assert all(one != other for one, other in zip(plain, first, strict=True)), "every stage sees the changed pictures"
    with pytest.raises(ValueError, match=r"data.color_jitter.hue: saved 0.1, now 0.0"):
        execute(dataclasses.replace(runs[0], output=runs[1].output))


def test_recipes_leave_colors_alone() -> None:
    for name, recipe in RECIPES.items():
        assert not recipe().data.color_jitter.is_on, name
