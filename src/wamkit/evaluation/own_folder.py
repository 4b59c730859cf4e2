"""The folder that a command writes anew: it replaces nothing but an earlier result of its own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path


def require_own_folder(out: Path, own_files: Collection[str], *, command: str, fresh: bool) -> None:
    """Refuse a folder whose content may not be replaced.

    Args:
        out: the folder, which need not be there.
        own_files: names of what the command writes.
        command: its name.
        fresh: an earlier result may go.

    Raises:
        ValueError: a file, a folder that holds something else, or an earlier result without `fresh`.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder or nothing at {out}, found a file; choose another name")
    found = sorted(item.name for item in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in found if name not in own_files]
    if foreign:
        raise ValueError(f"{out} holds {foreign[0]!r}, which `wamkit {command}` did not write; use another folder")
    if found and not fresh:
        raise ValueError(f"{out} holds an earlier result; use another folder, or replace it (--fresh, fresh=True)")
