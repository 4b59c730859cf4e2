"""An evaluation writes only into its own folder, and removes only what an evaluation made."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wamkit.envs.in_process import InProcessPool
from wamkit.evaluation.run_folder import require_evaluation_folder


@pytest.fixture
def walk(line_world: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small evaluation in the line world, in this process."""
    import line_walker

    monkeypatch.setenv("MUJOCO_GL", "on")  # the line world paints without OpenGL
    return lambda out, **changes: line_walker.walk(out, make_pool=lambda factory, _: InProcessPool(factory), **changes)


def test_starting_afresh_leaves_what_no_evaluation_made(walk: Any, tmp_path: Path) -> None:
    walk(tmp_path)
    recorded = tmp_path / "episodes"
    assert {path.name for path in recorded.iterdir()} == {"line__0-0", "line__0-3"}
    kept = [
        tmp_path / "notes.txt",
        recorded / "notes.txt",
        recorded / "mine" / "a.jpg",
        recorded / "mine" / "trace.npz",
    ]
    kept[2].parent.mkdir()
    for path in kept:
        path.write_text("mine")
    (recorded / "elsewhere").symlink_to(recorded / "mine")
    (recorded / ".line__0-9.partial").mkdir()  # as a killed writer leaves it
    walk(tmp_path, record_episodes=0, resume=False)
    assert [path.read_text() for path in kept] == ["mine"] * len(kept)
    assert {path.name for path in recorded.iterdir()} == {"notes.txt", "mine", "elsewhere"}
    for name in ("notes.txt", "mine", "elsewhere"):
        (recorded / name).rename(tmp_path / f"my {name}")
    walk(tmp_path, resume=False)
    assert recorded.is_dir()
    walk(tmp_path, record_episodes=0, resume=False)
    assert not recorded.exists(), "nothing was left in it"


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["results.json", "run.json", "episodes.jsonl", "photo.jpg", "episodes/a/trace.npz"])
def test_a_folder_that_holds_no_evaluation_is_refused(walk: Any, tmp_path: Path, name: str, resume: bool) -> None:
    """Whatever its files are called: other tools write a run.json too, and policies carry results beside them."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"format": "wamkit-results/1"}')
    with pytest.raises(FileExistsError, match=r"new or empty folder.* holds other things .*; choose another folder"):
        walk(tmp_path, resume=resume)
    assert path.is_file() and not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", '{"protocol": "line/test"}'),
        ("episodes.jsonl", '{"task": "line/0", "lay'),
        (".lock", ""),
        ("evaluate.log", "as written by tee"),
    ],
)
def test_an_evaluation_a_lock_and_a_log_are_no_other_things(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    if not name.endswith(("log", "lock")):
        (tmp_path / "notes.txt").write_text("mine")
    require_evaluation_folder(tmp_path)
    require_evaluation_folder(tmp_path / "new")
