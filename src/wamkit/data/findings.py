"""What an inspection of a dataset found, and how it is shown."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

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
    "blank_video",
    "duplicate",
    "stale_statistics",
    "leftover",
]
Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or looks wrong.

    Args:
        kind: what sort of thing.
        severity: `error` spoils training or reading; `warning` may be intended.
        where: file, episode, column or channel.
        what: expected and got.
        remedy: what to do.
        episode: the episode's index, when it concerns one.
    """

    kind: Kind
    severity: Severity
    where: str
    what: str
    remedy: str
    episode: int | None = None


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

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that spoil training or reading."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def is_sound(self) -> bool:
        """Whether there is no error; warnings may remain."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dataclasses.asdict(self) | {"is_sound": self.is_sound}

    def table(self) -> Group:
        """What `rich` prints: a summary, the tasks, the findings."""
        return Group(self._summary(), self._tasks(), self._findings())

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
        for finding in self.findings:
            mark = Text("error", style="bold red") if finding.severity == "error" else Text("warning", style="yellow")
            table.add_row(mark, *(Text(part) for part in (finding.kind, finding.where, finding.what, finding.remedy)))
        return table
