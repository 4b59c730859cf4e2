"""Small SVG charts for the report page: crisp at any size, coloured by its style sheet, readable by screen readers.

Every function returns one SVG element as text. Colours and fonts come from CSS classes, so that a chart follows the
page into dark mode; text is drawn at 12 units in a 400-unit wide picture and stays legible on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Literal

import numpy as np

Number = float | int

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 40


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Args:
        x: horizontal positions.
        y: heights, as many as `x`; a number that is not finite breaks the line.
        style: CSS class, one of the page's line styles (`line-main`, `line-faint`, `line-second`).
        dots: whether every point is marked.
    """

    x: Sequence[Number]
    y: Sequence[Number]
    style: str = "line-main"
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical rule with a word, for instance where the task was solved."""

    x: Number
    text: str
    style: str = "mark"


@dataclass(frozen=True, kw_only=True)
class _Axis:
    low: Number
    high: Number
    start: Number
    end: Number
    is_log: bool = False

    def place(self, value: Number) -> float:
        """Picture coordinate of a value."""
        if self.is_log:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        if not self.is_log:
            return nice_ticks(self.low, self.high)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1,) if self.high > 300 * self.low else (1, 2, 5)
        return [step * 10.0**power for power in powers for step in steps if self.low <= step * 10.0**power <= self.high]


def interval_bar(rate: Number | None, low: Number, high: Number, label: str) -> str:
    """A success rate with its interval on a scale from 0 to 1.

    Args:
        rate: the estimate, `None` without trials.
        low: lower end of the interval.
        high: upper end of the interval.
        label: what a screen reader says.
    """
    x, width = 4.0, 192.0
    parts = [f'<line class="bar-track" x1="{x}" y1="12" x2="{x + width}" y2="12"/>']
    parts += [
        f'<line class="bar-tick" x1="{x + width * part:.1f}" y1="7" x2="{x + width * part:.1f}" y2="17"/>'
        for part in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts.append(
        f'<rect class="bar-interval" x="{x + width * low:.1f}" y="8" width="{max(width * (high - low), 1):.1f}" '
        'height="8" rx="4"/>'
    )
    if rate is not None:
        parts.append(f'<circle class="bar-point" cx="{x + width * rate:.1f}" cy="12" r="4.5"/>')
    spoken = escape(label, quote=True)
    return f'<svg class="bar" viewBox="0 0 200 24" role="img" aria-label="{spoken}">{"".join(parts)}</svg>'


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    scale: Literal["linear", "log"] = "linear",
    x_range: tuple[Number, Number] | None = None,
) -> str:
    """Lines over a common horizontal axis.

    Args:
        lines: at least one, with at least one finite point among them.
        title: what a screen reader says.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
        marks: vertical rules.
        scale: of the vertical axis; `log` needs positive numbers.
        x_range: ends of the horizontal axis; by default those of the lines.

    Raises:
        ValueError: nothing finite to draw.
    """
    finite = [
        (float(a), float(b))
        for line in lines
        for a, b in zip(line.x, line.y, strict=True)
        if math.isfinite(a) and math.isfinite(b) and (scale == "linear" or b > 0)
    ]
    if not finite:
        raise ValueError(f"chart {title!r}: expected at least one finite point, got none")
    horizontal = _axis([a for a, _ in finite] if x_range is None else x_range, LEFT, WIDTH - RIGHT, padding=0)
    vertical = _axis([b for _, b in finite], HEIGHT - BOTTOM, TOP, padding=0.06, is_log=scale == "log")
    parts = _frame(horizontal, vertical, x_label, y_label)
    for mark in marks:
        at = horizontal.place(mark.x)
        # Near the right edge the word stands on the left of its rule.
        side, shift = ("end", -4) if at > WIDTH * 0.7 else ("start", 4)
        parts.append(f'<line class="{mark.style}" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="{mark.style}-text" x="{at + shift:.1f}" y="{TOP + 10}" text-anchor="{side}">'
            f"{escape(mark.text)}</text>"
        )
    for line in lines:
        parts += _path(line, horizontal, vertical, scale == "log")
    return _picture(parts, title, HEIGHT)


def histogram_rows(
    rows: Sequence[tuple[str, Sequence[Number]]], *, title: str, x_label: str, num_bins: int = 32
) -> str:
    """One histogram under the other over a common axis, each scaled to its own highest bin, with its median marked.

    The axis spans the 0.5 % to 99.5 % quantiles of all values; what lies outside is counted in the outermost bins.

    Args:
        rows: label and values of each histogram, from top to bottom; every row needs a finite value.
        title: what a screen reader says.
        x_label: name and unit of the axis.
        num_bins: bins over the whole axis.

    Raises:
        ValueError: a row without a finite value.
    """
    values = [(label, np.asarray(row, dtype=np.float64)) for label, row in rows]
    values = [(label, row[np.isfinite(row)]) for label, row in values]
    empty = [label for label, row in values if row.size == 0]
    if empty or not values:
        raise ValueError(f"chart {title!r}: expected finite values in every row, got none in {empty or 'any'}")
    row_height = 62
    height = TOP + row_height * len(values) + BOTTOM
    low, high = np.quantile(np.concatenate([row for _, row in values]), [0.005, 0.995])
    axis = _axis([float(low), float(high)], 12, WIDTH - RIGHT, padding=0.02)
    parts = []
    for tick in axis.ticks:
        at = axis.place(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{height - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{_number(tick)}</text>'
        )
    edges = np.linspace(axis.low, axis.high, num_bins + 1)
    for index, (label, row) in enumerate(values):
        base = TOP + row_height * (index + 1) - 4
        counts, _ = np.histogram(np.clip(row, axis.low, axis.high), bins=edges)
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
            if count:
                size = (row_height - 22) * count / counts.max()
                x = axis.place(float(left))
                parts.append(
                    f'<rect class="bin" x="{x:.1f}" y="{base - size:.1f}" '
                    f'width="{max(axis.place(float(right)) - x - 0.8, 0.6):.1f}" height="{size:.1f}"/>'
                )
        middle = float(np.median(row))
        at = axis.place(min(max(middle, axis.low), axis.high))
        parts.append(f'<line class="axis" x1="12" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>')
        parts.append(f'<line class="median" x1="{at:.1f}" y1="{base - row_height + 20}" x2="{at:.1f}" y2="{base}"/>')
        parts.append(
            f'<text class="label" x="12" y="{base - row_height + 16}">{escape(label)} · median {_number(middle)} '
            f"· {row.size} scores</text>"
        )
    parts.append(f'<text class="label" x="{WIDTH / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return _picture(parts, title, height)


def standalone(chart: str, key: Sequence[tuple[str, str]]) -> str:
    """A chart as a file of its own: with a name space, a style sheet, a white ground, a size and a key.

    Args:
        chart: from a function of this module.
        key: style and meaning of the lines, written above them.
    """
    style = resources.files("wamkit.evaluation").joinpath("plot.css").read_text(encoding="utf-8")
    opened, rest = chart.split(">", 1)
    root = opened.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" ', 1)
    words, x = [], float(LEFT)
    for line, meaning in key:
        words.append(f'<line class="{line}" x1="{x}" y1="7" x2="{x + 16}" y2="7"/>')
        words.append(f'<text x="{x + 20}" y="11">{escape(meaning)}</text>')
        x += 36 + 6.5 * len(meaning)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{root}><style>{style}</style>{"".join(words)}{rest}\n'


def nice_ticks(low: Number, high: Number, count: int = 5) -> list[float]:
    """About `count` round numbers between `low` and `high`.

    Raises:
        ValueError: `high` is not above `low`.
    """
    if not high > low:
        raise ValueError(f"expected low < high, got {low} and {high}")
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _axis(values: Sequence[Number], start: Number, end: Number, *, padding: Number, is_log: bool = False) -> _Axis:
    low, high = min(values), max(values)
    if is_log:
        return _Axis(low=low * 0.9, high=max(high * 1.1, low * 1.5), start=start, end=end, is_log=True)
    if high == low:
        low, high = low - 0.5, high + 0.5
    margin = (high - low) * padding
    return _Axis(low=low - margin, high=high + margin, start=start, end=end)


def _frame(horizontal: _Axis, vertical: _Axis, x_label: str, y_label: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in vertical.ticks:
        at = vertical.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in horizontal.ticks:
        at = horizontal.place(tick)
        parts.append(f'<line class="axis" x1="{at:.1f}" y1="{bottom}" x2="{at:.1f}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>')
    center, middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + bottom) / 2
    parts.append(
        f'<text class="label" x="{center}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _path(line: Line, horizontal: _Axis, vertical: _Axis, is_log: bool) -> list[str]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not is_log):
            runs[-1].append((horizontal.place(float(x)), vertical.place(float(y))))
        elif runs[-1]:
            runs.append([])
    parts = [
        f'<polyline class="{line.style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in run)}"/>'
        for run in runs
        if len(run) > 1
    ]
    lonely = [point for run in runs for point in run if line.dots or len(run) == 1]
    return parts + [f'<circle class="{line.style}-dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in lonely]


def _picture(parts: Sequence[str], title: str, height: Number) -> str:
    label = escape(title, quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _number(value: Number) -> str:
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
