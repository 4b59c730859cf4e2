"""The page needs nothing else, says everything there is, and never mixes protocols."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import pytest

from wamkit.evaluation.report import write_report
from wamkit.evaluation.report_episodes import value_lines
from wamkit.evaluation.results import EpisodeLog, Results, score_episodes
from wamkit.evaluation.statistics import wilson_interval
from wamkit.trace import Trace

pytestmark = pytest.mark.sim
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects what a reader and a browser find, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.counts: dict[str, int] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [str(value) for key, value in attrs if key in ("src", "href", "poster", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def change_results(folder: Path, **changes: Any) -> None:
    dataclasses.replace(Results.load(folder), **changes).save(folder)


def test_the_page_holds_everything_and_needs_nothing(finished: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"stage": s, "step": i, "loss": 2.0 / i} for s in ("video_only", "action_full") for i in range(1, 40)]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "action')
    page_file = write_report([finished], tmp_path / "report.html", "A title & more", metrics=metrics)
    text = page_file.read_text()
    page = Page(text)
    assert all(ref.startswith(("data:", "#")) for ref in page.references), "no external resources"
    assert "@import" not in text and "url(" not in text and not re.search(r"https?://", text)
    results = Results.load(finished)
    assert "A title & more" in page.text
    assert f"{results.overall.successes} / 4" in page.text
    assert "metaworld/v1 (max_steps=30)" in page.text and "0123abcd" in page.text
    assert "planner wav" in page.text and "iterations 2, videos 8, values 5" in page.text
    assert page.counts["video"] == 3
    assert "✓ solved" in page.text and "✗ not solved" in page.text
    assert "press the button on the coffee machine" in page.text
    assert "+2 +4 +6 +8" in page.text and "imagined" in page.text and "dB" in page.text
    assert "iteration 1" in page.text and "iteration 2" in page.text
    assert "video_only" in page.text and "action_full" in page.text
    # One success bar, two value charts, one chart of scores, two of losses.
    assert page.counts["svg"] == 1 + 2 + 1 + 2
    films = [ref for ref in page.references if ref.startswith("data:video/mp4")]
    for film in films:
        with av.open(io.BytesIO(base64.b64decode(film.split(",")[1]))) as container:
            assert sum(1 for _ in container.decode(video=0)) > 10
    assert [path.name for path in tmp_path.glob("*report*")] == ["report.html"], "nothing half-written is left"


def test_real_frames_stand_under_the_imagined_ones(finished: Path, tmp_path: Path) -> None:
    page = Page(write_report([finished], tmp_path / "report.html", max_episodes=1).read_text())
    record = next(record for record in EpisodeLog(finished).read().values() if record.folder and record.success)
    trace = Trace.load(finished / str(record.folder) / "trace.npz")
    shown = {0, *[call.step for call in trace.calls]}
    told = {int(step) for step in re.findall(r"Control step (\d+)", page.text)}
    assert told <= shown and {0, max(shown)} <= told and len(told) <= 4
    # Per camera and call: four imagined frames, the present one, and those real ones that came before the end.
    real = sum(step + ahead <= len(trace) for step in told for ahead in (2, 4, 6, 8))
    assert page.counts["img"] == 2 * (5 * len(told) + real)


def test_the_first_value_of_a_call_stands_at_its_step(finished: Path) -> None:
    record = next(record for record in EpisodeLog(finished).read().values() if record.folder)
    trace = Trace.load(finished / str(record.folder) / "trace.npz")
    *lines, present = value_lines(trace)
    for call, line in zip(trace.calls, lines, strict=True):
        assert call.value is not None
        assert list(line.x) == list(range(call.step, call.step + 8)) and list(line.y) == call.value.tolist()
    assert list(present.x) == [call.step for call in trace.calls] and present.dots
    assert list(present.y) == [line.y[0] for line in lines]


def test_different_protocols_stand_in_different_tables(finished: Path, evaluated: Path, tmp_path: Path) -> None:
    one = Page(write_report([finished, finished], tmp_path / "one.html").read_text())
    assert one.counts["table"] == 1 and "different protocols" not in one.text
    change_results(evaluated, protocol="metaworld/v1 (max_steps=99)")
    two = Page(write_report([finished, evaluated], tmp_path / "two.html").read_text())
    assert two.counts["table"] == 2
    assert "2 different protocols." in two.text and "do not compare across tables" in two.text


def test_rows_are_paired_episode_by_episode(finished: Path, evaluated: Path, tmp_path: Path) -> None:
    path = evaluated / "episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    won = sum(row["success"] for row in rows)
    path.write_text("".join(json.dumps(row | {"success": True}) + "\n" for row in rows))
    score = score_episodes(list(EpisodeLog(evaluated).read().values()))
    change_results(evaluated, tasks={"coffee-button-v3": score}, overall=score)
    page = Page(write_report([finished, evaluated], tmp_path / "report.html").read_text())
    assert f"+{4 - won} −0" in page.text and "first row" in page.text


def test_what_makes_rows_less_comparable_is_said(finished: Path, evaluated: Path, tmp_path: Path) -> None:
    results = Results.load(finished)
    policy = dataclasses.replace(results.policy, fingerprint="ffff")
    versions = {**results.versions, "mujoco": "3.9.0"}
    change_results(evaluated, policy=policy, versions=versions, execution_horizon=2)
    text = Page(write_report([finished, evaluated], tmp_path / "report.html").read_text()).text
    assert "different policies" in text and "different simulator versions" in text and "mujoco 3.9.0" in text
    assert "re-plan at different intervals" in text and "different tasks" not in text


def test_several_tasks_get_a_row_each(finished: Path, evaluated: Path, tmp_path: Path) -> None:
    results = Results.load(finished)
    score = results.overall
    twice = dataclasses.replace(
        score,
        successes=2 * score.successes,
        trials=2 * score.trials,
        interval=wilson_interval(2 * score.successes, 2 * score.trials),
    )
    change_results(evaluated, tasks={"coffee-button-v3": score, "push-v3": score}, overall=twice)
    page = Page(write_report([evaluated], tmp_path / "report.html").read_text())
    assert "push-v3, planner wav" in page.text and page.counts["table"] == 2


def test_absent_modalities_say_why(evaluated: Path, tmp_path: Path) -> None:
    shutil.rmtree(evaluated / "episodes")
    change_results(evaluated, policy=dataclasses.replace(Results.load(evaluated).policy, planner=None))
    text = Page(write_report([evaluated], tmp_path / "report.html").read_text()).text
    assert "without planning" in text
    assert "No episode of this evaluation was recorded." in text
    assert "No recorded episode holds imagined frames" in text
    assert "No recorded episode holds imagined values" in text
    assert "so there are no planner scores" in text
    assert "No training metrics were given" in text


def test_frames_of_unknown_time_are_not_set_beside_real_ones(evaluated: Path, tmp_path: Path) -> None:
    for path in evaluated.rglob("trace.npz"):
        trace = Trace.load(path)
        calls = tuple(dataclasses.replace(call, video_steps=None) for call in trace.calls)
        dataclasses.replace(trace, calls=calls).save(path)
    text = Page(write_report([evaluated], tmp_path / "report.html").read_text()).text
    assert "did not say how many steps ahead" in text and "dB" not in text


def test_real_frames_are_shown_as_the_policy_saw_them(evaluated: Path, tmp_path: Path) -> None:
    """A policy whose frames are smaller than the camera's imagines them in its own size."""
    for path in evaluated.rglob("trace.npz"):
        trace = Trace.load(path)
        calls = tuple(dataclasses.replace(call, video=call.video[:, :, ::2, ::2]) for call in trace.calls)
        dataclasses.replace(trace, calls=calls, metadata={**trace.metadata, "preprocess": "resize"}).save(path)
    assert "dB" in Page(write_report([evaluated], tmp_path / "report.html").read_text()).text


def test_names_cannot_break_the_page(evaluated: Path, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    policy = dataclasses.replace(Results.load(evaluated).policy, name=evil, planner={"name": evil})
    change_results(evaluated, policy=policy)
    page = Page(write_report([evaluated], tmp_path / "report.html", evil).read_text())
    assert page.counts["script"] == 1, "the page's own"
    assert evil in page.text


def test_wrong_input_is_named_and_leaves_an_old_page_alone(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")
    with pytest.raises(ValueError, match="at least one evaluation folder"):
        write_report([], page)
    with pytest.raises(FileNotFoundError, match=r"holds no results.json"):
        write_report([finished, tmp_path], page)
    with pytest.raises(FileNotFoundError, match=r"missing.jsonl"):
        write_report([finished], page, metrics=tmp_path / "missing.jsonl")
    damaged = tmp_path / "metrics.jsonl"
    damaged.write_text('{"stage"\n{"stage": "a", "step": 1, "loss": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: expected a JSON object"):
        write_report([finished], page, metrics=damaged)
    assert page.read_text() == "old"
