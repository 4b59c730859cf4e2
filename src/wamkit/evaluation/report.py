"""`wamkit report`: evaluations, open-loop validations and world models as one self-contained HTML page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import wamkit
from wamkit.atomic import atomic_file
from wamkit.evaluation.protocol import describe_rules
from wamkit.evaluation.report_episodes import imagined_strips, rollout_films, score_histograms, value_curves
from wamkit.evaluation.report_open_loop import Validation, validations
from wamkit.evaluation.report_page import Section, facts, render_page
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.report_tables import success_tables
from wamkit.evaluation.report_training import training_curves
from wamkit.evaluation.results import PolicyIdentity

if TYPE_CHECKING:
    from wamkit.evaluation.report_world import Measured


def write_report(
    folders: Sequence[Path],
    out: Path,
    title: str = "",
    *,
    open_loop: Sequence[Path] = (),
    quality: Sequence[Path] = (),
    metrics: Path | None = None,
    max_films: int = 6,
    max_episodes: int = 2,
) -> Path:
    """Write the page.

    Args:
        folders: evaluation folders, each with a `results.json`; one row of the table each, the first is what others are
            paired with.
        out: the HTML file.
        title: by default made from the tasks.
        open_loop: folders of open-loop validations, each with an `openloop.json`; with them, `folders` may be empty.
        quality: folders of world models' measurements, each with a `quality.json`; with them too.
        metrics: training metrics (JSON lines with `stage`, `step`, `loss`).
        max_films: films per evaluation.
        max_episodes: episodes per evaluation, validation or world model shown in detail (imagined frames, values,
            scores, plots).

    Returns:
        `out`.

    Raises:
        FileNotFoundError: a folder without `results.json`, `openloop.json` or `quality.json`, or no such metrics file.
        ValueError: no folder was given, `out` is a folder, a number is negative, or a file is damaged.
    """
    if not folders and not open_loop and not quality:
        raise ValueError(
            "expected at least one evaluation folder, got none; name folders of `wamkit evaluate`, of `wamkit "
            "openloop` with --openloop, or of `wamkit quality` with --quality"
        )
    if max_films < 0 or max_episodes < 0:
        raise ValueError(f"expected 0 or more films and episodes, got {max_films} and {max_episodes}")
    if out.is_dir():
        raise ValueError(f"expected a file name for the page, got the folder {out}; for instance {out / 'report.html'}")
    evaluations = [Evaluation(folder) for folder in folders]
    validated = [Validation(folder) for folder in open_loop]
    measured: list[Measured] = []
    if quality:  # its numbers are read with torch, which no other page needs
        from wamkit.evaluation.report_world import Measured, world_models

        measured = [Measured(folder) for folder in quality]
    sections = []
    if evaluations:
        sections += [
            Section(anchor="success", title="Success", body=success_tables(evaluations)),
            Section(anchor="rollouts", title="Rollouts", body=rollout_films(evaluations, max_films)),
            Section(anchor="imagined", title="Imagined against real", body=imagined_strips(evaluations, max_episodes)),
            Section(anchor="value", title="Value along the episode", body=value_curves(evaluations, max_episodes)),
            Section(anchor="scores", title="Planner scores", body=score_histograms(evaluations, max_episodes)),
        ]
    if validated:
        sections.append(Section(anchor="openloop", title="Open loop", body=validations(validated, max_episodes)))
    if measured:
        sections.append(Section(anchor="world", title="World model", body=world_models(measured, max_episodes)))
    if evaluations or metrics is not None:
        sections.append(Section(anchor="training", title="Training", body=training_curves(metrics)))
    page = render_page(
        title=title or _title(evaluations, validated, measured),
        header=_header(evaluations) if evaluations else _validation_header(validated, measured),
        sections=sections,
        footer=_footer(evaluations, [*validated, *measured]),
    )
    with atomic_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def _title(evaluations: Sequence[Evaluation], validated: Sequence[Validation], measured: Sequence[Measured]) -> str:
    if not evaluations:
        others: list[Validation | Measured] = [*validated, *measured]
        names = dict.fromkeys(item.results.policy.name for item in others)
        return f"{'Open loop' if validated else 'World model'}: {', '.join(names)}"
    tasks = list(dict.fromkeys(task for evaluation in evaluations for task in evaluation.results.tasks))
    return f"Closed loop: {', '.join(tasks[:3])}{' and more' if len(tasks) > 3 else ''}"


def _validation_header(validated: Sequence[Validation], measured: Sequence[Measured]) -> str:
    others: list[Validation | Measured] = [*validated, *measured]
    results = [item.results for item in others]
    told = [
        ("Policy", _each([_policy(result.policy) for result in results])),
        ("Dataset", _each([escape(result.dataset.name) for result in results])),
        ("Robot", _each([escape(result.dataset.robot) for result in results])),
        ("Episodes", _each([str(len(result.episodes)) for result in results])),
    ]
    if validated:
        told.append(("Seeds", _each([", ".join(map(str, item.results.seeds)) for item in validated])))
    return facts(told)


def _header(evaluations: Sequence[Evaluation]) -> str:
    results = [evaluation.results for evaluation in evaluations]
    solved = [
        f"<strong>{result.overall.successes} of {result.overall.trials}</strong> {_clause(evaluation)}"
        for evaluation, result in zip(evaluations, results, strict=True)
    ]
    lead = f'<p class="lead">Episodes solved: {", ".join(solved)}.</p>'
    return lead + facts(
        [
            ("Policy", _each([_policy(r.policy) for r in results])),
            ("Protocol", _each([escape(r.protocol) for r in results])),
            ("An episode has", _each([escape(describe_rules(r.protocol_settings)) or "–" for r in results])),
            ("Robot", _each([escape(r.robot) for r in results])),
            ("Rendering", _each([escape(f"{r.protocol_settings['rendering']} by {r.gl_backend}") for r in results])),
            ("Wall time", f"{sum(r.wall_seconds for r in results) / 60:.1f} min in all"),
        ]
    )


def _footer(evaluations: Sequence[Evaluation], others: Sequence[Validation | Measured]) -> str:
    made_with: list[tuple[str, dict[str, object]]] = [
        (evaluation.folder.name, {**evaluation.results.versions, **evaluation.results.machine})
        for evaluation in evaluations
    ]
    made_with += [(other.folder.name, {**other.results.versions}) for other in others]
    names: dict[str, list[str]] = {}
    for name, facts_of in made_with:
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts_of.items() if value is not None)
        names.setdefault(told, []).append(name)
    rows = [f"<p><strong>{escape(', '.join(folders))}</strong>: {escape(told)}</p>" for told, folders in names.items()]
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"<h3>Made with</h3>{''.join(rows)}<p>Report by wamkit {wamkit.__version__}, {made}.</p>"


def _policy(policy: PolicyIdentity) -> str:
    return f"{escape(policy.name)} <code>{escape(policy.fingerprint[:12])}</code>"


def _each(values: Sequence[str]) -> str:
    """Distinct values, one a line."""
    return "<br>".join(dict.fromkeys(values))


def _clause(evaluation: Evaluation) -> str:
    label = escape(evaluation.label)
    return label if evaluation.results.policy.planner is None else f"with {label}"
