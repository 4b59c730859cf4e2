"""`wamkit data inspect`: what would spoil training, and a list of the episodes to leave out for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wamkit.progress import ProgressBar

Looks = Literal["blank_video", "frozen_video", "duplicate", "range", "too_short", "task", "stale_statistics"]


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Check every file, row and frame of a dataset and say what would spoil training.

    Exit status 1 when there is an error that the list of excluded episodes does not mend; warnings may be intended.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder."""
    against: Path | None = None
    """Policy folder, or file of statistics, that the dataset has to fit: cameras, sizes, channels, rate, numbers."""
    entry: str = ""
    """Which statistics of a WAV file --against means."""
    exclude: bool = False
    """List the episodes with errors in meta/wamkit_exclude.json, which training and statistics leave out then."""
    also: tuple[Looks, ...] = ()
    """Warnings whose episodes --exclude leaves out too; of duplicates all but the first."""
    dry_run: bool = False
    """With --exclude: say what would be left out, and write nothing."""
    json: bool = False
    """Print the report as JSON."""


def run(options: Inspect) -> int:
    """Inspect, print, and write the list if it is wanted."""
    for name, is_given in (("dry-run", options.dry_run), ("also", bool(options.also))):
        if is_given and not options.exclude:
            raise ValueError(f"--{name}: without effect without --exclude; add that, or leave it out")
    if options.entry and options.against is None:
        raise ValueError("--entry: without effect without --against; add that, or leave it out")
    from rich.console import Console

    from wamkit.data.inspect import exclude, inspect, plan_exclusions

    with ProgressBar(f"inspecting {options.root}", unit="checks") as bar:
        report = inspect(options.root, against=options.against, entry=options.entry, progress=bar.show)
    document = report.to_dict()
    if not options.json:
        Console().print(report.table())
    if not options.exclude:
        if options.json:
            print(json.dumps(document, indent=2))
        elif report.to_exclude():
            print("`wamkit data inspect --exclude` leaves the episodes with errors out of training")
        return 0 if report.is_sound else 1
    plan = plan_exclusions(report, also=options.also)
    path = exclude(report, plan) if plan.new and not options.dry_run else None
    if options.json:
        document["excluded"] = {str(number): reason for number, reason in plan.episodes.items()}
        document["excluded_now"] = [] if path is None else list(plan.new)
        document["remaining"] = [finding.what for finding in plan.remaining]
        print(json.dumps(document, indent=2))
    else:
        _tell(options, plan, path)
    return 1 if plan.remaining or (options.dry_run and plan.new) else 0


def _tell(options: Inspect, plan: Any, path: Path | None) -> None:
    would = "would leave" if options.dry_run else "leaves"
    for number in plan.new:
        print(f"{would} out episode {number}: {plan.episodes[number]}")
    if path is not None:
        print(f"wrote {path}: {len(plan.new)} episodes more, {len(plan.episodes)} in all; removing it takes them back")
    elif not plan.new:
        print("no further episode has to be left out; nothing written")
    for finding in plan.remaining:
        print(f"leaving out episodes does not mend this: {finding.where}: {finding.what}; {finding.remedy}")
