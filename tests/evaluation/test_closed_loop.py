"""Evaluations in the real simulator: what they write, and that a kill costs only the episodes under way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import pytest

from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.evaluation.results import EpisodeLog, PolicyIdentity, Results
from wamkit.evaluation.statistics import wilson_interval
from wamkit.spec import SpecMismatch
from wamkit.trace import Trace

pytestmark = pytest.mark.sim

# What a killed process runs: the same evaluation as the fixture's, with the same policy.
SCRIPT = """
import importlib.util, sys
from pathlib import Path
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.evaluation.closed_loop import evaluate
from wamkit.evaluation.protocol import get_protocol
from wamkit.evaluation.results import PolicyIdentity
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
factory = MetaWorldFactory(height=32, width=32)
evaluate(
    shared.BlindPresser(factory.robot), get_protocol("metaworld/v1", max_steps=30), factory,
    tasks=["coffee-button-v3"], episodes=4, workers=1, record_episodes=3, out=Path(sys.argv[2]), progress=False,
    identity=PolicyIdentity(
        name="blind presser", fingerprint="0123abcd",
        planner={"name": "wav", "iterations": 2, "num_videos": 8, "num_values": 5},
    ),
)
"""


def solved(folder: Path) -> dict[Any, tuple[bool, int]]:
    return {key: (record.success, record.steps) for key, record in EpisodeLog(folder).read().items()}


def test_an_evaluation_leaves_results_records_films_and_traces(finished: Path) -> None:
    results = Results.load(finished)
    records = list(EpisodeLog(finished).read().values())
    assert results.protocol == "metaworld/v1 (max_steps=30)"
    assert results.policy.planner is not None and results.policy.planner["num_videos"] == 8
    assert results.policy.fingerprint == "0123abcd"
    assert results.execution_horizon == 4, "the policy's own, since the protocol leaves it open"
    score = results.tasks["coffee-button-v3"]
    assert score == results.overall
    assert score.trials == len(records) == 4 and score.errors == 0
    assert score.successes == sum(record.success for record in records)
    assert score.interval == wilson_interval(score.successes, 4)
    assert score.seeds == score.layouts == (0, 1, 2, 3)
    assert results.latency.calls == sum(len(r.latency_seconds) for r in records if not r.recorded)
    assert results.versions["mujoco"] == "3.3.0" and results.versions["wamkit"]
    assert results.gl_backend in ("egl", "osmesa")
    assert results.wall_seconds > 0 and results.machine["workers"] == 2
    recorded = [record for record in records if record.folder]
    assert sorted(str(record.folder) for record in recorded) == [
        "episodes/coffee-button-v3-0",
        "episodes/coffee-button-v3-1",
        "episodes/coffee-button-v3-2",
    ]
    for record in recorded:
        trace = Trace.load(finished / str(record.folder) / "trace.npz")
        assert (len(trace), trace.is_success) == (record.steps, record.success)
        with av.open(str(finished / str(record.folder) / "rollout.mp4")) as film:
            stream = film.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (2 * 192 + 4, 192)
            assert sum(1 for _ in film.decode(stream)) > len(trace)
    names = {path.name for path in finished.iterdir()}
    assert names == {"run.json", "episodes.jsonl", "results.json", "episodes", ".lock"}


def test_a_killed_evaluation_resumes_to_the_same_results(finished: Path, run_evaluation: Any, tmp_path: Path) -> None:
    shared = Path(__file__).parent.parent / "conftest.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(shared), str(tmp_path)], env=environment)
    log = EpisodeLog(tmp_path)
    limit = time.monotonic() + 240
    while not (log.path.is_file() and log.path.read_text().count("\n") >= 2):
        assert process.poll() is None, "the evaluation ended before it was killed"
        assert time.monotonic() < limit
        time.sleep(0.02)
    with pytest.raises(BlockingIOError, match="another process is evaluating into"):
        run_evaluation(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = log.path.read_text()
    assert not (tmp_path / "results.json").exists()
    results = run_evaluation(tmp_path)
    assert log.path.read_text().startswith(before[: before.rfind("\n") + 1]), "finished episodes are not run again"
    assert {record.session for record in log.read().values()} == {0, 1}
    assert solved(tmp_path) == solved(finished)
    assert results.tasks == Results.load(finished).tasks


def test_lost_episodes_and_further_ones_are_added(
    finished: Path, evaluated: Path, run_evaluation: Any, blind_presser: Any
) -> None:
    path = evaluated / "episodes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"success": False, "error": "worker 0 died"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    policy = blind_presser(MetaWorldFactory(height=32, width=32).robot)
    results = run_evaluation(evaluated, policy=policy, episodes=5)
    assert (results.overall.trials, results.overall.errors) == (5, 0)
    # Slots from 2 on are those of trial calls, which find out what batches change.
    seeds = [generator.initial_seed() for slot, generator in policy.generators.items() if slot < 2]
    assert sorted(seeds) == sorted([lines[0]["seed"], 4]), "only what was missing is run"
    assert {key: value for key, value in solved(evaluated).items() if key[1] < 4} == solved(finished)
    policy = blind_presser(MetaWorldFactory(height=32, width=32).robot)
    fewer = run_evaluation(evaluated, policy=policy, episodes=3)
    assert fewer.overall.layouts == (0, 1, 2)
    assert policy.batches == [], "everything was there already"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planner": None}, r"planner: there \{'name': 'wav'.*now None"),
        ({"max_steps": 40}, r"protocol: there 'metaworld/v1 \(max_steps=30\)', now 'metaworld/v1 \(max_steps=40\)'"),
        ({"identity": PolicyIdentity(name="other", fingerprint="ffff")}, "fingerprint: there '0123abcd', now 'ffff'"),
    ],
)
def test_another_evaluation_in_the_folder_is_refused(
    finished: Path, run_evaluation: Any, changes: dict[str, Any], message: str
) -> None:
    before = {path: path.read_bytes() for path in sorted(finished.rglob("*")) if path.is_file()}
    with pytest.raises(ValueError, match=message):
        run_evaluation(finished, **changes)
    assert before == {path: path.read_bytes() for path in sorted(finished.rglob("*")) if path.is_file()}


def test_starting_afresh_replaces_the_evaluation_and_records_both_ends(
    finished: Path, evaluated: Path, run_evaluation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (evaluated / "notes.txt").write_text("mine")
    caplog.set_level("INFO", logger="wamkit")
    before = EpisodeLog(finished).read()
    unsolved, first_solved = min(before), next(key for key, record in before.items() if record.success)
    assert not before[unsolved].success, "the first layout should be one that stays unsolved"
    results = run_evaluation(evaluated, planner=None, record_episodes=1, resume=False)
    assert results.policy.planner is None and results.overall == Results.load(finished).overall
    assert {path.name for path in evaluated.iterdir()} == {path.name for path in finished.iterdir()} | {"notes.txt"}
    again = EpisodeLog(evaluated).read()
    assert solved(evaluated) == solved(finished)
    assert {record.session for record in again.values()} == {0}
    # One episode was to be recorded, and it was not solved: so a solved one is repeated and recorded too.
    assert "recording 1 more episodes as examples" in caplog.text
    assert {key for key, record in again.items() if record.folder} == {unsolved, first_solved}
    assert not again[first_solved].recorded, "its calls were timed before it was recorded"
    assert Trace.load(evaluated / str(again[first_solved].folder) / "trace.npz").is_success
    assert len(list((evaluated / "episodes").iterdir())) == 2, "the earlier recordings are gone"


def test_a_policy_that_does_not_fit_leaves_no_folder(tmp_path: Path, run_evaluation: Any, blind_presser: Any) -> None:
    out = tmp_path / "evaluation"
    with pytest.raises(SpecMismatch, match="48x48 px, offered 32x32"):
        run_evaluation(out, policy=blind_presser(MetaWorldFactory(height=48, width=48).robot), workers=1)
    with pytest.raises(ValueError, match="'mujoco-low-cost', but the policy was trained on 'mujoco-stock'"):
        run_evaluation(out, policy=blind_presser(MetaWorldFactory(rendering="stock").robot))
    assert not out.exists()


def test_records_of_unknown_origin_are_refused(evaluated: Path, run_evaluation: Any) -> None:
    (evaluated / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds episodes.jsonl or results.json without run.json"):
        run_evaluation(evaluated)


def test_an_evaluation_that_finished_no_episode_blocks_no_other(tmp_path: Path, run_evaluation: Any) -> None:
    """As after a start with a wrong setting: what is evaluated next writes down its own."""
    (tmp_path / "run.json").write_text('{"protocol": "another", "machine": {}}')
    results = run_evaluation(tmp_path, episodes=1, record_episodes=0, max_steps=4, workers=1)
    assert json.loads((tmp_path / "run.json").read_text())["protocol"] == results.protocol
    with pytest.raises(ValueError, match="holds another evaluation"):
        run_evaluation(tmp_path, episodes=1, record_episodes=0, max_steps=5, workers=1)
    with pytest.raises(ValueError, match=r"expected a folder or nothing at .*run.json, found a file"):
        run_evaluation(tmp_path / "run.json")
