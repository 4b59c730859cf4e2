"""Records and results survive the disk, damage is named, and errors are not failures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from wamkit.evaluation.results import (
    EpisodeLog,
    EpisodeRecord,
    PolicyIdentity,
    Results,
    measure_latency,
    score_episodes,
    total_wall_seconds,
)
from wamkit.evaluation.statistics import wilson_interval


def record(layout: int = 0, **changes: object) -> EpisodeRecord:
    plain = EpisodeRecord(
        task="push-v3",
        layout=layout,
        layout_seed=1042,
        seed=layout,
        success=False,
        steps=60,
        reward_sum=1.5,
        wall_seconds=2.0,
        session=0,
        elapsed_seconds=2.0,
        latency_seconds=(0.1, 0.2),
        batch_sizes=(2, 1),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def results() -> Results:
    score = score_episodes([record(0, success=True, steps=20), record(1)])
    return Results(
        protocol="metaworld/v1",
        protocol_settings={"max_steps": 500},
        execution_horizon=8,
        policy=PolicyIdentity(name="p", fingerprint="f", planner={"name": "wav"}),
        robot="sawyer/metaworld",
        tasks={"push-v3": score},
        overall=score,
        latency=measure_latency([record(0), record(1)]),
        wall_seconds=3.5,
        versions={"wamkit": "0.1.0"},
        gl_backend="egl",
        machine={"cores": 2},
    )


def test_records_round_trip_and_later_ones_win(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path)
    assert log.read() == {}
    lost = record(1, error="worker 0 died (signal SIGKILL)")
    again = record(1, success=True, attempts=2, session=1, folder="episodes/push-v3-1", recorded=True)
    for item in (record(0), lost, again):
        log.append(item)
    assert list(log.read().values()) == [record(0), again]


def test_a_torn_last_line_is_dropped_and_appending_goes_on(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path)
    log.append(record(0))
    log.append(record(1))
    log.path.write_bytes(log.path.read_bytes()[:-20])
    assert list(log.read().values()) == [record(0)]
    log.append(record(2))
    assert list(log.read().values()) == [record(0), record(2)]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path)
    log.append(record(0))
    log.path.write_text('{"task": "push-v3"}\n' + log.path.read_text())
    with pytest.raises(ValueError, match=r"episodes.jsonl, line 1: episode record: expected the keys"):
        log.read()


def test_simulator_errors_are_neither_successes_nor_failures() -> None:
    score = score_episodes([record(0, success=True, steps=20), record(1), record(2, error="died")])
    assert (score.successes, score.trials, score.errors) == (1, 2, 1)
    assert score.interval == wilson_interval(1, 2)
    assert (score.mean_steps, score.mean_success_steps) == (40, 20)
    assert score.layouts == (0, 1)
    nothing = score_episodes([record(0, error="died")])
    assert nothing.rate is None and nothing.mean_steps is None and nothing.interval == (0.0, 1.0)


def test_recorded_calls_do_not_slow_the_latency_down() -> None:
    slow = record(1, recorded=True, latency_seconds=(5.0, 6.0))
    latency = measure_latency([record(0), slow])
    assert latency.median_seconds == pytest.approx(0.15) and latency.calls == 2
    assert latency.mean_batch_size == 1.5 and not latency.while_recording
    alone = measure_latency([slow])
    assert alone.median_seconds == 5.5 and alone.while_recording
    assert measure_latency([]).median_seconds is None


def test_wall_time_adds_sessions_not_episodes() -> None:
    assert total_wall_seconds([record(0, elapsed_seconds=9.0), record(1, elapsed_seconds=4.0)]) == 9.0
    assert total_wall_seconds([record(0, elapsed_seconds=9.0), record(1, session=1, elapsed_seconds=4.0)]) == 13.0


def test_results_round_trip(tmp_path: Path) -> None:
    results().save(tmp_path)
    assert Results.load(tmp_path) == results()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results.json: expected results"),
        ('{"format": "other"}', "expected results of format 'wamkit-results/1', got 'other'"),
        (
            '{"format": "wamkit-results/1", "policy": {}}',
            r"results.json: results: expected the keys protocol, .* missing",
        ),
        ("[]", "results.json: expected results"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Results.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("policy", None, "PolicyIdentity: expected an object with the keys name, fingerprint"),
        ("tasks", [], "expected tasks as an object"),
        ("overall", 3, "TaskScore: expected an object"),
        ("execution_horizon", "8", 'expected execution_horizon as a whole number, got "8"'),
        ("machine", None, "expected machine as an object"),
    ],
)
def test_values_of_a_wrong_type_are_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    content = json.loads(results().save(tmp_path).read_text())
    (tmp_path / "results.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(ValueError, match=rf"results\.json: .*{message}.*; restore the file, or make it again"):
        Results.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"successes": 3}, "expected 0 <= successes <= trials, got 3 of 2"),
        ({"successes": 2}, r"interval of 2 successes in 2 trials, 0\.3424 to 1\.0000, got 0\.0945 to 0\.9055"),
        ({"interval": [0.0945, 0.9056]}, r"expected the interval of 1 successes in 2 trials"),
        ({"errors": -1}, "expected 0 or more episodes lost to simulator errors, got -1"),
        ({"successes": 2, "interval": wilson_interval(2, 2)}, "expected overall successes .* tasks together, 2, got 1"),
        ({"trials": 3, "interval": wilson_interval(1, 3)}, "expected overall trials .* tasks together, 3, got 2"),
        ({"errors": 1}, "expected overall errors .* tasks together, 1, got 0"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    content = json.loads(results().save(tmp_path).read_text())
    content["tasks"]["push-v3"] |= changes
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"results\.json: .*{message}.*the same `wamkit evaluate` command counts"):
        Results.load(tmp_path)


def test_missing_results_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the output folder of `wamkit evaluate`"):
        Results.load(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="run it again to resume"):
        Results.load(tmp_path)
