"""Numbers of [-1, 1] as one of 256 bins, and back.

Source: WorldVLA (arXiv 2506.21539) and its released code, which follows RT-2 and OpenVLA.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_BINS: Final = 256

Binning = Literal["published", "uniform256"]


@dataclass(frozen=True)
class ActionBins:
    """Normalised numbers to bins and back.

    Args:
        binning: `published` counts the edges, of 256 evenly spaced on [-1, 1], that do not exceed a number, which gives
            1 to 256; bins 255 and 256 mean the same, the last of 255 centres, so that ±1 comes back as ±0.99608.
            `uniform256` has 256 intervals of equal width and their centres.
    """

    binning: Binning = "published"

    def __post_init__(self) -> None:
        if self.binning not in get_args(Binning):
            raise ValueError(f"expected a binning among {', '.join(get_args(Binning))}, got {self.binning!r}")

    def encode(self, numbers: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The place of each number's bin, 0 to 255 (the published count less one); outside numbers are clipped.

        Raises:
            ValueError: NaN or infinity.
        """
        if not torch.isfinite(numbers).all():
            raise ValueError("expected finite numbers to put into bins, got NaN or infinity; look at the dataset")
        exact = numbers.double().clamp(-1, 1)
        if self.binning == "uniform256":
            return ((exact + 1) * (NUM_BINS / 2)).long().clamp(max=NUM_BINS - 1)
        return torch.searchsorted(self._edges.to(exact.device), exact, right=True) - 1

    def decode(self, places: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The number that each bin stands for, float32."""
        return self._values.to(places.device)[places]

    def count_outside(self, numbers: Float[Tensor, "*n"]) -> Int[Tensor, ""]:
        """How many numbers `encode` clips; rounding errors of a normaliser do not count."""
        return (numbers.abs() > 1 + 1e-6).sum()

    @cached_property
    def _edges(self) -> Tensor:
        return torch.linspace(-1, 1, NUM_BINS, dtype=torch.float64)

    @cached_property
    def _values(self) -> Tensor:
        if self.binning == "uniform256":
            return ((torch.arange(NUM_BINS, dtype=torch.float64) + 0.5) * (2 / NUM_BINS) - 1).float()
        centres = (self._edges[:-1] + self._edges[1:]) / 2
        return torch.cat((centres, centres[-1:])).float()
