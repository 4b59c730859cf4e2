"""Latent planning by iterative elite reweighting: the cross-entropy method over a model's initial noise.

Candidates are video noises, each with several value noises. Both distributions start at N(0, 1), are refitted to the
elites of every round, and finally give the noise from which actions are decoded.

Source: WAV (arXiv 2604.14732), section 3.3 and algorithm 1; public planner.
Differs: a score is booked on the candidate it was computed for; video statistics are per view and cover future frames
only; the elites' spread is the biased one, with a floor; any number of observations is planned for at once.
`planning.config.REFERENCE` restores the public behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from wamkit.planning.config import PlannerConfig
from wamkit.planning.objective import score_values
from wamkit.types import Draws


@runtime_checkable
class LatentProblem(Protocol):
    """What can be planned over: a model that predicts values from initial noise."""

    @property
    def video_shape(self) -> tuple[int, ...]:
        """`v c f h w` of one candidate, memory frames included."""
        ...

    @property
    def value_shape(self) -> tuple[int, int]:
        """Tokens and channels of one value noise."""
        ...

    @property
    def num_memory(self) -> int:
        """Leading frames of a candidate that are memory, not noise."""
        ...

    def with_memory(self, video: Float[Tensor, "b g v c f h w"]) -> Float[Tensor, "b g v c frames h w"]:
        """Candidates with their memory frames in place."""
        ...

    def values(
        self, video: Float[Tensor, "b g v c f h w"], noise: Float[Tensor, "b g n y z"], num_steps: int | None
    ) -> Float[Tensor, "b g n y z"]:
        """Predicted value tokens of every candidate and sample; the last channel is the total value."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """An elementwise normal distribution per observation."""

    mean: Float[Tensor, "b ..."]
    std: Float[Tensor, "b ..."]

    def sample(self, noise: Float[Tensor, "b m ..."]) -> Float[Tensor, "b m ..."]:
        """Scale and shift standard normal draws, `m` per observation."""
        return self.mean[:, None] + self.std[:, None] * noise

    def refit(self, elites: Float[Tensor, "b m ..."], config: PlannerConfig, dims: tuple[int, ...] = (1,)) -> Gaussian:
        """Move towards the elites' mean and (decayed) spread over `dims`."""
        mean = elites.mean(dims)
        std = elites.std(dims, correction=int(config.unbiased_std)) * config.std_decay
        std = config.keep_std * self.std + (1 - config.keep_std) * std
        mean = config.keep_mean * self.mean + (1 - config.keep_mean) * mean
        return Gaussian(mean=mean, std=std.clamp(min=config.min_std))


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one iteration saw: scores of every (candidate, sample), and who was elite."""

    scores: Float[Tensor, "b g n"]
    video_scores: Float[Tensor, "b g"]
    value_elites: Int[Tensor, "b e"]
    video_elites: Int[Tensor, "b u"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The result of planning.

    Args:
        video: initial video latents to decode from, memory included.
        value: initial value noise to decode from.
        video_distribution: last distribution over candidates' noise.
        value_distribution: last distribution over value noise.
        rounds: what each iteration saw.
    """

    video: Float[Tensor, "b v c f h w"]
    value: Float[Tensor, "b y z"]
    video_distribution: Gaussian
    value_distribution: Gaussian
    rounds: list[Round]


@torch.no_grad()
def plan(problem: LatentProblem, config: PlannerConfig, draws: Draws) -> Plan:
    """Search for the noise whose predicted value scores best.

    With `config.iterations == 0` this draws once from N(0, 1): the sampler without planning.

    Args:
        problem: the encoded observations.
        config: planner settings.
        draws: standard normal numbers; streams `iteration{k}.video`, `iteration{k}.value`, `video`, `value` (and
            `iteration{k}.score` when scores are random).

    Returns:
        The chosen noise, the last distributions, and what each round saw.

    Raises:
        ValueError: a spread of fewer than two elites is asked for.
    """
    views, channels, frames, height, width = problem.video_shape
    fitted = frames if config.fit_memory_frames else frames - problem.num_memory
    noise_shape = (views, channels, fitted, height, width)
    if config.unbiased_std and config.iterations and config.num_elite_videos * (views if config.pool_views else 1) < 2:
        raise ValueError("planner: unbiased_std needs at least 2 elite videos (or views, when pooled), got 1")
    future = frames - problem.num_memory
    last_value = draws("value", problem.value_shape)
    # memory frames are overwritten in any case, so the last noise is the plain sampler's: future frames alone
    last_video = F.pad(draws("video", (views, channels, future, height, width)), (0, 0, 0, 0, fitted - future, 0))
    video = _standard(last_video[:, 0] if config.pool_views else last_video)
    value = _standard(last_value)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    rounds = []
    for k in range(config.iterations):
        noise = draws(f"iteration{k}.video", (config.num_videos, *noise_shape))
        spread = _per_view(video, config)
        candidates = problem.with_memory(spread.sample(noise))
        samples = value.sample(
            draws(f"iteration{k}.value", (config.num_videos * config.num_values, *problem.value_shape))
        )
        seen = _score(problem, config, candidates, samples, draws, k)
        rounds.append(seen)
        best = _better(best, candidates, samples, seen)

        value = value.refit(_take(samples, seen.value_elites), config)
        elites = _take(candidates[..., -fitted:, :, :], seen.video_elites)
        video = video.refit(elites, config, dims=(1, 2) if config.pool_views else (1,))

    if config.final == "best" and best is not None:
        chosen_video, chosen_value = best[1], best[2]
    elif config.final == "mean":
        chosen_video, chosen_value = _per_view(video, config).mean.expand_as(last_video), value.mean
    else:
        chosen_video = _per_view(video, config).sample(last_video[:, None])[:, 0]
        chosen_value = value.sample(last_value[:, None])[:, 0]
    return Plan(
        video=problem.with_memory(chosen_video[:, None])[:, 0],
        value=chosen_value,
        video_distribution=video,
        value_distribution=value,
        rounds=rounds,
    )


def _score(
    problem: LatentProblem, config: PlannerConfig, candidates: Tensor, samples: Tensor, draws: Draws, k: int
) -> Round:
    """Evaluate every value sample on its candidate and pick the elites."""
    groups, per_group = config.num_videos, config.num_values
    if config.random_scores:
        scores = draws(f"iteration{k}.score", (groups, per_group))
    else:
        # flat row r is booked on candidate r // N; the public code evaluates it on candidate r mod G
        matched = config.pairing == "matched"
        rows = "b (g n) y z -> b g n y z" if matched else "b (n g) y z -> b g n y z"
        values = problem.values(candidates, rearrange(samples, rows, g=groups), config.value_steps)
        if not matched:
            values = rearrange(values, "b g n y z -> b (n g) y z")
            values = rearrange(values, "b (g n) y z -> b g n y z", g=groups)
        scores = score_values(values[..., -1], config.score, penalty=config.penalty)
    video_scores = scores.amax(-1)
    return Round(
        scores=scores,
        video_scores=video_scores,
        value_elites=scores.flatten(1).topk(config.num_elite_values, dim=1).indices,
        video_elites=video_scores.topk(config.num_elite_videos, dim=1).indices,
    )


def _better(
    best: tuple[Tensor, Tensor, Tensor] | None, candidates: Tensor, samples: Tensor, seen: Round
) -> tuple[Tensor, Tensor, Tensor]:
    """Best (score, candidate, value sample) of each observation so far."""
    flat = seen.scores.flatten(1)
    score, row = flat.max(1)
    candidate = _take(candidates, (row // seen.scores.shape[2])[:, None])[:, 0]
    sample = _take(samples, row[:, None])[:, 0]
    if best is None:
        return score, candidate, sample
    newer = score > best[0]
    return (
        torch.where(newer, score, best[0]),
        torch.where(newer.reshape(-1, *[1] * (candidate.ndim - 1)), candidate, best[1]),
        torch.where(newer.reshape(-1, *[1] * (sample.ndim - 1)), sample, best[2]),
    )


def _standard(like: Tensor) -> Gaussian:
    return Gaussian(mean=torch.zeros_like(like), std=torch.ones_like(like))


def _per_view(distribution: Gaussian, config: PlannerConfig) -> Gaussian:
    """A pooled distribution with its view axis back, to be broadcast over the views."""
    if not config.pool_views:
        return distribution
    return Gaussian(mean=distribution.mean[:, None], std=distribution.std[:, None])


def _take(rows: Float[Tensor, "b m ..."], index: Int[Tensor, "b e"]) -> Float[Tensor, "b e ..."]:
    """Rows by index, observation by observation."""
    return torch.stack([row[chosen] for row, chosen in zip(rows, index, strict=True)])
