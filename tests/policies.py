"""A WAV `tiny` with random weights as a policy, and an episode of its robot."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.models.wav import config as wav
from wamkit.models.wav.config import WAVConfig
from wamkit.planning.config import WAV as WAV_PRESET
from wamkit.planning.config import PlannerConfig
from wamkit.policy import Policy
from wamkit.untrained import untrained_policy

CONFIG = wav.tiny(action_dim=3, state_dim=3)
PLANNER = dataclasses.replace(WAV_PRESET, iterations=2, num_videos=4, num_values=2, value_elites=0.25)
EPISODE = synthetic_episodes(1, length=30)[0]
VIDEO = torch.from_numpy(np.stack([EPISODE.video["front"], EPISODE.video["wrist"]], axis=1))  # rows, views, h, w, c


def make_policy(planner: PlannerConfig | None = None, seed: int = 0, config: WAVConfig = CONFIG) -> Policy:
    robot = synthetic_robot()
    return untrained_policy(config, robot, execution_horizon=4, planner=planner, num_steps=3, seed=seed)
