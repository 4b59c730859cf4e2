"""Normal distributions over a model's initial noise, which a search refits round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from wamkit.planning.config import PlannerConfig


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """An elementwise normal distribution per observation."""

    mean: Float[Tensor, "b ..."]
    std: Float[Tensor, "b ..."]

    @classmethod
    def standard(cls, like: Float[Tensor, "b ..."]) -> Gaussian:
        """N(0, 1) in the shape of `like`."""
        return cls(mean=torch.zeros_like(like), std=torch.ones_like(like))

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

    def row(self, index: int) -> Gaussian:
        """That of one observation, as a batch of one."""
        return Gaussian(mean=self.mean[index : index + 1], std=self.std[index : index + 1])

    def widened(self, floor: float) -> Gaussian:
        """The same mean, with standard deviations of at least `floor`."""
        return Gaussian(mean=self.mean, std=self.std.clamp(min=floor))

    @classmethod
    def joined(cls, parts: Sequence[Gaussian]) -> Gaussian:
        """Those of several observations, one after the other."""
        return cls(mean=torch.cat([part.mean for part in parts]), std=torch.cat([part.std for part in parts]))


@dataclass(frozen=True, kw_only=True)
class Distributions:
    """What a search knows of each observation.

    Args:
        video: over candidates' noise.
        value: over value noise.
    """

    video: Gaussian
    value: Gaussian

    def row(self, index: int) -> Distributions:
        """Those of one observation, as a batch of one."""
        return Distributions(video=self.video.row(index), value=self.value.row(index))

    def continued(self, previous: Sequence[Distributions | None], floor: float) -> Distributions:
        """These, but from the previous ones on where there are any, with standard deviations of at least `floor`."""
        rows = [self.row(i) if known is None else known for i, known in enumerate(previous)]
        video = Gaussian.joined([row.video for row in rows])
        value = Gaussian.joined([row.value for row in rows])
        return Distributions(video=video.widened(floor), value=value.widened(floor))
