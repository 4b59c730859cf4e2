"""`wamkit report` as a process: fast, without torch, one message when something is missing."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wamkit.cli.evaluate import _table
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.results import (
    EpisodeLog,
    EpisodeRecord,
    PolicyIdentity,
    Results,
    TaskScore,
    measure_latency,
    score_episodes,
)
from wamkit.evaluation.statistics import wilson_interval

RUN = """
import sys
from wamkit.cli.main import Command, main
code = main(commands={"report": Command("wamkit.cli.report", "write a page")})
print("torch" in sys.modules)
sys.exit(code)
"""


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", RUN, "report", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def finish(
    folder: Path,
    solved: str = "+",
    *,
    asked: int | None = None,
    protocol: str = "metaworld/v1",
    max_steps: int = 500,
    fingerprint: str = "f",
) -> None:
    """An evaluation without recordings; `solved` tells its episodes: + solved, - not, ! lost to a simulator error.

    With `asked` it is one that was killed when it had finished them.
    """
    folder.mkdir()
    records = [
        EpisodeRecord(
            task="push-v3",
            layout=layout,
            layout_seed=1042,
            seed=layout,
            success=end == "+",
            steps=20,
            reward_sum=1.0,
            wall_seconds=1.0,
            session=0,
            elapsed_seconds=1.0,
            latency_seconds=(0.1,),
            batch_sizes=(1,),
            error="worker 0 died" if end == "!" else None,
        )
        for layout, end in enumerate(solved)
    ]
    for record in records:
        EpisodeLog(folder).append(record)
    settings = {"rendering": "mujoco-low-cost", "max_steps": max_steps}
    about = {"protocol": protocol, "protocol_settings": settings, "execution_horizon": 8, "robot": "sawyer/metaworld"}
    policy = PolicyIdentity(name="p", fingerprint=fingerprint)
    versions = {"mujoco": "3.3.0"}
    if asked is not None:
        run = {**about, "policy": dataclasses.asdict(policy), "versions": versions, "gl_backend": "egl", "machine": {}}
        run |= {"asked": [["push-v3", layout, 1042, layout] for layout in range(asked)], "batching": "exact"}
        (folder / "run.json").write_text(json.dumps(run | {"fingerprint": fingerprint}))
        return
    score = score_episodes(records)
    Results(
        protocol=protocol,
        protocol_settings=settings,
        execution_horizon=8,
        policy=policy,
        robot="sawyer/metaworld",
        tasks={"push-v3": score},
        overall=score,
        latency=measure_latency(records),
        wall_seconds=1.0,
        versions=versions,
        gl_backend="egl",
        machine={},
    ).save(folder)


def test_a_page_is_written_without_loading_torch(tmp_path: Path) -> None:
    finish(tmp_path / "plain")
    done = report(tmp_path / "plain", "--output", tmp_path / "page.html", "--title", "Pushing")
    assert done.returncode == 0, done.stderr
    title, row, wrote, has_torch = done.stdout.splitlines()
    assert title == "metaworld/v1" and "1/1 100%" in row
    assert wrote.startswith(f"wrote {tmp_path / 'page.html'}") and has_torch == "False"
    assert "<h1>Pushing</h1>" in (tmp_path / "page.html").read_text()


def test_two_policies_are_paired_episode_by_episode(tmp_path: Path) -> None:
    finish(tmp_path / "a", "++++----!+")
    finish(tmp_path / "b", "-+++++++++!", fingerprint="g")
    page = tmp_path / "page.html"
    done = report(tmp_path / "a", tmp_path / "b", "--output", page)
    # Of the nine episodes that both finished, b alone solved four and a alone one: 2 (C(5,0) + C(5,1)) / 2^5.
    assert "against the first row: 4 won, 1 lost, 4 alike of 9, p = 0.38" in done.stdout
    assert "5/9 56%" in done.stdout and "1 lost to simulator errors" in done.stdout
    assert "note: The rows come from different policies. a: f; b: g" in done.stdout
    assert "+4 −1" in page.read_text() and "different policies" in page.read_text()
    told = report(tmp_path / "a", tmp_path / "b", "--output", page, "--json").stdout
    told = json.loads(told[: told.rindex("}") + 1])
    assert told["comparable"] and told["page"] == str(page)
    (group,) = told["protocols"]
    (pair,) = group["paired"]
    assert (pair["both"], pair["only_first"], pair["only_second"], pair["neither"]) == (4, 1, 4, 0)
    assert pair["pairs"] == 9 and pair["p_value"] == 12 / 32
    assert [row["overall"]["errors"] for row in group["evaluations"]] == [1, 1]
    assert all(row["is_complete"] for row in group["evaluations"])


@pytest.mark.parametrize(
    "other",
    [{"protocol": "metaworld/v1 (max_steps=300)", "max_steps": 300}, {"max_steps": 300}],
    ids=["title", "rules"],
)
def test_different_protocols_are_never_paired(tmp_path: Path, other: dict[str, Any]) -> None:
    """Neither those whose titles tell them apart, nor those of one name that fix different things."""
    finish(tmp_path / "a", "++")
    finish(tmp_path / "b", "--", **other)
    page = tmp_path / "page.html"
    done = report(tmp_path / "a", tmp_path / "b", "--output", page)
    assert "2 different protocols: do not compare" in done.stdout and "against the first row" not in done.stdout
    assert "max_steps=300" in done.stdout and "max_steps=300" in page.read_text()
    assert page.read_text().count("<table") == 2 and "do not compare across tables" in page.read_text()
    told = report(tmp_path / "a", tmp_path / "b", "--output", page, "--json").stdout
    told = json.loads(told[: told.rindex("}") + 1])
    assert not told["comparable"] and [group["paired"] for group in told["protocols"]] == [[], []]


def test_an_incomplete_evaluation_says_so_on_its_page(tmp_path: Path) -> None:
    finish(tmp_path / "killed", "+-", asked=5)
    log = tmp_path / "killed" / "episodes.jsonl"
    log.write_text(log.read_text() + '{"task": "push-v3", "lay')
    before = log.read_text()
    page = tmp_path / "page.html"
    done = report(tmp_path / "killed", "--output", page)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, page.read_text()):
        assert "the evaluation is incomplete: 3 of the 5 episodes asked for last are missing (push-v3)" in text
        assert "the last line of episodes.jsonl is half-written, so its episode is lost" in text
    assert "1/2 50%" in done.stdout and log.read_text() == before, "a report changes nothing"


def test_a_finished_evaluation_that_lost_lines_says_so(tmp_path: Path) -> None:
    finish(tmp_path / "torn", "+-+")
    log = tmp_path / "torn" / "episodes.jsonl"
    log.write_text(log.read_text()[:-30])
    done = report(tmp_path / "torn", "--output", tmp_path / "page.html")
    assert "2/3" in done.stdout
    for text in (done.stdout, (tmp_path / "page.html").read_text()):
        assert "half-written" in text and "lacks 1 of the 3 episodes that results.json counts" in text


def test_results_that_their_episodes_contradict_are_refused(tmp_path: Path) -> None:
    finish(tmp_path / "edited", "--")
    file = tmp_path / "edited" / "results.json"
    score = {"successes": 1, "interval": wilson_interval(1, 2)}
    told = json.loads(file.read_text())
    changed = {"tasks": {"push-v3": told["tasks"]["push-v3"] | score}, "overall": told["overall"] | score}
    file.write_text(json.dumps(told | changed))
    done = report(tmp_path / "edited", "--output", tmp_path / "page.html")
    assert done.returncode == 2 and not (tmp_path / "page.html").exists()
    assert "results.json: expected the counts of episodes.jsonl beside it, 0 successes in 2 trials" in done.stderr
    assert "of push-v3, got 1 in 2; the same `wamkit evaluate` command counts episodes.jsonl anew" in done.stderr


@pytest.mark.parametrize(
    ("solved", "counts", "fits"),
    [
        ("+-+", {}, True),
        ("+-+", {"successes": 3}, False),
        ("+-+", {"trials": 4}, False),
        ("+-+", {"successes": 1, "trials": 2}, False),
        ("+-!", {"successes": 2}, False),
        ("+-!", {}, True),
    ],
)
def test_counts_are_those_of_the_episodes(tmp_path: Path, solved: str, counts: dict[str, int], fits: bool) -> None:
    finish(tmp_path / "a", solved)
    results = Results.load(tmp_path / "a")
    score = dataclasses.asdict(results.overall) | counts
    score = TaskScore(**score | {"interval": wilson_interval(score["successes"], score["trials"])})
    dataclasses.replace(results, tasks={"push-v3": score}, overall=score).save(tmp_path / "a")
    # Trials that came after the results were written are no contradiction.
    log = EpisodeLog(tmp_path / "a")
    log.append(dataclasses.replace(next(iter(log.read().values())), layout=9, seed=9))
    if fits:
        assert Evaluation(tmp_path / "a").results.overall == score
    else:
        with pytest.raises(ValueError, match=r"expected the counts of episodes\.jsonl"):
            Evaluation(tmp_path / "a").results  # noqa: B018


def test_calls_that_imagined_are_not_told_as_acting(tmp_path: Path) -> None:
    finish(tmp_path / "a", "+-")
    results = Results.load(tmp_path / "a")
    assert "policy call: median 100 ms, p95 100 ms (batches of 1.0)" in _table(results, "")
    recording = dataclasses.replace(results, latency=dataclasses.replace(results.latency, while_recording=True))
    assert "(batches of 1.0, imagining for the recording; --record-episodes 0 times acting alone)" in _table(
        recording, ""
    )


def test_a_world_models_folder_is_no_evaluation(tmp_path: Path) -> None:
    (tmp_path / "quality.json").write_text("{}")
    done = report(tmp_path, "--output", tmp_path / "page.html")
    assert done.returncode == 2 and "name it with --quality" in done.stderr


def test_results_without_their_episodes_say_so(tmp_path: Path) -> None:
    finish(tmp_path / "a", "+-", asked=2)
    run = (tmp_path / "a" / "run.json").read_text()
    finish(tmp_path / "b", "+-")
    (tmp_path / "b" / "run.json").write_text(run)
    assert Evaluation(tmp_path / "b").gaps == []
    (tmp_path / "b" / "episodes.jsonl").unlink()
    evaluation = Evaluation(tmp_path / "b")
    assert evaluation.missing == [] and evaluation.results.overall.trials == 2
    (gap,) = evaluation.gaps
    assert gap.startswith("episodes.jsonl is not there, so the counts of results.json stand unchecked")
    more = [["push-v3", layout, 1042, layout] for layout in range(5)]
    (tmp_path / "b" / "run.json").write_text(json.dumps(json.loads(run) | {"asked": more}))
    assert "3 of the 5 episodes asked for last are missing; " in Evaluation(tmp_path / "b").missing[0]


def test_a_page_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    done = report(tmp_path / "a", "--output", "/proc/nowhere/page.html")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "expected /proc/nowhere, or a place where it can be made, found neither" in done.stderr


def test_an_unfinished_evaluation_is_one_message(tmp_path: Path) -> None:
    done = report(tmp_path, "--output", tmp_path / "page.html")
    assert done.returncode == 2
    assert "holds no results.json" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_what_is_missing_or_wrong_is_told(tmp_path: Path) -> None:
    finish(tmp_path / "plain")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "openloop.json").write_text("{}")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    page = tmp_path / "page.html"
    for arguments, message in (
        ((tmp_path / "absent",), "no such folder; check the path"),
        ((tmp_path / "open",), "name it with --openloop"),
        ((tmp_path / "begun",), "run it again to resume"),
        ((tmp_path / "plain", "--metrics", tmp_path / "absent"), "expected training metrics"),
        ((tmp_path / "plain", "--films", -1), "expected 0 or more films"),
        ((tmp_path / "plain", "--openloop", tmp_path / "plain"), "make it with `wamkit openloop`"),
        ((), "--openloop"),
    ):
        done = report(*arguments, "--output", page)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert not page.exists()
    done = report(tmp_path / "plain", "--output", tmp_path)
    assert done.returncode == 2 and "expected a file name for the page" in done.stderr
