"""Open-loop validations in the report: errors, predicted against recorded numbers, films."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from wamkit.evaluation.charts import Line, line_chart
from wamkit.evaluation.media import data_uri
from wamkit.evaluation.open_loop_errors import ChannelErrors, Errors
from wamkit.evaluation.open_loop_plots import Plot, episode_plots
from wamkit.evaluation.open_loop_predictions import EpisodePrediction
from wamkit.evaluation.open_loop_results import EpisodeErrors, OpenLoopResults, prediction_path, video_path
from wamkit.evaluation.report_page import card, cards, folded
from wamkit.evaluation.report_tables import Cell, wide_table

_CLOSENESS = (
    '<span class="name">Closeness by distance</span><span class="key key-second"></span>imagined '
    '<span class="key key-main" style="margin-left:1em"></span>last frame copied'
)


@dataclass(frozen=True)
class Validation:
    """One folder of `wamkit openloop` as the report reads it."""

    folder: Path

    @cached_property
    def results(self) -> OpenLoopResults:
        """`openloop.json`."""
        return OpenLoopResults.load(self.folder)

    @property
    def label(self) -> str:
        """Policy, dataset and planner."""
        results = self.results
        planner = "without planning" if results.policy.planner is None else f"planner {results.policy.planner['name']}"
        return f"{results.policy.name} on {results.dataset.name}, {planner}"


def validations(found: Sequence[Validation], limit: int) -> str:
    """Every validation: its numbers, and some of its episodes.

    Args:
        found: what to show.
        limit: episodes per validation with plots and films.
    """
    intro = (
        '<p class="soft">What the policy predicted at recorded observations, beside what was recorded; nothing was '
        "executed. The best constant and copying the last frame are yardsticks; a policy that draws its actions "
        "without looking has about twice the squared error of the best constant.</p>"
    )
    return intro + "".join(_validation(item, limit) for item in found)


def _validation(validation: Validation, limit: int) -> str:
    results = validation.results
    total = results.total
    count = f"{total.num_chunks} calls, {total.num_rows} compared rows"
    parts = [
        f"<h3>{escape(validation.label)}</h3>",
        f'<p class="soft">Protocol <strong>{escape(results.protocol.name)}</strong>: '
        f"{escape(results.protocol.description)}; {count}.</p>",
    ]
    if results.dataset.was_trained_on:
        parts.append(
            '<p class="note" role="note"><strong>The policy was trained on this dataset.</strong> Expect larger '
            "errors on episodes that it never saw.</p>"
        )
    parts += _tables(total)
    shown = results.episodes[:limit]
    parts += [_episode(validation, episode, is_open=index == 0) for index, episode in enumerate(shown)]
    if len(shown) < len(results.episodes):
        rest = ", ".join(str(item.episode) for item in results.episodes[limit:])
        parts.append(f'<p class="soft">Episodes {rest} are in the numbers above and in the folder.</p>')
    return "".join(parts)


def _tables(errors: Errors) -> list[str]:
    value = [] if errors.value is None else [errors.value]
    tables = [wide_table([_channel(item) for item in (*errors.actions, *value)], "Actions and value")]
    if errors.states:
        tables.append(folded("States", wide_table([_channel(item) for item in errors.states])))
    windows = [
        [
            ("", f"place {window.first}" + (f" to {window.last - 1}" if window.last > window.first + 1 else "")),
            ("Action MSE", _number(window.action_mse)),
            ("State MSE", _number(window.state_mse)),
            ("Value MSE", _number(window.value_mse)),
        ]
        for window in errors.windows
    ]
    tables.append(wide_table(windows, "Along the chunk, in the network's range (value z-scored)"))
    if errors.video:
        frames = [
            [
                ("", escape(item.name)),
                ("PSNR, imagined", _decibels(item.psnr)),
                ("PSNR, last frame copied", _decibels(item.copy_psnr)),
                ("Frames", str(item.num_frames)),
            ]
            for item in errors.video
            if item.steps is None
        ]
        tables.append(wide_table(frames, "Imagined frames"))
        tables += _closeness(errors)
    return tables


def _closeness(errors: Errors) -> list[str]:
    """A chart of PSNR over the distance into the future; frames without any error, which have none, break the line."""
    ahead = [item for item in errors.video if item.steps is not None]
    steps = [item.steps or 0 for item in ahead]
    lines = [
        Line(x=steps, y=[math.nan if number is None else number for number in numbers], style=style, dots=True)
        for style, numbers in (
            ("line-main", [item.copy_psnr for item in ahead]),
            ("line-second", [item.psnr for item in ahead]),
        )
    ]
    if not any(math.isfinite(y) for line in lines for y in line.y):
        return []
    title, label = "Closeness of imagined frames", "control steps ahead"
    return [cards([card(line_chart(lines, title=title, x_label=label, y_label="PSNR (dB)"), _CLOSENESS)])]


def _channel(item: ChannelErrors) -> list[Cell]:
    unit = "" if item.unit == "1" else f" {escape(item.unit)}"
    return [
        ("", escape(item.name)),
        ("MAE", f"{_number(item.mae)}{unit}"),
        ("MSE", _number(item.mse)),
        ("MSE of the best constant", _number(item.constant_mse)),
        ("Normalised MSE", _number(item.normalized_mse)),
    ]


def _episode(validation: Validation, episode: EpisodeErrors, *, is_open: bool) -> str:
    results = validation.results
    prediction = EpisodePrediction.load(prediction_path(validation.folder, episode.episode, results.seeds[0]))
    actions, states = ([item.name for item in items] for items in (results.total.actions, results.total.states))
    plots = {
        kind: [card(plot.svg, f'<span class="name">{escape(plot.name)}</span>{kind}') for plot in found]
        for kind, found in _by_kind(episode_plots(prediction, actions, states, results.protocol)).items()
    }
    key = (
        '<p class="soft"><span class="key key-main"></span>recorded '
        '<span class="key key-second" style="margin-left:1em"></span>predicted '
        '<span class="key key-tail" style="margin-left:1em"></span>predicted, replaced by the next call '
        '<span class="key key-start" style="margin-left:1em"></span>a chunk starts</p>'
    )
    shown = [*_film(validation, episode), *plots.get("value", []), *plots.get("action", [])]
    felt = folded("States", cards(plots["state"])) if "state" in plots else ""
    summary = f'Episode {episode.episode} <span class="soft">{escape(episode.task)}, {episode.length} rows</span>'
    return folded(summary, key + cards(shown) + felt, is_open=is_open)


def _by_kind(plots: Sequence[Plot]) -> dict[str, list[Plot]]:
    kinds: dict[str, list[Plot]] = {}
    for plot in plots:
        kinds.setdefault(plot.kind, []).append(plot)
    return kinds


def _film(validation: Validation, episode: EpisodeErrors) -> list[str]:
    path = video_path(validation.folder, episode.episode)
    if not path.is_file():
        return []
    label = escape(f"episode {episode.episode}: real frames above imagined ones", quote=True)
    video = (
        f'<video controls muted loop playsinline preload="metadata" aria-label="{label}" '
        f'src="{data_uri(path.read_bytes(), "video/mp4")}"></video>'
    )
    frames = episode.errors.video[0] if episode.errors.video else None
    told = "" if frames is None else f"{_decibels(frames.psnr)}, copying the last frame {_decibels(frames.copy_psnr)}. "
    caption = "Real above, imagined below. "
    return [card(video, f'<span class="name">{caption}</span>{told}The bar lights up where a prediction starts.')]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"
