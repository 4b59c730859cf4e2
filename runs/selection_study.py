"""Whether choosing among a run's policies by closed-loop success (`wamkit select`) beats taking the last one.

    python runs/selection_study.py --output outputs/selection --results results/selection

Some demonstrations of one task are recorded and a small WorldVLA is trained on them, once with the recipe's decaying
learning rate and once with a constant one, as the public code trains; both average their weights. Its policies of
every so many steps compete on initial states of their own; then the chosen one and the last one run the protocol's
layouts, and are compared episode by episode (exact sign test). What is finished is not done again, what was
interrupted continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from worldvla_study import command

from wamkit.evaluation.comparison import compare_records
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.results import RESULTS_FILE

TASK = "door-open-v3"
SCHEDULES = ("cosine", "constant")


def make(schedule: str, options: argparse.Namespace) -> None:
    """Train with a schedule, choose, and evaluate both, or what is left of it."""
    print(f"== {schedule}", flush=True)
    folder = options.output / schedule
    if not (folder / "train" / "policy" / "config.json").is_file():
        told = ["--data.root", options.output / "data", "--output", folder / "train", "--stages.0.schedule", schedule]
        told += ["--stages.0.steps", options.steps, "--seed", options.seed, "--precision", options.precision]
        told += ["--save-every", options.every, "--keep-policy-every", options.every]
        command("train", "worldvla-metaworld", *told)
    running = ["--tasks", TASK, "--workers", options.workers]
    chosen = folder / "selection"
    command("select", folder / "train", "--output", chosen, "--episodes", options.choosing, *running)
    for name, policy in (("chosen", chosen / "policy"), ("last", folder / "train" / "policy")):
        if not (folder / name / RESULTS_FILE).is_file():
            count = ["--episodes", options.episodes, "--record-episodes", 0]
            command("evaluate", policy, "--output", folder / name, *count, *running)


def summarize(schedule: str, options: argparse.Namespace) -> dict[str, Any]:
    """What each candidate solved of the choosing episodes, and the chosen and the last one of the protocol's."""
    folder = options.output / schedule
    selection = json.loads((folder / "selection" / "selection.json").read_text(encoding="utf-8"))
    sides = {name: Evaluation(folder / name) for name in ("chosen", "last")}
    paired = compare_records(sides["chosen"].records, sides["last"].records)
    overall = {name: side.results.overall for name, side in sides.items()}
    scores = {
        name: {"successes": score.successes, "trials": score.trials, "interval": score.interval}
        for name, score in overall.items()
    }
    return {
        "schedule": schedule,
        "candidates": [{key: row[key] for key in ("name", "successes", "trials")} for row in selection["candidates"]],
        "chosen_name": selection["chosen"],
        **scores,
        "only_chosen": paired.only_first,
        "only_last": paired.only_second,
        "p": paired.p_value,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The study's table."""
    lines = [
        "| learning rate | candidates, on the episodes that choose | chosen | chosen, on others | last, on others | |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        tried = ", ".join(str(item["successes"]) for item in row["candidates"])
        cells = [row["schedule"], f"{tried} of {row['candidates'][0]['trials']}", row["chosen_name"]]
        for name in ("chosen", "last"):
            low, high = row[name]["interval"]
            cells.append(f"{row[name]['successes']}/{row[name]['trials']} ({low:.0%} to {high:.0%})")
        cells.append(f"+{row['only_chosen']} −{row['only_last']}, p = {row['p']:.2g}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the data, models and evaluations")
    parser.add_argument("--results", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=50, help="steps between candidates")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="what models are trained in")
    parser.add_argument("--choosing", type=int, default=20, help="episodes that each candidate runs")
    parser.add_argument("--episodes", type=int, default=50, help="of the chosen and the last one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recording = ["--episodes", options.demonstrations, "--noise-std", 0.1, "--video", "lossless"]
    command("record", TASK, "--output", options.output / "data", *recording)
    rows = []
    for schedule in SCHEDULES:
        make(schedule, options)
        rows.append(summarize(schedule, options))
        options.results.mkdir(parents=True, exist_ok=True)
        about = {"task": TASK, "demonstrations": options.demonstrations, "steps": options.steps, "seed": options.seed}
        about |= {"every": options.every, "precision": options.precision, "rows": rows}
        (options.results / "results.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        (options.results / "table.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
