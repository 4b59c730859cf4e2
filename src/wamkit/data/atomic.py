"""A dataset's folder while it is written: whole files only, leftovers of a kill removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wamkit.atomic import atomic_file


def remove_partial_files(root: Path) -> list[Path]:
    """Delete what killed writers left under `root`; returns what was deleted."""
    left = sorted(root.rglob(".*.partial"))
    for path in left:
        path.unlink(missing_ok=True)
    return left


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file or nothing.

    Raises:
        DiskFull: no room; what was at `path` is untouched.
        OSError: the folder is not writable.
    """
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def write_json_atomically(path: Path, data: Any) -> None:
    """`write_atomically` of a JSON document, indented, keys in the order given.

    Raises:
        OSError: as `write_atomically`.
        ValueError: `data` holds a NaN or infinity, which JSON has no word for.
        TypeError: `data` holds something that JSON cannot express.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
