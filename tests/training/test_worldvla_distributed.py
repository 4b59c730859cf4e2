"""WorldVLA on two processes (gloo, on the CPU) is WorldVLA on one: the loss is over the global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import WORLDVLA, Processes, run, worldvla_model

from wamkit.training.log import read_metrics
from wamkit.weight_files import read_weights

pytestmark = pytest.mark.slow


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    """Losses to 1e-5 of their size, weights to 1e-5; in bf16, with activations computed twice, losses to 2 %."""
    run(tmp_path / "alone", model=worldvla_model(), **WORLDVLA)
    with Processes(tmp_path) as two:
        assert two.run("worldvla", tmp_path / "together")["steps"] == 3
        assert two.run("worldvla bf16", tmp_path / "bf16")["steps"] == 3
    alone, together, rounded = (
        read_metrics(tmp_path / name / "metrics.jsonl") for name in ("alone", "together", "bf16")
    )
    for row, wanted, coarse in zip(together, alone, rounded, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
        assert row["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
        assert coarse["loss"] == pytest.approx(wanted["loss"], rel=0.02)
    got, expected = (read_weights(tmp_path / name / "checkpoints" / "joint-step_3") for name in ("together", "alone"))
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-5, msg=name)
