"""Evaluation folders as the report reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wamkit.evaluation.results import TRACE_FILE, EpisodeLog, EpisodeRecord, Results
from wamkit.trace import Trace

PLANNER_SHOWN = ("iterations", "num_videos", "num_values", "score")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation folder as the report reads it."""

    folder: Path

    @cached_property
    def results(self) -> Results:
        """`results.json`."""
        return Results.load(self.folder)

    @cached_property
    def records(self) -> list[EpisodeRecord]:
        """Finished episodes of the results' tasks."""
        return [record for record in EpisodeLog(self.folder).read().values() if record.task in self.results.tasks]

    @property
    def label(self) -> str:
        """What sets this evaluation apart: its planner."""
        planner = self.results.policy.planner
        return "without planning" if planner is None else f"planner {planner.get('name', 'without a name')}"

    @property
    def settings(self) -> str:
        """The planner's most telling settings."""
        planner = self.results.policy.planner or {}
        return ", ".join(f"{key.replace('num_', '')} {planner[key]}" for key in PLANNER_SHOWN if key in planner)

    def recorded(self) -> list[EpisodeRecord]:
        """Recorded episodes, solved and unsolved taking turns, so that a choice from the front shows both."""
        ordered = sorted(self.records, key=lambda record: record.key)
        kept = [record for record in ordered if record.folder and (self.folder / record.folder).is_dir()]
        groups = [[r for r in kept if r.success], [r for r in kept if not r.success]]
        return [group[i] for i in range(max(map(len, groups), default=0)) for group in groups if i < len(group)]

    def trace(self, record: EpisodeRecord) -> Trace:
        """The trace of a recorded episode."""
        return Trace.load(self.folder / str(record.folder) / TRACE_FILE)
