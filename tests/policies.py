"""A WAV `tiny` with random weights as a policy, and an episode of its robot."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.models.wav import config as wav
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.family import WAV
from wamkit.planning.config import WAV as WAV_PRESET
from wamkit.planning.config import PlannerConfig
from wamkit.policy import Policy
from wamkit.spec import RobotSpec
from wamkit.types import Decoder
from wamkit.untrained import untrained_policy

CONFIG = wav.tiny(action_dim=3, state_dim=3)
PLANNER = dataclasses.replace(WAV_PRESET, iterations=2, num_videos=4, num_values=2, value_elites=0.25)
EPISODE = synthetic_episodes(1, length=30)[0]
VIDEO = torch.from_numpy(np.stack([EPISODE.video["front"], EPISODE.video["wrist"]], axis=1))  # rows, views, h, w, c


def make_policy(planner: PlannerConfig | None = None, seed: int = 0, config: WAVConfig = CONFIG) -> Policy:
    robot = synthetic_robot()
    return untrained_policy(config, robot, execution_horizon=4, planner=planner, num_steps=3, seed=seed)


class Watched:
    """A WAV that notes what its control steps are given.

    Args:
        model: the family object.
    """

    def __init__(self, model: WAV) -> None:
        self.model, self.reads_state = model, model.reads_state
        self.network: nn.Module = model.network
        self.memories: list[torch.Tensor] = []
        self.known: list[list[list[bool]] | None] = []

    def encode_frames(self, video: torch.Tensor) -> torch.Tensor:
        """Frames as they are, so that a memory can be read."""
        return rearrange(video, "b v t h w c -> b v c t h w")

    def control_step(
        self,
        memory: torch.Tensor,
        state: torch.Tensor,
        task: list[str],
        num_steps: int,
        *,
        max_rows: int = 32,
        known: torch.Tensor | None = None,
    ) -> Decoder:
        self.memories.append(rearrange(memory, "b v c t h w -> b t v h w c"))
        self.known.append(None if known is None else known.tolist())
        latents = self.model.encode_frames(rearrange(memory, "b v c t h w -> b v t h w c"))
        return self.model.control_step(latents, state, task, num_steps, max_rows=max_rows, known=known)

    def save_codecs(self, folder: Path) -> None:
        raise AssertionError("not saved")


def watched(
    stride: int | None, num_context: int = 2, robot: RobotSpec | None = None, **options: Any
) -> tuple[Policy, Watched]:
    """A policy with a memory of frames a stride apart, and what shows what its model is given."""
    policy = _random(robot or synthetic_robot(), num_context)
    model = Watched(policy.model)
    spec = dataclasses.replace(policy.spec, context_stride=stride)
    return Policy(model, spec, policy.transforms, **{"num_steps": 1, **options}), model


@functools.cache
def _random(robot: RobotSpec, num_context: int) -> Policy:
    sizes = {"num_views": len(robot.cameras), "action_dim": len(robot.action), "state_dim": len(robot.state)}
    config = dataclasses.replace(wav.tiny(**sizes), num_context=num_context)
    return untrained_policy(config, robot, execution_horizon=4)
