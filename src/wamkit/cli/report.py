"""Turn one or several evaluations, open-loop validations and world models into one self-contained HTML page.

The page shows success with intervals, rollout films, imagined against real frames, values, planner scores, predictions
along recorded episodes, what world models are worth, and training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit report`."""

    evaluations: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER...")] = ()
    """Folders of evaluations; the first of each protocol is what the others are paired with."""
    openloop: tuple[Path, ...] = ()
    """Folders of `wamkit openloop`."""
    quality: tuple[Path, ...] = ()
    """Folders of `wamkit quality`."""
    output: Path = Path("report.html")
    """The page."""
    title: str = ""
    """Its title; by default made from the tasks."""
    metrics: Path | None = None
    """Training metrics (metrics.jsonl of a training run)."""
    films: int = 6
    """Rollout films per evaluation."""
    details: int = 2
    """Episodes per evaluation or validation shown in detail: imagined frames, values, scores, plots."""
    json: bool = False
    """Print scores and paired tests as JSON instead of tables; the page is written all the same."""


def run(options: Options) -> int:
    """Write the page."""
    from wamkit.evaluation.comparison import summary, text_tables
    from wamkit.evaluation.report import write_report
    from wamkit.evaluation.report_source import Evaluation

    page = write_report(
        options.evaluations,
        options.output,
        options.title,
        open_loop=options.openloop,
        quality=options.quality,
        metrics=options.metrics,
        max_films=options.films,
        max_episodes=options.details,
    )
    evaluations = [Evaluation(folder) for folder in options.evaluations]
    if options.json:
        print(json.dumps({"page": str(page), **summary(evaluations)}, indent=2))
        return 0
    if evaluations:
        print(text_tables(evaluations))
    print(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0
