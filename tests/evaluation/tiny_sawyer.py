"""A WAV `tiny` with random weights on Meta-World's robot, and a small evaluation of it; also to run and be killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamkit.codecs.patch import PatchCodec, PatchCodecConfig
from wamkit.codecs.text_hash import HashedTextEncoder
from wamkit.data.actions import ActionTransform
from wamkit.data.stats import feature_statistics
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.envs.in_process import InProcessPool
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.workers import WorkerPool
from wamkit.evaluation.closed_loop import evaluate
from wamkit.evaluation.protocol import get_protocol
from wamkit.evaluation.results import PolicyIdentity, Results
from wamkit.models.wav import config as wav
from wamkit.models.wav.family import WAV
from wamkit.planning.config import PlannerConfig
from wamkit.policy import Policy, Transforms
from wamkit.spec import PolicySpec

FACTORY = MetaWorldFactory(height=32, width=32)
PLANNER = PlannerConfig(iterations=2, num_videos=4, num_values=2, value_elites=0.5, warm_start=True)


def tiny_policy(planner: PlannerConfig | None) -> Policy:
    """It solves nothing, and moves the arm with every number it is given."""
    config = wav.tiny(action_dim=4, state_dim=4)
    rng = np.random.default_rng(0)
    clips = torch.from_numpy(rng.integers(0, 256, (6, 9, 32, 32, 3), dtype=np.uint8))
    codec = PatchCodec.fit(
        clips.flatten(0, 1),
        clips,
        config=PatchCodecConfig(channels=config.network.latent_channels),
        generator=torch.Generator().manual_seed(0),
    )
    text = HashedTextEncoder(width=config.network.text_width, length=config.codec.text_length)
    model = WAV.build(config, codec, text)
    model.network.eval()
    numbers = feature_statistics(rng.uniform(-1, 1, (50, 4)).astype(np.float32))
    transforms = Transforms(
        state=Normalizer.from_statistics("minmax", numbers),
        action=ActionTransform(normalizer=Normalizer.from_statistics("minmax", numbers)),
        value=ValueTransform.from_statistics(feature_statistics(rng.normal(size=(50, 10)).astype(np.float32))),
    )
    spec = PolicySpec(
        family="wav",
        robot=FACTORY.robot,
        num_context=config.num_context,
        action_horizon=config.action_horizon,
        execution_horizon=4,
        normalization="minmax",
    )
    return Policy(model, spec, transforms, planner=planner, num_steps=3)


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
