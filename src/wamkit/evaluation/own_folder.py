"""The folder that a command writes: it touches nothing but an earlier result of its own."""

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


def require_new_folder(out: Path, *, unless: str) -> None:
    """Refuse a folder that holds anything; whether it is one to continue is the caller's to know.

    Args:
        out: the folder, which need not be there.
        unless: what it might have been besides, for the message.

    Raises:
        ValueError: it is a file.
        FileExistsError: it is a folder that holds other things.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder or nothing at {out}, found a file; choose another name")
    # Hidden entries are locks and what a killed writer left; a log is often written beside what it tells of.
    found = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    others = [name for name in found if name[0] != "." and name[-4:] != ".log"]
    if others:
        raise FileExistsError(
            f"expected output to be a new or empty folder, or {unless} to continue, {out} holds other things "
            f"({', '.join(others[:6])}); choose another folder"
        )
