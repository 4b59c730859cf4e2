"""How many episodes a minute an evaluation runs, against the loop that everybody writes first.

    python benchmarks/evaluate.py --output results/evaluate/results.json

Both sides run the same episodes with the same policy on the same cores, in turns, in one program: Meta-World, two
cameras of 64 px, the same number of actions between two policy calls, torch's own number of threads, no recordings.

    plain      one simulator in this process: policy call for one robot, step, step, …, render, and so on
    evaluate   `wamkit evaluate`'s rollout: simulators in processes, exact batches

The plain loop, too, renders only what the policy will see; `--render-every-step` renders after each step instead, as
environments that return an observation from every step do. The task is one that the policy never solves, so that all
episodes have one length. Start-up is left out on both sides, and with it the trial calls that find out what batches
change, which an evaluation makes once. Prints `ratio NAME VALUE`, and how busy the cores were.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamkit.batching import ExactBatches
from wamkit.envs.base import EpisodeRequest, Simulator, observe, reset, run_chunk
from wamkit.envs.gl import choose_backend
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.workers import WorkerPool
from wamkit.evaluation.closed_loop import default_workers
from wamkit.policy import Policy, load_policy
from wamkit.rollout import rollout

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What one side took.

    Args:
        seconds: wall time.
        core_seconds: processor time of all its processes.
        calls: policy calls.
        policy_seconds: wall time of these.
    """

    seconds: float
    core_seconds: float
    calls: int
    policy_seconds: float


class Watched:
    """A policy whose calls are counted and timed."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.spec = policy, policy.spec
        self.calls, self.seconds = 0, 0.0

    def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None:
        """As the policy."""
        self.policy.reset(slots, seeds=seeds)

    def act(self, slots: Sequence[int], **observation: Any) -> Any:
        """As the policy."""
        begun = time.perf_counter()
        chunk = self.policy.act(slots, **observation)
        self.calls, self.seconds = self.calls + 1, self.seconds + time.perf_counter() - begun
        return chunk


def core_seconds(processes: Sequence[int] = ()) -> float:
    """Processor time of this process and others so far."""
    total = time.process_time()
    for process in processes:
        # The name in brackets may hold anything; user and system time are the 14th and 15th fields.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def plain(
    policy: Policy, simulator: Simulator, requests: Sequence[EpisodeRequest], steps: int, horizon: int, every_step: bool
) -> Timed:
    """One environment, one robot a call."""
    watched = Watched(policy)
    cameras = policy.spec.robot.camera_names
    busy, begun = core_seconds(), time.perf_counter()
    for request in requests:
        frame, done, executed = reset(simulator, request), 0, 0
        watched.reset([0], seeds=[request.seed])
        while done < steps:
            chunk = watched.act(
                [0],
                video=torch.from_numpy(np.stack([frame.video[name] for name in cameras])[None]),
                state=torch.from_numpy(frame.state[None]),
                task=[frame.sentence],
                executed=[executed],
            )
            actions = chunk.actions[0, : min(horizon, steps - done)].numpy()
            if every_step:
                for action in actions:
                    simulator.step(action)
                    frame = observe(simulator)
            else:
                frame = run_chunk(simulator, actions).frame
            executed = len(actions)
            done += executed
    seconds = time.perf_counter() - begun
    return Timed(
        seconds=seconds, core_seconds=core_seconds() - busy, calls=watched.calls, policy_seconds=watched.seconds
    )


def batched(
    policy: Policy,
    pool: WorkerPool,
    requests: Sequence[EpisodeRequest],
    steps: int,
    horizon: int,
    groups: int,
    exact: ExactBatches | None,
) -> Timed:
    """The library's rollout."""
    watched = Watched(policy)
    busy, begun = core_seconds(pool.process_ids), time.perf_counter()
    outcomes = list(
        rollout(
            watched,
            pool,
            requests,
            max_steps=steps,
            execution_horizon=horizon,
            num_groups=groups,
            exact=exact,
        )
    )
    seconds = time.perf_counter() - begun
    if any(outcome.error or outcome.steps != steps for outcome in outcomes):
        raise SystemExit("an episode ended early; choose a task that this policy never solves")
    used = core_seconds(pool.process_ids) - busy
    return Timed(seconds=seconds, core_seconds=used, calls=watched.calls, policy_seconds=watched.seconds)


def describe(name: str, parts: Sequence[Timed], episodes: int, cores: int) -> dict[str, float]:
    """Print a side and give its numbers."""
    seconds = sum(part.seconds for part in parts)
    told = {
        "seconds": seconds,
        "episodes_per_minute": 60 * episodes * len(parts) / seconds,
        "cores_busy": sum(part.core_seconds for part in parts) / seconds / cores,
        "policy_calls": float(sum(part.calls for part in parts)),
        "policy_share": sum(part.policy_seconds for part in parts) / seconds,
    }
    print(
        f"{name:<9} {told['episodes_per_minute']:6.1f} episodes/min, cores busy {told['cores_busy']:.0%}, "
        f"policy {told['policy_share']:.0%} of the time in {told['policy_calls']:.0f} calls"
    )
    return told


def main() -> None:
    """Print both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=Path("zoo/wav-metaworld-small"))
    parser.add_argument("--task", default="assembly-v3", help="one that the policy never solves")
    parser.add_argument("--episodes", type=int, default=16, help="of each side and round")
    parser.add_argument("--steps", type=int, default=96, help="control steps of an episode")
    parser.add_argument("--horizon", type=int, default=8, help="actions between two policy calls")
    parser.add_argument("--workers", type=int, default=None, help="by default as wamkit evaluate")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--batching", choices=("exact", "free"), default="exact")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--render-every-step", action="store_true")
    parser.add_argument("--output", type=Path, default=None, help="write results.json here")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    workers = default_workers() if options.workers is None else options.workers
    backend = choose_backend()
    print(f"{cores} cores, {torch.get_num_threads()} torch threads, {workers} simulators, {backend}")
    policy = load_policy(options.policy)
    factory = MetaWorldFactory()
    requests = [
        EpisodeRequest(task=options.task, layout=index, layout_seed=1042, seed=index)
        for index in range(options.episodes)
    ]
    sides: dict[str, list[Timed]] = {"plain": [], "evaluate": []}
    simulator = factory()
    with WorkerPool(factory, workers) as pool:
        exact = None
        if options.batching == "exact":
            exact = ExactBatches(policy, first_slot=workers, executed=options.horizon)
        for turn in range(options.rounds + 1):
            # The first turn builds scenes and warms up: an episode for every simulator, of one policy call.
            asked, steps = (requests, options.steps) if turn else (requests[:workers], options.horizon)
            one = plain(policy, simulator, asked, steps, options.horizon, options.render_every_step)
            other = batched(policy, pool, asked, steps, options.horizon, options.groups, exact)
            if turn:
                sides["plain"].append(one)
                sides["evaluate"].append(other)
    simulator.close()
    told = {name: describe(name, parts, options.episodes, cores) for name, parts in sides.items()}
    ratio = told["evaluate"]["episodes_per_minute"] / told["plain"]["episodes_per_minute"]
    print(f"ratio evaluate_over_plain {ratio:.2f}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        results = {
            "policy": policy.fingerprint,
            "task": options.task,
            "cameras": len(policy.spec.robot.cameras),
            "size_px": policy.spec.robot.cameras[0].height,
            "episodes": options.episodes * options.rounds,
            "steps": options.steps,
            "execution_horizon": options.horizon,
            "plain_renders_every_step": options.render_every_step,
            "workers": workers,
            "groups": options.groups,
            "batching": options.batching,
            "cores": cores,
            "torch_threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "gl_backend": backend,
            **told,
            "ratio_evaluate_over_plain": ratio,
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
