"""Evaluation folders as the report reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wamkit.evaluation.results import (
    COUNT_AGAIN,
    RESULTS_FILE,
    TRACE_FILE,
    EpisodeKey,
    EpisodeLog,
    EpisodeRecord,
    Results,
    Run,
    TaskScore,
)
from wamkit.trace import Trace

PLANNER_SHOWN = ("iterations", "num_videos", "num_values", "score")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation folder as the report reads it."""

    folder: Path

    @cached_property
    def log(self) -> EpisodeLog:
        """`episodes.jsonl`, read once and left as it is."""
        return EpisodeLog(self.folder)

    @cached_property
    def run(self) -> Run | None:
        """What was asked for, where the folder says."""
        return Run.load(self.folder)

    @cached_property
    def results(self) -> Results:
        """`results.json`; of an evaluation that has not come to it, what its finished episodes give.

        Raises:
            FileNotFoundError, ValueError: as `Results.load`.
            ValueError: its counts are not those of `episodes.jsonl`.
        """
        if not (self.folder / RESULTS_FILE).is_file() and self.run is not None and self._all_records:
            return self.run.results(list(self._all_records.values()))
        results = Results.load(self.folder)
        for task, score in results.tasks.items():
            self._require_counted(task, score)
        return results

    def _require_counted(self, task: str, score: TaskScore) -> None:
        """Refuse counts that the log contradicts. It may lack lines, and hold trials that are not counted yet."""
        trials = [r for r in self._all_records.values() if r.task == task and r.error is None and r.seed in score.seeds]
        solved = sum(record.success for record in trials)
        is_whole = len(trials) == len(score.seeds)
        most = (score.successes, score.trials - score.successes)
        fits = solved <= most[0] and len(trials) - solved <= most[1]
        if not fits or (is_whole and len(trials) != score.trials):
            raise ValueError(
                f"{self.folder / RESULTS_FILE}: expected the counts of {self.log.path.name} beside it, {solved} "
                f"successes in {len(trials)} trials of {task}, got {score.successes} in {score.trials}; {COUNT_AGAIN}"
            )

    @cached_property
    def _all_records(self) -> dict[EpisodeKey, EpisodeRecord]:
        return self.log.read()

    @cached_property
    def records(self) -> list[EpisodeRecord]:
        """Finished episodes of the results' tasks."""
        return [record for record in self._all_records.values() if record.task in self.results.tasks]

    @cached_property
    def missing(self) -> list[str]:
        """Which episodes are missing, a sentence each."""
        found = []
        remedy = "the same wamkit evaluate command runs what is missing"
        counted = self.results.overall.trials + self.results.overall.errors
        has_log = self.log.path.is_file()
        if self.run is not None:
            without = self.run.missing(self._all_records) if has_log else []
            missing = len(without) if has_log else self.run.num_asked - counted
            if missing > 0:
                tasks = f" ({', '.join(dict.fromkeys(task for task, *_ in without))})" if without else ""
                found.append(
                    f"the evaluation is incomplete: {missing} of the {self.run.num_asked} episodes asked for last are "
                    f"missing{tasks}; {remedy}"
                )
        if self.log.has_torn_line:
            found.append(f"the last line of {self.log.path.name} is half-written, so its episode is lost; {remedy}")
        if has_log and counted > len(self.records):
            found.append(
                f"{self.log.path.name} lacks {counted - len(self.records)} of the {counted} episodes that "
                f"{RESULTS_FILE} counts, so fewer are paired; {remedy}"
            )
        return found

    @cached_property
    def gaps(self) -> list[str]:
        """What is missing in the folder, a sentence each."""
        if self.log.path.is_file():
            return self.missing
        return [
            *self.missing,
            f"{self.log.path.name} is not there, so the counts of {RESULTS_FILE} stand unchecked, and no episode is "
            "paired or shown",
        ]

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
