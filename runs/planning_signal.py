"""Why planning helps or not: how far the searched noise moves the actions, and whether scores rank candidates rightly.

python runs/planning_signal.py POLICY --data DATASET --output results/planning_signal/results.json

On windows of demonstrations that the policy has not seen, it draws candidates (video and value noise) for each
observation, decodes each with the same action noise, and compares the first actions (as many as the robot would
execute) with the demonstrator's:

- `spread`: standard deviation of the actions when only the action noise, only the video noise or only the value noise
  changes, beside the error that they all share;
- `rank_correlation`: Spearman's correlation, within an observation, between a candidate's score and minus its error,
  with a 95 % interval over observations;
- `error`: of a random candidate, of the candidate that a score likes best, and of the best candidate there is.

All numbers are in the policy's normalised action units.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from wamkit.data.lerobot import LeRobotDataset
from wamkit.planning.config import Score
from wamkit.planning.objective import score_values
from wamkit.policy import Policy, load_policy

SCORES: tuple[Score, ...] = get_args(Score)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Noise to decode from."""

    video: Tensor
    value: Tensor
    features: None = None


@dataclass(frozen=True, kw_only=True)
class FixedDraws:
    """Hands out given noise by stream."""

    streams: dict[str, Tensor]

    def __call__(self, stream: str, shape: Any) -> Tensor:
        return self.streams[stream]


def observe(policy: Policy, dataset: LeRobotDataset, episode: int, row: int, copies: int, num_steps: int) -> Any:
    """An opened control step for one row of a demonstration, repeated `copies` times."""
    robot = policy.spec.robot
    rows = [max(0, row - policy.spec.execution_horizon * k) for k in reversed(range(policy.spec.num_context))]
    video = np.stack([dataset.frames(episode, camera, rows) for camera in robot.camera_names])
    memory = policy.model.encode_frames(torch.from_numpy(video)[None])
    state = torch.from_numpy(dataset.columns(episode)["observation.state"][row].astype(np.float32))[None]
    state = policy.transforms.state.normalize(state)
    task = next(entry.task for entry in dataset.episodes if entry.index == episode)
    expand = (copies, *[-1] * (memory.ndim - 1))
    return policy.model.control_step(memory.expand(expand), state.expand(copies, -1), [task] * copies, num_steps)


def decode(control: Any, video: Tensor, value: Tensor, action: Tensor, horizon: int) -> Tensor:
    """First actions of each row, normalised."""
    chosen = Chosen(video=control.with_memory(video[:, None])[:, 0], value=value)
    sampled = control.sample(FixedDraws(streams={"action": action}), chosen)
    return sampled.actions[:, :horizon]


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def interval(values: list[float]) -> dict[str, float]:
    """Mean and a normal 95 % interval over observations."""
    mean, half = float(np.mean(values)), float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "low": mean - half, "high": mean + half}


@torch.inference_mode()
def measure(policy: Policy, dataset: LeRobotDataset, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one task."""
    rng, generator = np.random.default_rng(options.seed), torch.Generator().manual_seed(options.seed)
    horizon, count = policy.spec.execution_horizon, options.candidates
    entries = [entry for entry in dataset.episodes if entry.task == task]
    spreads: dict[str, list[float]] = {"action noise": [], "video noise": [], "value noise": [], "all": []}
    correlation: dict[str, list[float]] = {score: [] for score in SCORES}
    errors: dict[str, list[float]] = {key: [] for key in ("random", "oracle best", *(f"best {s}" for s in SCORES))}
    for _ in range(options.observations):
        entry = entries[rng.integers(len(entries))]
        row = int(rng.integers(max(1, entry.length - horizon)))
        control = observe(policy, dataset, entry.index, row, count, policy.num_steps)
        action_shape = (policy.spec.action_horizon, control.network.action.config.channels)
        shapes = {"video": control.video_shape, "value": control.value_shape, "action": action_shape}
        noise = {key: torch.randn(count, *shape, generator=generator) for key, shape in shapes.items()}
        same = {key: item[:1].expand_as(item) for key, item in noise.items()}
        columns = dataset.columns(entry.index)
        truth, state = (torch.from_numpy(columns[key].astype(np.float32)) for key in ("action", "observation.state"))
        truth = policy.transforms.action.normalize_chunk(truth[None, row : row + horizon], state[row][None])[0]
        for name, changing in (("action noise", "action"), ("video noise", "video"), ("value noise", "value")):
            moved = decode(control, **{**same, changing: noise[changing]}, horizon=horizon)
            spreads[name].append(float(moved.var(0).mean().sqrt()))
        spreads["all"].append(float(decode(control, **noise, horizon=horizon).var(0).mean().sqrt()))

        chosen = decode(control, noise["video"], noise["value"], same["action"], horizon)
        error = (chosen[:, : len(truth)] - truth).square().mean((1, 2))
        video = control.with_memory(noise["video"][:, None])
        curves = control.values(video, noise["value"][:, None, None])[:, 0, 0, :, -1]
        errors["random"].append(float(error.mean()))
        errors["oracle best"].append(float(error.min()))
        for score in SCORES:
            scores = score_values(curves, score)
            correlation[score].append(spearman(scores, -error))
            errors[f"best {score}"].append(float(error[scores.argmax()]))
    return {
        "spread": {key: float(np.mean(item)) for key, item in spreads.items()},
        "rank_correlation": {key: interval(item) for key, item in correlation.items()},
        "error": {key: interval(item) for key, item in errors.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations on layouts kept from training")
    parser.add_argument("--output", type=Path, required=True, help="write results.json here")
    parser.add_argument("--observations", type=int, default=100, help="per task")
    parser.add_argument("--candidates", type=int, default=32, help="per observation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    policy, dataset = load_policy(options.policy), LeRobotDataset(options.data)
    results: dict[str, Any] = {
        "policy_fingerprint": policy.fingerprint,
        "data_fingerprint": dataset.fingerprint(),
        "settings": {key: getattr(options, key) for key in ("observations", "candidates", "seed")},
        "tasks": {},
    }
    for task in sorted({entry.task for entry in dataset.episodes}):
        results["tasks"][task] = measure(policy, dataset, task, options)
        print(task, json.dumps(results["tasks"][task], indent=1), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
