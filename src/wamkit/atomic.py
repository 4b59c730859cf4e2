"""Files and folders that are either the old ones or the new ones, whenever the process dies. Standard library only.

A folder is written under a hidden name beside its destination and renamed into place when it is complete and on disk.
Files get the rights that the umask gives: safetensors would keep what it writes for its owner alone.
Renames on POSIX are atomic, but no portable call swaps two folders, so a replacement takes two renames; between them
the complete new folder carries a known hidden name. `complete_folder` finds it for readers, and the next writer
finishes the move. One writer at a time per destination is assumed; readers need no lock.

    .NAME.partial   being written: never read, removed by the next writer
    .NAME.new       complete, about to become NAME
    .NAME.old       the former NAME, about to be removed
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(OSError):
    """No room to write; the message names the destination, which is untouched, and what to do."""


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Write a file so that a kill at any moment leaves the old content or the new, never a part.

    Args:
        path: destination; its parent folder is made when missing.

    Yields:
        A hidden sibling path to write to; it becomes `path` when the block ends without an error.

    Raises:
        DiskFull: no room; the destination is untouched.
        OSError: the folder is not writable.
        FileNotFoundError: the block wrote nothing.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with _explain_full_disk(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            partial.touch()
            rights = partial.stat().st_mode
            partial.unlink()
            yield partial
            if not partial.is_file():
                raise FileNotFoundError(f"expected the block to write {partial} (it becomes {path}), it wrote nothing")
            partial.chmod(rights)
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Write a folder so that a kill at any moment leaves the old folder or the new one usable, never a part.

    Read a folder that may have been interrupted through `complete_folder`.

    Args:
        path: destination; an existing folder there is replaced as a whole once the new one is complete.

    Yields:
        An empty hidden folder to fill; it becomes `path` when the block ends without an error.

    Raises:
        NotADirectoryError: `path` exists and is a file.
        DiskFull: no room; the destination is untouched.
        OSError: the folder is not writable.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"expected a folder or nothing at {path}, found a file; choose another name")
    partial = _sibling(path, "partial")
    with _explain_full_disk(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            recover_folder(path)
            partial.mkdir()
            yield partial
            _share(partial)
            _sync_tree(partial)
            _adopt(partial, path)
        finally:
            if partial.exists():
                shutil.rmtree(partial)


def recover_folder(path: Path | str) -> None:
    """Finish or undo what a killed `atomic_folder(path)` left behind; the folder's next writer calls this itself.

    Args:
        path: the destination that was being written.
    """
    path = Path(path)
    partial, new, old = (_sibling(path, stage) for stage in ("partial", "new", "old"))
    if partial.exists():
        shutil.rmtree(partial)
    if new.exists():
        _adopt(new, path)
    if old.exists():
        _remove(old)


def complete_folder(path: Path | str) -> Path:
    """Where the complete content of `path` lies now, without changing anything (the disk may be read-only).

    Args:
        path: a destination of `atomic_folder`.

    Returns:
        `path` itself, except after a kill between the renames of a replacement; then the hidden new folder.
    """
    path = Path(path)
    new = _sibling(path, "new")
    return new if new.exists() else path


def copy_files(source: Path, destination: Path) -> None:
    """Copy what a folder holds, hidden files apart, with fresh rights: what is read-only there can be removed here.

    Args:
        source: a folder; links in it are followed.
        destination: a folder, made when missing.

    Raises:
        OSError: a file cannot be read, or no room.
    """
    for found, folders, files in os.walk(source, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = destination / Path(found).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for name in files:
            if not name.startswith("."):
                shutil.copyfile(Path(found) / name, here / name)


def remove_folder(path: Path | str) -> None:
    """Remove a folder so that a kill never leaves half of it under its own name.

    Args:
        path: the folder; it is first renamed to a hidden sibling, which the next writer of `path` removes.
    """
    path = Path(path)
    partial = _sibling(path, "partial")
    if partial.exists():
        shutil.rmtree(partial)
    os.rename(path, partial)
    shutil.rmtree(partial)


def _adopt(source: Path, path: Path) -> None:
    """Move the complete folder `source` to `path`, replacing what is there."""
    if path.exists():
        new, old = _sibling(path, "new"), _sibling(path, "old")
        if source != new:
            os.rename(source, new)
        if old.exists():
            _remove(old)
        os.rename(path, old)
        os.rename(new, path)
        _sync(path.parent)
        _remove(old)
    else:
        os.rename(source, path)
        _sync(path.parent)


def _sibling(path: Path, stage: str) -> Path:
    return path.with_name(f".{path.name}.{stage}")


def _remove(path: Path) -> None:
    # A destination may have been a symbolic link to a folder: then only the link goes.
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def _share(folder: Path) -> None:
    """Give files the rights that new ones have here: the umask's, as the folder has them."""
    rights = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(rights)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk as its own exception, with the system's number only in the text.
        codes = [code for code in _FULL if getattr(error, "errno", None) == code or f"(os error {code})" in str(error)]
        if not codes:
            raise
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        raise DiskFull(
            codes[0],
            f"{os.strerror(codes[0])} while writing {path} ({free / 1e6:.1f} MB free there now); what was at that path "
            "before is untouched. Free some space (or raise the limit) and run again",
        ) from error
