"""The list of excluded episodes: written whole, read with care, and left out of what is learnt."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from wamkit.data.exclusions import EXCLUDE_PATH, Exclusions, read_exclusions, without_excluded, write_exclusions
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.data.stats import compute_statistics, current_statistics, read_statistics


def test_round_trip(write_dataset) -> None:
    root, _ = write_dataset(3)
    assert read_exclusions(root) == Exclusions(episodes={})
    path = write_exclusions(root, {2: "black", 0: "short"}, fingerprint="abc")
    assert path == root / EXCLUDE_PATH
    assert json.loads(path.read_text()) == {
        "format": 1,
        "episodes": {"0": "short", "2": "black"},
        "made_by": "wamkit data inspect",
        "fingerprint": "abc",
    }
    found = read_exclusions(root)
    assert found == Exclusions(episodes={0: "short", 2: "black"}, made_by="wamkit data inspect", fingerprint="abc")
    assert not [entry for entry in path.parent.iterdir() if "partial" in entry.name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it cannot be read"),
        ("[]", r"expected {\"format\": 1"),
        ('{"format": 2, "episodes": {}}', r"expected {\"format\": 1"),
        ('{"format": 1, "episodes": [1]}', r"expected {\"format\": 1"),
        ('{"format": 1, "episodes": {"x": "bad"}}', "whole numbers with a reason each as episodes, got 'x'"),
        ('{"format": 1, "episodes": {"1": 3}}', "whole numbers with a reason each as episodes, got '1': 3"),
        ('{"format": 1, "episodes": {"3": "bad"}}', r"episodes from 0 to 2, got \[3\]; the list belongs to another"),
    ],
)
def test_a_damaged_list_is_refused(write_dataset, text: str, message: str) -> None:
    root, _ = write_dataset(3)
    (root / EXCLUDE_PATH).write_text(text)
    with pytest.raises(DatasetError, match=message) as caught:
        read_exclusions(root)
    assert EXCLUDE_PATH in str(caught.value)


def test_unknown_episodes_are_not_written(write_dataset, tmp_path: Path) -> None:
    root, _ = write_dataset(2)
    with pytest.raises(DatasetError, match=r"episodes from 0 to 1, got \[2\]"):
        write_exclusions(root, {2: "bad"})
    assert not (root / EXCLUDE_PATH).exists()
    with pytest.raises(FileNotFoundError):
        read_exclusions(tmp_path / "none")


def test_a_dataset_without_its_excluded_episodes(write_dataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="wamkit")
    root, _ = write_dataset(3)
    dataset = LeRobotDataset(root)
    assert without_excluded(dataset) is dataset and not caplog.records
    everything = current_statistics(dataset)
    write_exclusions(root, {1: "camera 'front' is black"}, fingerprint=dataset.fingerprint())
    view = without_excluded(dataset)
    assert [entry.index for entry in view.episodes] == [0, 2]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (f"{root}: 1 of 3 episodes are left out by meta/wamkit_exclude.json: 1 (camera 'front' is black)")
    statistics = current_statistics(dataset, view=view)
    assert statistics == compute_statistics(dataset, episodes=[0, 2]) != everything
    assert read_statistics(root, fingerprint=view.fingerprint()) == statistics, "kept, and known by the choice"
    assert view.fingerprint() != dataset.fingerprint()


def test_an_old_list_is_told_and_one_of_everything_refused(write_dataset, caplog: pytest.LogCaptureFixture) -> None:
    root, _ = write_dataset(2)
    write_exclusions(root, {0: "bad"}, fingerprint="of another day")
    without_excluded(LeRobotDataset(root))
    assert "was made before the dataset changed" in caplog.text
    write_exclusions(root, {0: "bad", 1: "bad"})
    with pytest.raises(DatasetError, match="it excludes all of them"):
        without_excluded(LeRobotDataset(root))
