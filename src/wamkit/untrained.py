"""A policy with random weights: it solves nothing, and costs what a trained one of its sizes does.

With it a robot's wiring can be tried, and a machine measured, before there is anything to train on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional

from wamkit.data.actions import ActionTransform
from wamkit.data.stats import Statistics, feature_statistics
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.data.vectors import Transforms
from wamkit.model_config import ModelConfig
from wamkit.models import family_module
from wamkit.planning.config import PlannerConfig
from wamkit.policy import Policy
from wamkit.spec import RobotSpec
from wamkit.types import Batch

NUM_CLIPS = 3  # that codecs are fitted to


def untrained_policy(
    config: ModelConfig,
    robot: RobotSpec,
    *,
    execution_horizon: int,
    planner: PlannerConfig | None = None,
    num_steps: int = 10,
    seed: int = 0,
) -> Policy:
    """A policy with random weights, behind codecs fitted to soft shapes and normalisation from random numbers.

    Args:
        config: a family's, for instance `models.wav.config.tiny(…)`; its codecs are fitted ones.
        robot: whose cameras it sees, in their own size when that is the model's, else resized.
        execution_horizon: actions run of each chunk.
        planner: see `Policy`.
        num_steps: see `Policy`.
        seed: of the weights; codecs and normalisation are the same for all.

    Raises:
        ValueError: the robot does not fit the configuration.
    """
    camera, side = robot.cameras[0], config.image_size
    is_exact = (camera.height, camera.width) == (side, side)
    spec = config.spec_for(
        robot,
        execution_horizon=execution_horizon,
        normalization="minmax",
        preprocess="exact" if is_exact else "resize",
    )
    config.check_spec(spec)
    draws = np.random.default_rng(0)

    def statistics(width: int) -> Statistics:
        return feature_statistics(draws.uniform(-1, 1, (50, width)).astype(np.float32))

    state = Normalizer.from_statistics("minmax", statistics(len(robot.state)))
    action = ActionTransform(normalizer=Normalizer.from_statistics("minmax", statistics(len(robot.action))))
    value = ValueTransform.from_statistics(statistics(config.value_channels)) if config.value_channels else None
    family = family_module(config.family).FAMILY
    with tempfile.TemporaryDirectory() as folder:
        family.fit_codecs(config, [_clouds(config)], torch.Generator().manual_seed(0), Path(folder))
        model = family.create(config, Path(folder), seed=seed)
    model.network.eval()
    transforms = Transforms(state=state, action=action, value=value)
    return Policy(model, spec, transforms, planner=planner, num_steps=num_steps)


def _clouds(config: ModelConfig) -> Batch:
    """Windows of soft coloured shapes, which are nearer to pictures than noise is."""
    draws = torch.Generator().manual_seed(0)
    side = config.image_size

    def video(frames: int) -> torch.Tensor:
        coarse = torch.rand(NUM_CLIPS * config.num_views, 3, frames, 4, 4, generator=draws)
        fine = functional.interpolate(coarse, size=(frames, side, side), mode="trilinear")
        pixels = (255 * fine).to(torch.uint8)
        return rearrange(pixels, "(b v) c t h w -> b v t h w c", v=config.num_views)

    numbers = torch.zeros(NUM_CLIPS, config.action_horizon, 1)
    return Batch(
        context=video(config.num_context),
        future=video(config.num_future),
        state=numbers[:, 0],
        actions=numbers,
        future_state=numbers,
        is_padded=torch.zeros(NUM_CLIPS, config.action_horizon, dtype=torch.bool),
        value_targets=None,
        task=[""] * NUM_CLIPS,
        episode_index=torch.arange(NUM_CLIPS),
    )
