"""One evaluation run through, and the same one killed again and again: is every episode the same?

    python runs/survival.py --output results/survival/results.json

The policy in zoo/ on two Meta-World tasks, with its planner off and on: uninterrupted with two simulators; killed with
SIGKILL at random moments and continued each time with another number of simulators; and without worker processes.
Compares each episode's digest, which covers every executed action and every reward. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from wamkit.versions import SIMULATORS, software_versions

POLICY = Path(__file__).parents[1] / "zoo" / "wav-metaworld-small"
TASKS = ("drawer-open-v3", "peg-insert-side-v3")
PLANNER = ("--planner", "wav", "--planner-iterations", "1", "--candidates", "4", "--value-samples", "1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=4, help="of each task")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    result: dict[str, Any] = {"versions": software_versions((*SIMULATORS, "torch", "numpy"))}
    for name, planner in (("plain", ()), ("planned", PLANNER)):
        with tempfile.TemporaryDirectory() as folder:
            result[name] = compare(Path(folder), planner, options.episodes, options.kills, moments)
        print(f"{name}: {json.dumps(result[name])}", flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    same = all(result[name][key] for name in ("plain", "planned") for key in ("killed_is_same", "in_process_is_same"))
    return 0 if same else 1


def compare(
    folder: Path, planner: tuple[str, ...], episodes: int, kills: int, moments: random.Random
) -> dict[str, Any]:
    begun = time.monotonic()
    subprocess.run(command(folder / "through", planner, episodes, workers=2), check=True)
    seconds = time.monotonic() - begun
    finished_at_kill = []
    for number in range(kills):
        process = subprocess.Popen(command(folder / "killed", planner, episodes, workers=1 + number % 3))
        try:
            process.wait(timeout=moments.uniform(0.25, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        finished_at_kill.append(len(digests(folder / "killed")))
    subprocess.run(command(folder / "killed", planner, episodes, workers=3), check=True)
    subprocess.run(command(folder / "in_process", planner, episodes, workers=0), check=True)
    through = digests(folder / "through")
    return {
        "episodes": len(through),
        "seconds_uninterrupted": seconds,
        "episodes_finished_at_each_kill": finished_at_kill,
        "killed_is_same": digests(folder / "killed") == through,
        "in_process_is_same": digests(folder / "in_process") == through,
        "successes": json.loads((folder / "through" / "results.json").read_text())["overall"]["successes"],
    }


def command(output: Path, planner: tuple[str, ...], episodes: int, *, workers: int) -> list[str]:
    settings = ("--tasks", *TASKS, "--episodes", str(episodes), "--workers", str(workers), "--record-episodes", "1")
    return [sys.executable, "-m", "wamkit", "evaluate", str(POLICY), "--output", str(output), *settings, *planner]


def digests(folder: Path) -> dict[str, str]:
    """Of the finished episodes, by task, initial state and seed."""
    path = folder / "episodes.jsonl"
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the line that was being written
        if record.get("error") is None:
            found[f"{record['task']} {record['layout']} {record['seed']}"] = record["digest"]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
