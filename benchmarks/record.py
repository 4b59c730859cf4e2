"""How fast demonstrations are recorded on one core, and what the low-cost rendering setting brings.

    python benchmarks/record.py --episodes 6 --output results/record/results.json

Two cameras of 64 px, drawer-open, one simulator; physics, demonstrator, rendering, encoding and writing all pinned to
one core. Start-up is left out: each side records one episode before the clock starts. Prints `ratio NAME VALUE`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from wamkit.data.writer import LeRobotWriter
from wamkit.envs.base import DemonstrationOptions, EpisodeRequest
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.workers import WorkerPool

TASK = "drawer-open-v3"


def record(rendering: str, episodes: int, size: int) -> dict[str, float]:
    """Control steps per second of a recording, and where the time went."""
    factory = MetaWorldFactory(height=size, width=size, rendering=rendering)
    options = DemonstrationOptions(noise_std=0.1)
    steps, writing = 0, 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkerPool(factory, 1) as pool,
        LeRobotWriter(Path(folder) / "dataset", factory.robot) as writer,
    ):
        for number in range(episodes + 1):
            if number == 1:  # the first episode warms up
                started, steps, writing = time.perf_counter(), 0, 0.0
            request = EpisodeRequest(task=TASK, layout=number, layout_seed=42, seed=number)
            episode = pool.call(0, "demonstrate", request, options)
            before = time.perf_counter()
            writer.add(episode)
            writing += time.perf_counter() - before
            steps += len(episode)
        seconds = time.perf_counter() - started
    return {"steps": steps, "seconds": seconds, "steps_per_second": steps / seconds, "writing_share": writing / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=6, help="timed episodes of the low-cost setting")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--output", type=Path, default=None, help="write results.json here")
    options = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # the simulator's process inherits it
    low_cost = record("low_cost", options.episodes, options.size)
    stock = record("stock", 1, options.size)
    ratio = low_cost["steps_per_second"] / stock["steps_per_second"]
    print(f"low-cost rendering: {low_cost['steps_per_second']:.1f} control steps/s on one core")
    print(f"stock rendering:    {stock['steps_per_second']:.1f} control steps/s on one core")
    print(f"ratio low_cost_over_stock {ratio:.1f}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        results = {
            "task": TASK,
            "size_px": options.size,
            "cameras": 2,
            "cores": 1,
            "processor": platform.processor() or platform.machine(),
            "low_cost": low_cost,
            "stock": stock,
            "ratio_low_cost_over_stock": ratio,
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
