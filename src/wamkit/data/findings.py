"""What an inspection of a dataset found, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

Kind = Literal[
    "metadata",
    "missing_file",
    "damaged_file",
    "length",
    "rate",
    "size",
    "width",
    "missing_column",
    "non_finite",
    "inconsistent",
    "constant_channel",
    "range",
    "too_short",
    "task",
    "blank_video",
    "frozen_video",
    "duplicate",
    "stale_statistics",
    "stale_values",
    "exclusions",
    "leftover",
    "policy",
]
Severity = Literal["error", "warning"]

RECORD_AGAIN: Final = "record these episodes again or exclude them"
_SHOWN_OF_A_KIND = 12
_REASON_LENGTH = 200


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or looks wrong.

    Args:
        kind: what sort of thing.
        severity: `error` spoils training or reading; `warning` may be intended.
        where: file, episode, column or channel.
        what: expected and got.
        remedy: what to do.
        episodes: numbers of the episodes that it spoils; leaving those out mends it. Empty for a fault of the whole
            dataset.
    """

    kind: Kind
    severity: Severity
    where: str
    what: str
    remedy: str
    episodes: tuple[int, ...] = ()

    @property
    def episode(self) -> int | None:
        """The episode, when it is about one alone."""
        return self.episodes[0] if len(self.episodes) == 1 else None


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """Counts of one task: `successes` is `None` when the dataset does not say."""

    task: str
    episodes: int
    frames: int
    successes: int | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is in a dataset, and what is wrong with it.

    Args:
        root: dataset folder.
        version: of the format.
        robot: its name; `None` for a dataset without a robot spec.
        fps: rows per second.
        num_episodes: by the episode table.
        num_frames: rows by the episode table.
        cameras: name -> (height, width) by the metadata.
        columns: feature -> channels.
        tasks: one summary per sentence.
        lengths: shortest, median and longest episode, in rows; `None` without episodes.
        success_rate: share of episodes that were solved; `None` when the dataset does not say.
        findings: everything found, errors first.
        notes: what is as it should be and yet good to know.
    """

    root: str
    version: str
    robot: str | None
    fps: float
    num_episodes: int
    num_frames: int
    cameras: dict[str, tuple[int, int]]
    columns: dict[str, int]
    tasks: tuple[TaskSummary, ...]
    lengths: tuple[int, float, int] | None
    success_rate: float | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that spoil training or reading."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def is_sound(self) -> bool:
        """Whether there is no error; warnings may remain."""
        return not self.errors

    def to_exclude(self, also: Collection[Kind] = ()) -> dict[int, str]:
        """Episodes that errors spoil, with the reasons.

        Args:
            also: kinds of warnings whose episodes are to be left out too.
        """
        reasons: dict[int, list[str]] = {}
        for finding in self.findings:
            if finding.severity == "error" or finding.kind in also:
                for episode in finding.episodes:
                    reasons.setdefault(episode, []).append(f"{finding.kind}: {finding.what}")
        return {episode: _shortened("; ".join(dict.fromkeys(reasons[episode]))) for episode in sorted(reasons)}

    @property
    def not_excludable(self) -> tuple[Finding, ...]:
        """Errors that no choice of episodes mends."""
        return tuple(finding for finding in self.errors if not finding.episodes)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dataclasses.asdict(self) | {"is_sound": self.is_sound}

    def table(self) -> Group:
        """What `rich` prints: a summary, the tasks, the findings, the notes."""
        notes = [Text(f"note: {note}", style="dim") for note in self.notes]
        return Group(self._summary(), self._tasks(), self._findings(), *notes)

    def _summary(self) -> Table:
        table = Table(title=f"Dataset {self.root}", title_justify="left", show_header=False, box=None)
        seconds = self.num_frames / self.fps
        rows = {
            "format": f"LeRobot {self.version}",
            "robot": self.robot or "not recorded by wamkit",
            "episodes": f"{self.num_episodes}",
            "frames": f"{self.num_frames} at {self.fps:g} per second ({seconds / 60:.1f} min)",
            "cameras": ", ".join(f"{name} {h}x{w}" for name, (h, w) in self.cameras.items()) or "none",
            "columns": ", ".join(f"{name} ({width})" for name, width in self.columns.items()),
            "lengths": "none"
            if self.lengths is None
            else f"{self.lengths[0]} to {self.lengths[2]} rows, median {self.lengths[1]:g}",
            "success": "not stored" if self.success_rate is None else f"{self.success_rate:.1%} of episodes",
        }
        for name, value in rows.items():
            table.add_row(Text(name, style="bold"), Text(value))
        return table

    def _tasks(self) -> Table:
        table = Table(title="Tasks", title_justify="left")
        table.add_column("task")
        for name in ("episodes", "frames", "solved"):
            table.add_column(name, justify="right")
        for task in self.tasks:
            solved = "?" if task.successes is None else str(task.successes)
            table.add_row(Text(task.task), str(task.episodes), str(task.frames), solved)
        return table

    def _findings(self) -> Table | Text:
        if not self.findings:
            return Text("Nothing is wrong.", style="green")
        warnings = len(self.findings) - len(self.errors)
        table = Table(title=f"{len(self.errors)} errors, {warnings} warnings", title_justify="left", show_lines=True)
        for name in ("", "kind", "where", "what", "remedy"):
            table.add_column(name, overflow="fold")
        counts: dict[tuple[Severity, Kind], int] = {}
        for finding in self.findings:
            sort = (finding.severity, finding.kind)
            counts[sort] = counts.get(sort, 0) + 1
            if counts[sort] > _SHOWN_OF_A_KIND:
                continue
            table.add_row(
                _mark(finding.severity),
                *(Text(part) for part in (finding.kind, finding.where, finding.what, finding.remedy)),
            )
        for (severity, kind), count in counts.items():
            if count > _SHOWN_OF_A_KIND:
                more = f"and {count - _SHOWN_OF_A_KIND} more"
                table.add_row(_mark(severity), Text(kind), Text(more), Text("--json lists all of them"), Text(""))
        return table


def listed_episodes(episodes: Iterable[int]) -> str:
    """`episodes 0, 3 to 7`: consecutive ones as a range."""
    runs: list[list[int]] = []
    for episode in sorted(episodes):
        if runs and episode == runs[-1][1] + 1:
            runs[-1][1] = episode
        else:
            runs.append([episode, episode])
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    is_one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"{'episode' if is_one else 'episodes'} {', '.join(parts)}"


def _mark(severity: Severity) -> Text:
    return Text("error", style="bold red") if severity == "error" else Text("warning", style="yellow")


def _shortened(text: str) -> str:
    return text if len(text) <= _REASON_LENGTH else f"{text[: _REASON_LENGTH - 1]}…"
