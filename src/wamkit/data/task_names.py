"""What a task is called, beside its sentence: LIBERO's names say the scene too, with underscores for spaces.

`KITCHEN_SCENE3_turn_on_the_stove` and `KITCHEN_SCENE8_turn_on_the_stove` are two tasks with one sentence.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

from wamkit.data.source import EpisodeEntry

TASK_FOLDER: Final = "task_folder"
"""Key of an episode's metadata: the name of the folder that its task had in frame folders."""

_SCENE = re.compile(r"^[A-Z_ ]+SCENE\d+[_ ]")


def task_name(entry: EpisodeEntry) -> str:
    """The name of an episode's task: with its scene as far as its recorder kept that, else its sentence; no spaces.

    Args:
        entry: its `metadata`, if it has some, may name the file of the task's description (`bddl_file`), its folder
            (`task_folder`) or LIBERO's file of demonstrations (`file`).
    """
    metadata = getattr(entry, "metadata", {})
    bddl, folder, file = (str(metadata.get(key, "")) for key in ("bddl_file", TASK_FOLDER, "file"))
    demonstrations = PurePosixPath(file).stem
    known = PurePosixPath(bddl).stem or folder
    if not known and demonstrations.endswith("_demo"):
        known = demonstrations.removesuffix("_demo")
    return (known or entry.task.strip()).replace(" ", "_")


def sentence_of(name: str) -> str:
    """The sentence that a task's name spells: without its scene, with spaces.

    Source: names of LIBERO's files, and the sentences that the published `modified_libero` data make of them.
    """
    return without_scene(name).replace("_", " ").strip()


def without_scene(name: str) -> str:
    """A task's name, or a sentence made of one, without the scene that it begins with."""
    return _SCENE.sub("", name)
