"""Intervals and paired tests against published and enumerated numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from wamkit.evaluation.statistics import compare_paired, quantile, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_gives_published_numbers(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_holds_the_rate_and_mirrors() -> None:
    for trials in range(1, 30):
        for successes in range(trials + 1):
            low, high = wilson_interval(successes, trials)
            assert 0 <= low <= successes / trials <= high <= 1
            assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_wilson_interval_covers_the_truth_about_95_times_in_100() -> None:
    for rate in (0.3, 0.5, 0.9):
        chances = [math.comb(50, k) * rate**k * (1 - rate) ** (50 - k) for k in range(51)]
        covered = sum(
            p for k, p in enumerate(chances) if wilson_interval(k, 50)[0] <= rate <= wilson_interval(k, 50)[1]
        )
        assert 0.92 < covered < 0.98


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes <= trials"):
        wilson_interval(successes, trials)


def test_paired_comparison_counts_and_enumerated_p_values() -> None:
    pairs = compare_paired([True, True, False, False, True], [True, False, True, False, False])
    assert (pairs.both, pairs.only_first, pairs.only_second, pairs.neither) == (1, 2, 1, 1)
    assert pairs.num_pairs == 5
    for wins in range(8):
        first = [True] * wins + [False] * (7 - wins)
        second = [not solved for solved in first]
        # All ways in which seven discordant episodes can fall, and those at least as lopsided as this one.
        falls = [sum(way) for way in itertools.product((0, 1), repeat=7)]
        extreme = sum(abs(fall - 3.5) >= abs(wins - 3.5) for fall in falls)
        assert compare_paired(first, second).p_value == pytest.approx(min(1.0, extreme / 2**7))


def test_paired_comparison_of_equals_and_of_unequal_lengths() -> None:
    assert compare_paired([True, False], [True, False]).p_value == 1.0
    with pytest.raises(ValueError, match="got 1 and 2"):
        compare_paired([True], [True, False])


def test_quantiles() -> None:
    values = list(np.random.default_rng(0).random(101))
    assert quantile(values, 0.5) == sorted(values)[50]
    assert quantile(values, 0.95) == pytest.approx(sorted(values)[95])
    assert quantile([], 0.5) is None
