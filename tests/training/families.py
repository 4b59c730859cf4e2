"""Every family at its smallest size, with stages and batches, for the tests of this folder."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from regression_family import Regression, Windows, make_stages

from wamkit.data.actions import ActionTransform
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import feature_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.data.vectors import Transforms
from wamkit.data.windows import WindowConfig
from wamkit.model_config import ModelConfig
from wamkit.models import family_module
from wamkit.models.wav import objective as wav
from wamkit.models.worldvla import objective as worldvla
from wamkit.training.prefetch import BatchSource
from wamkit.training.stage import TrainStage
from wamkit.types import Batch, Trainable


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family in its smallest size.

    Args:
        build: a model with weights drawn from a seed.
        stages: its training stages, two steps each.
        make_batches: batches of a stage.
    """

    build: Callable[[int], Trainable]
    stages: list[TrainStage]
    make_batches: Callable[[TrainStage], BatchSource]


def tiny(name: str) -> ModelConfig:
    """The smallest configuration of a family of the library, for the synthetic robot."""
    config: ModelConfig = family_module(name).FAMILY.SIZES["tiny"](num_views=2, action_dim=3, state_dim=3)
    return config


class PushedSquare:
    """Batches for a configuration from pictures of a pushed square, with value vectors where it reads them."""

    def __init__(self, config: ModelConfig, *, batch_size: int, needs_future: bool = True) -> None:
        side, width = config.image_size, config.value_channels
        episodes = synthetic_episodes(3, length=24, height=side, width=side)
        rng = np.random.default_rng(0)
        values = [rng.normal(size=(len(episode), width)).astype(np.float32) for episode in episodes] if width else None
        self.transforms = Transforms(
            action=ActionTransform(normalizer=normalizer(episode.actions for episode in episodes)),
            state=normalizer(episode.state for episode in episodes),
            value=ValueTransform.from_statistics(feature_statistics(np.concatenate(values))) if values else None,
        )
        self.loader = WindowLoader(
            MemoryDataset(episodes, synthetic_robot(height=side, width=side), values),
            WindowConfig(
                context=config.num_context,
                chunk=config.num_future,
                action_horizon=config.action_horizon,
                sample_n_frames=20,
                pick="random" if config.context_stride is None else "spaced",
                spacing=config.context_stride or 1,
                future_stride=config.future_stride,
                whole=config.whole_windows,
            ),
            action=self.transforms.action,
            state=self.transforms.state,
            value=self.transforms.value,
            batch_size=batch_size,
            seed=1,
        )
        self.needs_future = needs_future

    def batch(self, step: int) -> Batch:
        return self.loader.batch(step, need_future=self.needs_future)


def normalizer(columns: Iterable[np.ndarray]) -> Normalizer:
    return Normalizer.from_statistics("minmax", feature_statistics(np.concatenate(list(columns))))


@functools.cache
def fitted_codecs(name: str) -> tempfile.TemporaryDirectory[str]:
    """Codecs of `tiny`, fitted once; the folder goes when Python does."""
    folder, config = tempfile.TemporaryDirectory(), tiny(name)
    batches = [PushedSquare(config, batch_size=4).batch(0)]
    family_module(name).FAMILY.fit_codecs(config, batches, torch.Generator().manual_seed(0), Path(folder.name))
    return folder


def of_the_library(name: str) -> Family:
    """A family by its verbs alone."""

    def build(seed: int) -> Any:
        return family_module(name).FAMILY.create(tiny(name), Path(fitted_codecs(name).name), seed=seed)

    def make_batches(stage: TrainStage) -> BatchSource:
        return PushedSquare(tiny(name), batch_size=stage.batch_size, needs_future=stage.needs_future)

    return Family(build=build, stages=STAGES[name](), make_batches=make_batches)


def stage(name: str, objective: Any, train: tuple[str, ...], **changes: Any) -> TrainStage:
    """A stage of two steps."""
    needs_future = objective.needs_future
    settings: dict[str, Any] = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "needs_future": needs_future}
    return TrainStage(name=name, objective=objective, train=train, **{**settings, **changes})


def wav_stages() -> list[TrainStage]:
    return [
        stage("video_only", wav.video_only(), ("video",), ema_decay=0.9),
        stage("value_only", wav.value_only(), ("value",), warmup_steps=2),
        stage("action_full", wav.action_full(), ("video", "value", "action")),
    ]


def worldvla_stages() -> list[TrainStage]:
    return [
        stage("world_only", worldvla.world_only(), ("transformer",), warmup_steps=2),
        stage("joint", worldvla.joint(), ("transformer",), ema_decay=0.9),
    ]


STAGES: dict[str, Callable[[], list[TrainStage]]] = {"wav": wav_stages, "worldvla": worldvla_stages}
"""Of each family of the library; the last stage is its most complete one."""

FAMILIES = {
    "regression": Family(build=Regression, stages=make_stages((2, 2)), make_batches=Windows),
    **{name: of_the_library(name) for name in STAGES},
}
