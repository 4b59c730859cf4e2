"""`wamkit data split`: which episodes to train on, and which to measure on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Split:
    """Split a dataset's episodes: train, val_ind (the same tasks) and val_ood (a tenth of the tasks, held out whole).

    Nothing is written; the episodes are printed as --data.episodes of `wamkit train` takes them. Episodes listed in
    meta/wamkit_exclude.json belong to no part. A policy trained on all of them has seen both validation parts.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder."""
    legacy_lexicographic: bool = False
    """Count a task's episodes as text (0, 1, 10, 11, …, 2, …), as WorldVLA's files do; others are held out."""
    json: bool = False
    """Print the parts as JSON."""


def run(options: Split) -> int:
    """Split and print."""
    from wamkit.data.choices import ranges_of
    from wamkit.data.exclusions import open_usable, without_excluded
    from wamkit.data.splits import PARTS, split_episodes
    from wamkit.data.task_names import task_name

    dataset = without_excluded(open_usable(options.root))
    splits = split_episodes(dataset.episodes, legacy_lexicographic=options.legacy_lexicographic)
    names = {entry.index: task_name(entry) for entry in dataset.episodes}
    found: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        numbers = splits.part(part)
        tasks = sorted({names[number] for number in numbers})
        found[part] = {"episodes": ranges_of(numbers), "count": len(numbers), "tasks": tasks}
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, facts in found.items():
        tasks = facts["tasks"]
        named = f" ({', '.join(tasks)})" if name == "val_ood" and tasks else ""
        print(f"{name}: {facts['count']} episodes of {len(tasks)} tasks{named}")
        print("  " + (" ".join(map(str, facts["episodes"])) or _reason(name)))
    return 0


def _reason(part: str) -> str:
    if part == "val_ood":
        return "none: of fewer than ten tasks none is held out"
    return "none: of fewer than ten episodes of a task none is held out"
