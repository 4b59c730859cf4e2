"""Options of `wamkit evaluate` become a planner, a protocol and a simulator, or one clear message."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import tyro

from wamkit.cli.evaluate import (
    Options,
    _telling_how_to_go_on,
    make_factory,
    run,
    warn_about_tasks,
    warn_about_versions,
)
from wamkit.cli.planner import PlannerOptions
from wamkit.cli.policy import PolicyOptions
from wamkit.envs import suite_sentences
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.evaluation.protocol import get_protocol
from wamkit.planning.config import PRESETS, REFERENCE, SHRINK_ONLY, WAV
from wamkit.robots import libero_robot
from wamkit.spec import RobotSpec, SpecMismatch

SAWYER = MetaWorldFactory().robot
PANDA = libero_robot(64, 64, ("agentview", "robot0_eye_in_hand"), "mujoco-low-cost")


def test_planners_by_name_size_and_file(tmp_path: Path) -> None:
    assert PlannerOptions().config() is None and PlannerOptions().describe() is None
    for name, preset in PRESETS.items():
        assert PlannerOptions(planner=name).config() == preset
    sized = PlannerOptions(planner="shrink_only", planner_iterations=2, candidates=8, value_samples=2)
    assert sized.config() == dataclasses.replace(SHRINK_ONLY, iterations=2, num_videos=8, num_values=2)
    described = sized.describe()
    assert described is not None
    assert described["name"] == "shrink_only" and described["random_scores"] and described["num_videos"] == 8
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"score": "lcb", "num_videos": 4}))
    from_file = PlannerOptions(planner=str(file), candidates=6)
    assert from_file.config() == dataclasses.replace(WAV, score="lcb", num_videos=6)
    assert (from_file.describe() or {})["name"] == "mine"


def test_every_setting_of_a_planner_is_an_option() -> None:
    other = {
        "iterations": 2, "num_videos": 8, "num_values": 3, "video_elites": 0.5, "value_elites": 0.25, "keep_mean": 0.1,
        "keep_std": 0.2, "std_decay": 0.9, "min_std": 0.1, "unbiased_std": True, "pool_views": True,
        "fit_memory_frames": True, "score": "lcb", "penalty": 2.0, "pairing": "reference", "final": "best",
        "random_scores": True, "value_steps": 4, "denormalize_scores": True, "warm_start": True, "warm_start_std": 0.7,
    }  # fmt: skip
    assert set(other) == {item.name for item in dataclasses.fields(WAV)}
    spoken = {"num_videos": "candidates", "num_values": "value-samples"}
    for name, value in other.items():
        option = "--" + spoken.get(name, f"planner-{name}".replace("_", "-"))
        parsed = tyro.cli(PlannerOptions, args=["--planner", "wav", option, str(value)])
        expected = dataclasses.replace(WAV, **{name: value})  # type: ignore[arg-type]
        assert parsed.config() == expected != WAV, name
    parsed = tyro.cli(PlannerOptions, args=["--planner", "reference", "--planner-pool-views", "False"])
    assert parsed.config() == dataclasses.replace(REFERENCE, pool_views=False)


def test_wrong_planners_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown planner 'cem'; choose one of none, wav, reference, shrink_only"):
        PlannerOptions(planner="cem").config()
    with pytest.raises(ValueError, match="--planner none uses none"):
        PlannerOptions(candidates=3).config()
    with pytest.raises(FileNotFoundError, match=r"absent.json, found no file"):
        PlannerOptions(planner=str(tmp_path / "absent.json")).config()
    for text in ('{"candidates": 3}', "[1]", "{"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad.json: expected a JSON object with settings among iterations, "):
            PlannerOptions(planner=str(tmp_path / "bad.json")).config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "metaworld/v0"}, "unknown protocol 'metaworld/v0'"),
        ({"tasks": ("drawer-open",)}, r"no task drawer-open \(did you mean drawer-open-v3\?\); it covers"),
        ({"running": PolicyOptions(num_steps=0)}, "expected num_steps >= 1"),
        ({"groups": 0}, "expected groups >= 1"),
        ({"running": PolicyOptions(max_rows=0)}, "expected max_rows >= 1"),
        ({"record_episodes": -1}, "expected record_episodes >= 0"),
        ({"running": PolicyOptions(planning=PlannerOptions(planner="cem"))}, "unknown planner"),
        ({"max_steps": 0}, "expected max_steps >= 1"),
        ({"seeds": (0, -1)}, r"expected seeds of 0 or more, got \(0, -1\)"),
        ({"layout_seed": -1}, "expected layout_seed of 0 or more, got -1"),
        ({"memory_threshold": 0}, "expected memory_threshold >= 1"),
        ({"workers": -1}, "expected --workers of 1 or more, or 0 for this process, got -1"),
        ({"ray_address": "auto"}, "add --backend ray"),
        ({"workers": 0, "backend": "ray"}, "choose one of them"),
    ],
)
def test_wrong_options_are_told_before_the_policy_is_loaded(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(Options(policy=tmp_path / "absent", output=tmp_path / "out", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_other_peoples_folders_are_refused_before_the_policy_is_loaded(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "out" / "episodes").mkdir(parents=True)
    (tmp_path / "out" / "episodes" / "mine.txt").write_text("mine")
    options = Options(policy=tmp_path / "absent", output=tmp_path / "out", fresh=fresh)
    with pytest.raises(FileExistsError, match=r"new or empty folder, .* holds other things \(episodes\); choose"):
        run(options)
    assert (tmp_path / "out" / "episodes" / "mine.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"expected a folder or nothing at .*mine\.txt, found a file"):
        run(dataclasses.replace(options, output=tmp_path / "out" / "episodes" / "mine.txt"))


@pytest.mark.parametrize(
    ("robot", "protocol", "message"),
    [
        (SAWYER, "libero/standard", r"the robot panda/libero, got one of sawyer/metaworld .*--protocol metaworld/v1,"),
        (SAWYER, "aloha/v1", r"the robot two vx300s/gym-aloha, got one of sawyer/metaworld \(cameras corner2, gripper"),
        (
            PANDA,
            "metaworld/v1",
            r"the robot sawyer/metaworld, got one of panda/libero .* libero/standard or libero",
        ),
        (
            dataclasses.replace(PANDA, name="panda/lab"),
            "metaworld/v1",
            r"sawyer/metaworld, got one of panda/lab .*; no named protocol simulates panda/lab",
        ),
    ],
)
def test_a_policy_of_another_robot_is_told_both_names(robot: RobotSpec, protocol: str, message: str) -> None:
    with pytest.raises(SpecMismatch, match=message):
        make_factory(get_protocol(protocol), robot)


def test_a_dataset_may_call_the_robot_by_its_own_name() -> None:
    robot = dataclasses.replace(SAWYER, name="sawyer of the lab")
    assert make_factory(get_protocol("metaworld/v1"), robot) == MetaWorldFactory()


@pytest.mark.parametrize(("is_fresh", "command"), [(False, "command goes on"), (True, "command without --fresh goes")])
def test_an_interrupt_says_how_to_go_on(is_fresh: bool, command: str) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"the same {command}"), _telling_how_to_go_on(is_fresh=is_fresh):
        raise KeyboardInterrupt


def test_the_simulator_shows_what_the_policy_saw() -> None:
    wanted = MetaWorldFactory(cameras=("gripperPOV",), height=48, width=96)
    assert make_factory(get_protocol("metaworld/v1"), wanted.robot) == wanted
    stock = MetaWorldFactory(rendering="stock")
    assert make_factory(get_protocol("metaworld/v1", rendering="mujoco-stock"), stock.robot) == stock


def test_ray_that_is_not_installed_is_said_before_the_policy_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install wamkit\[ray\]"):
        run(Options(policy=tmp_path / "absent", output=tmp_path / "out", backend="ray"))


def test_settle_steps_need_a_suite_that_makes_them() -> None:
    with pytest.raises(ValueError, match="suite 'metaworld' has no settle steps"):
        make_factory(get_protocol("metaworld/v1", settle_steps=10), MetaWorldFactory().robot)


def test_tasks_that_the_policy_was_not_trained_on_are_said(caplog: pytest.LogCaptureFixture) -> None:
    sentences = suite_sentences("metaworld")
    warn_about_tasks((), ["hammer-v3"], sentences)
    warn_about_tasks(("open the drawer",), ["drawer-open-v3"], sentences)
    assert caplog.records == []
    warn_about_tasks(("open the drawer", "open the door"), ["drawer-open-v3", "hammer-v3"], sentences)
    (record,) = caplog.records
    assert record.getMessage() == "the policy was not trained on hammer-v3, only on: open the drawer; open the door"


def test_another_simulator_than_in_training_is_said(caplog: pytest.LogCaptureFixture) -> None:
    here = {"mujoco": "3.9.0", "metaworld": "3.1.1", "torch": "2.9"}
    warn_about_versions({"mujoco": "3.3.0", "metaworld": "3.1.1", "torch": "2.8"}, here)
    (record,) = caplog.records
    assert "mujoco 3.3.0, but 3.9.0 is installed here" in record.getMessage()


def test_simulators_that_cannot_show_it_are_named() -> None:
    robot = MetaWorldFactory().robot
    mixed = dataclasses.replace(robot, cameras=(robot.cameras[0], dataclasses.replace(robot.cameras[1], height=32)))
    with pytest.raises(ValueError, match=r"cameras of one size.*\(32, 64\), \(64, 64\)"):
        make_factory(get_protocol("metaworld/v1"), mixed)
    with pytest.raises(ValueError, match="renders as mujoco-low-cost, mujoco-stock, not as 'raytraced'"):
        make_factory(get_protocol("metaworld/v1", rendering="raytraced"), robot)
