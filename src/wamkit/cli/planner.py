"""The planner as commands ask for it: a preset or a file, and any of its settings."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.planning.config import PRESETS, Final, Pairing, PlannerConfig, Score
from wamkit.typed import blame, read_fields


@dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    """Options of commands that plan."""

    planner: str = "none"
    """none, wav, reference, shrink_only (random scores, a control), a JSON file of planner settings, or a YAML file of
    the public trainer, whose search is taken with our corrections."""
    planner_iterations: int | None = None
    """Planning rounds (K); by default the planner's."""
    candidates: int | None = None
    """Imagined videos a round (G); by default the planner's."""
    value_samples: int | None = None
    """Values sampled for each video (N); by default the planner's."""
    planner_video_elites: float | None = None
    """Fraction of the videos that the search moves towards. This and what follows: by default the planner's."""
    planner_value_elites: float | None = None
    """Fraction of the value samples that the search moves towards."""
    planner_keep_mean: float | None = None
    """Share of the old mean that survives a round."""
    planner_keep_std: float | None = None
    """Share of the old standard deviation that survives a round."""
    planner_std_decay: float | None = None
    """Factor on the elites' standard deviation."""
    planner_min_std: float | None = None
    """Floor of the standard deviations."""
    planner_unbiased_std: bool | None = None
    """Divide by n - 1 in the elites' standard deviation."""
    planner_pool_views: bool | None = None
    """One distribution for all cameras."""
    planner_fit_memory_frames: bool | None = None
    """Fit the frames, too, that memory overwrites."""
    planner_score: Score | None = None
    """What is maximised over each value curve: mean/std, the mean, mean - penalty std, or the last value."""
    planner_penalty: float | None = None
    """Weight of the spread in the score lcb."""
    planner_denormalize_scores: bool | None = None
    """Score values in their own units instead of the network's."""
    planner_pairing: Pairing | None = None
    """Book a score on the video it was computed for, or as the public code does."""
    planner_final: Final | None = None
    """Decode a sample of the last distributions, their mean, or the best candidate seen."""
    planner_random_scores: bool | None = None
    """Score at random: a control."""
    planner_value_steps: int | None = None
    """Denoising steps of values while ranking; by default as many as of actions."""
    planner_warm_start: bool | None = None
    """Start each search where that of the robot's previous call ended."""
    planner_warm_start_std: float | None = None
    """Floor of the standard deviations at a warm start."""

    def config(self) -> PlannerConfig | None:
        """The planner's settings, `None` for no planning.

        Raises:
            ValueError: an unknown planner or setting, or a setting that has no effect.
            FileNotFoundError: no such file.
        """
        short = {"num_videos": "candidates", "num_values": "value_samples"}
        settings = {
            item.name: getattr(self, short.get(item.name, f"planner_{item.name}"))
            for item in dataclasses.fields(PlannerConfig)
        }
        given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
        if self.planner == "none":
            if given:
                raise ValueError(
                    f"planner settings were given ({', '.join(given)}), but --planner none uses none; choose "
                    "a planner as well"
                )
            return None
        if self.planner in PRESETS:
            return dataclasses.replace(PRESETS[self.planner], **given)
        path = Path(self.planner)
        if path.suffix in (".yaml", ".yml"):
            return dataclasses.replace(_read_yaml(path), **given)
        if path.suffix != ".json":
            names = ", ".join(("none", *PRESETS))
            raise ValueError(f"unknown planner {self.planner!r}; choose one of {names}, or a .json or .yaml file")
        return _read(path, given)

    def describe(self) -> dict[str, Any] | None:
        """The planner's name and settings, JSON-ready, for results."""
        config = self.config()
        if config is None:
            return None
        name = self.planner if self.planner in PRESETS else Path(self.planner).stem
        return {"name": name, **dataclasses.asdict(config)}


def _read(path: Path, given: dict[str, Any]) -> PlannerConfig:
    if not path.is_file():
        raise FileNotFoundError(f"expected planner settings at {path}, found no file")
    known = [item.name for item in dataclasses.fields(PlannerConfig)]
    wanted = f"expected a JSON object with settings among {', '.join(known)}"
    with blame(path):
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{wanted}, got no JSON ({error})") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{wanted}, got {type(settings).__name__}")
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"{wanted}, got {', '.join(unknown)}")
        return read_fields(PlannerConfig, {**settings, **given}, "planner")


def _read_yaml(path: Path) -> PlannerConfig:
    from wamkit.recipes.reference_yaml import read_reference_yaml

    planner = read_reference_yaml(path).planner
    if planner is None:
        raise ValueError(f"{path}: exploration is off in this file, so it holds no planner; use --planner none")
    return planner
