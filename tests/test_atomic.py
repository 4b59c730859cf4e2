"""Atomic files and folders, killed at every file system operation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import wamkit
from wamkit.atomic import (
    DiskFull,
    atomic_file,
    atomic_folder,
    complete_folder,
    recover_folder,
    remove_folder,
)

# Kills itself just before its n-th operation on the file system, or limits the size of files, and writes `new` content.
VICTIM = """
import os, signal, sys
from pathlib import Path
what, target, countdown = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
from wamkit.atomic import atomic_file, atomic_folder, remove_folder
events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
def hook(event, arguments):
    global countdown
    if event in events:
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
if what == "folder":
    with atomic_folder(target) as folder:
        (folder / "a.txt").write_text("new")
        (folder / "deep").mkdir()
        (folder / "deep" / "b.txt").write_text("new")
elif what == "file":
    with atomic_file(target) as file:
        file.write_text("new")
else:
    remove_folder(target)
"""


def run_victim(what: str, target: Path, countdown: int) -> int:
    environment = {"PYTHONPATH": str(Path(wamkit.__file__).parents[1]), "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-S", "-c", VICTIM, what, target, str(countdown)], env=environment
    ).returncode


def fill(folder: Path, text: str) -> None:
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    (folder / "deep" / "b.txt").write_text(text)


def content(folder: Path) -> set[str]:
    files = {item.relative_to(folder).as_posix(): item.read_text() for item in folder.rglob("*") if item.is_file()}
    assert set(files) == {"a.txt", "deep/b.txt"}
    return set(files.values())


def test_a_folder_killed_at_any_moment_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    seen = []
    for countdown in range(1, 100):
        target = tmp_path / str(countdown) / "policy"
        fill(target, "old")
        status = run_victim("folder", target, countdown)
        found = content(complete_folder(target))
        assert found in ({"old"}, {"new"})
        recover_folder(target)
        assert content(target) == found, "what a reader saw is what recovery settles on"
        assert os.listdir(target.parent) == ["policy"], "recovery leaves nothing behind"
        seen.append(found.pop())
        if status == 0:
            break
    assert status == 0 and len(seen) > 8, "the victim was killed at several moments and survived in the end"
    assert seen == sorted(seen, reverse=True), "once the new folder is complete it stays"


def test_a_new_folder_killed_at_any_moment_is_absent_or_complete(tmp_path: Path) -> None:
    for countdown in range(1, 100):
        target = tmp_path / str(countdown) / "policy"
        target.parent.mkdir()
        status = run_victim("folder", target, countdown)
        if complete_folder(target).exists():
            assert content(complete_folder(target)) == {"new"}
        with atomic_folder(target) as folder:
            fill(folder, "again")
        assert content(target) == {"again"} and os.listdir(target.parent) == ["policy"]
        if status == 0:
            break
    assert status == 0 and countdown > 5


def test_a_file_killed_at_any_moment_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    seen = []
    for countdown in range(1, 30):
        target = tmp_path / str(countdown) / "results.json"
        target.parent.mkdir()
        target.write_text("old")
        status = run_victim("file", target, countdown)
        seen.append(target.read_text())
        with atomic_file(target) as file:
            file.write_text("again")
        assert target.read_text() == "again" and os.listdir(target.parent) == ["results.json"]
        if status == 0:
            break
    assert status == 0 and set(seen) == {"old", "new"}


def test_removing_a_folder_never_leaves_half_of_it_under_its_name(tmp_path: Path) -> None:
    for countdown in range(1, 30):
        target = tmp_path / str(countdown) / "policy"
        fill(target, "old")
        status = run_victim("remove", target, countdown)
        assert not target.exists() or content(target) == {"old"}
        if status == 0:
            break
    assert status == 0 and countdown > 2
    assert os.listdir(target.parent) == []


def test_an_error_in_the_block_leaves_the_old_content_and_no_leftovers(tmp_path: Path) -> None:
    fill(tmp_path / "policy", "old")
    (tmp_path / "results.json").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "policy") as folder:
        (folder / "a.txt").write_text("new")
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "results.json") as file:
        file.write_text("new")
        1 / 0  # noqa: B018
    assert content(tmp_path / "policy") == {"old"}
    assert (tmp_path / "results.json").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["policy", "results.json"]


def test_files_have_the_rights_of_the_umask_whoever_wrote_them(tmp_path: Path) -> None:
    (usual := tmp_path / "usual").touch()
    with atomic_file(tmp_path / "file") as partial:
        partial.touch(0o600)
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").touch(0o600)
    for path in (tmp_path / "file", tmp_path / "folder" / "inner" / "file"):
        assert path.stat().st_mode == usual.stat().st_mode


def test_folders_nest(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "checkpoint") as outer:
        with atomic_folder(outer) as inner:
            fill(inner, "new")
        (outer / "extra").mkdir()
    assert sorted(os.listdir(tmp_path / "checkpoint")) == ["a.txt", "deep", "extra"]
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk without room: the same call fails in the same place."""
    fill(tmp_path / "policy", "old")
    code = """
import resource, sys
from pathlib import Path
from wamkit.atomic import DiskFull, atomic_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_folder(Path(sys.argv[1])) as folder:
        (folder / "a.txt").write_text("new" * 1000)
except DiskFull as error:
    sys.exit(str(error))
"""
    environment = {"PYTHONPATH": str(Path(wamkit.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", code, str(tmp_path / "policy")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert str(tmp_path / "policy") in result.stderr and "untouched" in result.stderr and "run again" in result.stderr
    assert content(tmp_path / "policy") == {"old"} and os.listdir(tmp_path) == ["policy"]


def test_wrong_destinations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError, match="found a file"), atomic_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(FileNotFoundError, match="wrote nothing"), atomic_file(tmp_path / "results.json"):
        pass
    assert issubclass(DiskFull, OSError)


def test_a_link_is_replaced_and_its_folder_kept(tmp_path: Path) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "latest").symlink_to(tmp_path / "real")
    with atomic_folder(tmp_path / "latest") as folder:
        fill(folder, "new")
    assert content(tmp_path / "latest") == {"new"} and content(tmp_path / "real") == {"old"}


def test_remove_folder_clears_an_earlier_attempt(tmp_path: Path) -> None:
    fill(tmp_path / "policy", "old")
    fill(tmp_path / ".policy.partial", "half")
    remove_folder(tmp_path / "policy")
    assert os.listdir(tmp_path) == []
