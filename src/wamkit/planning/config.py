"""Settings of the latent planner; importing this module loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wamkit.typed import check_fields, check_least, read_fields

Score = Literal["snr", "mean", "lcb", "last"]
Pairing = Literal["matched", "reference"]
Final = Literal["sample", "mean", "best"]


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """Iterative elite reweighting in latent noise.

    Defaults are the preset `wav`; `REFERENCE` reproduces the public planner with its defects.

    Args:
        iterations: rounds of drawing, scoring and refitting (K).
        num_videos: video candidates per round (G; the paper's M).
        num_values: value samples per video candidate (N).
        video_elites: fraction of video candidates kept.
        value_elites: fraction of all value samples kept.
        keep_mean: share of the old mean that survives a round; 1 never moves.
        keep_std: the same for the standard deviation.
        std_decay: factor on the elites' standard deviation.
        min_std: floor of the refitted standard deviations.
        unbiased_std: divide by n - 1 (undefined for a single elite) instead of n.
        pool_views: share one video distribution among the views.
        fit_memory_frames: also fit, uselessly, the frames that memory overwrites.
        score: what is maximised over each value curve.
        penalty: weight of the spread in the score `lcb`.
        pairing: `matched` scores a value sample on the video it is booked for; `reference` evaluates flat row r on
            video r mod G but books it on video r // N, as the public code does.
        final: `sample` from the last distribution, take its `mean`, or the `best` candidate seen.
        random_scores: replace scores by noise (`shrink_only`): a control that tells a planning gain from the effect of
            a lower sampling temperature.
        value_steps: Euler steps while ranking; `None` uses as many as decoding does.
        denormalize_scores: score value curves in the units of the value targets, not in the network's space, in which
            below-average futures have negative values and `snr` prefers them spread out.
        warm_start: a search starts from the distributions in which that of the same robot's previous control step
            ended; they are not shifted in time.
        warm_start_std: floor of the standard deviations that a warm start begins with.
    """

    iterations: int = 3
    num_videos: int = 30
    num_values: int = 5
    video_elites: float = 0.9
    value_elites: float = 0.1
    keep_mean: float = 0.9
    keep_std: float = 0.9
    std_decay: float = 0.5
    min_std: float = 0.05
    unbiased_std: bool = False
    pool_views: bool = False
    fit_memory_frames: bool = False
    score: Score = "snr"
    penalty: float = 1.0
    pairing: Pairing = "matched"
    final: Final = "sample"
    random_scores: bool = False
    value_steps: int | None = None
    denormalize_scores: bool = False
    warm_start: bool = False
    warm_start_std: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, "planner")
        check_least(self, "planner", 0, "iterations", "min_std", "std_decay", "penalty", "warm_start_std")
        check_least(self, "planner", 1, "num_videos", "num_values", "value_steps")
        for name in ("video_elites", "value_elites"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"planner: expected {name} in (0, 1], got {getattr(self, name)}")
        for name in ("keep_mean", "keep_std"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"planner: expected {name} in [0, 1], got {getattr(self, name)}")
        lone_video = self.num_elite_videos < 2 and not self.pool_views
        if self.unbiased_std and self.iterations and (lone_video or self.num_elite_values < 2):
            raise ValueError(
                "planner: unbiased_std needs at least 2 elites of each kind, got "
                f"{self.num_elite_videos} videos and {self.num_elite_values} values; raise the elite fractions"
            )

    @property
    def num_elite_videos(self) -> int:
        """ceil(video_elites · G)."""
        return _ceil(self.video_elites * self.num_videos)

    @property
    def num_elite_values(self) -> int:
        """ceil(value_elites · G · N)."""
        return _ceil(self.value_elites * (self.num_videos * self.num_values))


def _ceil(number: float) -> int:
    return math.ceil(round(number, 9))  # 0.07 * 100 is 7.000000000000001


def with_explore_config(planner: PlannerConfig, settings: Mapping[str, Any]) -> PlannerConfig:
    """A planner with some of the seven numbers changed that WAV's files and requests call `explore_config`.

    Args:
        planner: what holds for the others.
        settings: by WAV's names.

    Raises:
        ValueError: an unknown name, or a number of another type or out of range.
    """
    unknown = sorted(repr(f"{key}"[:40]) for key in settings if key not in EXPLORE_CONFIG)
    if unknown:
        raise ValueError(f"expected settings among {', '.join(EXPLORE_CONFIG)}, got {', '.join(unknown[:8])}")
    changed = {name: value for key, value in settings.items() for name in EXPLORE_CONFIG[key]}
    return read_fields(PlannerConfig, {**asdict(planner), **changed}, "planner")


WAV = PlannerConfig()
REFERENCE = PlannerConfig(
    iterations=5,
    min_std=0.0,
    unbiased_std=True,
    pool_views=True,
    fit_memory_frames=True,
    pairing="reference",
)
SHRINK_ONLY = PlannerConfig(random_scores=True)

EXPLORE_CONFIG: dict[str, tuple[str, ...]] = {
    "explore_steps": ("iterations",),
    "dynamic_groups": ("num_videos",),
    "value_groups": ("num_values",),
    "sigma_decay": ("std_decay",),
    "alpha_smooth": ("keep_mean", "keep_std"),
    "value_elites": ("value_elites",),
    "dynamic_elites": ("video_elites",),
}
"""WAV's name of a setting -> ours."""

PRESETS: dict[str, PlannerConfig] = {"wav": WAV, "reference": REFERENCE, "shrink_only": SHRINK_ONLY}
