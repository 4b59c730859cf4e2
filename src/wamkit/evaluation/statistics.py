"""Small statistics of success counts and latencies (numpy only)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two policies on the same episodes.

    Args:
        both: episodes solved by both.
        only_first: solved by the first alone.
        only_second: solved by the second alone.
        neither: solved by none.
        p_value: exact two-sided sign test of "either is as likely to be the only one to solve an episode".
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float

    @property
    def num_pairs(self) -> int:
        """Episodes that both sides finished."""
        return self.both + self.only_first + self.only_second + self.neither


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a success probability.

    Args:
        successes: number of successes, between 0 and `trials`.
        trials: number of trials; 0 gives (0, 1), since nothing is known.
        z: normal quantile; the default gives 95 %.

    Raises:
        ValueError: counts out of range.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    denominator = 1 + z * z / trials
    center = (rate + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / denominator
    # The exact bounds at 0 and n successes are 0 and 1; rounding must not move them.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == trials else min(1.0, center + half)
    return low, high


def bootstrap_interval(
    totals: Sequence[float], counts: Sequence[int], *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float] | None:
    """95 % interval of a mean over things that come in groups, such as the frames of episodes.

    Whole groups are drawn with replacement, since things of one group are alike.

    Args:
        totals: sum of each group.
        counts: things in each group; groups without any are left out.
        seed: of the draws, so that equal numbers give an equal interval.
        resamples: how often groups are drawn.

    Returns:
        The 2.5 % and 97.5 % quantile of the mean, or `None` with fewer than two groups, of which nothing is known.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife"; the percentile interval.
    """
    groups = [(total, count) for total, count in zip(totals, counts, strict=True) if count]
    if len(groups) < 2:
        return None
    sums, sizes = (np.array(column, dtype=np.float64) for column in zip(*groups, strict=True))
    drawn = np.random.default_rng(seed).integers(len(groups), size=(resamples, len(groups)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


def compare_paired(first: Sequence[bool], second: Sequence[bool]) -> PairedComparison:
    """Compare two policies on the same episodes, in the same order.

    Raises:
        ValueError: the sequences differ in length.

    Source: the exact form of Q. McNemar, "Note on the sampling error of the difference between correlated
        proportions", Psychometrika 12 (1947).
    """
    if len(first) != len(second):
        raise ValueError(f"expected as many outcomes on both sides, got {len(first)} and {len(second)}")
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    both = sum(a and b for a, b in pairs)
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1)) / 2**discordant
    return PairedComparison(
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=len(pairs) - both - discordant,
        p_value=min(1.0, 2 * tail),
    )


def quantile(values: Sequence[float], fraction: float) -> float | None:
    """Linearly interpolated quantile; `None` when there are no values."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), fraction)) if len(values) else None
