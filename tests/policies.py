"""A WAV `tiny` with random weights as a policy, and an episode of its robot."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from wamkit.codecs.patch import PatchCodec, PatchCodecConfig
from wamkit.codecs.text_hash import HashedTextEncoder
from wamkit.data.actions import ActionTransform
from wamkit.data.stats import feature_statistics
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.models.wav import config as wav
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.family import WAV
from wamkit.planning.config import WAV as WAV_PRESET
from wamkit.planning.config import PlannerConfig
from wamkit.policy import Policy, Transforms
from wamkit.spec import PolicySpec

CONFIG = wav.tiny(action_dim=3, state_dim=3)
PLANNER = dataclasses.replace(WAV_PRESET, iterations=2, num_videos=4, num_values=2, value_elites=0.25)
EPISODE = synthetic_episodes(1, length=30)[0]
VIDEO = torch.from_numpy(np.stack([EPISODE.video["front"], EPISODE.video["wrist"]], axis=1))  # rows, views, h, w, c


def make_policy(planner: PlannerConfig | None = None, seed: int = 0, config: WAVConfig = CONFIG) -> Policy:
    frames, clips = VIDEO.flatten(0, 1), VIDEO[:27].unflatten(0, (3, 9)).transpose(1, 2).flatten(0, 1)
    codec = PatchCodec.fit(
        frames, clips, config=PatchCodecConfig(channels=8), generator=torch.Generator().manual_seed(0)
    )
    torch.manual_seed(seed)
    text = HashedTextEncoder(width=config.network.text_width, length=config.codec.text_length)
    model = WAV.build(config, codec, text)
    model.network.eval()
    values = np.random.default_rng(0).normal(3, 2, size=(30, 10)).astype(np.float32)
    transforms = Transforms(
        state=Normalizer.from_statistics("minmax", feature_statistics(EPISODE.state)),
        action=ActionTransform(normalizer=Normalizer.from_statistics("minmax", feature_statistics(EPISODE.actions))),
        value=ValueTransform.from_statistics(feature_statistics(values)),
    )
    spec = PolicySpec(
        family="wav",
        robot=synthetic_robot(),
        num_context=config.num_context,
        action_horizon=config.action_horizon,
        execution_horizon=4,
        normalization="minmax",
    )
    return Policy(model, spec, transforms, planner=planner, num_steps=3)
