"""Every option of windows, numbers and objectives goes from the recipe through training into a policy that acts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_augmentation import tiny_run, write_dataset

from wamkit.models.wav.objective import FlowWeighting, WAVObjective, action_full
from wamkit.policy import load_policy
from wamkit.recipes import execute as recipe
from wamkit.recipes.run import Run
from wamkit.training.log import read_metrics


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one step of the last stage, from latents; they serve all options of numbers and memory."""
    folder = tmp_path_factory.mktemp("square")
    run = tiny_run(write_dataset(folder / "dataset"), folder / "run", cache=folder / "cache")
    recipe.encode(run)
    return dataclasses.replace(run, stages=(dataclasses.replace(run.stages[-1], steps=1, batch_size=2),))


def trained(run: Run, output: Path, objective: WAVObjective | None = None, **data: object) -> dict[str, float]:
    """Losses of the step, with some settings changed; the policy acts."""
    stage = run.stages[0]
    if objective is not None:
        stage = dataclasses.replace(stage, objective=objective, needs_future=objective.needs_future)
    run = dataclasses.replace(run, output=output, stages=(stage,), data=dataclasses.replace(run.data, **data))
    recipe.execute(run)
    policy = load_policy(run.output / "policy", num_steps=2)
    policy.reset([0], seeds=[1])
    video = torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8)
    chunk = policy.act([0], video=video, state=torch.full((1, 3), 0.5), task=["push"], executed=[0])
    assert chunk.actions.shape == (1, 9, 3) and chunk.actions.isfinite().all()
    (row,) = read_metrics(run.output / "metrics.jsonl")
    return {"loss": row["loss"], **row["losses"]}


@pytest.mark.parametrize("normalization", ["minmax", "meanstd"])
def test_action_types_under_both_normalisations(cached: Run, tmp_path: Path, normalization: str) -> None:
    losses = {}
    for type in ("absolute", "delta", "relative"):
        targets = () if type == "absolute" else ("x", "y")
        output = tmp_path / type
        losses[type] = trained(cached, output, normalization=normalization, action_type=type, action_targets=targets)[
            "loss"
        ]
        transform = load_policy(output / "policy").transforms.action
        assert (transform.type, transform.normalizer.kind) == (type, normalization)
        assert transform.moving == (() if type == "absolute" else (0, 1)), "the gripper stays absolute"
    assert len(set(losses.values())) == 3


def test_memory_and_alignment_change_what_is_learnt(cached: Run, tmp_path: Path) -> None:
    settings = {
        "spaced": {},
        "random": {"pick": "random", "sample_n_frames": 12},
        "uniform": {"pick": "uniform", "sample_n_frames": 12},
        "ahead": {"action_offset": 1},
    }
    losses = {name: trained(cached, tmp_path / name, **data)["loss"] for name, data in settings.items()}
    assert len(set(losses.values())) == len(settings), losses


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.slow
def test_objectives_of_the_last_stage(cached: Run, tmp_path: Path) -> None:
    """Weightings, memory noise, reference timesteps, caption dropout with either mask, value and video losses."""
    base = dataclasses.replace(action_full(), memory_noise=0.5)
    changes = {
        "base": {},
        "clean memory": {"memory_noise": 0.0},
        "reference timesteps": {"reference_timesteps": True},
        "captions dropped": {"caption_dropout": 1.0},
        "captions dropped, mask kept": {"caption_dropout": 1.0, "reference_caption_mask": True},
        "padding left out": {"mask_padding": True},
        "value": {"value_weight": 0.5},
        "video": {"video_weight": 1.0, "video_share": 0.5},
    }
    schemes = ("logit_normal", "mode", "sigma_sqrt", "cosmap")
    changes |= {scheme: {"weighting": FlowWeighting(scheme=scheme)} for scheme in schemes}
    losses = {
        name: trained(cached, tmp_path / name.replace(" ", "_").replace(",", ""), dataclasses.replace(base, **change))
        for name, change in changes.items()
    }
    totals = [found["loss"] for found in losses.values()]
    assert len(set(totals)) == len(totals), losses
    assert {name for name, found in losses.items() if "value_loss" in found} == {"value"}
    assert {name for name, found in losses.items() if "video_loss" in found} == {"video"}
    value = losses["value"]
    assert value["loss"] == pytest.approx(value["action_loss"] + 0.5 * value["value_loss"], rel=1e-5)


def test_states_may_be_left_out_of_the_actions(cached: Run, tmp_path: Path) -> None:
    """Independent of normalisation and action type; the network then predicts actions alone."""
    network = cached.model.network
    action = dataclasses.replace(network.action, channels=3)
    model = dataclasses.replace(
        cached.model, concatenates_state=False, network=dataclasses.replace(network, action=action)
    )
    for normalization in ("minmax", "meanstd"):
        run = dataclasses.replace(cached, model=model)
        trained(run, tmp_path / normalization, normalization=normalization)
