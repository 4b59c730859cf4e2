"""Weights trained by the public code become a policy folder: with statistics, codecs and a robot beside them."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from wamkit.checkpoint import write_policy
from wamkit.data.actions import ActionTransform
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.stats import Statistics
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.data.vectors import Transforms
from wamkit.models import family_module
from wamkit.recipes.published_robots import ROBOTS
from wamkit.recipes.run import Run
from wamkit.spec import RobotSpec
from wamkit.training.stage import plain


def import_policy(
    weights: Path,
    output: Path,
    *,
    run: Run,
    robot: RobotSpec,
    statistics: Mapping[str, Statistics],
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a policy folder around weights that are there.

    Args:
        weights: every tensor of the network, in any layout that the model's family reads.
        output: folder to make.
        run: how the weights were trained: model (which names its pretrained codecs' folder), normalisation, action
            type, action offset.
        robot: whose policy it is; its pictures are brought to the model's size as `run.data.preprocess` says.
        statistics: of `action`, `state` and, for a model with values, `value`.
        dtype: type of the stored weights; float32 when `None`.

    Returns:
        `output`.

    Raises:
        FileExistsError: there is something at `output`.
        FileNotFoundError: no weights or no codecs.
        ValueError: weights, codecs, statistics and robot do not fit the model.
    """
    if output.exists():
        raise FileExistsError(f"expected a new folder for the policy, {output} is there; remove it or choose another")
    model = run.model
    transforms = _transforms(run, robot, statistics)
    spec = model.spec_for(
        robot,
        execution_horizon=run.execution_horizon,
        normalization=run.data.normalization,
        preprocess=run.data.preprocess,
    )
    family = family_module(model.family).FAMILY
    with tempfile.TemporaryDirectory() as codecs:
        family.fit_codecs(model, [], torch.Generator(), Path(codecs))
        imported = family.create(model, Path(codecs), seed=0, initial=weights, dtype=dtype)
    return write_policy(
        output,
        family=model.family,
        network=imported.network,
        config=model.to_dict(),
        spec=spec,
        statistics=transforms.to_dict(),
        training={
            "imported_from": {"name": weights.resolve().name, "tensors": len(imported.network.state_dict())},
            "recipe": {"data": plain(dataclasses.replace(run.data, root=Path()))},
        },
        write_codecs=imported.save_codecs,
    )


def read_robot(source: str) -> RobotSpec:
    """A robot by name, from a dataset's folder, or from a JSON file of its spec.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a dataset that says nothing of its robot, or a malformed spec.
    """
    if source in ROBOTS:
        return ROBOTS[source]()
    path = Path(source)
    if path.is_dir():
        robot = LeRobotDataset(path).robot
        if robot is None:
            raise ValueError(f"{path} says nothing of its robot; give a JSON file of a RobotSpec instead")
        return robot
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a robot's name ({', '.join(ROBOTS)}), a dataset or a JSON file of a RobotSpec, found nothing at "
            f"{path}"
        )
    try:
        return RobotSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON ({error})") from error


def _transforms(run: Run, robot: RobotSpec, statistics: Mapping[str, Statistics]) -> Transforms:
    model, kind = run.model, run.data.normalization
    wanted = {"action": model.action_dim, "state": model.state_dim}
    if model.value_channels:
        wanted["value"] = model.value_channels
    found = {name: len(statistics[name].mean) if name in statistics else 0 for name in wanted}
    widths = {"action": len(robot.action), "state": len(robot.state)}
    if found != wanted or widths != {name: wanted[name] for name in widths} or len(robot.cameras) != model.num_views:
        raise ValueError(
            f"expected statistics of {wanted} channels and a robot of {model.num_views} cameras for model "
            f"{model.name!r}, got statistics of {found}, and {robot.name!r} of {widths} channels and "
            f"{len(robot.cameras)} cameras; choose domain, space and robot that belong to the weights"
        )
    return Transforms(
        state=Normalizer.from_statistics(kind, statistics["state"]),
        action=ActionTransform.from_statistics(
            run.data.action_type, kind, statistics, robot, targets=run.data.action_targets
        ),
        value=ValueTransform.from_statistics(statistics["value"]) if model.value_channels else None,
    )
