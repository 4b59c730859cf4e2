"""From a dataset on disk to a policy that acts: the recipe machinery on WAV `tiny`, and on data that does not fit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.cli.main import main
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.value_labels import ArmChannels, DenseValueSettings, label_values
from wamkit.data.writer import LeRobotWriter
from wamkit.models.wav import config as wav
from wamkit.policy import Policy, load_policy
from wamkit.recipes import RECIPES
from wamkit.recipes.execute import execute
from wamkit.recipes.run import DataConfig, Run
from wamkit.training.log import read_metrics
from wamkit.training.stage import TrainStage

ARMS = (ArmChannels(name="", wrist_camera="wrist", state=(0, 1), action=(0, 1)),)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled demonstrations of a square that is pushed into a corner."""
    root = tmp_path_factory.mktemp("square") / "dataset"
    with LeRobotWriter(root, synthetic_robot()) as writer:
        for episode in synthetic_episodes(24, length=24):
            writer.add(episode)
    settings = DenseValueSettings(third_person="front", arms=ARMS, image_size=None)
    label_values(LeRobotDataset(root), settings)
    return root


def tiny_run(dataset: Path, output: Path, **stages: int) -> Run:
    """The three stages on WAV `tiny`, with the given numbers of steps."""
    base = RECIPES["debug"]()
    changed = tuple(
        dataclasses.replace(stage, steps=stages.get(stage.name, 2), batch_size=16, warmup_steps=0)
        for stage in base.stages
    )
    return dataclasses.replace(
        base,
        model=wav.tiny(action_dim=3, state_dim=3),
        data=DataConfig(root=dataset),
        output=output,
        stages=changed,
        device="cpu",
        save_every=1000,
    )


def action_error(policy: Policy, num_rows: int = 40) -> tuple[float, float]:
    """Squared error of the first action on demonstrations never seen, and that of the best constant action."""
    rng = np.random.default_rng(5)
    episodes = synthetic_episodes(8, length=24, seed=99)
    picked = [(episodes[int(rng.integers(8))], int(rng.integers(24))) for _ in range(num_rows)]
    slots = list(range(num_rows))
    policy.reset(slots, seeds=slots)
    chunk = policy.act(
        slots,
        video=torch.from_numpy(np.stack([np.stack([e.video["front"][t], e.video["wrist"][t]]) for e, t in picked])),
        state=torch.from_numpy(np.stack([e.state[t] for e, t in picked])),
        task=[e.task for e, _ in picked],
        executed=[0] * num_rows,
    )
    normalize = policy.transforms.action.normalizer.normalize  # every channel counts alike
    wanted = normalize(torch.from_numpy(np.stack([e.actions[t] for e, t in picked])))
    got = normalize(chunk.actions[:, 0])
    return float((got - wanted).square().mean()), float((wanted.mean(0) - wanted).square().mean())


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.slow
def test_a_tiny_policy_learns_to_act(dataset: Path, tmp_path: Path) -> None:
    """The losses of all stages fall, and the policy in its folder predicts unseen actions better than their mean."""
    run = tiny_run(dataset, tmp_path / "run", video_only=24, value_only=24, action_full=300)
    run = dataclasses.replace(
        run, stages=tuple(dataclasses.replace(stage, learning_rate=3e-3, warmup_steps=5) for stage in run.stages)
    )
    assert execute(run).stopped_by is None
    rows = read_metrics(run.output / "metrics.jsonl")
    for stage in run.stages:
        losses = [row["loss"] for row in rows if row["stage"] == stage.name]
        assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:8]), stage.name
    error, chance = action_error(load_policy(run.output / "policy", num_steps=5))
    # a sampler that ignores what it sees would be at twice the error of the best constant
    assert error < 0.85 * chance, f"squared error {error:.5f}, of the best constant {chance:.5f}"


def test_a_finished_run_is_not_trained_again(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when the code has changed since: the policy's record keeps saying by which code it was made."""
    run = tiny_run(dataset, tmp_path / "run")
    first = execute(run)
    assert first.steps == 6
    monkeypatch.setattr("wamkit.training.record.source_commit", lambda folder: "another commit")
    before = {file.name: file.read_bytes() for file in (run.output / "policy").iterdir() if file.is_file()}
    again = execute(run)
    assert again.steps == 0
    assert {file.name: file.read_bytes() for file in (run.output / "policy").iterdir() if file.is_file()} == before


def test_a_policy_folder_holds_all_it_needs(dataset: Path, tmp_path: Path) -> None:
    run = tiny_run(dataset, tmp_path / "run")
    execute(run)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run.output / "policy", elsewhere)
    shutil.rmtree(run.output)
    policy = load_policy(elsewhere, num_steps=2)
    assert policy.spec.robot == LeRobotDataset(dataset).robot
    assert policy.spec.tasks and "corner" in policy.spec.tasks[0]
    assert np.isfinite(action_error(policy, num_rows=2)).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (wav.tiny(action_dim=4, state_dim=3), "action channels: model 4, dataset 3"),
        (wav.tiny(action_dim=3, state_dim=2), "state channels: model 2, dataset 3"),
        (wav.tiny(action_dim=3, state_dim=3, num_views=1), "cameras: model 1, dataset 2"),
        (wav.tiny(action_dim=3, state_dim=3, value_channels=4), "value column of 4 channels, the model's, got 10"),
        (
            dataclasses.replace(wav.tiny(action_dim=3, state_dim=3), image_size=64),
            r"image sizes: model \[\(64, 64\)\], dataset \[\(32, 32\)\]",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(dataset: Path, tmp_path: Path, model: wav.WAVConfig, message: str) -> None:
    run = dataclasses.replace(tiny_run(dataset, tmp_path / "run"), model=model)
    with pytest.raises(ValueError, match=message):
        execute(run)
    assert not (tmp_path / "run").exists()


def test_codecs_of_another_dataset_are_not_used_silently(dataset: Path, tmp_path: Path) -> None:
    run = tiny_run(dataset, tmp_path / "run")
    execute(run)
    shutil.rmtree(run.output / "checkpoints")
    with pytest.raises(ValueError, match="made for another dataset, seed or model"):
        execute(dataclasses.replace(run, seed=1))


def test_a_dataset_without_values_is_refused(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "bare", synthetic_robot()) as writer:
        writer.add(synthetic_episodes(1)[0])
    with pytest.raises(ValueError, match="wamkit data values"):
        execute(tiny_run(tmp_path / "bare", tmp_path / "run"))


def test_the_command_line_trains_and_explains(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "debug"]) == 2
    assert "--data.root" in capsys.readouterr().err
    assert main(["train", "debug", "--data.root", str(tmp_path / "none"), "--output", str(tmp_path / "run")]) == 2
    assert "none" in capsys.readouterr().err
    arguments = ["--data.root", str(dataset), "--output", str(tmp_path / "run")]
    assert main(["train", "debug", *arguments]) == 2
    assert "action channels: model 4, dataset 3" in capsys.readouterr().err


def test_every_recipe_is_complete() -> None:
    for name, recipe in RECIPES.items():
        run = recipe()
        assert {part for stage in run.stages for part in stage.train} == set(run.model.parts), name
        if run.model.family == "wav":
            assert [stage.name for stage in run.stages] == ["video_only", "value_only", "action_full"], name
        assert run.execution_horizon <= run.model.action_horizon
        for stage in run.stages:
            assert isinstance(stage, TrainStage) and stage.needs_future == stage.objective.needs_future
