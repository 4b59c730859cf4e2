"""A folder is one process's at a time, and nobody's once that process is dead."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wamkit.lock import FolderLock


def test_a_held_folder_is_refused_with_what_happens_there(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with (
        FolderLock(folder, doing="training in"),
        pytest.raises(BlockingIOError, match=r"another process is training in .*/new; wait for it, stop it, or choose"),
    ):
        FolderLock(folder, doing="training in").take()
    with FolderLock(folder):
        pass


def test_taking_a_lock_twice_takes_it_once(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.take()
    lock.take()
    lock.release()
    lock.release()
    with FolderLock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from wamkit.lock import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])): print('held', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert (result.stdout, result.returncode) == ("held\n", -signal.SIGKILL)
    with FolderLock(tmp_path):
        pass
