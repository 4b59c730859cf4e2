"""A dataset of pictures and actions alone: what nobody recorded has no column, and is never made up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from wamkit.data.actions import ActionTransform
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import compute_statistics, read_statistics, write_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.data.writer import LeRobotWriter
from wamkit.episode import Episode

WHOLE = synthetic_robot(cameras=("front",))
ROBOT = dataclasses.replace(WHOLE, state=())


def bare(number: int = 3) -> list[Episode]:
    """Demonstrations of which only pictures and actions are known."""
    return [
        dataclasses.replace(episode, state=np.zeros((len(episode), 0), np.float32), reward=None, success=None)
        for episode in synthetic_episodes(number, cameras=("front",))
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with LeRobotWriter(tmp_path / "bare", ROBOT, has_outcome=False) as writer:
        for episode in bare():
            writer.add(episode)
    return tmp_path / "bare"


def test_there_is_no_column_for_what_was_not_recorded(root: Path) -> None:
    dataset = LeRobotDataset(root)
    assert not {"observation.state", "next.reward", "next.success"} & dataset.features.keys()
    assert dataset.robot == ROBOT
    columns = dataset.columns(0)
    assert columns["observation.state"].shape == (20, 0) and columns["next.done"].tolist() == [False] * 19 + [True]
    assert dataset.columns(1, ["observation.state"])["observation.state"].shape == (20, 0)
    np.testing.assert_array_equal(columns["action"], bare()[0].actions)
    assert inspect(root).is_sound


def test_it_can_be_trained_on(root: Path) -> None:
    dataset = LeRobotDataset(root)
    statistics = compute_statistics(dataset)
    write_statistics(root, statistics, fingerprint=dataset.fingerprint())
    assert read_statistics(root)["state"].mean == ()
    loader = WindowLoader(
        dataset,
        WindowConfig(context=2, chunk=1, action_horizon=4, pick="spaced", spacing=1),
        action=ActionTransform.from_statistics("absolute", "minmax", statistics, ROBOT),
        state=Normalizer.from_statistics("minmax", statistics["state"]),
        batch_size=3,
        seed=0,
        robot=ROBOT,
    )
    batch = loader.batch(0)
    assert batch.state.shape == (3, 0) and batch.future_state.shape == (3, 4, 0)


def test_in_memory_it_is_the_same() -> None:
    columns = MemoryDataset(bare(), ROBOT).columns(0)
    assert set(columns) == {"action", "observation.state"} and not bare()[0].is_success


def test_a_dataset_that_lost_its_state_is_still_refused(root: Path) -> None:
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["wamkit"]["robot"] = WHOLE.to_dict()
    path.write_text(json.dumps(info))
    assert not inspect(root).is_sound
    with pytest.raises(DatasetError, match=r"not \['observation.state'\]"):
        LeRobotDataset(root).columns(0, ["observation.state"])


def test_episodes_with_and_without_outcome_do_not_mix(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"do not say what they earned, the recording's say what they earned"):
        LeRobotWriter(root, ROBOT)
    complete = dataclasses.replace(bare()[0], reward=np.zeros(20, np.float32), success=np.ones(20, bool))
    with (
        LeRobotWriter(root, ROBOT, has_outcome=False) as writer,
        pytest.raises(ValueError, match="reward: expected none"),
    ):
        writer.add(complete)
    with LeRobotWriter(tmp_path / "other", ROBOT) as writer, pytest.raises(ValueError, match=r"reward: expected \[T\]"):
        writer.add(bare()[0])
    with LeRobotWriter(tmp_path / "other", ROBOT, has_outcome=False) as writer:
        assert writer.add(bare()[0]) == 0, "a dataset without episodes takes what comes"
