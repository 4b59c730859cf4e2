"""What every conversion to v3.0 shares: where it may write, and what it reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.atomic import atomic_folder

NOTES = "conversion"
"""Key of the notes in `info.json` that say what a dataset was made of."""


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What a conversion did.

    Args:
        output: the dataset made.
        source: form of what it was made of.
        episodes: in it.
        frames: in it.
        left_out: episodes or demonstrations of the source that are not in it; the log says which.
        copied_videos: files taken over as they are.
        encoded_videos: files encoded anew.
        dropped_rows: rows left out because the robot was told to do nothing.
        notes: what is stored in the dataset about its origin.
    """

    output: Path
    source: str
    episodes: int
    frames: int
    left_out: int = 0
    copied_videos: int = 0
    encoded_videos: int = 0
    dropped_rows: int = 0
    notes: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dataclasses.asdict(self) | {"output": str(self.output)}


@contextmanager
def new_dataset(output: Path, source: Path) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `output` when the block ends without an error; a kill leaves no output.

    Args:
        output: a folder that does not exist, or an empty one.
        source: what is converted.

    Raises:
        FileExistsError: there is something at `output`.
        ValueError: one of the two lies in the other.
    """
    inside, outside = output.absolute(), source.absolute()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ValueError(f"expected an output beside the source {source}, got {output}; choose another folder")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        found = sorted(entry.name for entry in output.iterdir())[:8] if output.is_dir() else "a file"
        raise FileExistsError(f"expected nothing at {output}, found {found}; choose another folder")
    with atomic_folder(output) as folder:
        yield folder
