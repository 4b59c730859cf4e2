"""Statistics in LeRobot's own shape: per episode (columns of the episode table) and over a dataset (`meta/stats.json`).

They are written for LeRobot's readers. Training here uses `wamkit.data.stats`, which looks at all frames at once: the
quantiles of `stats.json` are averages of the episodes' quantiles, not quantiles of the dataset.

Source: LeRobot dataset format v3.0 (statistics per feature; images per channel, shape (3, 1, 1), in [0, 1]).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATISTICS = ("min", "max", "mean", "std", "count", *QUANTILES)
Stats = dict[str, np.ndarray]
"""The `STATISTICS` of one feature."""


def column_stats(values: np.ndarray, *, with_quantiles: bool = True) -> Stats:
    """Statistics of one episode's column.

    Args:
        values: `[T]` or `[T, d]`, numbers or booleans.
        with_quantiles: without them it takes a tenth of the time.

    Returns:
        Each of shape (1,) or (d,), float64; `count` of shape (1,), and extremes of whole numbers, int64.
    """
    rows = values.astype(np.float64).reshape(len(values), -1)
    stats = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    if np.issubdtype(values.dtype, np.integer):
        stats |= {key: stats[key].astype(np.int64) for key in ("min", "max")}
    stats["count"] = np.array([len(rows)])
    if not with_quantiles:
        return stats
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return stats | dict(zip(QUANTILES, quantiles, strict=True))


def image_stats(frames: UInt8[np.ndarray, "t h w 3"]) -> Stats:
    """Statistics of one episode's frames over time and space, per channel, in [0, 1].

    All pixels count: a histogram of 256 bins holds them exactly, so no sampling is needed.
    """
    return block_image_stats([frames])


def block_image_stats(blocks: Iterable[UInt8[np.ndarray, "t h w 3"]]) -> Stats:
    """`image_stats` of frames that come in blocks, of which only one is held at a time."""
    histograms, count = np.zeros((3, 256), dtype=np.int64), 0
    for frames in blocks:
        histograms += np.stack([np.bincount(frames[..., c].ravel(), minlength=256) for c in range(3)])
        count += len(frames)
    levels = np.arange(256) / 255.0
    per_channel = [_histogram_stats(histogram, levels) for histogram in histograms]
    stats = {key: np.array([channel[key] for channel in per_channel]).reshape(3, 1, 1) for key in per_channel[0]}
    return stats | {"count": np.array([count])}


def merge_stats(parts: list[Stats]) -> Stats:
    """Statistics of several episodes together, as LeRobot 0.4 merges them.

    Mean and variance are exact; quantiles are averages weighted by `count`, left out where a part has none.
    """
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)

    def stacked(key: str) -> np.ndarray:
        return np.stack([part[key] for part in parts])

    weights = (counts / counts.sum()).reshape(-1, *[1] * (stacked("mean").ndim - 1))
    mean = (stacked("mean") * weights).sum(0)
    variance = ((stacked("std") ** 2 + (stacked("mean") - mean) ** 2) * weights).sum(0)
    merged = {"min": stacked("min").min(0), "max": stacked("max").max(0), "mean": mean, "std": np.sqrt(variance)}
    merged["count"] = np.array([int(counts.sum())])
    kept = [key for key in QUANTILES if all(key in part for part in parts)]
    return merged | {key: (stacked(key) * weights).sum(0) for key in kept}


def to_columns(stats: dict[str, Stats]) -> dict[str, Any]:
    """Columns `stats/<feature>/<statistic>` of the episode table, as nested lists."""
    return {f"stats/{key}/{name}": value.tolist() for key, one in stats.items() for name, value in one.items()}


def from_columns(row: dict[str, Any]) -> dict[str, Stats]:
    """Inverse of `to_columns`; other columns are ignored."""
    stats: dict[str, Stats] = {}
    for column, value in row.items():
        if column.startswith("stats/") and value is not None:
            key, name = column.removeprefix("stats/").rsplit("/", 1)
            stats.setdefault(key, {})[name] = np.asarray(value)
    return stats


def _histogram_stats(counts: np.ndarray, levels: np.ndarray) -> dict[str, float]:
    total = counts.sum()
    mean = float((counts * levels).sum() / total)
    present = np.flatnonzero(counts)
    below = np.cumsum(counts)
    stats = {"min": float(levels[present[0]]), "max": float(levels[present[-1]]), "mean": mean}
    stats["std"] = float(np.sqrt((counts * (levels - mean) ** 2).sum() / total))
    # The value of rank q * (total - 1), without interpolation between the two neighbours.
    return stats | {
        key: float(levels[np.searchsorted(below, q * (total - 1), "right")]) for key, q in QUANTILES.items()
    }
