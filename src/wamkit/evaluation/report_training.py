"""Training curves in the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.evaluation.charts import Line, line_chart
from wamkit.evaluation.report_page import card, cards, empty


def training_curves(path: Path | None) -> str:
    """Loss over optimiser steps, one chart per stage.

    Args:
        path: JSON lines with `stage`, `step` and `loss`; `None` when there is no such file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line other than the last is not JSON.
    """
    if path is None:
        return empty("No training metrics were given to this report.")
    if not path.is_file():
        raise FileNotFoundError(f"expected training metrics (metrics.jsonl of a training run) at {path}, found no file")
    stages: dict[str, list[tuple[int, float]]] = {}
    for row in _read_lines(path):
        loss = row.get("loss")
        if isinstance(loss, int | float):
            stages.setdefault(str(row.get("stage", "training")), []).append((int(row.get("step", 0)), float(loss)))
    items = [card(_loss_chart(stage, rows), _loss_caption(stage, rows)) for stage, rows in stages.items()]
    return cards(items) if items else empty(f"{path.name} holds no losses.")


def _loss_chart(stage: str, rows: Sequence[tuple[int, float]]) -> str:
    steps, losses = [step for step, _ in rows], [loss for _, loss in rows]
    smooth = _smooth(losses)
    positive = [loss for loss in losses if loss > 0]
    is_wide = bool(positive) and len(positive) == len(losses) and max(positive) / min(positive) > 20
    every = max(1, len(steps) // 600)  # more points than pixels only make the page larger
    return line_chart(
        [Line(x=steps[::every], y=losses[::every], style="line-faint"), Line(x=steps[::every], y=smooth[::every])],
        title=f"Loss of stage {stage}",
        x_label="optimiser step",
        y_label="loss",
        scale="log" if is_wide else "linear",
    )


def _loss_caption(stage: str, rows: Sequence[tuple[int, float]]) -> str:
    smooth = _smooth([loss for _, loss in rows])
    return (
        f'<span class="name">{escape(stage)}</span>{len(rows)} steps, smoothed loss {smooth[0]:.3g} to {smooth[-1]:.3g}'
    )


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window of a fiftieth of the run, reaching equally far to both sides."""
    half = max(1, len(values) // 100)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    reach = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return [float((sums[i + r + 1] - sums[i - r]) / (2 * r + 1)) for i, r in enumerate(reach)]


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines) or line.endswith("\n"):  # a last line without its end was torn by a kill
                raise ValueError(f"{path}, line {number}: expected a JSON object ({error}); mend that line") from error
