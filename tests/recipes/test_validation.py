"""Errors on held-out episodes while training runs: what is measured, and that training does not notice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from test_augmentation import tiny_run, write_dataset

from wamkit.evaluation.report_training import training_curves
from wamkit.models.wav.validation import WindowErrors
from wamkit.policy import load_policy
from wamkit.recipes import RECIPES
from wamkit.recipes import execute as recipe
from wamkit.recipes.run import Run, ValidationConfig
from wamkit.training.log import read_metrics

MEASURE = ValidationConfig(every=1, episodes=(1,), num_windows=6, num_steps=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("square") / "dataset")


@pytest.fixture(scope="module")
def measured(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that measured after every step."""
    run = tiny_run(dataset, tmp_path_factory.mktemp("runs") / "measured")
    run = dataclasses.replace(run, validation=MEASURE)
    recipe.execute(run)
    return run


def rows(run: Run) -> list[dict]:
    return read_metrics(run.output / "validation.jsonl")


def losses(run: Run) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in read_metrics(run.output / "metrics.jsonl")]


def test_each_stage_is_measured_by_what_was_trained_so_far(measured: Run) -> None:
    found = rows(measured)
    assert [(row["stage"], row["step"]) for row in found] == [
        (stage.name, step) for stage in measured.stages for step in (1, 2)
    ]
    assert all(row["num_windows"] == 6 and row["video_loss"] > 0 for row in found)
    for row in found:
        assert ("value_mse" in row) == (row["stage"] != "video_only")
        assert ("action_mse" in row) == (row["stage"] == "action_full")
    last = found[-1]
    for key in ("action_mse", "value_mse", "total_value_mse"):  # stage 3 reports the value error too
        assert list(last[key]) == ["0:1", "1:9", "all"] and all(number > 0 for number in last[key].values())
    assert last["value_mse"] == last["total_value_mse"], "one value channel"
    channels = last["action_mse_per_channel"]
    assert list(channels) == ["0:1", "1:9", "all"] and len(channels["all"]) == 6, "three actions, three states"
    assert sum(channels["all"][:3]) / 3 == pytest.approx(last["action_mse"]["all"])


def test_measuring_changes_no_number_of_training(dataset: Path, measured: Run, tmp_path: Path) -> None:
    silent = dataclasses.replace(measured, output=tmp_path / "silent", validation=dataclasses.replace(MEASURE, every=0))
    recipe.execute(silent)
    assert losses(silent) == losses(measured)
    assert not (silent.output / "validation.jsonl").exists()
    first, second = (load_policy(run.output / "policy").model.network.state_dict() for run in (silent, measured))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_the_weights_that_are_published_are_measured(measured: Run) -> None:
    """The policy's own errors on the held-out windows are the last row."""
    data = recipe.open_data(measured)
    assert data.held_out == (1,)
    transforms, _ = recipe._transforms(measured, data, data.robot)
    loader = recipe._loader(measured, data.validation, data.robot, transforms)
    batch = loader.reseeded(6, 0).batch(0)
    assert set(batch.episode_index.tolist()) == {1}
    model = load_policy(measured.output / "policy").model
    expected = model.validate(batch, streams={"video", "value", "action"}, num_steps=2)
    found = {key: item for key, item in rows(measured)[-1].items() if key in expected}
    assert json.loads(json.dumps(expected)) == found
    again = model.validate(batch, streams={"video", "value", "action"}, num_steps=2, rows_at_once=4)
    assert again["action_mse"] == pytest.approx(expected["action_mse"], rel=1e-4)
    assert again["video_loss"] == pytest.approx(expected["video_loss"], rel=1e-4)


def test_held_out_episodes_are_not_trained_on(dataset: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(tiny_run(dataset, tmp_path / "run"), validation=MEASURE)
    data = recipe.open_data(run)
    transforms, _ = recipe._transforms(run, data, data.robot)
    loader = recipe._loader(run, data.training, data.robot, transforms)
    assert {int(index) for step in range(20) for index in loader.batch(step).episode_index} == {0, 2}
    share = dataclasses.replace(run, validation=ValidationConfig(every=1, fraction=0.3))
    chosen = recipe.open_data(share).held_out
    assert len(chosen) == 1 and chosen == recipe.open_data(share).held_out
    others = {recipe.open_data(dataclasses.replace(share, seed=seed)).held_out for seed in range(8)}
    assert len(others) > 1, "drawn by the run's seed"


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ((7,), "validation.episodes: expected some of the episodes 0 to 2 of dataset 'dataset', got '7'"),
        ((0, 1, 2), r"some, not all, of the episodes \['0:3'\] of dataset 'dataset'"),
    ],
)
def test_unknown_or_all_episodes_are_refused(
    dataset: Path, tmp_path: Path, episodes: tuple[int, ...], message: str
) -> None:
    run = dataclasses.replace(tiny_run(dataset, tmp_path / "run"), validation=ValidationConfig(episodes=episodes))
    with pytest.raises(ValueError, match=message):
        recipe.execute(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 5}, "episodes to hold out"),
        ({"every": -1}, "every >= 0"),
        ({"fraction": 1.0}, r"fraction in \[0, 1\)"),
        ({"episodes": (1,), "fraction": 0.5, "every": 1}, "got both"),
        ({"fraction": 0.5}, r"a fraction of 0\.5 is held out .* but validation\.every is 0.*; set validation\.every"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValidationConfig(**settings)


def test_an_interrupted_run_measures_the_same(dataset: Path, measured: Run, tmp_path: Path) -> None:
    """Rows after the checkpoint that is resumed from are dropped and measured again."""
    run = dataclasses.replace(measured, output=tmp_path / "run", save_every=1)
    original = recipe.train

    class Stop(Exception):
        pass

    def log(row: dict) -> None:
        if (row["stage"], row["step"]) == ("value_only", 2):
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(recipe, "train", lambda *a, **k: original(*a, **k, log=log))
        recipe.execute(run)
    with (run.output / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "value_only", "step": 2, "video_loss": 99.0}) + "\n")
    recipe.execute(run)
    assert rows(run) == rows(measured)


def test_from_a_cache_too(measured: Run, tmp_path: Path) -> None:
    cache = dataclasses.replace(measured.data, cache=tmp_path / "cache")
    run = dataclasses.replace(measured, data=cache, output=tmp_path / "run")
    recipe.encode(run)
    recipe.execute(run)
    for one, other in zip(rows(run), rows(measured), strict=True):
        assert one["video_loss"] == pytest.approx(other["video_loss"], rel=1e-4)


def test_the_report_shows_it(measured: Run) -> None:
    page = training_curves(measured.output / "metrics.jsonl")
    assert "On held-out episodes" in page
    for name in ("action error", "value error", "video loss"):
        assert name in page
    assert "1 to 9:" in page and "action_full, step 2" in page


def test_rows_past_the_end_do_not_count() -> None:
    model = RECIPES["debug"]().model
    error = torch.ones(2, 9, 8)
    error[:, 4:] = 100.0
    inside = torch.arange(9)[None].expand(2, -1) < 4
    errors = WindowErrors(video=None, value=None, action=error, value_counts=inside, action_counts=inside)
    assert errors.summary(model)["action_mse"] == {"0:1": 1.0, "1:9": 1.0, "all": 1.0}
    nothing = WindowErrors(video=None, value=error, action=None, value_counts=inside & False, action_counts=inside)
    assert nothing.summary(model)["value_mse"] == {"0:1": None, "1:9": None, "all": None}


def test_the_stretches_are_the_published_ones() -> None:
    model = RECIPES["wav-libero"]().model
    error = torch.arange(36.0)[None, :, None].expand(1, 36, 15)
    every = torch.ones(1, 36, dtype=torch.bool)
    found = WindowErrors(video=None, value=None, action=error, value_counts=every, action_counts=every)
    means = {"0:1": 0.0, "1:9": 4.5, "9:25": 16.5, "25:36": 30.0, "all": 17.5}
    assert found.summary(model)["action_mse"] == pytest.approx(means)
