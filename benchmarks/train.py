"""How fast WAV trains: tokens a second, its share of the matrix rate, and what activation checkpointing costs.

    python benchmarks/train.py --output results/train/results.json                  # `small`, on a CPU
    python benchmarks/train.py --size libero --device cuda --precision bf16         # full size, on a GPU

Whole optimiser steps (loss, gradients, clipping, AdamW) on encoded windows of random numbers, as in training from
cached latents: image codec, text encoder and data loading are not in it. Both sides, with every activation kept and
with those of the blocks computed twice, run in turn in processes of their own, so that each has its own peak memory.

"Model" operations are the matrix products of one forward and two backward-sized passes; what checkpointing repeats is
counted beside them, not among them. The matrix rate is measured in the same run, on one large product of the precision
that the model computes in. On a CPU one core computes, and its time is that of the process, so that others on the
machine do not count. Prints `ratio NAME VALUE`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wamkit.draws import TrainingDraws
from wamkit.models.wav import config as sizes
from wamkit.models.wav import objective as objectives
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.cost import forward_cost, num_video_tokens, training_cost
from wamkit.models.wav.losses import EncodedBatch, losses
from wamkit.models.wav.model import WAVTransformer, part_of
from wamkit.models.wav.objective import WAVObjective
from wamkit.parallel import process_group
from wamkit.training.optim import make_optimizer, select_parameters
from wamkit.training.sharding import ShardedLoss, clip_gradients, recomputed_activations
from wamkit.training.stage import TrainStage

STAGES = {
    "video_only": (objectives.video_only(), ("video",)),
    "value_only": (objectives.value_only(), ("value",)),
    "action_full": (objectives.action_full(), ("video", "value", "action")),
}
SIZES = {"tiny": sizes.tiny, "small": sizes.small, "libero": sizes.libero, "dualarm": sizes.dualarm}
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One side of the benchmark; it travels to a process of its own."""

    size: str
    stage: str
    batch: int
    steps: int
    device: str
    precision: str
    recomputed: bool


class Latents:
    """A `Trainable` behind its codecs: its batches are encoded already."""

    def __init__(self, config: WAVConfig) -> None:
        self.config = config
        self.network = WAVTransformer(config.network)

    def parts(self) -> dict[str, list[str]]:
        """As `WAV.parts`."""
        parts: dict[str, list[str]] = {}
        for name, _ in self.network.named_parameters():
            parts.setdefault(part_of(name), []).append(name)
        return parts

    def loss(self, batch: EncodedBatch, objective: WAVObjective, draws: TrainingDraws) -> Any:
        """As `WAV.loss`."""
        return losses(self.network, self.config, batch, objective, draws)


def encoded(config: WAVConfig, rows: int, device: str) -> EncodedBatch:
    """Windows of random numbers."""
    frames, height, width = config.grid
    image = (rows, config.num_views, config.network.latent_channels)
    text = (config.codec.text_length, config.network.text_width)
    horizon = config.action_horizon

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device)

    return EncodedBatch(
        memory=noise(*image, config.num_context, height, width),
        future=noise(*image, frames - config.num_context, height, width),
        text=noise(rows, *text),
        text_mask=torch.ones(rows, text[0], dtype=torch.bool, device=device),
        empty_text=noise(1, *text),
        empty_mask=torch.ones(1, text[0], dtype=torch.bool, device=device),
        state=noise(rows, config.state_dim),
        actions=noise(rows, horizon, config.token_dim),
        is_padded=torch.zeros(rows, horizon, dtype=torch.bool, device=device),
        value_targets=noise(rows, len(config.value_steps), config.value_channels),
    )


def clock(device: str) -> float:
    """Seconds, when all work handed to the device so far is done; on a CPU those that this process was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(device: str, precision: str) -> float:
    """Operations a second of one large square matrix product: the best of ten."""
    side = 1024 if device == "cpu" else 8192
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = clock(device)
        for _ in range(4):
            left @ right
        seconds.append((clock(device) - began) / 4)
    return 2 * side**3 / min(seconds)


def train(setting: Setting) -> dict[str, Any]:
    """Times a few steps of one side; its peak memory is that of this process."""
    device = setting.device
    if device == "cpu":
        torch.set_num_threads(1)
    objective, train_parts = STAGES[setting.stage]
    config = SIZES[setting.size]()
    stage = TrainStage(
        name=setting.stage,
        objective=objective,
        train=train_parts,
        steps=setting.steps,
        batch_size=setting.batch,
        learning_rate=1e-4,
        needs_future=objective.needs_future,
    )
    with process_group(device, alone=setting.precision != "fp32"):
        with torch.device(device):
            model = Latents(config)
        sharded = ShardedLoss(model, torch.device(device), "bf16") if setting.precision == "bf16" else None
        trained = select_parameters(model, stage)
        if sharded is not None:
            sharded.begin_stage()
        optimizer = make_optimizer(stage, trained)
        batch = encoded(config, setting.batch, device)
        seconds = []
        with recomputed_activations(model.network) if setting.recomputed else nullcontext():
            for step in range(WARM_UP + setting.steps):
                began = clock(device)
                optimizer.zero_grad(set_to_none=True)
                draws = TrainingDraws(key=(0, step), rows=range(setting.batch), num_rows=setting.batch, device=device)
                loss, _ = (sharded or model.loss)(batch, objective, draws)
                loss.backward()
                clip_gradients(trained, 1.0)
                optimizer.step()
                seconds.append(clock(device) - began)
    if device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        peak = torch.cuda.max_memory_allocated()
    assert torch.isfinite(loss)
    return {"seconds_per_step": min(seconds[WARM_UP:]), "peak_memory_bytes": peak}


def side(setting: Setting, rate: float) -> dict[str, Any]:
    """Runs one side in a fresh process, and says what its times mean."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            measured = pool.apply(train, (setting,))
        except torch.OutOfMemoryError as error:
            return {"out_of_memory": str(error).split(".")[0]}
    config = SIZES[setting.size]()
    objective, train_parts = STAGES[setting.stage]
    seconds = measured["seconds_per_step"]
    operations = training_cost(config, objective, train_parts) * setting.batch
    forward = forward_cost(config, action_rows=int(objective.action_weight > 0)).total * setting.batch
    tokens = num_video_tokens(config) + len(config.value_steps) + config.action_horizon
    return measured | {
        "samples_per_s": setting.batch / seconds,
        "tokens_per_s": setting.batch * tokens / seconds,
        "model_operations_per_step": operations,
        "repeated_operations_per_step": forward if setting.recomputed else 0,
        "model_operations_per_s": operations / seconds,
        "share_of_matrix_rate": operations / seconds / rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--stage", choices=STAGES, default="action_full")
    parser.add_argument("--batch", type=int, default=16, help="windows per step")
    parser.add_argument(
        "--steps", type=int, default=10, help="timed steps; the fastest counts, for others may share the machine"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--output", type=Path, default=None, help="write results.json here")
    options = parser.parse_args()
    chip = platform.processor() or platform.machine()
    if options.device != "cpu":
        chip = torch.cuda.get_device_name()
    else:
        torch.set_num_threads(1)
    rate = matrix_rate(options.device, options.precision)
    print(f"{chip}, torch {torch.__version__}; {rate / 1e12:.3g} T operations/s in one large product")
    shared = {key: getattr(options, key) for key in ("size", "stage", "batch", "steps", "device", "precision")}
    sides = {
        "kept": side(Setting(**shared, recomputed=False), rate),
        "recomputed": side(Setting(**shared, recomputed=True), rate),
    }
    for name, numbers in sides.items():
        if "out_of_memory" in numbers:
            print(f"{name}: does not fit ({numbers['out_of_memory']})")
            continue
        print(
            f"{name}: {numbers['samples_per_s']:.2f} samples/s, {numbers['tokens_per_s']:.0f} tokens/s, "
            f"{numbers['model_operations_per_s'] / 1e12:.3g} T model operations/s, "
            f"{numbers['share_of_matrix_rate']:.1%} of the matrix rate, {numbers['peak_memory_bytes'] / 1e9:.2f} GB"
        )
    ratios = {}
    if all("out_of_memory" not in numbers for numbers in sides.values()):
        for key, what in (("seconds_per_step", "time"), ("peak_memory_bytes", "memory")):
            ratios[f"recomputed_over_kept_{what}"] = sides["recomputed"][key] / sides["kept"][key]
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        results = {
            **shared,
            "chip": chip,
            "cores": 1 if options.device == "cpu" else os.cpu_count(),
            "torch": torch.__version__,
            "measured_matrix_rate": rate,
            "sides": sides,
            "ratios": ratios,
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
