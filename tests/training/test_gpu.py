"""What a GPU computes is what the CPU computes: training in all stages, a planned control step, and bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES
from processes import run

from wamkit.draws import SeededDraws
from wamkit.planning.cem import plan
from wamkit.planning.config import PlannerConfig
from wamkit.training.log import read_metrics
from wamkit.weight_files import read_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("exact_products"),
]

DEVICE = "cuda"
LAST = "action-step_2"


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpu") / "run"
    run(folder)
    return folder


def trained(folder: Path, **changes: object) -> list[dict]:
    """The metrics of a run of all three stages on the GPU."""
    run(folder, model=FAMILIES["wav"].build(1).to(DEVICE), device=DEVICE, **changes)
    return read_metrics(folder / "metrics.jsonl")


@pytest.mark.parametrize("recomputed", [False, True])
def test_training_equals_that_of_the_cpu(on_cpu: Path, tmp_path: Path, recomputed: bool) -> None:
    """Losses, gradient norms and weights, to 1e-3: sums run in another order, and later steps build on earlier ones."""
    curve = trained(tmp_path / "run", activation_checkpointing=recomputed)
    for row, wanted in zip(curve, read_metrics(on_cpu / "metrics.jsonl"), strict=True):
        assert row["losses"] == pytest.approx(wanted["losses"], rel=1e-3)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3)
    got, expected = (read_weights(folder / "checkpoints" / LAST) for folder in (tmp_path / "run", on_cpu))
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_training_in_bf16_is_finite_and_near(on_cpu: Path, tmp_path: Path) -> None:
    curve = trained(tmp_path / "run", precision="bf16")
    for row, wanted in zip(curve, read_metrics(on_cpu / "metrics.jsonl"), strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=0.03)
    weights = read_weights(tmp_path / "run" / "checkpoints" / LAST)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values())


def planned(device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The actions of two robots' control step after two rounds of planning."""
    model = FAMILIES["wav"].build(1).to(device)
    model.network.eval().to(dtype)
    size = model.config.image_size
    video = torch.randint(
        256,
        (2, model.config.num_views, model.config.num_context, size, size, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.inference_mode():
        memory = model.encode_frames(video.to(device))
        state = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.5, -0.5]], device=device)
        control = model.control_step(memory, state, ["push the square", "open the drawer"], 4)
        draws = SeededDraws(keys=[(0, 0), (1, 0)], device=device)
        chosen = plan(control, PlannerConfig(iterations=2, num_videos=8, num_values=3), draws)
        return control.sample(draws, chosen).actions.float().cpu()


def test_a_planned_control_step_equals_that_of_the_cpu() -> None:
    torch.testing.assert_close(planned(DEVICE), planned("cpu"), rtol=1e-3, atol=1e-4)


def test_a_planned_control_step_in_bf16_is_finite() -> None:
    assert planned(DEVICE, torch.bfloat16).isfinite().all()
