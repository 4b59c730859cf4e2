"""Recipes on a GPU: changed pictures, latents from a cache and held-out errors are those of the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_augmentation import tiny_run, write_dataset

from wamkit.data.image_settings import ColorJitter
from wamkit.recipes import execute as recipe
from wamkit.recipes.run import Run, ValidationConfig
from wamkit.training.log import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("exact_products"),
]


@pytest.mark.parametrize("settings", ["jitter", "cache"])
def test_a_gpu_trains_and_validates_as_a_cpu_does(tmp_path: Path, settings: str) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    changes = {
        "jitter": {"color_jitter": ColorJitter.published(), "random_crop": True},
        "cache": {"cache": tmp_path / "cache"},
    }[settings]
    runs: list[Run] = []
    for device in ("cpu", "cuda"):
        run = dataclasses.replace(tiny_run(dataset, tmp_path / device, **changes), device=device)
        run = dataclasses.replace(run, validation=ValidationConfig(every=1, episodes=(1,), num_windows=4, num_steps=2))
        if settings == "cache":
            recipe.encode(run)
        recipe.execute(run)
        runs.append(run)
    for name, keys in (("metrics", ("loss", "grad_norm")), ("validation", ("video_loss",))):
        cpu, cuda = (read_metrics(run.output / f"{name}.jsonl") for run in runs)
        assert len(cpu) == len(cuda) == 6
        for one, other in zip(cpu, cuda, strict=True):
            for key in keys:
                # A rounded level of a pixel that falls on the other side changes its latent in the third digit.
                assert other[key] == pytest.approx(one[key], rel=5e-3), (name, one["stage"], one["step"], key)
