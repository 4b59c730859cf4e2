"""Predicted against recorded numbers along an episode, one SVG chart per channel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wamkit.evaluation.charts import Line, Mark, line_chart, standalone
from wamkit.evaluation.open_loop_predictions import Comparison, EpisodePrediction
from wamkit.evaluation.open_loop_protocol import OpenLoopProtocol
from wamkit.spec import RobotSpec

KEY = (("line-main", "recorded"), ("line-second", "predicted"), ("line-tail", "predicted, replaced by the next call"))


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One chart.

    Args:
        kind: `action`, `state` or `value`.
        name: the channel.
        svg: the chart, for the report page.
    """

    kind: str
    name: str
    svg: str


def episode_plots(
    prediction: EpisodePrediction, actions: Sequence[str], states: Sequence[str], protocol: OpenLoopProtocol
) -> list[Plot]:
    """Charts of all action channels, all state channels and the value, in the network's range.

    The rows that would be executed before the next call are drawn bold, the rest of each chunk faint; a rule marks
    where a chunk starts.

    Args:
        prediction: one pass over an episode.
        actions: names of the control channels.
        states: names of the state channels.
        protocol: says how many rows of a chunk are executed.
    """
    everywhere = np.arange(prediction.rows.shape[1])
    groups: list[tuple[str, Sequence[str], Comparison | None, np.ndarray, str]] = [
        ("action", actions, prediction.actions, everywhere, "normalised"),
        ("state", states, prediction.states, everywhere, "normalised"),
        ("value", ("value",), prediction.value, prediction.value_positions, "z-scored"),
    ]
    return [
        Plot(
            kind=kind,
            name=name,
            svg=_chart(prediction, both, index, positions, protocol, title=f"{kind} {name}", y_label=f"{name}, {unit}"),
        )
        for kind, names, both, positions, unit in groups
        if both is not None
        for index, name in enumerate(names)
    ]


def write_plots(prediction: EpisodePrediction, robot: RobotSpec, protocol: OpenLoopProtocol, folder: Path) -> None:
    """Write every chart of an episode as an SVG file.

    Args:
        prediction: one pass over an episode.
        robot: names the channels.
        protocol: see `episode_plots`.
        folder: made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    actions, states = ([channel.name for channel in channels] for channels in (robot.action, robot.state))
    counts: dict[str, int] = {}
    for plot in episode_plots(prediction, actions, states, protocol):
        number = counts[plot.kind] = counts.get(plot.kind, -1) + 1
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", plot.name)
        stem = plot.kind if plot.kind == plot.name else f"{plot.kind}_{number:02d}_{name}"
        (folder / f"{stem}.svg").write_text(standalone(plot.svg, KEY), encoding="utf-8")


def _chart(
    prediction: EpisodePrediction,
    both: Comparison,
    channel: int,
    positions: np.ndarray,
    protocol: OpenLoopProtocol,
    *,
    title: str,
    y_label: str,
) -> str:
    # Values at a slower rate than actions may have none among the executed rows; then the first one stands for them.
    num_executed = max(1, int((positions < protocol.execution_horizon).sum()))
    true_rows: list[int] = []
    true: list[float] = []
    tails, executed = [], []
    for call in range(len(prediction.rows)):
        rows = prediction.rows[call, positions]
        inside = int((rows < prediction.length).sum())
        shown, end = rows[:inside].tolist(), min(num_executed, inside)
        predicted = both.normalized[call, :inside, channel].tolist()
        true_rows += shown[:end]
        true += both.true_normalized[call, :end, channel].tolist()
        if end < inside:
            tails.append(Line(x=shown[end - 1 :], y=predicted[end - 1 :], style="line-tail"))
        if end:
            executed.append(Line(x=shown[:end], y=predicted[:end], style="line-second"))
    return line_chart(
        [*tails, Line(x=true_rows, y=true), *executed],
        title=f"{title}, episode {prediction.episode}: predicted and recorded",
        x_label="row of the episode",
        y_label=y_label,
        marks=[Mark(x=row, text="", style="start") for row in prediction.rows[:, 0].tolist()],
        x_range=(0, prediction.length - 1),
    )
