"""Files that are either whole or absent: write beside the target, then rename."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

PARTIAL_SUFFIX = ".partial"
# No space, over quota, over the process's file size limit: to the user all three mean that the file has no room.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that `path` holds either its old content or all of `data`, whatever happens.

    Args:
        path: target; its folder is created.
        data: the whole content.

    Raises:
        OSError: the write failed; with `ENOSPC` and the sizes in the message when the disk is full. `path` is untouched
            and no partial file is left.
    """
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in _NO_ROOM:
            raise _disk_full(path, len(data), error) from error
        raise


def write_json_atomically(path: Path, data: Any) -> None:
    """`write_atomically` of a JSON document, indented, keys in the order given.

    Raises:
        OSError: as `write_atomically`.
        ValueError: `data` holds a NaN or infinity, which JSON has no word for.
        TypeError: `data` holds something that JSON cannot express.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def lock_folder(root: Path) -> int:
    """Lock a folder against other writers; closing the returned file handle unlocks it.

    The lock is on the folder itself and the kernel drops it with the process, so a killed writer leaves nothing behind.

    Raises:
        BlockingIOError: another writer holds the lock.
    """
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(f"{root}: something else is writing into this folder; wait for it or stop it") from None
    return handle


def remove_partial_files(root: Path) -> list[Path]:
    """Delete what killed writers left under `root`; returns what was deleted."""
    left = sorted(root.rglob(f".*{PARTIAL_SUFFIX}"))
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _disk_full(path: Path, size: int, error: OSError) -> OSError:
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB"
    except OSError:
        free = "an unknown amount"
    return OSError(
        errno.ENOSPC,
        f"disk full: expected room for {size / 1e6:.1f} MB, got {error.strerror!r} with {free} free; "
        "nothing was replaced. Free some space and run the same command again",
        str(path),
    )
