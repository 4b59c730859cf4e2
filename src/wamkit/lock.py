"""One process at a time in a folder. Standard library only."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType
from typing import IO

LOCK_FILE = ".lock"


class FolderLock:
    """Keeps other processes out of a folder that this one writes.

    The lock is on a hidden file in the folder, which stays there (network file systems lock files, not folders); the
    kernel drops it with the process, so a killed writer leaves nobody locked out. As a context it is taken at once.

    Args:
        folder: the folder.
        doing: what its owner does, for the message, as in "evaluating into".
    """

    def __init__(self, folder: Path, doing: str = "writing into") -> None:
        self._folder, self._doing = folder, doing
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Lock the folder, which is made when missing; nothing happens when it is locked by this object already.

        Raises:
            BlockingIOError: another process, or another lock of this one, holds the folder.
            OSError: the folder cannot be made or written.
        """
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / LOCK_FILE).open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                if not isinstance(error, BlockingIOError):
                    raise
                raise BlockingIOError(
                    f"another process is {self._doing} {self._folder}; wait for it, stop it, or choose another folder"
                ) from None
            self._file = file

    def release(self) -> None:
        """Unlock the folder; nothing happens when it is not locked."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> None:
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
