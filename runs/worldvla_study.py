"""The paper's comparisons at our scale: joint training against the policy alone; the action mask against plain causal.

    python runs/worldvla_study.py --data DATASET --cache CACHE --output outputs/study --results results/worldvla_study

Every row is a WorldVLA trained by `wamkit train worldvla-metaworld` with its own settings and then run by `wamkit
evaluate` on the same layouts with the same seeds, so that rows are compared episode by episode (exact sign test on the
episodes that only one of the two solved). All see as many action samples: a joint row has as many world samples
beside them. Models are half as wide as `small` and have four layers, which is what two cores allow for this many rows.
What is finished is not done again, what was interrupted continues, and the table can be made at any time (`--table`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.evaluation.comparison import compare_records
from wamkit.evaluation.results import RESULTS_FILE, EpisodeRecord
from wamkit.evaluation.statistics import wilson_interval

TASKS = ("drawer-open-v3", "window-open-v3", "button-press-topdown-v3")
ACTION_BATCH = 16
SIZE = ("--model.network.dim", "96", "--model.network.num-layers", "4", "--model.network.num-heads", "3")
SIZE += ("--model.network.mlp-dim", "256", "--model.name", "half")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model.

    Args:
        horizon: actions of a chunk, all of which are run.
        mask: how actions of a chunk see each other.
        world: whether half of each batch are world samples.
        against: name of the row it is compared with.
    """

    horizon: int
    mask: str
    world: bool
    against: str = ""

    def settings(self, steps: int) -> list[str]:
        """What `wamkit train` is told."""
        batch = ACTION_BATCH * (2 if self.world else 1)
        told = {
            "model.action-horizon": self.horizon,
            "execution-horizon": self.horizon,
            "model.mask": self.mask,
            "stages.0.steps": steps,
            "stages.0.batch-size": batch,
            "stages.0.objective.world-share": 0.5 if self.world else 0.0,
        }
        return [*SIZE, *(part for name, value in told.items() for part in (f"--{name}", str(value)))]


ROWS = {
    "joint, K 5": Row(horizon=5, mask="action", world=True, against="actions, K 5"),
    "actions, K 5": Row(horizon=5, mask="action", world=False),
    "causal, K 5": Row(horizon=5, mask="causal", world=False, against="actions, K 5"),
    "actions, K 10": Row(horizon=10, mask="action", world=False),
    "causal, K 10": Row(horizon=10, mask="causal", world=False, against="actions, K 10"),
    "actions, K 1": Row(horizon=1, mask="action", world=False),
    "joint, K 1": Row(horizon=1, mask="action", world=True, against="actions, K 1"),
}
"""In the order they run, the most telling ones first. With one action the two masks are the same."""


def folder_of(output: Path, name: str) -> Path:
    return output / name.replace(", ", "_").replace(" ", "")


def command(*arguments: object) -> None:
    """Run a command of ours; the study ends when it fails."""
    told = [sys.executable, "-m", "wamkit.cli.main", *map(str, arguments)]
    if subprocess.run(told, check=False).returncode:
        raise SystemExit(f"{' '.join(told)} failed; the same command continues the study")


def make(name: str, row: Row, options: argparse.Namespace) -> None:
    """Train and evaluate a row, or what is left of it."""
    folder = folder_of(options.output, name)
    print(f"== {name}", flush=True)
    if not (folder / "train" / "policy" / "config.json").is_file():
        data = ["--data.root", options.data, "--data.cache", options.cache, "--data.split", "train"]
        command(
            "train",
            "worldvla-metaworld",
            *data,
            "--output",
            folder / "train",
            "--seed",
            options.seed,
            *row.settings(options.steps),
        )
    if not (folder / "evaluation" / RESULTS_FILE).is_file():
        command(
            "evaluate", folder / "train" / "policy", "--output", folder / "evaluation", "--tasks", *TASKS,
            "--episodes", options.episodes, "--workers", options.workers, "--record-episodes", 0,
        )  # fmt: skip
    if row.world and not (folder / "quality" / "quality.json").is_file():
        command(
            "quality",
            folder / "train" / "policy",
            "--data",
            options.data,
            "--split",
            "val_ind",
            "--output",
            folder / "quality",
        )


def episodes(folder: Path) -> list[EpisodeRecord]:
    """Episodes of a row that count."""
    lines = (folder / "evaluation" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(EpisodeRecord.from_json, lines) if record.error is None]


def summarize(options: argparse.Namespace) -> dict[str, Any]:
    """Every finished row: successes by task and in all, intervals, and the paired comparison."""
    table = {}
    for name, row in ROWS.items():
        folder = folder_of(options.output, name)
        if not (folder / "evaluation" / RESULTS_FILE).is_file():
            continue
        results = json.loads((folder / "evaluation" / RESULTS_FILE).read_text(encoding="utf-8"))
        own = episodes(folder)
        tasks = {
            task: (sum(r.success for r in own if r.task == task), sum(r.task == task for r in own)) for task in TASKS
        }
        solved = sum(r.success for r in own)
        line: dict[str, Any] = {
            "horizon": row.horizon,
            "mask": row.mask,
            "world": row.world,
            "successes": solved,
            "trials": len(own),
            "interval": wilson_interval(solved, len(own)),
            "tasks": {task: {"successes": count, "trials": trials} for task, (count, trials) in tasks.items()},
            "latency_median_seconds": results["latency"]["median_seconds"],
            "protocol": results["protocol"],
            "policy": results["policy"],
            "versions": results["versions"],
        }
        other = folder_of(options.output, row.against)
        if row.against and (other / "evaluation" / RESULTS_FILE).is_file():
            paired = compare_records(own, episodes(other))
            line["against"] = {
                "row": row.against,
                "pairs": paired.num_pairs,
                "only_this": paired.only_first,
                "only_other": paired.only_second,
                "p": paired.p_value,
            }
        if (folder / "quality" / "quality.json").is_file():
            line["quality"] = json.loads((folder / "quality" / "quality.json").read_text(encoding="utf-8"))
        table[name] = line
    return table


def markdown(table: dict[str, Any]) -> str:
    """The study's table."""
    short = [task.removesuffix("-v3") for task in TASKS]
    lines = [f"| model | {' | '.join(short)} | all | 95 % interval | against | policy call |"]
    lines.append("|" + "---|" * (6 + len(short) - 1))
    for name, row in table.items():
        low, high = row["interval"]
        counts = [f"{item['successes']}/{item['trials']}" for item in row["tasks"].values()]
        pair = row.get("against")
        told = "" if pair is None else f"{pair['row']}: +{pair['only_this']} −{pair['only_other']}, p = {pair['p']:.2f}"
        cells = [name, *counts, f"{row['successes']}/{row['trials']}", f"{low:.0%} to {high:.0%}", told]
        lines.append("| " + " | ".join([*cells, f"{1000 * row['latency_median_seconds']:.0f} ms"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="made by `wamkit data encode worldvla-metaworld`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the models and evaluations")
    parser.add_argument("--results", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only make the table of what is finished")
    options = parser.parse_args()
    for name, row in ROWS.items():
        if not options.table:
            make(name, row, options)
    table = summarize(options)
    options.results.mkdir(parents=True, exist_ok=True)
    about = {"steps": options.steps, "action_samples_a_step": ACTION_BATCH, "seed": options.seed, "rows": table}
    (options.results / "results.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (options.results / "table.md").write_text(markdown(table), encoding="utf-8")
    print(markdown(table))


if __name__ == "__main__":
    main()
