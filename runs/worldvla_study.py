"""The paper's comparisons at our scale: joint training against the policy alone; the action mask against plain causal.

    bash runs/zoo_worldvla.sh      # makes the data that this needs
    python runs/worldvla_study.py --zoo outputs/worldvla --output outputs/study --results results/worldvla_study

Every row is a WorldVLA trained by `wamkit train worldvla-metaworld` with its own settings and then run by `wamkit
evaluate` on the same layouts with the same seeds, so that rows are compared episode by episode (exact sign test on the
episodes that only one of the two solved). All see as many action samples: a joint row has as many world samples
beside them. Models are half as wide as `small` and have four layers, which is what two cores allow for this many rows.
World models are measured on the held-out episodes of the three tasks (`val_ind`) and on a task that was never trained
on (`val_ood`), against copying the last frame. What is finished is not done again, what was interrupted continues, and
the table can be made at any time (`--table`).
"""

from __future__ import annotations

import argparse
import dataclasses
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
        actions: whether it learns to act.
        world: whether it learns to imagine.
        against: name of the row it is compared with.
    """

    horizon: int = 5
    mask: str = "action"
    actions: bool = True
    world: bool = False
    against: str = ""

    def settings(self, steps: int) -> list[str]:
        """What `wamkit train` is told."""
        batch = ACTION_BATCH * (self.actions + self.world)
        told = {
            "model.action-horizon": self.horizon,
            "execution-horizon": self.horizon,
            "model.mask": self.mask,
            "stages.0.steps": steps,
            "stages.0.batch-size": batch,
            "stages.0.objective.world-share": self.world / (self.actions + self.world),
        }
        return [*SIZE, *(part for name, value in told.items() for part in (f"--{name}", str(value)))]


ROWS = {
    "joint, K 5": Row(world=True, against="actions, K 5"),
    "actions, K 5": Row(),
    "causal, K 5": Row(mask="causal", against="actions, K 5"),
    "actions, K 10": Row(horizon=10),
    "causal, K 10": Row(horizon=10, mask="causal", against="actions, K 10"),
    "actions, K 1": Row(horizon=1),
    "world": Row(actions=False, world=True),
}
"""In the order they run, the most telling ones first. With one action the two masks are the same."""

PARTS = {"val_ind": ("data", "--split", "val_ind"), "val_ood": ("other", "--split", "all")}
"""What world models are measured on: a dataset, and which of its episodes."""


def folder_of(output: Path, name: str) -> Path:
    return output / name.replace(", ", "_").replace(" ", "")


def command(*arguments: object) -> None:
    """Run a command of ours; the study ends when it fails."""
    told = [sys.executable, "-m", "wamkit.cli.main", *map(str, arguments)]
    if subprocess.run(told, check=False).returncode:
        raise SystemExit(f"{' '.join(told)} failed; the same command continues the study")


def make(name: str, row: Row, options: argparse.Namespace) -> None:
    """Train and measure a row, or what is left of it."""
    folder = folder_of(options.output, name)
    policy = folder / "train" / "policy"
    print(f"== {name}", flush=True)
    if not (policy / "config.json").is_file():
        data = ["--data.root", options.zoo / "data", "--data.cache", options.zoo / "cache", "--data.split", "train"]
        own = ["--output", folder / "train", "--seed", options.seed, "--precision", options.precision]
        own += row.settings(options.steps)
        command("train", "worldvla-metaworld", *data, *own)
    if row.actions and not (folder / "evaluation" / RESULTS_FILE).is_file():
        count = ["--episodes", options.episodes, "--workers", options.workers, "--record-episodes", 0]
        command("evaluate", policy, "--output", folder / "evaluation", "--tasks", *TASKS, *count)
    for part, chosen in PARTS.items():
        if row.world and not (folder / part / "quality.json").is_file():
            command("quality", policy, "--data", options.zoo / chosen[0], *chosen[1:], "--output", folder / part)


def episodes(folder: Path) -> list[EpisodeRecord]:
    """Episodes of a row that count."""
    lines = (folder / "evaluation" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(EpisodeRecord.from_json, lines) if record.error is None]


def success(folder: Path) -> dict[str, Any]:
    """How often a row solved its tasks."""
    results = json.loads((folder / "evaluation" / RESULTS_FILE).read_text(encoding="utf-8"))
    own = episodes(folder)
    solved = sum(record.success for record in own)
    tasks = {}
    for task in TASKS:
        outcomes = [record.success for record in own if record.task == task]
        tasks[task] = {"successes": sum(outcomes), "trials": len(outcomes)}
    return {
        "successes": solved,
        "trials": len(own),
        "interval": wilson_interval(solved, len(own)),
        "tasks": tasks,
        "latency_median_seconds": results["latency"]["median_seconds"],
        **{key: results[key] for key in ("protocol", "policy", "versions")},
    }


def summarize(options: argparse.Namespace) -> dict[str, Any]:
    """Every finished row: successes by task and in all, intervals, and the paired comparison."""
    table = {}
    for name, row in ROWS.items():
        folder = folder_of(options.output, name)
        line: dict[str, Any] = {"settings": dataclasses.asdict(row)}
        if row.actions:
            if not (folder / "evaluation" / RESULTS_FILE).is_file():
                continue
            line |= success(folder)
            other = folder_of(options.output, row.against)
            if row.against and (other / "evaluation" / RESULTS_FILE).is_file():
                paired = compare_records(episodes(folder), episodes(other))
                line["against"] = {
                    "row": row.against,
                    "pairs": paired.num_pairs,
                    "only_this": paired.only_first,
                    "only_other": paired.only_second,
                    "p": paired.p_value,
                }
        for part in PARTS:
            if (folder / part / "quality.json").is_file():
                line[part] = json.loads((folder / part / "quality.json").read_text(encoding="utf-8"))
        if row.actions or any(part in line for part in PARTS):
            table[name] = line
    return table


def markdown(table: dict[str, Any]) -> str:
    """The study's table."""
    short = [task.removesuffix("-v3") for task in TASKS]
    lines = [f"| model | {' | '.join(short)} | all | 95 % interval | against | policy call |"]
    lines.append("|" + "---|" * (6 + len(short) - 1))
    for name, row in table.items():
        if "interval" not in row:
            continue
        low, high = row["interval"]
        counts = [f"{item['successes']}/{item['trials']}" for item in row["tasks"].values()]
        pair = row.get("against")
        told = (
            "" if pair is None else f"{pair['row']}: +{pair['only_this']} −{pair['only_other']}, {_chance(pair['p'])}"
        )
        cells = [name, *counts, f"{row['successes']}/{row['trials']}", f"{low:.0%} to {high:.0%}", told]
        lines.append("| " + " | ".join([*cells, f"{1000 * row['latency_median_seconds']:.0f} ms"]) + " |")
    lines += ["", "Next frame from recorded ones, PSNR in dB, on frames that change by 2 of 255 or more:", ""]
    lines += [
        "| model | part | frames | model | copying | gain, 95 % interval | codec |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        for part in PARTS:
            for step in row.get(part, {}).get("steps", ()):
                if step["frames"] == "moving" and step["num_frames"]:
                    lines.append(_quality(name, part, step))
    return "\n".join(lines) + "\n"


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.01 else f"p = {p:.3f}"


def _quality(name: str, part: str, step: dict[str, Any]) -> str:
    gain = step["model"]["psnr_gain"]
    told = f"{gain['mean']:+.2f}"
    if gain["interval"] is not None:
        told += f" ({gain['interval'][0]:+.2f} to {gain['interval'][1]:+.2f})"
    numbers = [f"{step[side]['psnr']['mean']:.2f}" for side in ("model", "copy", "ceiling")]
    return f"| {name} | {part} | {step['num_frames']} | {numbers[0]} | {numbers[1]} | {told} | {numbers[2]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="what runs/zoo_worldvla.sh made: data, other, cache")
    parser.add_argument("--output", type=Path, required=True, help="folder of the models and evaluations")
    parser.add_argument("--results", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="what models are trained in")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="those alone")
    parser.add_argument("--table", action="store_true", help="only make the table of what is finished")
    options = parser.parse_args()
    for name, row in ROWS.items():
        if not options.table and name in options.rows:
            make(name, row, options)
    table = summarize(options)
    options.results.mkdir(parents=True, exist_ok=True)
    about = {"steps": options.steps, "action_samples_a_step": ACTION_BATCH, "seed": options.seed}
    about |= {"precision": options.precision, "rows": table}
    (options.results / "results.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (options.results / "table.md").write_text(markdown(table), encoding="utf-8")
    print(markdown(table))


if __name__ == "__main__":
    main()
