"""What is wrong with a run can often be told from its settings alone, before data is read and anything is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wamkit.atomic import complete_folder
from wamkit.data.choices import parse_episodes
from wamkit.recipes.run import Run

CODECS = "codecs"
MADE_FOR = "made_for.json"


def check_run(run: Run) -> None:
    """Refuse settings that could not be carried out; importing this module loads no torch.

    Raises:
        ValueError: a number out of its range, a part that the model does not have, or a setting without effect.
    """
    _require("seed", run.seed >= 0, "0 or more", run.seed)
    _require("save_every", run.save_every >= 1, "1 or more steps", run.save_every)
    is_saved = run.keep_policy_every >= 0 and run.keep_policy_every % max(run.save_every, 1) == 0
    _require("keep_policy_every", is_saved, f"0, or a multiple of save_every={run.save_every}", run.keep_policy_every)
    horizon = run.model.action_horizon
    expected = f"1 to {horizon} (the model's action_horizon)"
    _require("execution_horizon", 1 <= run.execution_horizon <= horizon, expected, run.execution_horizon)
    _check_data(run)
    workers = run.data.workers
    _require("data.workers", workers is None or workers >= 0, "0 or more processes", workers)
    _require("data.sample_n_frames", run.data.sample_n_frames >= 1, "1 or more rows", run.data.sample_n_frames)
    stride = run.model.context_stride
    if stride is not None and run.model.num_context > 1:
        expected = f"spaced, because the model's memory frames are {stride} control steps apart"
        _require("data.pick", run.data.pick == "spaced", expected, run.data.pick)
    if run.data.action_targets and run.data.action_type == "absolute":
        raise ValueError(
            f"data.action_targets {list(run.data.action_targets)} are without effect on absolute actions; leave them "
            "out, or set data.action_type to delta or relative"
        )
    names = [stage.name for stage in run.stages]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected one or more stages with distinct names, got {names}")
    parts = list(run.model.parts)
    for number, stage in enumerate(run.stages):
        unknown = [part for part in stage.train if part not in parts]
        if unknown:
            raise ValueError(
                f"stages.{number}.train of stage {stage.name!r}: expected some of the model's parts {parts}, got "
                f"{unknown}; choose among those"
            )
        for setting, value in _floats(stage.objective, f"stages.{number}.objective"):
            _require(setting, math.isfinite(value), "a finite number", value)


def _check_data(run: Run) -> None:
    data = run.data
    if data.root != Path() and data.roots:
        raise ValueError(
            f"expected either data.root or data.roots, got {data.root} and {list(map(str, data.roots))}; leave one out"
        )
    if len({root.resolve() for root in data.roots}) != len(data.roots):
        raise ValueError(
            f"data.roots: expected different datasets, got {list(map(str, data.roots))}; give each one once, and its "
            "share with data.weights"
        )
    if data.weights:
        is_right = len(data.weights) == len(data.roots) and all(
            math.isfinite(weight) and weight > 0 for weight in data.weights
        )
        expected = f"a positive number for each of the {len(data.roots)} data.roots"
        _require("data.weights", is_right, expected, list(data.weights))
    if data.statistics_entry and data.statistics == Path():
        raise ValueError("data.statistics_entry is without effect without data.statistics; set that, or leave it out")
    parse_episodes(data.episodes, setting="data.episodes")
    parse_episodes(run.validation.episodes, setting="validation.episodes")


def require_own_folder(folder: Path, *, setting: str, mark: str, roots: Sequence[Path]) -> None:
    """Refuse to write a run or a cache among files that are none of it; an interrupted one is its own.

    Args:
        folder: where it would be written.
        setting: its name.
        mark: what lies in the folder when it holds one, besides codecs.
        roots: the datasets' folders.

    Raises:
        ValueError: it is the dataset, or lies inside.
        FileExistsError: it is a file, or holds other things.
    """
    inside = folder.resolve()
    if any(root.resolve() in (inside, *inside.parents) for root in roots):
        raise ValueError(
            f"expected {setting} to be a folder of its own, got {folder}, which is the dataset or lies inside it; "
            "choose another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"expected {setting} to be a folder, {folder} is a file; choose another name")
    if not folder.exists():
        return
    # Hidden entries are locks and what a killed writer left; a log is often written beside what it tells of.
    entries = sorted(entry.name for entry in folder.iterdir())
    others = [name for name in entries if not name.startswith(".") and not name.endswith(".log")]
    is_own = (complete_folder(folder / CODECS) / MADE_FOR).is_file() or (folder / mark).exists()
    if others and not is_own:
        raise FileExistsError(
            f"expected {setting} to be a new or empty folder, or one to continue, {folder} holds other things "
            f"({', '.join(others[:6])}); choose another folder"
        )


def _floats(settings: Any, where: str) -> Iterator[tuple[str, float]]:
    """Names and values of the numbers in a dataclass and in those that it holds."""
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            yield from _floats(value, f"{where}.{item.name}")
        elif isinstance(value, float):
            yield f"{where}.{item.name}", value


def _require(setting: str, is_right: bool, expected: str, got: Any) -> None:
    if not is_right:
        raise ValueError(f"{setting}: expected {expected}, got {got}; correct --{setting.replace('_', '-')}")
