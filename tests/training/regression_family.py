"""A small real model family for the trainer: it reads pictures, and denoises the actions that belong to them.

Run as a program it trains in a folder, so that a test can kill it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from wamkit.checkpoint import write_policy
from wamkit.data.actions import ActionTransform
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import feature_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.draws import TrainingDraws
from wamkit.spec import PolicySpec
from wamkit.training.stage import TrainStage
from wamkit.training.trainer import TrainReport, train
from wamkit.types import Batch

SIZE, HORIZON = 8, 4


@dataclass(frozen=True, kw_only=True)
class RegressionObjective:
    """`see` finds the state in the picture, `act` denoises the actions from what was seen."""

    see_weight: float = 0.0
    act_weight: float = 0.0


class RegressionNetwork(nn.Module):
    """Two parts: `eye` turns pictures into features and a guess of the state, `hand` turns noise into actions."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Linear(2 * SIZE * SIZE * 3, 32), nn.SiLU(), nn.Dropout(0.1))
        self.eye_state = nn.Linear(32, 3)
        self.hand = nn.Sequential(nn.Linear(32 + HORIZON * 3 + 1, 32), nn.SiLU(), nn.Linear(32, HORIZON * 3))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))


class Regression:
    """The family: weights and loss."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network: Any = RegressionNetwork()

    def parts(self) -> dict[str, list[str]]:
        names = [name for name, _ in self.network.named_parameters()]
        return {part: [name for name in names if name.startswith(part)] for part in ("eye", "hand")}

    def loss(
        self, batch: Batch, objective: RegressionObjective, draws: TrainingDraws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = rearrange(batch.context[:, :, -1], "b v h w c -> b (v h w c)").float() / 127.5 - 1
        seen = self.network.eye(pixels)
        self.network.num_seen += len(pixels)
        see = (self.network.eye_state(seen) - batch.state).square().mean()
        noise = draws("noise", batch.actions.shape[1:])
        sigma = draws.uniform("sigma", (1, 1))
        noisy = (1 - sigma) * batch.actions + sigma * noise
        velocity = self.network.hand(torch.cat([seen, noisy.flatten(1), sigma[:, 0]], dim=1))
        act = (velocity - (noise - batch.actions).flatten(1)).square().mean()
        total = objective.see_weight * see + objective.act_weight * act
        return total, {"see_loss": see.detach(), "act_loss": act.detach()}


class Windows:
    """Batches from pictures of a pushed square."""

    def __init__(self, stage: TrainStage, num_episodes: int = 6) -> None:
        robot = synthetic_robot(height=SIZE, width=SIZE)
        dataset = MemoryDataset(synthetic_episodes(num_episodes, length=10, height=SIZE, width=SIZE), robot)
        columns = [dataset.columns(entry.index) for entry in dataset.episodes]
        action, state = (
            Normalizer.from_statistics(
                "minmax", feature_statistics(torch.cat([torch.from_numpy(c[k]) for c in columns]).numpy())
            )
            for k in ("action", "observation.state")
        )
        self.needs_future = stage.needs_future
        self.loader = WindowLoader(
            dataset,
            WindowConfig(context=1, chunk=2, action_horizon=HORIZON, sample_n_frames=8),
            action=ActionTransform(normalizer=action),
            state=state,
            batch_size=stage.batch_size,
            seed=3,
        )

    def batch(self, step: int) -> Batch:
        return self.loader.batch(step, need_future=self.needs_future)


def make_stages(steps: tuple[int, int] = (4, 6), **changes: Any) -> list[TrainStage]:
    """A stage that trains one part and keeps an average, and one that trains all and accumulates gradients."""
    see = TrainStage(
        name="see",
        objective=RegressionObjective(see_weight=1.0),
        train=("eye",),
        steps=steps[0],
        batch_size=4,
        learning_rate=1e-2,
        ema_decay=0.9,
        needs_future=True,
    )
    act = TrainStage(
        name="act",
        objective=RegressionObjective(see_weight=0.5, act_weight=1.0),
        train=("eye", "hand"),
        steps=steps[1],
        batch_size=3,
        accumulation=2,
        learning_rate=3e-3,
        warmup_steps=2,
        schedule="cosine",
        needs_future=False,
        **changes,
    )
    return [see, act]


def make_save_policy() -> Any:
    """Writes a policy folder."""
    spec = PolicySpec(
        family="regression",
        robot=synthetic_robot(height=SIZE, width=SIZE),
        num_context=1,
        action_horizon=HORIZON,
        execution_horizon=HORIZON,
        normalization="minmax",
    )

    def save_policy(path: Path, training: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        write_policy(path, family="regression", network=weights, config={}, spec=spec, statistics={}, training=training)

    return save_policy


def run(
    folder: Path, *, model: Regression | None = None, stages: list[TrainStage] | None = None, **changes: Any
) -> TrainReport:
    """Train in a folder, with settings that tests change one at a time."""
    model = model or Regression()
    settings: dict[str, Any] = {"seed": 11, "save_every": 3, "save_policy": make_save_policy(), "keep": 2}
    return train(model, stages or make_stages(), Windows, folder=folder, **{**settings, **changes})


if __name__ == "__main__":
    run(Path(sys.argv[1]), stages=make_stages((20, 20)))
