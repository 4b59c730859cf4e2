"""Charts are well-formed, put things where they belong, and refuse to draw nothing."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from wamkit.evaluation.charts import HEIGHT, WIDTH, Line, Mark, histogram_rows, interval_bar, line_chart, nice_ticks


def elements(svg: str, tag: str, style: str | None = None) -> list[ElementTree.Element]:
    return [item for item in ElementTree.fromstring(svg).iter(tag) if style is None or item.get("class") == style]


def points(element: ElementTree.Element) -> np.ndarray:
    return np.array([[float(number) for number in pair.split(",")] for pair in str(element.get("points")).split()])


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(-3, 37) == [0, 10, 20, 30]
    for low, high in ((0.013, 0.0141), (-5e6, 3e7), (99.9, 100.1)):
        ticks = nice_ticks(low, high)
        assert 3 <= len(ticks) <= 7 and low <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)
        assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
    with pytest.raises(ValueError, match="low < high"):
        nice_ticks(1, 1)


def test_an_interval_bar_spans_its_interval() -> None:
    svg = interval_bar(0.75, 0.5, 1.0, 'of "it" & more')
    (interval,) = elements(svg, "rect")
    (point,) = elements(svg, "circle")
    assert float(str(interval.get("x"))) == 100 and float(str(interval.get("width"))) == 96
    assert float(str(point.get("cx"))) == 148
    assert ElementTree.fromstring(svg).get("aria-label") == 'of "it" & more'
    assert elements(interval_bar(None, 0, 1, ""), "circle") == []


def test_lines_rise_where_values_rise_and_break_where_they_are_missing() -> None:
    values = [0.0, 1.0, 2.0, math.nan, 4.0, 5.0]
    svg = line_chart([Line(x=range(6), y=values, dots=True)], title="t", x_label="x", y_label="y")
    lines = elements(svg, "polyline")
    assert [len(points(line)) for line in lines] == [3, 2]
    drawn = np.concatenate([points(line) for line in lines])
    assert (np.diff(drawn[:, 0]) > 0).all() and (np.diff(drawn[:, 1]) < 0).all(), "SVG counts downwards"
    assert (drawn >= 0).all() and (drawn[:, 0] <= WIDTH).all() and (drawn[:, 1] <= HEIGHT).all()
    assert len(elements(svg, "circle")) == 5


def test_a_lonely_point_is_still_seen() -> None:
    svg = line_chart([Line(x=[3], y=[1.0])], title="t", x_label="x", y_label="y")
    assert len(elements(svg, "circle")) == 1


def test_equal_ratios_are_equal_distances_on_a_log_scale() -> None:
    svg = line_chart([Line(x=[0, 1, 2], y=[1, 10, 100])], title="t", x_label="x", y_label="y", scale="log")
    heights = points(elements(svg, "polyline")[0])[:, 1]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert "100" in [text.text for text in elements(svg, "text", "tick")]


def test_marks_stand_at_their_place_with_their_word_inside() -> None:
    svg = line_chart([Line(x=[0, 10], y=[0, 1])], title="t", x_label="x", y_label="y", marks=[Mark(x=9, text="solved")])
    (rule,) = elements(svg, "line", "mark")
    (word,) = elements(svg, "text", "mark-text")
    assert word.get("text-anchor") == "end" and float(str(word.get("x"))) < float(str(rule.get("x1")))


def test_histograms_count_everything() -> None:
    values = np.random.default_rng(0).normal(size=500)
    values[0] = 1e6  # far beyond the axis, but still counted in the outermost bin
    svg = histogram_rows([("first", values.tolist()), ("second", [0.5] * 7)], title="t", x_label="score")
    bins = elements(svg, "rect")
    assert len(bins) > 10
    labels = [str(text.text) for text in elements(svg, "text", "label")]
    assert any(label.startswith("first") and "500 scores" in label for label in labels)
    assert any(label.startswith("second") and "median 0.5" in label for label in labels)
    assert all(0 <= float(str(item.get("x"))) <= WIDTH for item in bins)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="'loss': expected at least one finite point"):
        line_chart([Line(x=[0], y=[math.nan])], title="loss", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="none in \\['empty'\\]"):
        histogram_rows([("full", [1.0]), ("empty", [])], title="t", x_label="x")
