"""What every family must do in the trainer, each at its smallest size and with its own stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from regression_family import Regression, Windows, make_stages
from torch import Tensor

from wamkit.codecs.patch import PatchCodec, PatchCodecConfig
from wamkit.codecs.text_hash import HashedTextEncoder
from wamkit.data.actions import ActionTransform
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import feature_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.data.vectors import Transforms
from wamkit.data.windows import WindowConfig
from wamkit.models.wav.config import tiny
from wamkit.models.wav.family import WAV
from wamkit.models.wav.objective import WAVObjective, action_full, value_only, video_only
from wamkit.policy import Policy, load_policy
from wamkit.spec import PolicySpec
from wamkit.training.optim import restored_requires_grad, select_parameters
from wamkit.training.prefetch import BatchSource
from wamkit.training.stage import TrainStage
from wamkit.training.trainer import step_draws, train
from wamkit.types import Batch, Trainable
from wamkit.weight_files import load_state, read_weights


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family in its smallest size.

    Args:
        build: a model with weights drawn from a seed.
        stages: its training stages, two steps each.
        make_batches: batches of a stage.
    """

    build: Callable[[int], Trainable]
    stages: list[TrainStage]
    make_batches: Callable[[TrainStage], BatchSource]


class WAVWindows:
    """Batches for `tiny()` from pictures of a pushed square, with value vectors."""

    def __init__(self, stage: TrainStage) -> None:
        config = tiny(action_dim=3, state_dim=3)
        robot = synthetic_robot(height=config.image_size, width=config.image_size)
        episodes = synthetic_episodes(3, length=24, height=config.image_size, width=config.image_size)
        rng = np.random.default_rng(0)
        values = [rng.normal(size=(len(episode), config.network.value.channels)) for episode in episodes]
        values = [value.astype(np.float32) for value in values]
        self.loader = WindowLoader(
            MemoryDataset(episodes, robot, values),
            WindowConfig(
                context=config.num_context,
                chunk=config.num_future,
                action_horizon=config.action_horizon,
                sample_n_frames=20,
            ),
            action=ActionTransform(
                normalizer=Normalizer.from_statistics(
                    "minmax", feature_statistics(np.concatenate([e.actions for e in episodes]))
                )
            ),
            state=Normalizer.from_statistics("minmax", feature_statistics(np.concatenate([e.state for e in episodes]))),
            value=ValueTransform.from_statistics(feature_statistics(np.concatenate(values))),
            batch_size=stage.batch_size,
            seed=1,
        )
        self.needs_future = stage.needs_future

    def batch(self, step: int) -> Batch:
        return self.loader.batch(step, need_future=self.needs_future)


def build_wav(seed: int) -> WAV:
    config = tiny(action_dim=3, state_dim=3)
    episodes = synthetic_episodes(3, length=24, height=config.image_size, width=config.image_size)
    frames = torch.from_numpy(np.concatenate([episode.video["front"] for episode in episodes]))
    clips = torch.stack([frames[start : start + 9] for start in (0, 8, 24, 30)])
    codec = PatchCodec.fit(
        frames,
        clips,
        config=PatchCodecConfig(
            patch=config.codec.spatial, temporal=config.codec.temporal, channels=config.network.latent_channels
        ),
        generator=torch.Generator().manual_seed(0),
    )
    text = HashedTextEncoder(width=config.network.text_width, length=config.codec.text_length)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WAV.build(config, codec, text)


def wav_stages() -> list[TrainStage]:
    def stage(name: str, objective: WAVObjective, train: tuple[str, ...], **changes: Any) -> TrainStage:
        needs_future = objective.needs_future
        settings: dict[str, Any] = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "needs_future": needs_future}
        return TrainStage(name=name, objective=objective, train=train, **{**settings, **changes})

    return [
        stage("video_only", video_only(), ("video",), ema_decay=0.9),
        stage("value_only", value_only(), ("value",), warmup_steps=2),
        stage("action_full", action_full(), ("video", "value", "action")),
    ]


FAMILIES = {
    "regression": Family(build=Regression, stages=make_stages((2, 2)), make_batches=Windows),
    "wav": Family(build=build_wav, stages=wav_stages(), make_batches=WAVWindows),
}


class PowerCutError(Exception):
    """Ends a run without saving, as a crash would."""


def weights(model: Trainable) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def run(family: Family, folder: Path, model: Trainable, stages: list[TrainStage], **changes: Any) -> None:
    train(model, stages, family.make_batches, folder=folder, **{"seed": 7, "save_every": 2, **changes})


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def test_two_steps_saved_and_resumed_match_four_straight_steps(tmp_path: Path, family: Family) -> None:
    """Also the family's last, most complete stage is one of those compared."""
    for number, stage in enumerate(family.stages):
        stages = [dataclasses.replace(stage, steps=4)]
        straight, resumed = family.build(1), family.build(2)
        run(family, tmp_path / f"straight{number}", straight, stages)

        def cut(row: dict[str, Any]) -> None:
            if row["step"] == 3:
                raise PowerCutError

        folder = tmp_path / f"resumed{number}"
        with pytest.raises(PowerCutError):
            run(family, folder, family.build(1), stages, log=cut)
        run(family, folder, resumed, stages)
        expected = weights(straight)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())
        saved = read_weights(folder / "checkpoints" / f"{stage.name}-step_4" / "training_state" / "network.safetensors")
        fresh = family.build(3)
        load_state(fresh.network, saved, folder)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(fresh).items())


def test_after_each_stage_only_its_parts_have_changed(tmp_path: Path, family: Family) -> None:
    """WAV's acceptance check 7, second half: bitwise, stage by stage, in one run of all stages."""
    model = family.build(1)
    before = weights(model)
    run(family, tmp_path, model, family.stages)
    parameters = dict(model.network.named_parameters())
    owner = {name: part for part, names in model.parts().items() for name in names}
    assert set(owner) == set(parameters)
    for stage in family.stages:
        state = tmp_path / "checkpoints" / f"{stage.name}-step_{stage.steps}" / "training_state"
        after = read_weights(state / "network.safetensors")
        changed = {name for name in parameters if not torch.equal(after[name], before[name])}
        assert {owner[name] for name in changed} == set(stage.train)
        assert all(owner[name] in stage.train for name in changed)
        before = after


def test_gradients_reach_exactly_the_parts_a_stage_trains(family: Family) -> None:
    for stage in family.stages:
        model = family.build(1)
        with restored_requires_grad(model.network):
            trained = select_parameters(model, stage)
            batch = family.make_batches(stage).batch(0)
            loss, parts = model.loss(batch, stage.objective, step_draws(0, 0, 0, 0, stage.batch_size))
            loss.backward()
            reached = {name for name, item in model.network.named_parameters() if item.grad is not None}
            assert loss.ndim == 0 and all(value.ndim == 0 for value in parts.values())
            assert reached and reached <= set(trained)
            for part in stage.train:
                assert reached & set(model.parts()[part]), f"stage {stage.name} does not reach {part}"


def test_a_training_checkpoint_is_a_policy_that_acts(tmp_path: Path) -> None:
    model = build_wav(1)
    stages = wav_stages()
    robot = synthetic_robot(height=model.config.image_size, width=model.config.image_size)
    spec = PolicySpec(
        family="wav",
        robot=robot,
        num_context=model.config.num_context,
        action_horizon=model.config.action_horizon,
        execution_horizon=model.config.action_horizon,
        normalization="minmax",
    )
    episodes = synthetic_episodes(2, length=24)
    transforms = Transforms(
        action=ActionTransform(
            normalizer=Normalizer.from_statistics("minmax", feature_statistics(episodes[0].actions))
        ),
        state=Normalizer.from_statistics("minmax", feature_statistics(episodes[0].state)),
        value=None,
    )

    def save_policy(path: Path, training: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        Policy(model, spec, transforms).save(path, config=model.config.to_dict(), training=training, weights=weights)

    report = train(model, stages, WAVWindows, folder=tmp_path, seed=7, save_every=2, save_policy=save_policy)
    policy = load_policy(report.checkpoint, num_steps=2)
    expected = weights(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in policy.model.network.state_dict().items())
    policy.reset([0], seeds=[3])
    video = torch.from_numpy(np.stack([np.zeros((32, 32, 3), np.uint8)] * 2))[None]
    chunk = policy.act([0], video=video, state=torch.zeros(1, 3), task=["push"], executed=[0])
    assert chunk.actions.shape == (1, model.config.action_horizon, 3) and chunk.actions.isfinite().all()


def test_the_same_draws_give_the_same_loss(family: Family) -> None:
    for stage in family.stages:
        model = family.build(1)
        model.network.eval()
        batch = family.make_batches(stage).batch(3)
        first, second, other = (
            float(model.loss(batch, stage.objective, step_draws(seed, 0, 0, 0, stage.batch_size))[0].detach())
            for seed in (0, 0, 1)
        )
        assert first == second
        assert first != other or stage.name == "see"
