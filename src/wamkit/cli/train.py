"""Train a recipe: wamkit train RECIPE --data.root DATASET --output FOLDER [any other setting of the recipe].

A configuration of WAV's public trainer is a recipe too: wamkit train FILE.yaml --data.root DATASET [other settings].

The same command continues an interrupted run. The output folder holds metrics.jsonl, checkpoints/ and, when all stages
are done, policy/. Several GPUs or processes:

    torchrun --nproc-per-node N -m wamkit.cli.main train RECIPE [the same settings]
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from wamkit.launcher import announced_world_size, is_first_process
from wamkit.recipes import RECIPES
from wamkit.recipes.run import Run


def _options() -> Any:
    """One sub-command per recipe, with the recipe's settings as defaults."""
    defaults = {name: recipe() for name, recipe in RECIPES.items()}
    helps = {name: (recipe.__doc__ or "").split("\n")[0] for name, recipe in RECIPES.items()}
    return tyro.extras.subcommand_type_from_defaults(defaults, helps)


if TYPE_CHECKING:
    Options = Run
else:
    Options = _options()


def parse(arguments: list[str]) -> tuple[Any, Any, list[str]]:
    """What the arguments are settings of, its defaults, and the settings; a YAML file stands for a recipe.

    Raises:
        ValueError: an unknown recipe, or a file that is not understood.
        RuntimeError: `WORLD_SIZE` is no number of processes.
    """
    num_processes = announced_world_size()
    name = arguments[0] if arguments else "--help"
    if not name.endswith((".yaml", ".yml")):
        if not name.startswith("-") and name not in RECIPES:
            raise ValueError(_unknown(name))
        return Options, None, arguments
    from wamkit.recipes.reference_yaml import read_reference_yaml

    found = read_reference_yaml(Path(name), num_processes=num_processes)
    return Run, found.run, arguments[1:]


def run(options: Run) -> int:
    """Train to the end of the recipe; 1 when a signal stopped it before."""
    from wamkit.recipes.execute import execute

    report = execute(options)
    if not is_first_process():
        return int(report.stopped_by is not None)
    if report.stopped_by is not None:
        print(f"stopped by {report.stopped_by} after {report.steps} steps; the same command continues")
        return 1
    losses = ", ".join(f"{stage} {loss:.4f}" for stage, loss in report.losses.items())
    print(f"trained {report.steps} steps ({losses or 'nothing left to do'}); the policy is {options.output / 'policy'}")
    return 0


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.5)
    guess = f" did you mean {close[0]!r}?" if close else ""
    known = ", ".join(RECIPES)
    return f"unknown recipe {name!r};{guess} choose among: {known}; or give a YAML file of WAV's public trainer"
