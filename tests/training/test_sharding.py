"""Training of one process in bf16, and with activations computed twice, against the plain fp32 run."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from processes import Rows, run, stages
from torch import nn

from wamkit.parallel import is_grouped, process_group
from wamkit.training.log import read_metrics
from wamkit.training.optim import restored_requires_grad, select_parameters
from wamkit.training.sharding import ShardedLoss, blocks, full_weights, is_sharded, local, recomputed_activations
from wamkit.training.trainer import step_draws
from wamkit.weight_files import read_weights


def gradients(model: object, stage: object, *, recomputed: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch."""
    with restored_requires_grad(model.network):
        trained = select_parameters(model, stage)
        draws = step_draws(0, 0, 0, 0, stage.batch_size)
        if recomputed:
            with recomputed_activations(model.network):
                loss, _ = model.loss(Rows(stage).batch(0), stage.objective, draws)
                loss.backward()
        else:
            loss, _ = model.loss(Rows(stage).batch(0), stage.objective, draws)
            loss.backward()
        return float(loss.detach()), {
            name: item.grad.clone() for name, item in trained.items() if item.grad is not None
        }


def test_blocks_are_those_of_every_stream() -> None:
    network = FAMILIES["wav"].build(1).network
    chosen = blocks(network)
    assert len(chosen) == 3 * network.config.num_layers
    assert {type(block).__name__ for block in chosen} == {"LTXBlock", "ExpertBlock"}
    assert blocks(nn.Linear(2, 2)) == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_computing_activations_twice_changes_no_gradient(number: int) -> None:
    stage = stages()[number]
    model = FAMILIES["wav"].build(1)
    loss, wanted = gradients(model, stage, recomputed=False)
    again, got = gradients(model, stage, recomputed=True)
    assert again == loss and got.keys() == wanted.keys()
    assert all(torch.equal(got[name], gradient) for name, gradient in wanted.items())
    assert not any("forward" in vars(block) for block in blocks(model.network)), "blocks are given back"


def test_fewer_activations_are_kept() -> None:
    """Bytes that the backward pass finds; with checkpointing only what lies outside the blocks, and block inputs."""
    stage = stages()[2]
    model = FAMILIES["wav"].build(1)

    def kept(recomputed: bool) -> int:
        storages: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            gradients(model, stage, recomputed=recomputed)
        return sum(storages.values())

    assert kept(True) < 0.7 * kept(False)


def test_a_whole_run_with_recomputed_activations_is_the_same_run(tmp_path: Path) -> None:
    run(tmp_path / "plain")
    run(tmp_path / "recomputed", activation_checkpointing=True)
    for checkpoint in os.listdir(tmp_path / "plain" / "checkpoints"):
        plain, recomputed = (
            read_weights(tmp_path / name / "checkpoints" / checkpoint) for name in ("plain", "recomputed")
        )
        assert all(torch.equal(recomputed[name], tensor) for name, tensor in plain.items())


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.slow
def test_bf16_computes_coarsely_and_keeps_weights_in_fp32(tmp_path: Path) -> None:
    run(tmp_path / "fp32")
    model = FAMILIES["wav"].build(1)
    run(tmp_path / "run", precision="bf16", model=model)
    assert not is_grouped() and is_sharded(model.network)
    plain, coarse = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("fp32", "run"))
    for row, wanted in zip(coarse, plain, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=0.02) and row["loss"] != wanted["loss"]
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.05)
    last = tmp_path / "run" / "checkpoints" / "action-step_2"
    weights = read_weights(last)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    changed = [name for name, tensor in weights.items() if not torch.equal(tensor, tensor.bfloat16().float())]
    assert len(changed) > 0.9 * len(weights), "weights have more digits than bf16"
    # Cut and continued it is the same run, bit for bit.
    shutil.copytree(last, tmp_path / "expected")
    shutil.rmtree(last)
    report = run(tmp_path / "run", precision="bf16", model=FAMILIES["wav"].build(5))
    assert report.resumed_from.name == "action-step_1"
    continued = read_weights(last)
    assert all(torch.equal(continued[name], tensor) for name, tensor in weights.items())


def test_fp32_goes_on_from_what_bf16_wrote_only_when_told(tmp_path: Path) -> None:
    short = [dataclasses.replace(stages()[0], steps=1)]
    run(tmp_path / "run", precision="bf16", stages=short)
    with pytest.raises(ValueError, match="precision: saved 'bf16', now nothing"):
        run(tmp_path / "run", stages=short)


def group_threads() -> set[str]:
    """This process's threads that belong to a group of processes."""
    tasks = Path("/proc/self/task")
    return {task.name for task in tasks.iterdir() if "gloo" in (task / "comm").read_text()}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads as Linux does")
def test_the_groups_threads_end_with_the_group() -> None:
    """A thread that outlives its group may abort the process at its very end, after all has gone well."""
    before = group_threads()

    def train_a_step() -> None:
        model = FAMILIES["wav"].build(1)
        sharded = ShardedLoss(model, torch.device("cpu"), "bf16")
        stage = stages()[0]
        sharded.begin_stage()
        loss, _ = sharded(Rows(stage).batch(0), stage.objective, step_draws(0, 0, 0, 0, stage.batch_size))
        loss.backward()
        full_weights(model.network)

    with process_group("cpu", alone=True):
        train_a_step()
        assert group_threads() > before
    assert group_threads() <= before, "those of earlier groups may have ended too"


def test_a_network_is_sharded_once() -> None:
    model = FAMILIES["wav"].build(1)
    expected = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with process_group("cpu", alone=True):
        ShardedLoss(model, torch.device("cpu"))
        with pytest.raises(ValueError, match="not sharded yet"):
            ShardedLoss(model, torch.device("cpu"))
        whole = full_weights(model.network)
        assert all(torch.equal(whole[name], tensor) for name, tensor in expected.items())
        assert all(torch.equal(local(item), expected[name]) for name, item in model.network.named_parameters())
