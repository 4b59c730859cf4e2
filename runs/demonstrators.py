"""How often the scripted demonstrators succeed, and whether every LIBERO scene runs.

    python runs/demonstrators.py --output results/demonstrators/results.json
    python runs/demonstrators.py --suites libero --tasks 'libero_goal/*' --layouts 5

Each demonstrator runs on the first layouts of seed 42, without action noise and without pictures. Of LIBERO, every task
of the four suites, and of libero_90 those whose assets are there, is also reset to a stored initial state, stepped and
rendered. Needs LIBERO's scene assets. About half an hour on two cores; running it again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.atomic import atomic_file
from wamkit.envs import suite_factory, suite_sentences, suite_tasks
from wamkit.envs.base import DemonstrationOptions, EpisodeRequest
from wamkit.envs.libero import NO_OP, STORED
from wamkit.envs.libero_demonstrator import unscripted_tasks
from wamkit.envs.workers import WorkerError, WorkerPool
from wamkit.evaluation.statistics import wilson_interval
from wamkit.versions import SIMULATORS, software_versions

LAYOUT_SEED, MAX_STEPS = 42, 400
CAMERAS = {"aloha": ("top",), "libero": ("agentview", "robot0_eye_in_hand")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["libero", "aloha"], choices=sorted(CAMERAS))
    parser.add_argument("--tasks", nargs="+", default=["*"], help="shell-style patterns")
    parser.add_argument("--layouts", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    settings = {
        "layout_seed": LAYOUT_SEED,
        "max_steps": MAX_STEPS,
        "layouts": options.layouts,
        "versions": software_versions(SIMULATORS),
    }
    result: dict[str, Any] = settings | {"scenes": {}, "demonstrators": {}}
    if options.output and options.output.exists():
        earlier = json.loads(options.output.read_text())
        if all(earlier[key] == value for key, value in settings.items()):
            result = earlier
    keep = functools.partial(write, options.output, result)
    for suite in options.suites:
        tasks = [task for task in suite_tasks(suite) if any(fnmatch.fnmatchcase(task, one) for one in options.tasks)]
        factory = suite_factory(suite)(cameras=CAMERAS[suite], height=64, width=64)
        with WorkerPool(factory, options.workers) as pool:
            if suite == "libero":
                for task in tasks:
                    if task not in result["scenes"]:
                        result["scenes"][task] = scene(pool, task)
                keep()
                report_scenes(result["scenes"])
            scripted = [task for task in tasks if not task.startswith("libero_90/")]
            missing = unscripted_tasks(scripted) if suite == "libero" else {}
            scripted = [task for task in scripted if task not in missing]
            for task, lacking in missing.items():
                print(f"{task}: no script for {lacking}", flush=True)
            for task in scripted:
                if task not in result["demonstrators"]:
                    result["demonstrators"][task] = demonstrate(pool, suite, task, options.layouts)
                    keep()
                score = result["demonstrators"][task]
                print(f"{task}: {score['successes']}/{score['attempts']}, {score['sentence']}", flush=True)
    result["suites"] = per_suite(result["demonstrators"])
    for name, score in result["suites"].items():
        print(f"{name}: {score['successes']}/{score['attempts']}")
    keep()
    return 0


def write(output: Path | None, result: dict[str, Any]) -> None:
    if output is not None:
        with atomic_file(output) as partial:
            partial.write_text(json.dumps(result, indent=2) + "\n")


def demonstrate(pool: WorkerPool, suite: str, task: str, layouts: int) -> dict[str, Any]:
    begun = time.monotonic()
    options = DemonstrationOptions(max_steps=MAX_STEPS, record_video=False)
    requests = [
        EpisodeRequest(task=task, layout=layout, layout_seed=LAYOUT_SEED, seed=layout) for layout in range(layouts)
    ]
    episodes = run_all(pool, [("demonstrate", request, options) for request in requests])
    solved = [episode for episode in episodes if not isinstance(episode, WorkerError) and episode.is_success]
    return {
        "sentence": suite_sentences(suite)[task],
        "successes": len(solved),
        "attempts": layouts,
        "interval": list(wilson_interval(len(solved), layouts)),
        "mean_steps": float(np.mean([len(episode) for episode in solved])) if solved else None,
        "errors": [str(episode) for episode in episodes if isinstance(episode, WorkerError)],
        "seconds": time.monotonic() - begun,
    }


def per_suite(scores: dict[str, Any]) -> dict[str, Any]:
    suites: dict[str, Any] = {}
    for task, score in scores.items():
        total = suites.setdefault(task.partition("/")[0], {"successes": 0, "attempts": 0})
        total["successes"] += score["successes"]
        total["attempts"] += score["attempts"]
    for total in suites.values():
        total["interval"] = list(wilson_interval(total["successes"], total["attempts"]))
    return suites


def run_all(pool: WorkerPool, submissions: list[tuple[Any, ...]]) -> list[Any]:
    """Outcomes in order, from all workers."""
    outcomes: dict[int, Any] = {}
    running: dict[int, int] = {}
    waiting = list(range(len(submissions)))
    while waiting or running:
        for worker in range(len(pool)):
            if waiting and worker not in running:
                running[worker] = waiting.pop(0)
                pool.submit(worker, *submissions[running[worker]])
        for worker, outcome in pool.wait():
            outcomes[running.pop(worker)] = outcome
    return [outcomes[index] for index in range(len(submissions))]


def scene(pool: WorkerPool, task: str) -> dict[str, Any]:
    """Reset to stored state 0, three steps, pictures."""
    request = EpisodeRequest(task=task, layout=0, layout_seed=STORED, seed=0)
    try:
        frame = pool.call(0, "reset", request)
        outcome = pool.call(0, "run_chunk", np.array([NO_OP] * 3, dtype=np.float32))
    except WorkerError as error:
        return {"runs": False, "reason": str(error)}
    pictures = {name: float(image.std()) for name, image in outcome.frame.video.items()}
    return {
        "runs": outcome.executed == 3 and min(pictures.values()) > 5,
        "contrast": pictures,
        "sentence": frame.sentence,
    }


def report_scenes(scenes: dict[str, Any]) -> None:
    suites = dict.fromkeys(task.partition("/")[0] for task in scenes)
    for suite in suites:
        mine = {task: outcome for task, outcome in scenes.items() if task.startswith(f"{suite}/")}
        running = [task for task, outcome in mine.items() if outcome["runs"]]
        print(f"{suite}: {len(running)} of {len(mine)} scenes reset, step and render", flush=True)
        for task, outcome in mine.items():
            if not outcome["runs"]:
                print(f"  {task}: {outcome.get('reason', 'a picture without contrast')}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
