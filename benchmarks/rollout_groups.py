"""Does it pay to simulate one group of workers while the policy computes for another?

Runs the same closed-loop episodes with one group and with two, in turns, in one process, with a stand-in policy whose
cost per call is that of some matrix products per robot (work that grows with the batch, as planning does), and prints
the ratio of the times.

    python benchmarks/rollout_groups.py --workers 4 --products 40 --device cpu
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch

from wamkit.envs.base import EpisodeRequest
from wamkit.envs.gl import choose_backend
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.workers import WorkerPool
from wamkit.rollout import rollout
from wamkit.spec import PolicySpec, RobotSpec
from wamkit.types import ActionChunk

WIDTH = 768


class Calculator:
    """An acting policy that only costs time: `products` matrix products for each robot of a call."""

    def __init__(self, robot: RobotSpec, products: int, device: str, action_horizon: int = 8) -> None:
        self.spec = PolicySpec(
            family="calculator",
            robot=robot,
            num_context=1,
            action_horizon=action_horizon,
            execution_horizon=action_horizon,
            normalization="none",
        )
        self.products = products
        self.weight = torch.randn(WIDTH, WIDTH, device=device) / WIDTH**0.5
        self.seconds = 0.0

    def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None:
        """Nothing is remembered."""

    def act(self, slots: Sequence[int], **observation: Any) -> ActionChunk:
        """Constant actions, after the work."""
        begun = time.perf_counter()
        rows = torch.ones(len(slots), 256, WIDTH, device=self.weight.device)
        for _ in range(self.products):
            rows = torch.tanh(rows @ self.weight)
        actions = rows[:, : self.spec.action_horizon, :4].cpu() * 0.0
        self.seconds += time.perf_counter() - begun
        return ActionChunk(actions=actions)


def main() -> None:
    """Print seconds, the policy's share and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--products", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, {choose_backend()}")
    print(arguments)
    factory = MetaWorldFactory()
    requests = [
        EpisodeRequest(task="drawer-open-v3", layout=index, layout_seed=1042, seed=index)
        for index in range(arguments.workers)
    ]
    totals = {1: 0.0, 2: 0.0}
    with WorkerPool(factory, arguments.workers) as pool:
        for turn in range(arguments.rounds + 1):
            for groups in totals:
                policy = Calculator(pool.robot, arguments.products, arguments.device)
                begun = time.perf_counter()
                list(rollout(policy, pool, requests, max_steps=arguments.steps, num_groups=groups))
                seconds = time.perf_counter() - begun
                if turn:  # the first turn builds scenes and warms up
                    totals[groups] += seconds
                    print(f"{groups} group(s): {seconds:.2f} s, of which the policy {policy.seconds / seconds:.0%}")
    print(f"one group / two groups: {totals[1] / totals[2]:.2f}")


if __name__ == "__main__":
    main()
