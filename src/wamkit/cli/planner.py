"""The planner as commands ask for it: a preset or a file, with the sizes people change most."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.planning.config import PRESETS, PlannerConfig


@dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    """Options of commands that plan."""

    planner: str = "none"
    """none, wav, reference, shrink_only (random scores, a control), or a JSON file of planner settings."""
    planner_iterations: int | None = None
    """Planning rounds (K); by default the planner's."""
    candidates: int | None = None
    """Imagined videos a round (G); by default the planner's."""
    value_samples: int | None = None
    """Values sampled for each video (N); by default the planner's."""

    def config(self) -> PlannerConfig | None:
        """The planner's settings, `None` for no planning.

        Raises:
            ValueError: an unknown planner or setting, or a setting that has no effect.
            FileNotFoundError: no such file.
        """
        sizes = {
            "iterations": self.planner_iterations,
            "num_videos": self.candidates,
            "num_values": self.value_samples,
        }
        given: dict[str, Any] = {key: value for key, value in sizes.items() if value is not None}
        if self.planner == "none":
            if given:
                raise ValueError("planner sizes were given, but --planner none uses none; choose a planner as well")
            return None
        if self.planner in PRESETS:
            return dataclasses.replace(PRESETS[self.planner], **given)
        path = Path(self.planner)
        if path.suffix != ".json":
            names = ", ".join(("none", *PRESETS))
            raise ValueError(f"unknown planner {self.planner!r}; choose one of {names}, or a .json file")
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
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return PlannerConfig(**{**settings, **given})
    except (json.JSONDecodeError, TypeError) as error:
        known = ", ".join(item.name for item in dataclasses.fields(PlannerConfig))
        raise ValueError(f"{path}: expected a JSON object with settings among {known} ({error})") from error
