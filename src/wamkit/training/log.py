"""Metrics as JSON lines that a resumed run continues exactly."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wamkit.atomic import atomic_file


class MetricsLog:
    """One JSON object per optimiser step in a file.

    On opening, lines after a given position are dropped (they belong to steps that will be run again), as is a line cut
    short by a kill; so the file of an interrupted run equals that of an uninterrupted one, timings aside.

    Args:
        path: the file; made when missing.
        stages: stage names in order.
        position: stage name and completed steps of the checkpoint that is resumed from; `None` starts afresh.
    """

    def __init__(self, path: Path, stages: Sequence[str], position: tuple[str, int] | None) -> None:
        self.path = path
        kept = [] if position is None or not path.exists() else _lines_up_to(path, list(stages), position)
        with atomic_file(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line; readers see it at once."""
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Bring all lines to the disk; called before a checkpoint that counts on them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut short is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line before the last is damaged; the message names it.
    """
    return [row for _, row in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line with its row, in order; a last line cut short is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, got {line[:80]!r}; remove the line"
            ) from error
        yield line, row


def _lines_up_to(path: Path, stages: list[str], position: tuple[str, int]) -> list[str]:
    last = (stages.index(position[0]), position[1])
    kept = []
    # Lines up to the checkpoint were brought to the disk with it; what follows may be damaged and is not looked at.
    for line, row in _rows(path):
        here = (stages.index(row["stage"]), row["step"])
        if here <= last:
            kept.append(line)
        if here >= last:
            break
    return kept


def _finite(value: Any) -> Any:
    """JSON has no NaN: an undefined metric is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
