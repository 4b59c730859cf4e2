"""Numbers of [-1, 1] as one of 256 bins, and back.

Source: WorldVLA (arXiv 2506.21539) and its released code, which follows RT-2 and OpenVLA.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Final, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

logger = logging.getLogger(__name__)

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
        return self.is_outside(numbers).sum()

    def is_outside(self, numbers: Float[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """Which numbers `encode` clips, see `count_outside`."""
        return numbers.abs() > 1 + 1e-6

    @cached_property
    def _edges(self) -> Tensor:
        return torch.linspace(-1, 1, NUM_BINS, dtype=torch.float64)

    @cached_property
    def _values(self) -> Tensor:
        if self.binning == "uniform256":
            return ((torch.arange(NUM_BINS, dtype=torch.float64) + 0.5) * (2 / NUM_BINS) - 1).float()
        centres = (self._edges[:-1] + self._edges[1:]) / 2
        return torch.cat((centres, centres[-1:])).float()


@dataclass
class ClipCounter:
    """Counts what was clipped outside training, by channel, and warns of a channel that mostly is.

    Some clipping is normal, since limits are percentiles of a dataset. A channel that mostly lies outside means other
    units, or a robot elsewhere than its training data were. What counts for that is the recent past, so that a new
    robot on an old server is noticed. A channel that was warned of is so again after it was well in between, and after
    a silence that doubles each time: a policy that strays in every episode does not fill the log.

    Args:
        what: name of the numbers, for messages.
        bins: they are put into.
        num_seen: how many numbers were given.
        num_clipped: how many of them lay outside.
    """

    what: str
    bins: ActionBins
    num_seen: int = 0
    num_clipped: int = 0
    _num_rows: int = 0
    _recent: dict[int, tuple[int, int]] = field(default_factory=dict)
    _warned: set[int] = field(default_factory=set)
    _warnings: dict[int, tuple[int, int]] = field(default_factory=dict)

    MIN_NUMBERS: ClassVar[int] = 16
    """Numbers of a channel before it is judged; four times as many are its recent past."""

    def add(self, numbers: Float[Tensor, "*n a"]) -> None:
        """Count; the last axis is the channels'."""
        flat: Shaped[Tensor, "n a"] = self.bins.is_outside(numbers).flatten(0, -2)
        self._num_rows += len(flat)
        self.num_seen += flat.numel()
        for channel, outside in enumerate(flat.sum(dim=0).tolist()):
            self.num_clipped += outside
            seen, before = self._recent.get(channel, (0, 0))
            seen, outside = seen + len(flat), before + outside
            self._judge(channel, seen, outside)
            while seen >= 4 * self.MIN_NUMBERS:
                seen, outside = seen // 2, outside // 2
            self._recent[channel] = seen, outside

    def _judge(self, channel: int, seen: int, outside: int) -> None:
        if seen < self.MIN_NUMBERS:
            return
        if 4 * outside < seen:
            self._warned.discard(channel)
        if 2 * outside <= seen or channel in self._warned:
            return
        times, last = self._warnings.get(channel, (0, 0))
        if times == 0 or self._num_rows - last >= 4 * self.MIN_NUMBERS * 2**times:
            self._warned.add(channel)
            self._warnings[channel] = times + 1, self._num_rows
            logger.warning(
                "%s: %d of the last %d numbers of channel %d (from 0) lay outside what the model was trained on, and "
                "were clipped; check its units, or the robot has strayed from where its training data were",
                self.what,
                outside,
                seen,
                channel,
            )
