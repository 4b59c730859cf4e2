"""What every family must do in the trainer, each at its smallest size and with its own stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, STAGES, Family, PushedSquare, tiny
from torch import Tensor

from wamkit import models
from wamkit.data.synthetic import synthetic_robot
from wamkit.policy import Policy, load_policy
from wamkit.training.optim import restored_requires_grad, select_parameters
from wamkit.training.stage import TrainStage
from wamkit.training.trainer import step_draws, train
from wamkit.types import Trainable
from wamkit.weight_files import load_state, read_weights


def test_every_family_of_the_library_is_here() -> None:
    assert set(STAGES) == set(models.FAMILIES)


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


@pytest.mark.parametrize("name", STAGES)
def test_a_training_checkpoint_is_a_policy_that_acts(tmp_path: Path, name: str) -> None:
    family, config = FAMILIES[name], tiny(name)
    model: Any = family.build(1)
    assert set(model.parts()) == set(config.parts)
    side = config.image_size
    spec = config.spec_for(
        synthetic_robot(height=side, width=side), execution_horizon=config.action_horizon, normalization="minmax"
    )
    transforms = PushedSquare(config, batch_size=2).transforms

    def save_policy(path: Path, training: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        Policy(model, spec, transforms).save(path, config=config.to_dict(), training=training, weights=weights)

    report = train(
        model, family.stages, family.make_batches, folder=tmp_path, seed=7, save_every=2, save_policy=save_policy
    )
    policy = load_policy(report.checkpoint, num_steps=2)
    expected = weights(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in policy.model.network.state_dict().items())
    video = torch.zeros(1, 2, side, side, 3, dtype=torch.uint8)
    chunks = []
    for _ in range(2):
        policy.reset([0], seeds=[3])
        chunks.append(policy.act([0], video=video, state=torch.zeros(1, 3), task=["push"], executed=[0]).actions)
    assert chunks[0].shape == (1, config.action_horizon, 3) and chunks[0].isfinite().all()
    assert torch.equal(*chunks), "an episode's draws follow from its seed"


def test_the_same_draws_give_the_same_loss(family: Family) -> None:
    for stage in family.stages:
        model = family.build(1)
        model.network.train()  # dropout draws too, but for torch's own, which has no seed of ours
        for module in model.network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        batch = family.make_batches(stage).batch(3)
        first, second, other = (
            float(model.loss(batch, stage.objective, step_draws(seed, 0, 0, 0, stage.batch_size))[0].detach())
            for seed in (0, 0, 1)
        )
        assert first == second
        assert first != other or stage.name == "see"
