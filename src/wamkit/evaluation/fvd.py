"""Frechet video distance: how far apart the features of two sets of clips lie, as if both were Gaussian.

It depends strongly on the number of clips and their length, both of which belong beside every value.

Source: Unterthiner et al. 2018, "Towards accurate generative models of video", section 3; the covariance ridge is
    WorldVLA's, section 6.1 of the specification.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-6
"""Added to the diagonal of both covariances."""
MIN_CLIPS = 2
"""A covariance needs two."""


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Mean and covariance, float64."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Gaussian:
        """The Gaussian of some clips' features; the covariance divides by n - 1.

        Raises:
            ValueError: fewer than two clips, or a feature that is not finite.
        """
        if len(features) < MIN_CLIPS:
            raise ValueError(f"expected the features of {MIN_CLIPS} or more clips, got {len(features)}; add episodes")
        exact = features.to("cpu", torch.float64)
        if not torch.isfinite(exact).all():
            raise ValueError("expected finite features, got NaN or infinity; look at the network's weights")
        return cls(mean=exact.mean(dim=0), covariance=torch.cov(exact.T).reshape(exact.shape[1], exact.shape[1]))


def frechet_distance(first: Gaussian, second: Gaussian, *, ridge: float = RIDGE) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), the squared Wasserstein distance of two Gaussians; 0 or more.

    Args:
        first: one of them.
        second: the other.
        ridge: added to the diagonal of both covariances.
    """
    eye = torch.eye(len(first.mean), dtype=torch.float64)
    covariances = [gaussian.covariance + ridge * eye for gaussian in (first, second)]
    # tr (S1 S2)^½ is the sum of the singular values of S1^½ S2^½, which lose no digits to the small eigenvalues that
    # fewer clips than features leave.
    roots = [_square_root(covariance) for covariance in covariances]
    shared = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    total = covariances[0].trace() + covariances[1].trace() - 2 * shared
    return max(0.0, float((first.mean - second.mean).square().sum() + total))


def video_distance(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """The distance of two sets of clips by their features.

    Raises:
        ValueError: see `Gaussian.of`.
    """
    return frechet_distance(Gaussian.of(first), Gaussian.of(second))


def _square_root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
