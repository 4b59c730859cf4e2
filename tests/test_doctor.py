"""The doctor, on this machine and on machines with known traps."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from wamkit import doctor
from wamkit.cli.main import main
from wamkit.envs.libero_assets import ASSETS_VARIABLE


def checks(folder: Path) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine(folder)}


@pytest.mark.sim
def test_this_machine_is_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The machine that runs the tests has what the tests need (but for room for datasets), and programs are told so."""
    status = main(["doctor", "--json", "--folder", str(tmp_path)])
    answer = json.loads(capsys.readouterr().out)
    found = {check["name"]: check for check in answer["checks"]}
    problems = {name: check["problem"] for name, check in found.items() if check["problem"]}
    assert problems.keys() <= {"disk"}, problems
    assert answer["healthy"] == (status == 0) == (not problems)
    assert found["packages"]["facts"]["mujoco"] == "3.3.0"
    assert found["rendering"]["facts"]["backend"] in ("egl", "osmesa")


def test_libero_with_and_without_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip("LIBERO is not installed (bash runs/setup_extras.sh libero)")
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path))
    check = doctor._libero()
    assert not check.problem and "scene assets are not here" in check.found and check.facts == {"assets": None}
    assert "hf download lerobot/libero-assets" in check.note and f"set {ASSETS_VARIABLE}=FOLDER" in check.note
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "libero_tabletop_base_style.xml").write_text("<mujoco/>")
    assert doctor._libero().facts == {"assets": str(tmp_path.resolve())} and not doctor._libero().note
    monkeypatch.setattr("wamkit.envs.libero_assets._PACKAGES", ("libero", "a_package_that_is_not_there"))
    check = doctor._libero()
    assert check.found == "not installed" and "a_package_that_is_not_there, not installed here: pip" in check.note


def test_what_is_optional_and_lacking_is_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wamkit.envs.libero_assets._PACKAGES", ("a_package_that_is_not_there",))
    monkeypatch.setattr(doctor, "examine", lambda folder: iter([doctor._libero()]))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("note     libero: not installed\n") and "-> LIBERO needs a_package_that_is_not" in said
    assert "ok" not in said.split()
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert "pip install 'wamkit[sim]'" in doctor._rendering().note and not doctor._rendering().problem


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free / 1e9
    monkeypatch.setattr(doctor, "MIN_FREE_GB", free / 2)
    check = doctor._disk(tmp_path)
    assert not check.problem and check.facts["free_gb"] >= 0 and str(tmp_path.resolve()) in check.found
    monkeypatch.setattr(doctor, "MIN_FREE_GB", free * 2 + 1)
    assert doctor._disk(tmp_path).problem


def test_a_broken_torchvision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    (tmp_path / "torchvision-9.9.dist-info").mkdir()
    (tmp_path / "torchvision-9.9.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor._torchvision()
    assert "operator nms does not exist" in check.problem and "pip uninstall torchvision" in check.problem


def test_a_gl_that_does_not_work_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    check = doctor._rendering()
    assert check.problem and check.facts["backend"] is None


def test_a_probe_that_dies_or_hangs_is_a_reason() -> None:
    assert doctor._try("import os; print('on my way'); os.abort()")[0] == ""
    assert "status" in doctor._try("import os; os.abort()")[1]
    assert doctor._try("import time; time.sleep(60)", timeout_s=0.2)[1] == "no answer within 0 s"
    assert doctor._try("print('first'); print('last')") == ("last", "")


def test_a_problem_gives_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    assert main(["doctor", "--folder", str(tmp_path)]) == 1
    assert "PROBLEM  rendering: none\n" in capsys.readouterr().out
