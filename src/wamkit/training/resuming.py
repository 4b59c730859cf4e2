"""Whether a folder's run is the one that is to go on: its recipe, compared with what is asked for now."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wamkit.training.sharding import Precision
from wamkit.training.stage import TrainStage, recipe_differences, resolved_recipe
from wamkit.training.state import Checkpoint, latest_checkpoint

logger = logging.getLogger(__name__)


def require_same_run(
    folder: Path | str,
    stages: Sequence[TrainStage],
    *,
    seed: int,
    recipe: Mapping[str, Any] | None = None,
    data_fingerprint: str | None = None,
    precision: Precision = "fp32",
    resume: bool = True,
) -> None:
    """What `train` refuses of a folder's run, for a caller who has much to read before it comes to that.

    Args:
        As of `train`.

    Raises:
        ValueError: the folder holds a run with another recipe, or a damaged one, or any run when not resuming.
    """
    latest = latest_checkpoint(Path(folder))
    if latest is not None:
        recipe = resolved_run(stages, seed=seed, recipe=recipe, data_fingerprint=data_fingerprint, precision=precision)
        refuse_another_run(latest, dict(recipe), Path(folder), resume)


def resolved_run(
    stages: Sequence[TrainStage],
    *,
    seed: int,
    recipe: Mapping[str, Any] | None,
    data_fingerprint: str | None,
    precision: Precision,
) -> dict[str, Any]:
    """The whole recipe as checkpoints record it: the stages, the caller's settings, and what else changes numbers."""
    own = {"data_fingerprint": data_fingerprint} | ({"precision": precision} if precision != "fp32" else {})
    return resolved_recipe(stages, seed, {**(recipe or {}), **own})


def refuse_another_run(latest: Checkpoint, recipe: dict[str, Any], folder: Path, resume: bool) -> None:
    """Refuse to go on with a run from `latest` under another recipe, or at all when not resuming.

    Raises:
        ValueError: naming every difference.
    """
    if not resume:
        raise ValueError(
            f"expected a folder without checkpoints, {folder} holds a run up to {latest.folder.name}; resume it, or "
            "choose another folder"
        )
    differences = recipe_differences(latest.recipe, recipe)
    if differences:
        listed = "\n  - ".join(differences)
        raise ValueError(
            f"the run in {folder} was started with another recipe:\n  - {listed}\n"
            "Resume with the recipe it was started with, or train in another folder."
        )


def warn_of_another_torch(latest: Checkpoint) -> None:
    """Say when the run goes on under another version of torch than it was saved under."""
    if latest.torch_version != torch.__version__:
        logger.warning(
            "%s was written with torch %s, this is %s: the run continues, but not bit for bit",
            latest.folder,
            latest.torch_version,
            torch.__version__,
        )
