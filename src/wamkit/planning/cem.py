"""Latent planning by iterative elite reweighting: the cross-entropy method over a model's initial noise.

Candidates are video noises, each with several value noises. Both distributions start at N(0, 1), are refitted to the
elites of every round, and finally give the noise from which actions are decoded.

Source: WAV (arXiv 2604.14732), section 3.3 and algorithm 1; public planner.
Differs: a score is booked on the candidate it was computed for; video statistics are per view and cover future frames
only; the elites' spread is the biased one, with a floor; any number of observations is planned for at once.
`planning.config.REFERENCE` restores the public behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from wamkit.planning.config import PlannerConfig
from wamkit.planning.gaussian import Distributions, Gaussian
from wamkit.planning.objective import score_values
from wamkit.types import Draws, InputError

Denormalize = Callable[[Float[Tensor, "*b y z"]], Float[Tensor, "*b y z"]]


@runtime_checkable
class Features(Protocol):
    """What a model read from candidates, one row each; opaque to a planner."""

    def rows(self, index: list[int]) -> Features:
        """Those of some candidates, free of the others' memory."""
        ...

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> Features:
        """Several of the same kind, one after the other."""
        ...


Watch = Callable[[slice, Tensor, Features | None], None]
"""Called with some of the candidates, their values and what was read from them, before that is dropped."""


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
        self,
        video: Float[Tensor, "b g v c f h w"],
        noise: Float[Tensor, "b g n y z"],
        num_steps: int | None,
        watch: Watch | None = None,
    ) -> Float[Tensor, "b g n y z"]:
        """Predicted value tokens of every candidate and sample; the last channel is the total value.

        With `watch`, every candidate is also shown to it together with its features (or `None` by a model that keeps
        none): once, in order, and all observations at a time, so that feature rows are ordered `(b g)`.
        """
        ...


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
        distributions: where the search ended.
        rounds: what each iteration saw.
        features: what the model read from `video` already, if that was kept.
    """

    video: Float[Tensor, "b v c f h w"]
    value: Float[Tensor, "b y z"]
    distributions: Distributions
    rounds: list[Round]
    features: Features | None = None


@torch.no_grad()
def plan(
    problem: LatentProblem,
    config: PlannerConfig,
    draws: Draws,
    *,
    denormalize: Denormalize | None = None,
    previous: Sequence[Distributions | None] | None = None,
) -> Plan:
    """Search for the noise whose predicted value scores best.

    With `config.iterations == 0` this draws once from N(0, 1): the sampler without planning.

    Args:
        problem: the encoded observations.
        config: planner settings.
        draws: standard normal numbers; streams `iteration{k}.video`, `iteration{k}.value`, `video`, `value` (and
            `iteration{k}.score` when scores are random).
        denormalize: value tokens to the units of the value targets; `config.denormalize_scores` needs it.
        previous: where an earlier search ended for each observation, to start from; `None` starts from N(0, 1).

    Returns:
        The chosen noise, the last distributions, and what each round saw.

    Raises:
        ValueError: a spread of fewer than two elites is asked for, or scores in units that nobody knows.
    """
    views, channels, frames, height, width = problem.video_shape
    fitted = frames if config.fit_memory_frames else frames - problem.num_memory
    noise_shape = (views, channels, fitted, height, width)
    if config.unbiased_std and config.iterations and config.num_elite_videos * (views if config.pool_views else 1) < 2:
        raise InputError("planner: unbiased_std needs at least 2 elite videos (or views, when pooled), got 1")
    if config.denormalize_scores and denormalize is None:
        raise InputError("planner: denormalize_scores needs the transform of the values, and there is none here")
    future = frames - problem.num_memory
    last_value = draws("value", problem.value_shape)
    # memory frames are overwritten in any case, so the last noise is the plain sampler's: future frames alone
    last_video = F.pad(draws("video", (views, channels, future, height, width)), (0, 0, 0, 0, fitted - future, 0))
    known = Distributions(
        video=Gaussian.standard(last_video[:, 0] if config.pool_views else last_video),
        value=Gaussian.standard(last_value),
    )
    if previous is not None:
        known = known.continued(previous, config.warm_start_std)
    video, value = known.video, known.value
    scorer = _Scorer(problem=problem, config=config, denormalize=denormalize if config.denormalize_scores else None)
    for k in range(config.iterations):
        candidates = problem.with_memory(
            _per_view(video, config).sample(draws(f"iteration{k}.video", (config.num_videos, *noise_shape)))
        )
        samples = value.sample(
            draws(f"iteration{k}.value", (config.num_videos * config.num_values, *problem.value_shape))
        )
        seen = scorer.round(candidates, samples, draws, k)
        value = value.refit(_take(samples, seen.value_elites), config)
        elites = _take(candidates[..., -fitted:, :, :], seen.video_elites)
        video = video.refit(elites, config, dims=(1, 2) if config.pool_views else (1,))

    features = None
    if config.final == "best" and scorer.best is not None:
        chosen_video, chosen_value, features = scorer.best.video, scorer.best.value, scorer.best.features
    elif config.final == "mean":
        chosen_video, chosen_value = _per_view(video, config).mean.expand_as(last_video), value.mean
    else:
        chosen_video = _per_view(video, config).sample(last_video[:, None])[:, 0]
        chosen_value = value.sample(last_value[:, None])[:, 0]
    return Plan(
        video=problem.with_memory(chosen_video[:, None])[:, 0],
        value=chosen_value,
        distributions=Distributions(video=video, value=value),
        rounds=scorer.rounds,
        features=features,
    )


@dataclass(kw_only=True)
class _Best:
    """The best candidate of each observation so far, with its score, value noise and features."""

    score: Tensor
    video: Tensor
    value: Tensor
    features: Features | None

    @classmethod
    def of(cls, scores: Tensor, candidates: Tensor, samples: Tensor, features: Features | None) -> _Best:
        """The best of some candidates (`b g …`) and their value noises (`b g n …`)."""
        score, row = scores.flatten(1).max(1)
        group = row // scores.shape[2]
        if features is not None:
            features = features.rows([i * scores.shape[1] + g for i, g in enumerate(group.tolist())])
        return cls(
            score=score,
            video=_take(candidates, group[:, None])[:, 0],
            value=_take(samples.flatten(1, 2), row[:, None])[:, 0],
            features=features,
        )

    def beaten_by(self, other: _Best) -> _Best:
        """The better of the two, observation by observation."""
        newer = other.score > self.score
        features = None
        if self.features is not None and other.features is not None:
            both = (self.features, other.features)
            features = self.features.joined([both[new].rows([i]) for i, new in enumerate(newer.tolist())])
        return _Best(
            score=torch.where(newer, other.score, self.score),
            video=torch.where(newer.reshape(-1, *[1] * (self.video.ndim - 1)), other.video, self.video),
            value=torch.where(newer.reshape(-1, *[1] * (self.value.ndim - 1)), other.value, self.value),
            features=features,
        )


@dataclass(kw_only=True)
class _Scorer:
    """Evaluates rounds; it remembers what they saw and, where that is wanted at the end, the best candidate."""

    problem: LatentProblem
    config: PlannerConfig
    denormalize: Denormalize | None
    rounds: list[Round] = field(default_factory=list)
    best: _Best | None = None

    def round(self, candidates: Tensor, samples: Tensor, draws: Draws, k: int) -> Round:
        """Evaluate every value sample (`b (g n) …`) on its candidate and pick the elites."""
        config, groups = self.config, self.config.num_videos
        grouped = rearrange(samples, "b (g n) y z -> b g n y z", g=groups)
        keeps_best = config.final == "best"
        if config.random_scores:
            scores = draws(f"iteration{k}.score", (groups, config.num_values))
        elif config.pairing == "reference":
            # flat row r is booked on candidate r // N; the public code evaluates it on candidate r mod G
            evaluated = rearrange(samples, "b (n g) y z -> b g n y z", g=groups)
            scores = self._scores(self.problem.values(candidates, evaluated, config.value_steps))
            scores = rearrange(rearrange(scores, "b g n -> b (n g)"), "b (g n) -> b g n", g=groups)
        elif keeps_best:

            def watch(part: slice, values: Tensor, features: Features | None) -> None:
                self._look(self._scores(values), candidates[:, part], grouped[:, part], features)

            scores = self._scores(self.problem.values(candidates, grouped, config.value_steps, watch))
            keeps_best = False  # seen already, with its features
        else:
            scores = self._scores(self.problem.values(candidates, grouped, config.value_steps))
        if keeps_best:
            self._look(scores, candidates, grouped, None)
        video_scores = scores.amax(-1)
        seen = Round(
            scores=scores,
            video_scores=video_scores,
            value_elites=scores.flatten(1).topk(config.num_elite_values, dim=1).indices,
            video_elites=video_scores.topk(config.num_elite_videos, dim=1).indices,
        )
        self.rounds.append(seen)
        return seen

    def _scores(self, values: Float[Tensor, "b g n y z"]) -> Float[Tensor, "b g n"]:
        if self.denormalize is not None:
            values = self.denormalize(values)
        return score_values(values[..., -1], self.config.score, penalty=self.config.penalty)

    def _look(self, scores: Tensor, candidates: Tensor, samples: Tensor, features: Features | None) -> None:
        found = _Best.of(scores, candidates, samples, features)
        self.best = found if self.best is None else self.best.beaten_by(found)


def _per_view(distribution: Gaussian, config: PlannerConfig) -> Gaussian:
    """A pooled distribution with its view axis back, to be broadcast over the views."""
    if not config.pool_views:
        return distribution
    return Gaussian(mean=distribution.mean[:, None], std=distribution.std[:, None])


def _take(rows: Float[Tensor, "b m ..."], index: Int[Tensor, "b e"]) -> Float[Tensor, "b e ..."]:
    """Rows by index, observation by observation."""
    return torch.stack([row[chosen] for row, chosen in zip(rows, index, strict=True)])
