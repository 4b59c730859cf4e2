"""A WAV `tiny` with random weights on Meta-World's robot, and a small evaluation of it; also to run and be killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from wamkit.envs.in_process import InProcessPool
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.workers import WorkerPool
from wamkit.evaluation.closed_loop import evaluate
from wamkit.evaluation.protocol import get_protocol
from wamkit.evaluation.results import PolicyIdentity, Results
from wamkit.models.wav import config as wav
from wamkit.planning.config import PlannerConfig
from wamkit.policy import Policy
from wamkit.untrained import untrained_policy

FACTORY = MetaWorldFactory(height=32, width=32)
PLANNER = PlannerConfig(iterations=2, num_videos=4, num_values=2, value_elites=0.5, warm_start=True)


def tiny_policy(planner: PlannerConfig | None) -> Policy:
    """It solves nothing, and moves the arm with every number it is given."""
    config = wav.tiny(action_dim=4, state_dim=4)
    return untrained_policy(config, FACTORY.robot, execution_horizon=4, planner=planner, num_steps=3)


def run(out: Path, *, is_planned: bool, workers: int, record_episodes: int = 1, make_pool: Any = None) -> Results:
    """Four episodes of three policy calls each; 0 workers are this process."""
    here = (lambda factory, _: InProcessPool(factory)) if workers == 0 else WorkerPool
    return evaluate(
        tiny_policy(PLANNER if is_planned else None),
        get_protocol("metaworld/v1", max_steps=11),
        FACTORY,
        tasks=["drawer-open-v3"],
        episodes=4,
        workers=max(1, workers),
        make_pool=make_pool or here,
        record_episodes=record_episodes,
        identity=PolicyIdentity(name="tiny", fingerprint="0"),
        out=out,
        progress=False,
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]), is_planned=sys.argv[2] == "True", workers=int(sys.argv[3]))
