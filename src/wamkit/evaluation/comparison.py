"""Evaluations beside each other: who may be compared with whom, episode by episode, and what to know about it."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wamkit.evaluation.protocol import rules_of
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.results import EpisodeRecord, Results, TaskScore
from wamkit.evaluation.statistics import PairedComparison, compare_paired
from wamkit.versions import SIMULATORS


@dataclass(frozen=True, kw_only=True)
class Comparable:
    """Evaluations under one protocol.

    Args:
        protocol: its title, followed by settings where another group has the same title and other settings.
        rows: in the order given.
    """

    protocol: str
    rows: tuple[Evaluation, ...]


def compare_records(first: Iterable[EpisodeRecord], second: Iterable[EpisodeRecord]) -> PairedComparison:
    """Two policies on the episodes that both finished: same task, initial state and seed. Simulator errors count on
    neither side.
    """
    ours, theirs = ({record.key: record.success for record in side if record.error is None} for side in (first, second))
    common = sorted(ours.keys() & theirs.keys())
    return compare_paired([ours[key] for key in common], [theirs[key] for key in common])


def group(evaluations: Sequence[Evaluation]) -> list[Comparable]:
    """Evaluations by protocol; those whose protocols differ in anything that changes a trial never share a group."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        results = evaluation.results
        key = json.dumps([results.protocol, rules_of(results.protocol_settings)], sort_keys=True)
        groups.setdefault(key, []).append(evaluation)
    rules = {key: rules_of(rows[0].results.protocol_settings) for key, rows in groups.items()}
    found = []
    for key, rows in groups.items():
        title = rows[0].results.protocol
        others = [rules[other] for other in groups if other != key and json.loads(other)[0] == title]
        differ = sorted({name for other in others for name in other if other[name] != rules[key].get(name)})
        told = ", ".join(f"{name}={rules[key].get(name)}" for name in differ)
        found.append(Comparable(protocol=f"{title} [{told}]" if told else title, rows=tuple(rows)))
    return found


def notes(rows: Sequence[Evaluation]) -> list[str]:
    """What makes rows of one protocol less comparable than they look, a sentence each."""
    checks: dict[str, list[Hashable]] = {
        "The rows cover different tasks": [tuple(sorted(row.results.tasks)) for row in rows],
        "The rows have different numbers of trials": [row.results.overall.trials for row in rows],
        "The rows re-plan at different intervals (control steps)": [row.results.execution_horizon for row in rows],
        "The rows come from different policies": [row.results.policy.fingerprint for row in rows],
        "The rows come from different simulator versions": [_simulator_versions(row.results) for row in rows],
        "The rows were rendered by different GL backends": [row.results.gl_backend for row in rows],
        "The rows batch policy calls differently": [row.results.batching for row in rows],
    }
    found = []
    for text, values in checks.items():
        if len(set(values)) > 1:
            listed = "; ".join(f"{row.folder.name}: {_listed(value)}" for row, value in zip(rows, values, strict=True))
            found.append(f"{text}. {listed}")
    return found


def summary(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Scores and paired tests, JSON-ready; every two rows of a protocol are paired, rows of different ones never."""
    groups = group(evaluations)
    return {
        "comparable": len(groups) == 1,
        "protocols": [
            {
                "protocol": each.protocol,
                "protocol_settings": rules_of(each.rows[0].results.protocol_settings),
                "notes": notes(each.rows),
                "evaluations": [_row(row) for row in each.rows],
                "paired": [_pair(one, other) for i, one in enumerate(each.rows) for other in each.rows[i + 1 :]],
            }
            for each in groups
        ],
    }


def text_tables(evaluations: Sequence[Evaluation]) -> str:
    """Scores and paired tests against the first row of each protocol, for a terminal."""
    groups = group(evaluations)
    lines = []
    if len(groups) > 1:
        lines.append(f"{len(groups)} different protocols: do not compare their numbers with each other")
    for each in groups:
        lines.append(each.protocol)
        first = each.rows[0]
        names = [f"{row.folder.name}, {row.label}" for row in each.rows]
        for name, row in zip(names, each.rows, strict=True):
            cells = [f"  {name:<{max(map(len, names))}}", _score(row.results.overall)]
            if row is not first:
                pairs = compare_records(row.records, first.records)
                cells.append(
                    f"against the first row: {pairs.only_first} won, {pairs.only_second} lost, "
                    f"{pairs.both + pairs.neither} alike of {pairs.num_pairs}, p = {pairs.p_value:.2g}"
                    if pairs.num_pairs
                    else "no episode in common with the first row"
                )
            lines.append("  ".join(cells))
            lines += [f"    {gap}" for gap in row.gaps]
        lines += [f"  note: {note}" for note in notes(each.rows)]
    return "\n".join(lines)


def _row(row: Evaluation) -> dict[str, Any]:
    results = row.results
    return {
        "folder": str(row.folder),
        "policy": results.policy.name,
        "fingerprint": results.policy.fingerprint,
        "planner": results.policy.planner,
        "execution_horizon": results.execution_horizon,
        "batching": results.batching,
        "is_complete": not row.missing,
        "gaps": row.gaps,
        "overall": _numbers(results.overall),
        "tasks": {task: _numbers(score) for task, score in results.tasks.items()},
    }


def _numbers(score: TaskScore) -> dict[str, Any]:
    return {
        "successes": score.successes,
        "trials": score.trials,
        "errors": score.errors,
        "rate": score.rate,
        "interval": score.interval,
        "mean_steps": score.mean_steps,
    }


def _pair(one: Evaluation, other: Evaluation) -> dict[str, Any]:
    pairs = compare_records(one.records, other.records)
    return {
        "first": str(one.folder),
        "second": str(other.folder),
        "pairs": pairs.num_pairs,
        "both": pairs.both,
        "only_first": pairs.only_first,
        "only_second": pairs.only_second,
        "neither": pairs.neither,
        "p_value": pairs.p_value if pairs.num_pairs else None,
    }


def _score(score: TaskScore) -> str:
    low, high = score.interval
    lost = f", {score.errors} lost to simulator errors" if score.errors else ""
    rate = "" if score.rate is None else f" {score.rate:.0%}"
    return f"{score.successes}/{score.trials}{rate} (95 % interval {low:.0%} to {high:.0%}{lost})"


def _simulator_versions(results: Results) -> str:
    return ", ".join(f"{name} {results.versions[name]}" for name in SIMULATORS if name in results.versions)


def _listed(value: object) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
