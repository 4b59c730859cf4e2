"""Recorded episodes in the report: films, imagined against real frames, values, planner scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np

from wamkit.evaluation.charts import Line, Mark, histogram_rows, line_chart
from wamkit.evaluation.media import data_uri, encode_rollout, peak_signal_to_noise, picture_uri
from wamkit.evaluation.report_page import badge, card, cards, empty, folded
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.results import VIDEO_FILE, EpisodeRecord
from wamkit.trace import CallTrace, Trace

MAX_STRIP_FRAMES = 9
MAX_STRIP_CALLS = 4


def rollout_films(evaluations: Sequence[Evaluation], limit: int) -> str:
    """Films of recorded episodes.

    Args:
        evaluations: what to show.
        limit: films per evaluation.
    """
    parts = []
    for evaluation in evaluations:
        films = [_film(evaluation, record) for record in evaluation.recorded()[:limit]]
        parts.append(f"<h3>{_heading(evaluation)}</h3>")
        parts.append(cards(films) if films else empty("No episode of this evaluation was recorded."))
    return "".join(parts)


def imagined_strips(evaluations: Sequence[Evaluation], limit: int) -> str:
    """Imagined frames over the real frames that came.

    Args:
        evaluations: what to show.
        limit: episodes per evaluation.
    """
    return _per_episode(
        evaluations,
        limit,
        has=lambda trace: any(call.video is not None for call in trace.calls),
        show=_strips,
        intro=(
            '<p class="soft">What a policy call imagined, over what then came; columns count control steps after the '
            "call. Past the actions that were run before the next call, reality follows the later plan. Closeness is "
            "PSNR, higher is closer; repeating the present frame is the yardstick.</p>"
        ),
        reason="No recorded episode holds imagined frames: the policy imagined none, or no episode was recorded.",
    )


def value_curves(evaluations: Sequence[Evaluation], limit: int) -> str:
    """Imagined value over control steps, one line per policy call.

    Args:
        evaluations: what to show.
        limit: episodes per evaluation.
    """
    items = [
        card(_value_chart(trace), f'<span class="name">{_heading(evaluation)}</span>{_episode(record)}')
        for evaluation in evaluations
        for record, trace in _traces(evaluation, limit, lambda t: any(call.value is not None for call in t.calls))
    ]
    if not items:
        return empty("No recorded episode holds imagined values: the policy has no value expert, or none was recorded.")
    key = (
        '<p class="soft"><span class="key key-call"></span>what one policy call expects over its action chunk '
        '<span class="key key-main" style="margin-left:1em"></span>expectation at the moment of each call. The unit is '
        "that of the value labels.</p>"
    )
    return key + cards(items)


def score_histograms(evaluations: Sequence[Evaluation], limit: int) -> str:
    """Planner scores of all candidates, one histogram per planning iteration.

    Args:
        evaluations: what to show.
        limit: recorded episodes read per evaluation.
    """
    items = []
    for evaluation in evaluations:
        calls = [
            call
            for _, trace in _traces(evaluation, limit, lambda t: any(call.scores is not None for call in t.calls))
            for call in trace.calls
            if call.scores is not None and np.isfinite(call.scores).any()
        ]
        if calls:
            items.append(
                card(_score_chart(calls), f'<span class="name">{_heading(evaluation)}</span>{len(calls)} calls')
            )
    if not items:
        return empty("No recorded episode was planned for, so there are no planner scores.")
    intro = (
        '<p class="soft">Scores of every candidate in the recorded episodes, one row per planning iteration, each '
        "scaled to its highest bar. A rule marks the median; the outermost bars gather what lies beyond the axis.</p>"
    )
    return intro + cards(items)


def _film(evaluation: Evaluation, record: EpisodeRecord) -> str:
    path = evaluation.folder / str(record.folder) / VIDEO_FILE
    trace = evaluation.trace(record)
    film = path.read_bytes() if path.is_file() else encode_rollout(trace.frames, fps=30)
    poster = picture_uri(np.concatenate([frames[-1] for frames in trace.frames.values()], axis=1))
    label = escape(f"{record.task}, layout {record.layout}, {'solved' if record.success else 'not solved'}", quote=True)
    video = (
        f'<video controls muted loop playsinline preload="metadata" poster="{poster}" aria-label="{label}" '
        f'src="{data_uri(film, "video/mp4")}"></video>'
    )
    return card(video, f'<span class="name">{escape(trace.task)}</span>{_episode(record)}')


def _strips(trace: Trace) -> str:
    calls = [call for call in trace.calls if call.video is not None]
    chosen = [calls[i] for i in sorted(set(np.linspace(0, len(calls) - 1, MAX_STRIP_CALLS).round().astype(int)))]
    return "".join(_strip(trace, call) for call in chosen)


def _strip(trace: Trace, call: CallTrace) -> str:
    assert call.video is not None
    steps = call.video_steps
    shown = sorted(set(np.linspace(0, call.video.shape[1] - 1, MAX_STRIP_FRAMES).round().astype(int).tolist()))
    heads = ["now"] + ["" if steps is None else f"+{steps[index]}" for index in shown]
    cells = ["<span></span>"] + [f'<span class="at">{head}</span>' for head in heads]
    qualities = []
    for view, (camera, recorded) in enumerate(trace.frames.items()):
        imagined = call.video[view]
        frames = _as_seen(trace, recorded, imagined.shape[1:3])
        now = _picture(frames[call.step])
        rows = [("imagined", ["<span></span>"] + [_picture(imagined[index]) for index in shown])]
        if steps is not None:
            rows.append(("real", [now] + [_real(frames, call.step + int(steps[index])) for index in shown]))
            qualities.append(_quality(camera, frames, imagined, call.step, steps))
        else:
            rows.append(("real", [now] + ["<span></span>"] * len(shown)))
        for word, pictures in rows:
            cells.append(
                f'<span class="row"><b class="{word}">{word}</b><br>{escape(camera)}</span>' + "".join(pictures)
            )
        cells.append('<span class="gap"></span>')
    height, width = call.video.shape[2:4]
    told = " · ".join(quality for quality in qualities if quality)
    if steps is None:
        told = "the policy did not say how many steps ahead these frames lie, so no real frames are set beside them"
    return (
        f'<h3>Control step {call.step}</h3><p class="soft">{told}</p><div class="scroll">'
        f'<div class="strip" style="--frames:{len(shown) + 1};--aspect:{width}/{height}">{"".join(cells)}</div></div>'
    )


def _as_seen(trace: Trace, frames: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Camera frames as the policy saw them, which is how it imagines them."""
    if frames.shape[1:3] == size:
        return frames
    import torch  # which takes seconds, and most reports need not

    from wamkit.data.images import fit_images

    preprocess = trace.metadata.get("preprocess", "exact")
    return fit_images(torch.from_numpy(frames), height=size[0], width=size[1], preprocess=preprocess).numpy()


def _quality(camera: str, frames: np.ndarray, imagined: np.ndarray, step: int, steps: np.ndarray) -> str:
    """How close the imagined frames are, beside how close simply repeating the present frame would be."""
    here = [index for index, ahead in enumerate(steps) if step + ahead < len(frames)]
    if not here:
        return ""
    real = frames[step + steps[here]]
    ours, still = (
        peak_signal_to_noise(imagined[here], real),
        peak_signal_to_noise(frames[step][None].repeat(len(here), axis=0), real),
    )
    return f"{escape(camera)}: {ours:.1f} dB, repeating the present frame {still:.1f} dB"


def _real(frames: np.ndarray, step: int) -> str:
    return _picture(frames[step]) if step < len(frames) else '<span class="none" title="the episode was over"></span>'


def _picture(frame: np.ndarray) -> str:
    return f'<img src="{picture_uri(frame)}" alt="" loading="lazy">'


def value_lines(trace: Trace) -> list[Line]:
    """The imagined values of each policy call, then the first of each call, over control steps.

    Value i of a call stands at the call's control step + i, as a policy is trained whose first action is the one
    recorded beside the present observation (`action_offset=0`, the recipes' setting).
    """
    calls = [(call.step, call.value.tolist()) for call in trace.calls if call.value is not None]
    lines = [Line(x=[step + i for i in range(len(value))], y=value, style="line-call") for step, value in calls]
    return [*lines, Line(x=[step for step, _ in calls], y=[value[0] for _, value in calls], dots=True)]


def _value_chart(trace: Trace) -> str:
    lines = value_lines(trace)
    solved = np.flatnonzero(trace.success)
    marks = [Mark(x=float(solved[0] + 1), text="solved")] if len(solved) else []
    return line_chart(lines, title="Imagined value", x_label="control step", y_label="imagined value", marks=marks)


def _score_chart(calls: Sequence[CallTrace]) -> str:
    scores = [call.scores for call in calls if call.scores is not None]
    num_iterations = max(len(score) for score in scores)
    rows = []
    for iteration in range(num_iterations):
        values = np.concatenate([score[iteration] for score in scores if iteration < len(score)])
        if np.isfinite(values).any():
            rows.append((f"iteration {iteration + 1}", values.tolist()))
    return histogram_rows(rows, title="Planner scores", x_label="score of a candidate")


def _per_episode(
    evaluations: Sequence[Evaluation],
    limit: int,
    *,
    has: Callable[[Trace], bool],
    show: Callable[[Trace], str],
    intro: str,
    reason: str,
) -> str:
    parts: list[str] = []
    for evaluation in evaluations:
        for record, trace in _traces(evaluation, limit, has):
            summary = f'{_heading(evaluation)} <span class="soft">{_episode(record)}</span>'
            parts.append(folded(summary, show(trace), is_open=not parts))
    return intro + "".join(parts) if parts else empty(reason)


def _traces(evaluation: Evaluation, limit: int, has: Callable[[Trace], bool]) -> Iterator[tuple[EpisodeRecord, Trace]]:
    found = 0
    for record in evaluation.recorded():
        if found == limit:
            return
        trace = evaluation.trace(record)
        if has(trace):
            found += 1
            yield record, trace


def _heading(evaluation: Evaluation) -> str:
    return escape(evaluation.label)


def _episode(record: EpisodeRecord) -> str:
    return f"{badge(record.success)} {escape(record.task)}, layout {record.layout}, {record.steps} steps"
