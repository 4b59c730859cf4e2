"""`wamkit data conversations`: write a dataset as WorldVLA's frame folders and JSON lists."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from wamkit.progress import ProgressBar


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Write a dataset as the frame folders and JSON lists of conversations that WorldVLA's public code reads.

    Frames and actions of every episode are written, and lists of the wanted parts of the split. Episodes listed in
    meta/wamkit_exclude.json are left out. `wamkit data convert` reads such lists.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder."""
    output: Path
    """Folder to make."""
    name: str | None = None
    """Beginning of the lists' names, as libero_goal; by default the dataset folder's."""
    camera: str | None = None
    """Whose frames; by default the first camera's. The lists know one camera."""
    action_history: int | None = None
    """Frames in a question about actions; by default 2."""
    action_horizon: int | None = None
    """Actions in an answer; by default 5, LIBERO's long suite has 10."""
    world_history: int | None = None
    """Pairs of frame and action in a question about the next frame; by default 1."""
    action_text: str | None = None
    """Question about actions, with {task} in the place of the sentence."""
    world_text: str | None = None
    """Question about the next frame."""
    parts: tuple[Literal["train", "val_ind", "val_ood", "all"], ...] | None = None
    """Parts that get lists; by default the three that share no episode. all holds the others."""
    legacy_lexicographic: bool = False
    """Split as WorldVLA's files do, in which a task's episodes are sorted as text."""
    legacy_prompt: bool = False
    """Call a task by its name with its scene, as WorldVLA's files do; by default by its sentence."""
    pictures: Literal["turn", "keep"] | None = None
    """Turned by 180 degrees or, by default, as they are."""
    idle: Literal["drop", "keep"] | None = None
    """Rows in which the robot is told to do nothing; by default kept."""
    absolute_paths: bool = False
    """Name files by absolute paths, as WorldVLA's files do; by default from the folder of the lists."""
    json: bool = False
    """Print what was done as JSON."""


def run(options: Conversations) -> int:
    """Write and say what was written."""
    from wamkit.data.write_conversations import ConversationSettings, write_conversations

    names = [field.name for field in dataclasses.fields(ConversationSettings)]
    settings = ConversationSettings(
        **{name: getattr(options, name) for name in names if getattr(options, name) is not None}
    )
    with ProgressBar(f"writing {options.root}", unit="episodes") as bar:
        report = write_conversations(options.root, options.output, settings, progress=bar.show)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
        return 0
    print(f"{report.output} holds {report.episodes} trajectories and {report.frames} frames of {report.camera}")
    for name, count in report.files.items():
        print(f"  {name}: {count} conversations")
    if report.empty:
        print(f"no lists of {', '.join(report.empty)}: no episode is in there, see `wamkit data split`")
    if report.dropped_rows:
        print(f"{report.dropped_rows} rows that do nothing were left out, so frames are not evenly spaced in time")
    if report.short_episodes:
        print(f"{report.short_episodes} episodes are too short for an answer of {settings.action_horizon} actions")
    return 0
