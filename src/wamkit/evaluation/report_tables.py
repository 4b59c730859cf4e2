"""The success tables of the report: one per protocol, never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wamkit.evaluation.charts import interval_bar
from wamkit.evaluation.comparison import compare_records, group, notes
from wamkit.evaluation.report_page import folded, percent
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.results import Results, TaskScore

Cell = tuple[str, str]  # heading of its column, HTML


def success_tables(evaluations: Sequence[Evaluation]) -> str:
    """One table per protocol; rows of different protocols never share a table."""
    groups = group(evaluations)
    parts = []
    if len(groups) > 1:
        parts.append(
            _note(
                f"{len(groups)} different protocols. Their numbers stand in separate tables because they do not "
                "measure the same thing; do not compare across tables."
            )
        )
    for each in groups:
        parts += [_note(f"{row.folder.name}: {gap}.") for row in each.rows for gap in row.gaps]
        parts += [_note(text) for text in notes(each.rows)]
        parts.append(_success_table(each.protocol, each.rows))
    parts.append(
        '<p class="soft">The bar is the Wilson 95 % interval of the success rate, the dot the rate itself. A policy '
        "call is timed as a robot waits for it: the wall time of the whole batch it was part of. <q>Paired</q> counts "
        "episodes from the same initial state and seed that only this row (+) or only the first row (−) solved, with "
        "the exact two-sided sign test.</p>"
    )
    return "".join(parts)


def _success_table(protocol: str, rows: Sequence[Evaluation]) -> str:
    labels = [row.label for row in rows]
    policies = {row.results.policy.fingerprint for row in rows}
    overall = []
    for row in rows:
        # The folder's name tells apart what the planner does not.
        told = [row.settings, row.results.policy.name if len(policies) > 1 else ""]
        told.append(row.folder.name if labels.count(row.label) > 1 else "")
        cells = [_name(row.label, told), *_score(row.results.overall), _policy_call(row.results)]
        overall.append(cells + _pairing(row, rows, None))
    table = wide_table(overall, caption=protocol)
    tasks = list(dict.fromkeys(task for row in rows for task in row.results.tasks))
    if len(tasks) == 1:
        return table
    each = [
        [_name(f"{task}, {row.label}", []), *_score(row.results.tasks[task]), *_pairing(row, rows, task)]
        for task in tasks
        for row in rows
        if task in row.results.tasks
    ]
    return table + folded("Each task", wide_table(each))


def wide_table(rows: Sequence[Sequence[Cell]], caption: str = "") -> str:
    """A table whose rows become blocks on a narrow screen; the first cell of a row names it.

    Args:
        rows: at least one, all with the same headings.
        caption: plain text.
    """
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading, _ in rows[0])
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f'<td data-label="{escape(heading)}"><span>{content}</span></td>' for heading, content in cells)
        + "</tr>"
        for (_, name), *cells in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<table class="wide">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _name(name: str, notes: Sequence[str]) -> Cell:
    return "", escape(name) + "".join(f"<small>{escape(note)}</small>" for note in notes if note)


def _score(score: TaskScore) -> list[Cell]:
    low, high = map(percent, score.interval)
    rate = "none finished" if score.rate is None else percent(score.rate)
    bar = interval_bar(score.rate, *score.interval, f"{rate}, interval from {low} to {high}")
    lost = f"<small>{score.errors} lost to simulator errors</small>" if score.errors else ""
    return [
        ("Solved", f'<span class="big">{score.successes} / {score.trials}</span>{lost}'),
        ("Rate, 95 %", f'<span class="big">{rate}</span> <span class="soft whole">{low} to {high}</span>{bar}'),
        ("Steps", f"{_number(score.mean_steps)}<small>solved: {_number(score.mean_success_steps)}</small>"),
    ]


def _policy_call(results: Results) -> Cell:
    latency = results.latency
    lines = [
        f"{_milliseconds(latency.p95_seconds)} p95, every {results.execution_horizon} steps",
        f"for {_number(latency.mean_batch_size)} robots at once",
        "measured while recording" if latency.while_recording else "",
    ]
    small = "".join(f"<small>{line}</small>" for line in lines if line)
    return "Policy call", f"{_milliseconds(latency.median_seconds)} median{small}"


def _pairing(row: Evaluation, rows: Sequence[Evaluation], task: str | None) -> list[Cell]:
    return [("Paired", _paired(row, rows[0], task))] if len(rows) > 1 else []


def _paired(row: Evaluation, first: Evaluation, task: str | None) -> str:
    if row is first:
        return "first row"
    sides = ([record for record in side.records if task in (None, record.task)] for side in (row, first))
    pairs = compare_records(*sides)
    if not pairs.num_pairs:
        return "no episode in common"
    context = f'<small class="whole">of {pairs.num_pairs}, p = {pairs.p_value:.2g}</small>'
    return f"+{pairs.only_first} −{pairs.only_second}{context}"


def _note(text: str) -> str:
    """A sentence to be read first, then details; plain text."""
    first, _, rest = text.partition(". ")
    return f'<p class="note" role="note"><strong>{escape(first)}{"." if rest else ""}</strong> {escape(rest)}</p>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
