"""Where a policy comes from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
import torch

import wamkit
from wamkit.training.record import saw_no_future, source_commit, training_record


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", *settings, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_sources_and_says_when_they_differ(tmp_path: Path) -> None:
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert source_commit(package) is None, "no repository"
    git(tmp_path, "init", "-q")
    assert source_commit(package) is None, "not tracked: an installed package inside somebody else's repository"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "start")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert source_commit(package) == head and len(head) == 40
    (tmp_path / "notes.txt").write_text("elsewhere")
    assert source_commit(package) == head, "only the sources count"
    (package / "__init__.py").write_text("x = 1")
    assert source_commit(package) == f"{head}+changes"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(Path(wamkit.__file__).parent) is None


def test_versions_name_what_changes_numbers() -> None:
    versions = training_record(recipe={}, seed=0)["versions"]
    assert versions["torch"] == torch.__version__ and versions["numpy"] == numpy.__version__
    assert versions["wamkit"] == wamkit.__version__ and versions["python"].startswith("3.")


def test_the_record_holds_recipe_seed_and_data() -> None:
    record = training_record(recipe={"stages": []}, seed=4, data_fingerprint="abc")
    assert (record["recipe"], record["seed"], record["data_fingerprint"]) == ({"stages": []}, 4, "abc")
    assert set(record) == {"recipe", "seed", "data_fingerprint", "commit", "versions"}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"stages": [{"needs_future": False}, {"needs_future": False}]}, True),
        ({"stages": [{"needs_future": True}, {"needs_future": False}]}, False),
        ({"stages": [{"needs_future": False}], "initial": {"name": "video.safetensors"}}, False),
        ({"stages": [{"name": "imported"}]}, False),
        ({"stages": []}, False),
        ({"stages": 3}, False),
        ({}, False),
        (None, False),
    ],
)
def test_who_never_saw_a_future_frame(recipe: object, expected: bool) -> None:
    assert saw_no_future({"recipe": recipe}) is expected
    assert not saw_no_future({})
