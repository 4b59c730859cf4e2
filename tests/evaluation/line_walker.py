"""A policy for the line world, and a small evaluation of it, shared by tests and by the processes that they kill."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import line_world
import torch

from wamkit.evaluation.closed_loop import evaluate
from wamkit.evaluation.protocol import Protocol
from wamkit.evaluation.results import EpisodeKey, EpisodeLog, PolicyIdentity, Results
from wamkit.spec import PolicySpec, RobotSpec
from wamkit.types import ActionChunk, Imagined

PROTOCOL = Protocol(
    name="line/test",
    suite="metaworld",
    tasks=("line/0",),
    layout_seed=3,
    episodes=4,
    max_steps=22,
    cameras=("front", "side"),
    rendering="painted",
)
TIMING = ("wall_seconds", "elapsed_seconds", "latency_seconds", "batch_sizes", "session")
"""Fields of a record that may differ between two evaluations of the same."""


class LineWalker:
    """Walks forward with noise from the seed of the episode, and imagines nothing but black.

    Args:
        robot: the robot it believes to drive.
        rounding: what it adds to an action for every other robot of its call, as batched arithmetic may.
        recording: what it adds when it is asked for what it imagines.
    """

    def __init__(self, robot: RobotSpec = line_world.ROBOT, *, rounding: float = 0.0, recording: float = 0.0) -> None:
        self.spec = PolicySpec(
            family="walker", robot=robot, num_context=1, action_horizon=4, execution_horizon=3, normalization="none"
        )
        self.rounding, self.recording = rounding, recording
        self.generators: dict[int, torch.Generator] = {}
        self.sizes: list[int] = []

    def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self.generators[slot] = torch.Generator().manual_seed(seed)

    def act(
        self, slots: Sequence[int], *, video: torch.Tensor, record: bool = False, **observation: Any
    ) -> ActionChunk:
        self.sizes.append(len(slots))
        noise = torch.stack([torch.rand(4, 2, generator=self.generators[slot]) for slot in slots])
        actions = 0.5 + 0.5 * noise + self.rounding * (len(slots) - 1) + self.recording * record
        future = torch.zeros_like(video)[:, :, None]
        return ActionChunk(actions=actions, imagined=Imagined(video=future, video_steps=(1,)) if record else None)


def walk(out: Path, *, policy: Any = None, factory: Any = None, protocol: Any = None, **changes: Any) -> Results:
    """Evaluate the walker on four layouts, two workers, one episode recorded, with whatever is changed."""
    arguments: dict[str, Any] = {"workers": 2, "record_episodes": 1, "progress": False}
    return evaluate(
        policy or LineWalker(),
        protocol or PROTOCOL,
        factory or line_world.LineFactory(),
        identity=PolicyIdentity(name="walker", fingerprint="0f"),
        out=out,
        **{**arguments, **changes},
    )


def courses(out: Path) -> dict[EpisodeKey, dict[str, Any]]:
    """Everything in the records of an evaluation but how long it took."""
    records = EpisodeLog(out).read()
    return {
        key: {name: value for name, value in dataclasses.asdict(records[key]).items() if name not in TIMING}
        for key in sorted(records)
    }
