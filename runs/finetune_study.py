"""What training that goes on from a policy brings on a task it never saw, against training from nothing.

    python runs/finetune_study.py --output outputs/finetune --results results/finetune

Some demonstrations of one new task are recorded. Every row is `wamkit train worldvla-metaworld` with the same number of
steps on the same episodes; they differ in what they start from: the policy in zoo/ with its tokenisers and statistics,
its weights alone behind tokenisers fitted anew, or nothing. Each is run on the same layouts with the same seeds and
compared episode by episode (exact sign test), and its world model is measured on held-out demonstrations against
copying the last frame. What is finished is not done again, what was interrupted continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from worldvla_study import command

from wamkit.evaluation.comparison import compare_records
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.results import RESULTS_FILE

TASK = "door-open-v3"
POLICY = Path(__file__).parents[1] / "zoo" / "worldvla-metaworld-small"
ROWS = {
    "policy": "the policy of three other tasks",
    "nothing": "nothing",
    "weights": "its weights alone, behind new tokenisers",
}
AGAINST = "nothing"


def make(name: str, options: argparse.Namespace) -> None:
    """Train and measure a row, or what is left of it."""
    print(f"== from {ROWS[name]}", flush=True)
    folder = options.output / name
    policy = folder / "train" / "policy"
    if not (policy / "config.json").is_file():
        told = ["--data.root", options.output / "data", "--data.split", "train", "--output", folder / "train"]
        told += ["--stages.0.steps", options.steps, "--seed", options.seed, "--precision", options.precision]
        if name == "policy":
            told += ["--initial.path", POLICY, "--data.statistics", POLICY]
        if name == "weights":
            bare = folder / "weights.safetensors"
            bare.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(POLICY / "model.safetensors", bare)
            told += ["--initial.path", bare]
        command("train", "worldvla-metaworld", *told)
    if not (folder / "evaluation" / RESULTS_FILE).is_file():
        count = ["--episodes", options.episodes, "--workers", options.workers, "--record-episodes", 0]
        command("evaluate", policy, "--output", folder / "evaluation", "--tasks", TASK, *count)
    if not (folder / "quality" / "quality.json").is_file():
        held = ["--data", options.output / "data", "--split", "val_ind", "--films", 0]
        command("quality", policy, *held, "--output", folder / "quality")


def summarize(options: argparse.Namespace) -> dict[str, Any]:
    """Every finished row: successes, interval, paired comparison, next frames and roll-outs."""
    rows, records = {}, {}
    for name, start in ROWS.items():
        folder = options.output / name
        if not (folder / "quality" / "quality.json").is_file():
            continue
        evaluation = Evaluation(folder / "evaluation")
        records[name], score = evaluation.records, evaluation.results.overall
        quality = json.loads((folder / "quality" / "quality.json").read_text(encoding="utf-8"))
        rows[name] = {
            "start": start,
            "successes": score.successes,
            "trials": score.trials,
            "interval": score.interval,
            "steps": [item for item in quality["steps"] if item["frames"] == "moving"],
            "rollouts": [item for item in quality["rollouts"] if item["frames"] is not None],
            "episodes_held_out": quality["episodes"],
        }
    for name in records:
        if name != AGAINST and AGAINST in records:
            paired = compare_records(records[name], records[AGAINST])
            rows[name]["against"] = {
                "row": AGAINST,
                "only_this": paired.only_first,
                "only_other": paired.only_second,
                "p": paired.p_value,
            }
    return rows


def markdown(rows: dict[str, Any]) -> str:
    """The study's table."""
    lines = ["| training starts from | solved | 95 % interval | against nothing | next frame, gain over copying (dB) |"]
    lines.append("|---|---|---|---|---|")
    for row in rows.values():
        low, high = row["interval"]
        pair = row.get("against")
        told = "" if pair is None else f"+{pair['only_this']} −{pair['only_other']}, p = {pair['p']:.2g}"
        gain = row["steps"][0]["model"]["psnr_gain"]
        shown = f"{gain['mean']:+.2f}"
        if gain["interval"] is not None:
            shown += f" ({gain['interval'][0]:+.2f} to {gain['interval'][1]:+.2f})"
        cells = (row["start"], f"{row['successes']}/{row['trials']}", f"{low:.0%} to {high:.0%}", told, shown)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the data, models and evaluations")
    parser.add_argument("--results", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="what models are trained in")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only make the table of what is finished")
    options = parser.parse_args()
    if not options.table:
        recording = ["--episodes", options.demonstrations, "--noise-std", 0.1, "--video", "lossless"]
        command("record", TASK, "--output", options.output / "data", *recording)
        for name in ROWS:
            make(name, options)
    rows = summarize(options)
    options.results.mkdir(parents=True, exist_ok=True)
    about = {"task": TASK, "demonstrations": options.demonstrations, "steps": options.steps, "seed": options.seed}
    about |= {"precision": options.precision, "rows": rows}
    (options.results / "results.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (options.results / "table.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
