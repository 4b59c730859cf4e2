"""The metrics file goes on exactly where a checkpoint was."""

from __future__ import annotations

from pathlib import Path

import pytest

from wamkit.training.log import MetricsLog, read_metrics

STAGES = ["see", "act"]


def write(path: Path, position: tuple[str, int] | None, rows: list[tuple[str, int]]) -> None:
    log = MetricsLog(path, STAGES, position)
    for stage, step in rows:
        log.append({"stage": stage, "step": step, "loss": 0.1 * step})
    log.sync()
    log.close()


def positions(path: Path) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in read_metrics(path)]


ROWS = [("see", 1), ("see", 2), ("act", 1), ("act", 2)]


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, None, ROWS)
    assert positions(path) == ROWS
    first = path.read_text().splitlines()
    write(path, ("act", 1), [("act", 2)])
    assert path.read_text().splitlines() == first, "the lines that stay are the same bytes"
    write(path, ("see", 2), [])
    assert positions(path) == ROWS[:2]
    write(path, None, [("see", 1)])
    assert positions(path) == ROWS[:1]


def test_a_row_that_was_lost_lets_no_later_one_in(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, None, [("see", 1), ("act", 2), ("act", 3)])
    write(path, ("act", 1), [])
    assert positions(path) == [("see", 1)]


def test_damage_after_the_checkpoint_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, None, ROWS)
    path.write_bytes(path.read_bytes() + b"\0\0\0\n\xff\xff" + b'{"stage": "act", "st')
    write(path, ("act", 2), [])
    assert positions(path) == ROWS


def test_damage_before_the_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, None, ROWS)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{broken\n" + "".join(lines[2:]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        MetricsLog(path, STAGES, ("act", 2))
    assert path.read_bytes() == before


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, None, ROWS)
    path.write_text(path.read_text() + '{"stage": "act", "st')
    assert positions(path) == ROWS


def test_undefined_metrics_are_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", STAGES, None)
    log.append({"stage": "see", "step": 1, "losses": {"accuracy": float("nan"), "other": 2.0}})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["losses"] == {"accuracy": None, "other": 2.0}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
