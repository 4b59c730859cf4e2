"""Evaluations give the same whatever surrounds them, survive their simulators and their own death, and count fairly."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wamkit.envs.in_process import InProcessPool
from wamkit.envs.workers import WorkerPool
from wamkit.evaluation.results import EpisodeLog, Results
from wamkit.spec import SpecMismatch


@pytest.fixture(autouse=True)
def no_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line world paints without OpenGL."""
    monkeypatch.setenv("MUJOCO_GL", "on")


@pytest.fixture(scope="session")
def walker(line_world: ModuleType) -> ModuleType:
    import line_walker

    return line_walker


@pytest.fixture(scope="module")
def walked(walker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nothing disturbed, one robot after the other."""
    folder = tmp_path_factory.mktemp("walked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUJOCO_GL", "on")
        walker.walk(folder, workers=1)
    return folder


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_outcomes_depend_neither_on_workers_nor_on_who_shares_a_call(
    walker: ModuleType, walked: Path, tmp_path: Path, workers: int, rounding: float
) -> None:
    policy = walker.LineWalker(rounding=rounding)
    pool = {"make_pool": lambda factory, _: InProcessPool(factory)} if workers == 0 else {"workers": workers}
    results = walker.walk(tmp_path, policy=policy, **pool)
    assert walker.courses(tmp_path) == walker.courses(walked)
    assert results.overall == Results.load(walked).overall and results.batching == "exact"
    sizes = {size for record in EpisodeLog(tmp_path).read().values() for size in record.batch_sizes}
    # The recorded robot always has calls of its own; the others share theirs where that changes nothing.
    assert sizes == ({1} if rounding or workers < 2 else set(range(1, workers + 1)))


def test_calls_that_are_always_shared_may_change_the_course(walker: ModuleType, walked: Path, tmp_path: Path) -> None:
    results = walker.walk(tmp_path, policy=walker.LineWalker(rounding=1e-4), batching="free")
    assert results.batching == "free"
    digests = [[course["digest"] for course in walker.courses(folder).values()] for folder in (tmp_path, walked)]
    assert digests[0] != digests[1]
    with pytest.raises(ValueError, match="batching: there 'free', now 'exact'"):
        walker.walk(tmp_path)


def test_a_policy_that_acts_otherwise_while_it_is_recorded_is_refused(walker: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"whether or not it is asked for what it imagines.*--record-episodes 0"):
        walker.walk(tmp_path, policy=walker.LineWalker(recording=0.1))
    assert (
        walker.walk(tmp_path / "plain", policy=walker.LineWalker(recording=0.1), record_episodes=0).overall.trials == 4
    )


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("die", r"worker \d died while working \(signal SIGSEGV\)"),
        ("hang", r"worker \d gave no answer while working within its deadline"),
        ("nan_state", r"expected finite states from the simulator, got NaN or infinity in x"),
        ("nan_reward", r"expected finite rewards from the simulator, got nan"),
    ],
)
def test_a_simulator_in_trouble_costs_its_episode_alone_and_is_no_failure_of_the_policy(
    walker: ModuleType,
    line_world: ModuleType,
    walked: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
    message: str,
) -> None:
    pools: list[WorkerPool] = []

    def make_pool(factory: Any, count: int) -> WorkerPool:
        pools.append(WorkerPool(factory, count, deadline_s=1.0))
        return pools[0]

    factory = line_world.LineFactory(trouble=trouble)
    with caplog.at_level(logging.WARNING):
        results = walker.walk(tmp_path, factory=factory, make_pool=make_pool)
    assert pools[0].restarts == 2, "the episode was tried twice, and each time its simulator was replaced"
    assert "lost an episode (task line/0, layout 1" in caplog.text
    lost = [record for record in EpisodeLog(tmp_path).read().values() if record.error]
    assert [(record.layout, record.success, record.attempts) for record in lost] == [(1, False, 2)]

    assert re.search(message, str(lost[0].error))
    good = Results.load(walked).overall
    assert (results.overall.trials, results.overall.errors) == (3, 1) and 1 not in results.overall.layouts
    assert results.overall.successes == good.successes - walker.courses(walked)[lost[0].key]["success"]
    undisturbed = {key: course for key, course in walker.courses(walked).items() if key[1] != 1}
    assert {key: course for key, course in walker.courses(tmp_path).items() if key[1] != 1} == undisturbed
    # The same command tries again what was lost, and nothing else.
    assert walker.walk(tmp_path).overall == good
    assert walker.courses(tmp_path) == walker.courses(walked)


def test_trouble_in_this_process_is_told_too(walker: ModuleType, line_world: ModuleType, tmp_path: Path) -> None:
    factory = line_world.LineFactory(trouble="nan_state")
    results = walker.walk(tmp_path, factory=factory, make_pool=lambda factory, _: InProcessPool(factory))
    assert (results.overall.trials, results.overall.errors) == (3, 1)


KILLED = """
import functools, os, signal, sys
from pathlib import Path
import line_walker
from wamkit.evaluation import closed_loop, results
stage, out = sys.argv[1], Path(sys.argv[2])

def die_in(owner, name, times, before=lambda *arguments: None):
    whole, calls = getattr(owner, name), []
    @functools.wraps(whole)
    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == times:
            before(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **options)
    setattr(owner, name, dying)

def half_a_line(log, record):
    with log.path.open("a") as file:
        file.write(record.to_json()[:70])

if stage == "episode":
    die_in(line_walker.LineWalker, "act", 9)
if stage == "recording":
    die_in(closed_loop, "encode_rollout", 1)
if stage == "example":
    die_in(closed_loop, "encode_rollout", 2)
if stage == "line":
    die_in(results.EpisodeLog, "append", 3, half_a_line)
if stage == "results":
    die_in(results, "atomic_file", 2)
line_walker.walk(out)
"""


@pytest.mark.parametrize(
    ("stage", "finished"),
    [("episode", range(4)), ("recording", range(4)), ("line", [2]), ("example", [4]), ("results", [5])],
)
@pytest.mark.slow
def test_a_kill_at_any_stage_loses_nothing_that_was_finished(
    walker: ModuleType, walked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str, finished: Any
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, stage, str(tmp_path)]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert not (tmp_path / "results.json").exists()
    text = (tmp_path / "episodes.jsonl").read_bytes() if (tmp_path / "episodes.jsonl").exists() else b""
    assert text.count(b"\n") in finished
    results = walker.walk(tmp_path)
    assert ("left out a half-written last line" in caplog.text) == (stage == "line")
    assert (tmp_path / "episodes.jsonl").read_bytes().startswith(text[: text.rfind(b"\n") + 1])
    assert walker.courses(tmp_path) == walker.courses(walked)
    assert results.tasks == Results.load(walked).tasks
    # The first episode was to be recorded, and one that ended the other way is recorded beside it.
    assert {path.name for path in (tmp_path / "episodes").iterdir()} == {"line__0-0", "line__0-3"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "front"}, r"camera 'side' is wanted; offered are \['front', 'top'\]"),
        ({"order": True}, r"order of cameras: wanted \['front', 'side'\], offered \['side', 'front'\]"),
        ({"height": 8}, "camera 'front': wanted 4x6 px, offered 8x6 px"),
        ({"action_kind": "absolute"}, "action_kind: wanted 'delta', offered 'absolute'"),
        ({"rotation": "quaternion_xyzw"}, "wanted .*rotation='axis_angle'.*, offered .*rotation='quaternion_xyzw'"),
        ({"gripper_sign": "open_positive"}, "gripper_sign: wanted 'close_positive', offered 'open_positive'"),
        ({"control_hz": 20.0}, "control_hz: wanted 10.0, offered 20.0"),
        ({"rendering": "shaded"}, "rendering: wanted 'painted', offered 'shaded'"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    walker: ModuleType, line_world: ModuleType, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    front = line_world.ROBOT.cameras[0]
    side = dataclasses.replace(front, name="side")
    turned = dataclasses.replace(line_world.ROBOT.action[0], rotation="axis_angle")
    robot = dataclasses.replace(line_world.ROBOT, cameras=(front, side), action=(turned, line_world.ROBOT.action[1]))
    ((kind, value),) = change.items()
    other = {
        "name": {"cameras": (front, dataclasses.replace(front, name="top"))},
        "order": {"cameras": (side, front)},
        "height": {"cameras": (dataclasses.replace(front, height=8), side)},
        "rotation": {"action": (dataclasses.replace(turned, rotation=str(value)), robot.action[1])},
    }.get(kind, {kind: value})
    log = tmp_path / "log"
    factory = line_world.LineFactory(robot=dataclasses.replace(robot, **other), log=str(log))
    policy = walker.LineWalker(robot)
    with pytest.raises(SpecMismatch, match=message) as refused:
        walker.walk(tmp_path / "out", policy=policy, factory=factory, workers=1)
    assert str(refused.value).startswith("the policy and the environment do not fit")
    assert not log.exists() and policy.sizes == [] and not (tmp_path / "out").exists()
    walker.walk(tmp_path / "out", policy=policy, factory=line_world.LineFactory(robot=robot), episodes=1)


@pytest.mark.parametrize(
    ("limits", "unit", "steps", "calls"),
    [
        ((), "steps", 22, 8),  # max_steps
        ((("line/*", 7),), "steps", 7, 3),
        ((("other/*", 7), ("line/*", 8)), "steps", 8, 3),
        ((("line/*", 2),), "calls", 6, 2),  # two calls of three actions
        ((("line/*", 50),), "calls", 22, 8),  # max_steps still ends it
    ],
)
def test_an_episode_ends_at_its_limit_of_steps_or_of_calls(
    walker: ModuleType, tmp_path: Path, limits: Any, unit: str, steps: int, calls: int
) -> None:
    protocol = dataclasses.replace(walker.PROTOCOL, task_limits=limits, limit_unit=unit, layout_seed=0)
    results = walker.walk(tmp_path, protocol=protocol, episodes=4, workers=1)
    (far,) = [record for record in EpisodeLog(tmp_path).read().values() if record.layout == 3]
    assert (far.steps, len(far.latency_seconds), far.success) == (steps, calls, False)
    settings = json.loads((tmp_path / "results.json").read_text())["protocol_settings"]
    assert settings["limit_unit"] == unit and settings["task_limits"] == [list(limit) for limit in limits]
    assert results.overall.trials == settings["episodes"] == 4


def test_what_is_written_down_is_what_was_used(walker: ModuleType, tmp_path: Path) -> None:
    results = walker.walk(tmp_path, tasks=["line/*"], episodes=2, workers=1)
    assert (results.protocol_settings["episodes"], results.protocol_settings["tasks"]) == (2, ("line/0",))
    assert json.loads((tmp_path / "run.json").read_text())["protocol_settings"]["episodes"] == 2


def test_another_machine_or_thread_count_is_said(
    walker: ModuleType, walked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    walker.walk(tmp_path, episodes=1, workers=1)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run, "machine": {**run["machine"], "torch_threads": 77}}))
    walker.walk(tmp_path, episodes=2, workers=1)
    assert "torch_threads" in caplog.text and "77" in caplog.text
