"""What training.json says about where a policy comes from: recipe, seed, data, commit, versions."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wamkit
from wamkit.versions import SIMULATORS, software_versions

_PACKAGES = ("torch", "numpy", "safetensors", "transformers", "diffusers", "av", "pyarrow", "gymnasium", *SIMULATORS)


def training_record(*, recipe: Mapping[str, Any], seed: int, data_fingerprint: str | None = None) -> dict[str, Any]:
    """The content of training.json that is known before training starts.

    Args:
        recipe: the resolved recipe, JSON-ready.
        seed: of every draw in training.
        data_fingerprint: identifies the dataset, or `None` when it has no fingerprint.
    """
    return {
        "recipe": dict(recipe),
        "seed": seed,
        "data_fingerprint": data_fingerprint,
        "commit": source_commit(Path(wamkit.__file__).parent),
        "versions": software_versions(_PACKAGES),
    }


def saw_no_future(training: Mapping[str, Any]) -> bool:
    """Whether a training record says that no stage read future frames, so that nothing was learned of imagining.

    A run from initial weights may have got that from them, and a record without its recipe says nothing: `False`.
    """
    recipe = training.get("recipe")
    stages = recipe.get("stages") if isinstance(recipe, Mapping) else None
    if not isinstance(recipe, Mapping) or not isinstance(stages, list) or not stages or "initial" in recipe:
        return False
    return all(isinstance(stage, Mapping) and stage.get("needs_future") is False for stage in stages)


def source_commit(folder: Path) -> str | None:
    """Git commit of the sources in a folder, with `+changes` when they differ from it.

    Args:
        folder: the package's folder.

    Returns:
        `None` when git does not track the folder: an installed package may lie inside somebody else's repository.
    """
    try:
        tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{'+changes' if changes else ''}" if tracked else None


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()
