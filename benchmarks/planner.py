"""What is saved by computing nothing twice while planning: the library against the public procedure, same numbers.

    python benchmarks/planner.py --output results/planner/results.json

Random weights on the CPU, one robot; G = 30 imagined videos, N = 5 values each, S = 10 steps, K = 3 rounds. Sizes:
`small`; `small` with the published four memory frames; and `quarter`, the published LIBERO geometry at a quarter of
its widths and two of its layers, since what is saved depends on how much video there is to read. Both sides get the
same weights, draws and planner, and must choose the same elites. They run in turn, and the fastest of several
repetitions counts. The uncached side is plain PyTorch (`uncached.py`). Prints `ratio NAME VALUE`,
the sizes after the first with their names behind:

- `value_phase`, `control_step`: seconds of the uncached side over seconds of the library's;
- `value_phase_operations`: matrix operations of the same, which is what the sizes allow at an equal matrix rate;
- `peak_memory_g120_over_g30`: what planning adds to the process at its peak, with 120 candidates over 30.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from uncached import UncachedControl

from wamkit.codecs.patch import PatchCodec, PatchCodecConfig
from wamkit.codecs.text_hash import HashedTextEncoder
from wamkit.draws import SeededDraws
from wamkit.models.wav.config import CodecConfig, ExpertConfig, NetworkConfig, WAVConfig, small
from wamkit.models.wav.cost import value_phase_cost
from wamkit.models.wav.family import WAV
from wamkit.planning.cem import Plan, plan
from wamkit.planning.config import PlannerConfig

SENTENCE, NUM_STEPS = "open the drawer", 10


def quarter() -> WAVConfig:
    """`libero` in its published proportions: 768 video tokens, all widths a quarter, two layers, fitted codecs."""
    network = NetworkConfig(
        latent_channels=32,
        num_layers=2,
        num_heads=8,
        text_width=64,
        value=ExpertConfig(channels=10, num_heads=4, rope_base=57.0),
        action=ExpertConfig(channels=15, num_heads=4, rope_base=54.0),
    )
    return WAVConfig(network=network, codec=CodecConfig(video="patch", text="hash"), name="quarter")


def build(config: WAVConfig) -> WAV:
    """A model with random weights behind a codec fitted on noise."""
    torch.manual_seed(0)
    channels = config.network.latent_channels
    codec = PatchCodecConfig(patch=config.codec.spatial, temporal=config.codec.temporal, channels=channels)
    clips = torch.randint(0, 256, (16, config.num_future, 64, 64, 3), dtype=torch.uint8)
    video = PatchCodec.fit(clips.flatten(0, 1), clips, config=codec, generator=torch.Generator().manual_seed(0))
    model = WAV.build(config, video, HashedTextEncoder(width=64, length=config.codec.text_length))
    model.network.eval()
    return model


@dataclass(kw_only=True)
class Case:
    """One robot's observation, for both sides."""

    model: WAV
    planner: PlannerConfig
    video: torch.Tensor
    state: torch.Tensor

    @classmethod
    def random(cls, config: WAVConfig, planner: PlannerConfig) -> Case:
        shape = (1, config.num_views, config.num_context, config.image_size, config.image_size, 3)
        return cls(
            model=build(config),
            planner=planner,
            video=torch.randint(0, 256, shape, dtype=torch.uint8),
            state=torch.randn(1, config.state_dim),
        )

    def library(self) -> Any:
        """The library's opened control step; latents of earlier memory frames are known, as in a policy's slot."""
        newest = self.model.encode_frames(self.video[:, :, -1:])
        memory = torch.cat((self.known, newest), dim=3) if self.known is not None else newest
        return self.model.control_step(memory, self.state, [SENTENCE], NUM_STEPS)

    @cached_property
    def known(self) -> torch.Tensor | None:
        """Latents of the memory frames before the newest."""
        return self.model.encode_frames(self.video[:, :, :-1]) if self.video.shape[2] > 1 else None

    def uncached(self) -> UncachedControl:
        """The public procedure's."""
        return UncachedControl(
            model=self.model, video=self.video, state=self.state, task=[SENTENCE], num_steps=NUM_STEPS
        )

    def library_step(self) -> tuple[Plan, torch.Tensor]:
        """Plan and decode."""
        control, draws = self.library(), SeededDraws(keys=[(0, 0)])
        chosen = plan(control, self.planner, draws)
        return chosen, control.sample(draws, chosen).actions

    def uncached_step(self) -> tuple[Plan, torch.Tensor]:
        """Plan and decode."""
        control, draws = self.uncached(), SeededDraws(keys=[(0, 0)])
        chosen = plan(control, self.planner, draws)
        action = draws("action", (self.model.config.action_horizon, self.model.network.action.config.channels))
        return chosen, control.decode(chosen.video, chosen.value, action)


def peak_bytes(run: Callable[[], object]) -> int:
    """What a call adds to this process's memory at its peak (Linux, glibc)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory that the allocator keeps would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def fastest(sides: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Seconds of each side, run in turn; the fastest repetition counts, after one that warms up."""
    best = {name: float("inf") for name in sides}
    for repetition in range(repetitions + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if repetition:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


@torch.inference_mode()
def compare(config: WAVConfig, planner: PlannerConfig, repetitions: int) -> dict[str, Any]:
    """Seconds and ratios of both sides, after checking that they compute the same."""
    case = Case.random(config, planner)
    (ours, our_actions), (theirs, their_actions) = case.library_step(), case.uncached_step()
    for mine, other in zip(ours.rounds, theirs.rounds, strict=True):
        for elites in ("value_elites", "video_elites"):
            if set(getattr(mine, elites).flatten().tolist()) != set(getattr(other, elites).flatten().tolist()):
                raise SystemExit(f"the two sides chose different {elites}: they do not compute the same")
    library, uncached = case.library(), case.uncached()
    noise = torch.randn(1, planner.num_videos, *library.video_shape)
    candidates, rows = library.with_memory(noise), noise.flatten(0, 1)
    values = torch.randn(1, planner.num_videos, planner.num_values, *library.value_shape)
    seconds = fastest(
        {
            "library video": lambda: library.features(rows, value=False, action=False),
            "library video and values": lambda: library.values(candidates, values),
            "library control step": case.library_step,
            "uncached video": lambda: uncached.hidden(rows),
            "uncached video and values": lambda: uncached.values(candidates, values),
            "uncached control step": case.uncached_step,
        },
        repetitions,
    )

    def value_phase(side: str) -> float:
        return seconds[f"{side} video and values"] - seconds[f"{side} video"]

    count = {"num_videos": planner.num_videos, "num_values": planner.num_values, "num_steps": NUM_STEPS}
    operations = {kept: value_phase_cost(config, **count, is_cached=kept) for kept in (False, True)}
    return {
        "seconds": seconds,
        "value_phase_operations": operations[False] / operations[True],
        "value_phase": value_phase("uncached") / value_phase("library"),
        "control_step": seconds["uncached control step"] / seconds["library control step"],
        "largest_action_difference": float((our_actions - their_actions).abs().max()),
    }


@torch.inference_mode()
def memory(config: WAVConfig, planner: PlannerConfig) -> dict[str, float]:
    """Peak memory of planning with 30 and 120 candidates."""
    peaks = {}
    for groups in (30, 120):
        case = Case.random(config, dataclasses.replace(planner, num_videos=groups, iterations=1))
        case.library_step()  # allocators and threads are warm
        peaks[groups] = min(peak_bytes(case.library_step) for _ in range(3))
    return {"g30_bytes": peaks[30], "g120_bytes": peaks[120]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=30, help="G")
    parser.add_argument("--value-samples", type=int, default=5, help="N")
    parser.add_argument("--iterations", type=int, default=3, help="K")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=None, help="write results.json here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    planner = PlannerConfig(
        iterations=options.iterations, num_videos=options.candidates, num_values=options.value_samples
    )
    sizes = {"small": small(), "small_4_memory_frames": small(num_context=4), "quarter": quarter()}
    results: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch": torch.__version__,
        "threads": options.threads,
        "planner": dataclasses.asdict(planner),
        "sizes": {name: compare(config, planner, options.repetitions) for name, config in sizes.items()},
        "memory": memory(small(), planner),
    }
    peaks = results["memory"]
    peaks["ratio"] = peaks["g120_bytes"] / max(peaks["g30_bytes"], 1)
    for name, size in results["sizes"].items():
        suffix = name.removeprefix("small") if name.startswith("small") else f"_{name}"
        for ratio in ("value_phase", "control_step", "value_phase_operations"):
            print(f"ratio {ratio}{suffix} {size[ratio]:.2f}")
        print(f"  seconds of {name}: {json.dumps(size['seconds'])}")
    print(f"ratio peak_memory_g120_over_g30 {peaks['ratio']:.2f}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
