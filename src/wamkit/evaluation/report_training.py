"""Training curves in the report: losses, and errors on held-out episodes where a run measured them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.evaluation.charts import Line, line_chart
from wamkit.evaluation.report_page import card, cards, empty

VALIDATION_FILE = "validation.jsonl"
MEASURED = {
    "action_mse": ("action error", "mean squared, normalised, by rows of the chunk"),
    "total_value_mse": ("value error", "mean squared, last channel, as the network sees it"),
    "video_loss": ("video loss", "noise levels spread evenly"),
}


def training_curves(path: Path | None) -> str:
    """Loss over optimiser steps, one chart per stage, and errors on held-out episodes.

    Args:
        path: JSON lines with `stage`, `step` and `loss`; `None` when there is no such file. A `validation.jsonl` beside
            it is shown too.

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
    losses = cards(items) if items else empty(f"{path.name} holds no losses.")
    validations = path.with_name(VALIDATION_FILE)
    return losses + (validation_errors(validations) if validations.is_file() else "")


def validation_errors(path: Path) -> str:
    """Errors on held-out episodes over optimiser steps, and the last ones by stretch of the chunk.

    Args:
        path: JSON lines as training writes them.

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    rows = list(_read_lines(path))
    items = []
    for stage in dict.fromkeys(str(row.get("stage")) for row in rows):
        own = [row for row in rows if str(row.get("stage")) == stage]
        for key, (name, _) in MEASURED.items():
            points = [(int(row["step"]), _overall(row[key])) for row in own if _overall(row.get(key)) is not None]
            if points:
                items.append(card(_error_chart(stage, name, points), _error_caption(stage, name, points)))
    if not items:
        return ""
    return "<h3>On held-out episodes</h3>" + cards(items) + _last_errors(rows)


def _overall(found: Any) -> float | None:
    """A number, or that over the whole chunk."""
    value = found.get("all") if isinstance(found, dict) else found
    return float(value) if isinstance(value, int | float) else None


def _error_chart(stage: str, name: str, points: Sequence[tuple[int, float | None]]) -> str:
    line = Line(x=[step for step, _ in points], y=[value or 0.0 for _, value in points], dots=True)
    title = f"{name} of stage {stage} on held-out episodes"
    return line_chart([line], title=title, x_label="optimiser step", y_label=name)


def _error_caption(stage: str, name: str, points: Sequence[tuple[int, float | None]]) -> str:
    return f'<span class="name">{escape(stage)}</span>{escape(name)} {points[0][1]:.3g} to {points[-1][1]:.3g}'


def _last_errors(rows: Sequence[dict[str, Any]]) -> str:
    """Each measure's last row, by stretch of the chunk."""
    lines = []
    for key, (name, what) in MEASURED.items():
        last = next((row for row in reversed(rows) if isinstance(row.get(key), dict)), None)
        if last is None:
            continue
        cells = "".join(
            f"<td>{stretch.replace(':', ' to ')}: {value:.4g}</td>"
            for stretch, value in last[key].items()
            if isinstance(value, int | float)
        )
        where = f"{last.get('stage')}, step {last.get('step')}"
        lines.append(f"<tr><th>{escape(name)}<br><span class='soft'>{escape(what)}</span></th>{cells}")
        lines.append(f"<td class='soft'>{escape(where)}</td></tr>")
    if not lines:
        return ""
    return f'<div class="scroll"><table><tbody>{"".join(lines)}</tbody></table></div>'


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
