"""How long one control step of WAV takes, without planning and with it, against what its arithmetic allows.

    python benchmarks/control_step.py                                                   # `tiny`, on a CPU
    python benchmarks/control_step.py --size libero --device cuda --precision bf16      # full size, on a GPU

Random weights, one robot, latents and sentence known, as when a policy acts: encoding one new frame is not in it. The
floor is the control step's matrix products (counted from the sizes, nothing computed twice) at the matrix rate that is
measured in the same run. Phases are timed apart, so that one sees where the rest goes. Prints `ratio NAME VALUE`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from train import SIZES, clock, matrix_rate

from wamkit.draws import SeededDraws
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.control import ControlStep
from wamkit.models.wav.cost import control_cost
from wamkit.models.wav.model import WAVTransformer
from wamkit.planning.cem import plan
from wamkit.planning.config import PlannerConfig

NUM_STEPS = 10


def open_step(network: WAVTransformer, config: WAVConfig, device: str) -> Callable[[], ControlStep]:
    """Opens a control step on random memory; sentence and constant modulation were read before, as in a policy."""
    _, height, width = config.grid
    memory = (1, config.num_views, config.network.latent_channels, config.num_context, height, width)
    words = torch.randn(1, config.codec.text_length, config.network.text_width, device=device)
    shared: dict[str, Any] = {
        "memory": torch.randn(memory, device=device),
        "num_future_latents": config.num_future_latents,
        "value_length": len(config.value_steps),
        "text": network.read_text(words, torch.ones(words.shape[:2], device=device), keep=True),
        "state_token": torch.zeros(1, 1, config.token_dim, device=device) if config.has_state_token else None,
        "num_steps": NUM_STEPS,
    }
    known: dict[tuple[Any, ...], Any] = {}
    return lambda: ControlStep(network, **shared, known=known)


def median_ms(work: Callable[[], object], device: str, repeats: int) -> float:
    """Milliseconds of a call, after two that warm up."""
    times = []
    for _ in range(repeats + 2):
        began = clock(device)
        work()
        times.append(clock(device) - began)
    return 1e3 * statistics.median(times[2:])


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Latency, floor and phases of every number of planning rounds."""
    config, device = SIZES[options.size](), options.device
    with torch.device(device):
        network = WAVTransformer(config.network).eval()
    network.to(torch.bfloat16 if options.precision == "bf16" else torch.float32)
    opened = open_step(network, config, device)
    rate = matrix_rate(device, options.precision)
    draws = SeededDraws(keys=[(0, 0)], device=device)
    action_shape = (config.action_horizon, config.token_dim)

    def act(rounds: int) -> torch.Tensor:
        control = opened()
        planner = PlannerConfig(iterations=rounds, num_videos=options.candidates, num_values=options.value_samples)
        chosen = plan(control, planner, draws)
        decoded = control.decode(chosen.video, action_noise=draws("action", action_shape), value_noise=chosen.value)
        assert decoded.actions.isfinite().all()
        return decoded.actions

    results: dict[str, Any] = {}
    for rounds in options.iterations:
        operations = control_cost(
            config,
            iterations=rounds,
            num_videos=options.candidates,
            num_values=options.value_samples,
            num_steps=NUM_STEPS,
        )
        latency = median_ms(lambda rounds=rounds: act(rounds), device, options.repeats)
        floor = 1e3 * operations / rate
        results[f"k{rounds}"] = {
            "latency_ms": latency,
            "floor_ms": floor,
            "operations": operations,
            "latency_over_floor": latency / floor,
        }

    control = opened()
    candidates = torch.randn(1, options.candidates, *control.video_shape, device=device)
    samples = torch.randn(1, options.candidates, options.value_samples, *control.value_shape, device=device)
    video_shape = (options.candidates, *control.video_shape)
    phases = {
        "draws_of_a_round": lambda: draws("video", video_shape),
        "video_of_one": lambda: control.features(candidates[:, 0], value=True, action=True),
        "video_of_all_candidates": lambda: control.features(candidates[0], value=True, action=False),
        "values_of_all_candidates": lambda: control.values(candidates, samples, None),
        "decode": lambda: control.decode(
            candidates[:, 0], action_noise=draws("action", action_shape), value_noise=samples[:, 0, 0]
        ),
    }
    timed = {name: median_ms(work, device, options.repeats) for name, work in phases.items()}
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else None
    return {"matrix_rate": rate, "steps": results, "phases_ms": timed, "peak_memory_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--iterations", type=int, nargs="+", default=(0, 3), help="planning rounds K, one or several")
    parser.add_argument("--candidates", type=int, default=30, help="G")
    parser.add_argument("--value-samples", type=int, default=5, help="N")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=None, help="write results.json here")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    chip = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or platform.machine()
    results = measure(options)
    print(f"{chip}, torch {torch.__version__}; {results['matrix_rate'] / 1e12:.3g} T operations/s in one large product")
    for name, step in results["steps"].items():
        print(f"{name}: {step['latency_ms']:.2f} ms, floor {step['floor_ms']:.2f} ms")
        print(f"ratio {name}_latency_over_floor {step['latency_over_floor']:.2f}")
    print(", ".join(f"{name} {value:.2f} ms" for name, value in results["phases_ms"].items()))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: value for key, value in vars(options).items() if key != "output"}
        results = {**settings, "chip": chip, "torch": torch.__version__, **results}
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
