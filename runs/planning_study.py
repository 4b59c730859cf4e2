"""What planning brings: success and latency of one policy under many planner settings, one factor at a time.

python runs/planning_study.py POLICY --tasks EASY HARD --output outputs/planning_study --results results/planning_study

Every row is one `wamkit evaluate` on the same layouts with the same seeds, so that rows are compared episode by episode
(exact sign test on the episodes that only one of the two solved). A row that is finished is not run again; a row that
was interrupted continues. The most telling rows come first, and the table can be made at any time (`--table`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from wamkit.evaluation.comparison import compare_records
from wamkit.evaluation.results import RESULTS_FILE, EpisodeRecord
from wamkit.evaluation.statistics import wilson_interval
from wamkit.planning.config import PlannerConfig

BASE = PlannerConfig(
    iterations=3,
    num_videos=8,
    num_values=4,
    video_elites=0.25,
    value_elites=0.125,
    keep_mean=0.5,
    keep_std=0.5,
    value_steps=4,
)
"""Few candidates, ranked with few denoising steps, and more selection than the published settings, which barely select
(keep 0.9, video elites 0.9)."""

NONE, SHRINK = "no planning", "random scores (shrink only)"


def settings() -> dict[str, PlannerConfig | None]:
    """Name of each row, in the order they run, and its planner."""

    def row(**changes: Any) -> PlannerConfig:
        return dataclasses.replace(BASE, **changes)

    published = {"video_elites": 0.9, "value_elites": 0.1, "keep_mean": 0.9, "keep_std": 0.9}
    reference = {"pool_views": True, "fit_memory_frames": True, "min_std": 0.0, "unbiased_std": True}
    return {
        NONE: None,
        "base": row(),
        SHRINK: row(random_scores=True),
        "score mean": row(score="mean"),
        "score last": row(score="last"),
        "score lcb": row(score="lcb"),
        "pairing reference": row(pairing="reference"),
        "final best": row(final="best"),
        "K 1": row(iterations=1),
        "K 5": row(iterations=5),
        "keep 0.1": row(keep_mean=0.1, keep_std=0.1),
        "keep 0.9": row(keep_mean=0.9, keep_std=0.9),
        "final mean": row(final="mean"),
        "G 4": row(num_videos=4),
        "G 16": row(num_videos=16),
        "N 1": row(num_values=1),
        "N 8": row(num_values=8),
        "video elites 0.5": row(video_elites=0.5),
        "video elites 0.9": row(video_elites=0.9),
        "value elites 0.5": row(value_elites=0.5),
        "value steps 10": row(value_steps=10),
        "published elites and keep": row(**published),
        "public code, defects included": row(**published, **reference, pairing="reference"),
    }


def evaluate(policy: Path, task: str, name: str, planner: PlannerConfig | None, options: argparse.Namespace) -> Path:
    """Run a row, or what is left of it; returns its folder."""
    folder: Path = options.output / task / name.replace(" ", "_").replace(",", "")
    if (folder / RESULTS_FILE).exists():
        return folder
    command = [sys.executable, "-m", "wamkit.cli.main", "evaluate", str(policy), "--output", str(folder)]
    command += ["--tasks", task, "--episodes", str(options.episodes), "--record-episodes", "0"]
    command += ["--workers", str(options.workers)]
    if options.max_steps is not None:
        command += ["--max-steps", str(options.max_steps)]
    if planner is not None:
        file: Path = options.output / "planners" / f"{folder.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(planner), indent=2), encoding="utf-8")
        command += ["--planner", str(file)]
    print(f"== {task}: {name}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise SystemExit(f"{task}, {name}: evaluation ended with status {status}; the same command continues the study")
    return folder


def read(folder: Path) -> dict[tuple[str, int, int, int], EpisodeRecord]:
    """Episodes of a row that count."""
    lines = (folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    records = [EpisodeRecord.from_json(line) for line in lines]
    return {record.key: record for record in records if record.error is None}


def summarize(options: argparse.Namespace) -> dict[str, Any]:
    """Every finished row: successes, interval, latency, and how it compares with no planning and with random scores."""
    tasks: dict[str, Any] = {}
    for task in options.tasks:
        results: dict[str, Any] = {"policy": {}}
        rows: dict[str, dict[tuple[str, int, int, int], EpisodeRecord]] = {}
        table: list[dict[str, Any]] = []
        for name, planner in settings().items():
            folder = options.output / task / name.replace(" ", "_").replace(",", "")
            if not (folder / RESULTS_FILE).exists():
                continue
            rows[name] = read(folder)
            results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
            successes, trials = sum(r.success for r in rows[name].values()), len(rows[name])
            latency = results["latency"]
            table.append(
                {
                    "name": name,
                    "planner": None if planner is None else dataclasses.asdict(planner),
                    "successes": successes,
                    "trials": trials,
                    "interval": wilson_interval(successes, trials),
                    "mean_steps": results["tasks"][task]["mean_steps"],
                    "latency_median_seconds": latency["median_seconds"],
                    "latency_mean_batch": latency["mean_batch_size"],
                    "against": {
                        other: _paired(rows[name], rows[other])
                        for other in (NONE, SHRINK)
                        if other in rows and other != name
                    },
                }
            )
        about = {key: results[key] for key in ("protocol", "protocol_settings", "policy", "versions") if key in results}
        about["policy"] = {key: value for key, value in about["policy"].items() if key != "planner"}
        tasks[task] = {"rows": table, **about}
    return tasks


def _paired(row: dict[Any, EpisodeRecord], other: dict[Any, EpisodeRecord]) -> dict[str, Any]:
    paired = compare_records(row.values(), other.values())
    return {
        "pairs": paired.num_pairs,
        "only_this": paired.only_first,
        "only_other": paired.only_second,
        "p": paired.p_value,
    }


def markdown(tasks: dict[str, Any], names: list[str]) -> str:
    """The tables of the study."""
    lines = []
    for task in names:
        lines += [f"### {task}", ""]
        lines += ["| setting | successes | 95 % interval | against no planning | against random scores | latency |"]
        lines += ["|---|---|---|---|---|---|"]
        for row in tasks[task]["rows"]:
            low, high = row["interval"]
            cells = [row["name"], f"{row['successes']}/{row['trials']}", f"{low:.0%} to {high:.0%}"]
            for other in (NONE, SHRINK):
                pair = row["against"].get(other)
                cells.append("" if pair is None else f"+{pair['only_this']} −{pair['only_other']}, p = {pair['p']:.2f}")
            cells.append(f"{1000 * row['latency_median_seconds']:.0f} ms for {row['latency_mean_batch']:.1f} robots")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the evaluations")
    parser.add_argument("--results", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--max-steps", type=int, default=None, help="change the protocol's step limit")
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only make the table of what is finished")
    options = parser.parse_args()
    for name, planner in settings().items():
        for task in options.tasks:
            if not options.table:
                evaluate(options.policy, task, name, planner, options)
    tasks = summarize(options)
    options.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"base": dataclasses.asdict(BASE), "tasks": tasks}, indent=1)
    (options.results / "results.json").write_text(text + "\n", encoding="utf-8")
    (options.results / "table.md").write_text(markdown(tasks, options.tasks), encoding="utf-8")
    print(markdown(tasks, options.tasks))


if __name__ == "__main__":
    main()
