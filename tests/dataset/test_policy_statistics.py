"""A policy's own normalisation, taken over by a run that goes on from it."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wamkit.data.actions import ActionTransform, ActionType
from wamkit.data.given_statistics import read_given_statistics, require_same_form
from wamkit.data.stats import Statistics, compute_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Kind, Normalizer, ValueTransform
from wamkit.data.vectors import Transforms

ROBOT = synthetic_robot()
WIDTHS = {"action": 3, "state": 3, "value": 2}
TARGETS = tuple(channel.name for channel in ROBOT.state[:2])


@pytest.fixture(scope="module")
def statistics() -> dict[str, Statistics]:
    """Of demonstrations; one channel of the state never varies, one of the actions hardly ever does."""
    found = compute_statistics(MemoryDataset(synthetic_episodes(4, length=30), ROBOT))
    state, action = found["state"], found["action"]
    still = {name: (getattr(state, name)[0], 0.25, getattr(state, name)[2]) for name in ("mean", "q01", "q99", "min")}
    found["state"] = dataclasses.replace(state, **still, max=(state.max[0], 0.25, state.max[2]))
    rare = {name: (*getattr(action, name)[:2], -1.0) for name in ("mean", "q01", "q99", "min")}
    found["action"] = dataclasses.replace(action, **rare, max=(*action.max[:2], 1.0))
    columns = {"mean": (2.0, -3.0), "std": (0.5, 0.0), "q01": (1.0, -3.0), "q99": (3.0, -3.0)}
    extremes = {"min": (0.0, -3.0), "max": (4.0, -3.0)}
    found["value"] = Statistics(**columns, **extremes, count=9, num_kept=9, method="made up")
    return found


def transforms_of(statistics: dict[str, Statistics], kind: Kind, action_type: ActionType) -> Transforms:
    return Transforms(
        state=Normalizer.from_statistics(kind, statistics["state"]),
        action=ActionTransform.from_statistics(action_type, kind, statistics, ROBOT, targets=TARGETS),
        value=ValueTransform.from_statistics(statistics["value"]),
    )


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
@pytest.mark.parametrize("action_type", ["absolute", "relative", "delta"])
def test_the_same_numbers_come_of_it(
    statistics: dict[str, Statistics], tmp_path: Path, kind: Kind, action_type: ActionType
) -> None:
    policy = transforms_of(statistics, kind, action_type)
    assert policy.state.constant == (1,)
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(policy.to_dict()))
    given = read_given_statistics(file, widths=WIDTHS, kind=kind, action_type=action_type)
    again = transforms_of(statistics | given, kind, action_type)
    numbers = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    state = numbers[:, 0]
    assert torch.equal(again.state.normalize(state), policy.state.normalize(state))
    assert torch.equal(again.state.denormalize(state), policy.state.denormalize(state))
    assert torch.equal(again.action.normalize_chunk(numbers, state), policy.action.normalize_chunk(numbers, state))
    assert torch.equal(again.action.denormalize(numbers, state), policy.action.denormalize(numbers, state))
    assert again.value is not None and policy.value is not None
    values = numbers[..., :2]
    assert torch.allclose(again.value.normalize(values), policy.value.normalize(values), rtol=1e-12)


def test_a_policy_that_normalises_in_another_way(statistics: dict[str, Statistics], tmp_path: Path) -> None:
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(transforms_of(statistics, "meanstd", "absolute").to_dict()))
    with pytest.raises(ValueError, match=r"a policy that normalises by meanstd, not by minmax; train with its"):
        read_given_statistics(file, widths=WIDTHS, kind="minmax")
    with pytest.raises(FileNotFoundError, match="found none"):
        read_given_statistics(tmp_path, widths=WIDTHS)
    (tmp_path / "spec.json").write_text("{}")
    assert read_given_statistics(tmp_path, widths=WIDTHS) == read_given_statistics(file, widths=WIDTHS)


def test_a_policy_of_differences_serves_no_other(statistics: dict[str, Statistics], tmp_path: Path) -> None:
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(transforms_of(statistics, "minmax", "delta").to_dict()))
    for other in (None, "absolute", "relative"):
        with pytest.raises(ValueError, match=r"learned differences .* train with data\.action_type delta"):
            read_given_statistics(file, widths=WIDTHS, action_type=other)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("state", "q99"), [0.0], "state: normaliser: expected as many channels"),
        (("action", "mean", 0), float("nan"), r"action: expected mean\[0\] as a finite number, got NaN"),
        (("value",), 3, "value: .*got 3"),
        (("state", "epsilon"), 1e-3, r"expected an epsilon of 1e-06, got \[0\.001\]"),
        (("state", "formula"), "x", "state: .*another program or version"),
    ],
)
def test_a_damaged_file_is_named(
    statistics: dict[str, Statistics], tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    data = parent = copy.deepcopy(transforms_of(statistics, "minmax", "absolute").to_dict())
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"statistics\.json: .*{message}"):
        read_given_statistics(file, widths=WIDTHS)


def test_it_is_not_written_over_by_statistics_of_data(statistics: dict[str, Statistics], tmp_path: Path) -> None:
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(transforms_of(statistics, "minmax", "absolute").to_dict()))
    with pytest.raises(ValueError, match="it holds statistics of policy; choose another --output"):
        require_same_form(file, "wamkit")
    with pytest.raises(ValueError, match="expected 7 channels of state, as in the data, got 3"):
        read_given_statistics(file, widths=WIDTHS | {"state": 7})
