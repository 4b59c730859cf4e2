"""The success tables of the report: one per protocol, never mixed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from html import escape

from wamkit.evaluation.charts import interval_bar
from wamkit.evaluation.report_page import folded, percent
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.results import Results, TaskScore
from wamkit.evaluation.statistics import compare_paired


def success_tables(evaluations: Sequence[Evaluation]) -> str:
    """One table per protocol; rows of different protocols never share a table."""
    by_protocol: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_protocol.setdefault(evaluation.results.protocol, []).append(evaluation)
    parts = []
    if len(by_protocol) > 1:
        parts.append(
            f'<p class="note" role="note"><strong>{len(by_protocol)} different protocols.</strong> Their numbers stand '
            "in separate tables because they do not measure the same thing; do not compare across tables.</p>"
        )
    for protocol, rows in by_protocol.items():
        parts += _warnings(rows)
        parts.append(_success_table(protocol, rows))
    parts.append(
        '<p class="soft">The bar is the Wilson 95 % interval of the success rate, the dot the rate itself. A policy '
        "call is timed as a robot waits for it: the wall time of the whole batch it was part of. <q>Paired</q> counts "
        "episodes from the same initial state and seed that only this row (+) or only the first row (−) solved, with "
        "the exact two-sided sign test.</p>"
    )
    return "".join(parts)


def _success_table(protocol: str, rows: Sequence[Evaluation]) -> str:
    several_tasks = len({task for row in rows for task in row.results.tasks}) > 1
    head = ["", "Solved", "Rate and interval", "Steps", "Policy call"] + (["Paired"] if len(rows) > 1 else [])
    body = []
    for row in rows:
        body.append(_success_row(row, row.results.overall, rows[0], None, len(rows) > 1))
    table = (
        f'<table class="wide"><caption>{escape(protocol)}</caption><thead><tr>'
        + "".join(f'<th scope="col">{name}</th>' for name in head)
        + f"</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
    if not several_tasks:
        return table
    by_task = "".join(
        _success_row(row, row.results.tasks[task], rows[0], task, len(rows) > 1)
        for task in dict.fromkeys(task for row in rows for task in row.results.tasks)
        for row in rows
        if task in row.results.tasks
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    return table + folded(
        "Each task", f'<table class="wide"><thead><tr>{heads}</tr></thead><tbody>{by_task}</tbody></table>'
    )


def _success_row(row: Evaluation, score: TaskScore, first: Evaluation, task: str | None, is_paired: bool) -> str:
    results, latency = row.results, row.results.latency
    low, high = score.interval
    rate = "none finished" if score.rate is None else percent(score.rate)
    spoken = f"{rate}, interval from {percent(low)} to {percent(high)}"
    lost = f"<small>{score.errors} lost to simulator errors</small>" if score.errors else ""
    name = row.label if task is None else f"{task}, {row.label}"
    notes = [row.settings if task is None else "", row.folder.name]
    cells = [
        ("Solved", f'<span><span class="big">{score.successes} / {score.trials}</span>{lost}</span>'),
        (
            "Rate",
            f'<span><span class="big">{rate}</span> <span class="soft">{percent(low)} to {percent(high)}</span>'
            f"{interval_bar(score.rate, low, high, spoken)}</span>",
        ),
        (
            "Steps",
            f"<span>{_number(score.mean_steps)}<small>solved: {_number(score.mean_success_steps)}</small></span>",
        ),
    ]
    if task is None:
        batch = f"batches of {_number(latency.mean_batch_size)}, every {results.execution_horizon} steps"
        recording = "<small>measured while recording</small>" if latency.while_recording else ""
        cells.append(
            (
                "Policy call",
                f"<span>{_milliseconds(latency.median_seconds)} median<small>{_milliseconds(latency.p95_seconds)} p95, "
                f"{batch}</small>{recording}</span>",
            )
        )
    else:
        cells.append(("Policy call", "<span>as above</span>"))
    if is_paired:
        cells.append(("Paired", f"<span>{_paired(row, first, task)}</span>"))
    small = "".join(f"<small>{escape(note)}</small>" for note in notes if note)
    data = "".join(f'<td data-label="{label}">{content}</td>' for label, content in cells)
    return f'<tr><th scope="row">{escape(name)}{small}</th>{data}</tr>'


def _paired(row: Evaluation, first: Evaluation, task: str | None) -> str:
    if row is first:
        return "first row"
    ours, theirs = (
        {record.key: record.success for record in side.records if record.error is None and task in (None, record.task)}
        for side in (row, first)
    )
    common = sorted(set(ours) & set(theirs))
    if not common:
        return "no episode in common"
    pairs = compare_paired([ours[key] for key in common], [theirs[key] for key in common])
    context = f'<small class="whole">of {pairs.num_pairs}, p = {pairs.p_value:.2g}</small>'
    return f"+{pairs.only_first} −{pairs.only_second}{context}"


def _warnings(rows: Sequence[Evaluation]) -> list[str]:
    """What makes rows of one protocol less comparable than they look."""
    checks: dict[str, list[Hashable]] = {
        "The rows cover different tasks": [tuple(sorted(row.results.tasks)) for row in rows],
        "The rows have different numbers of trials": [row.results.overall.trials for row in rows],
        "The rows re-plan at different intervals (control steps)": [row.results.execution_horizon for row in rows],
        "The rows come from different policies": [row.results.policy.fingerprint for row in rows],
        "The rows come from different simulator versions": [_simulator_versions(row.results) for row in rows],
        "The rows were rendered by different GL backends": [row.results.gl_backend for row in rows],
    }
    notes = []
    for text, values in checks.items():
        if len(set(values)) > 1:
            listed = "; ".join(
                f"{escape(row.folder.name)}: {escape(_listed(value))}" for row, value in zip(rows, values, strict=True)
            )
            notes.append(f'<p class="note" role="note"><strong>{text}.</strong> {listed}</p>')
    return notes


def _simulator_versions(results: Results) -> str:
    names = ("metaworld", "mujoco", "robosuite", "hf-libero")
    return ", ".join(f"{name} {results.versions[name]}" for name in names if name in results.versions)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _listed(value: object) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
