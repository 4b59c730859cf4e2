"""The list of excluded episodes: written whole, read with care, and left out of what is learnt."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wamkit.cli.main import main
from wamkit.data.exclusions import (
    EXCLUDE_PATH,
    Exclusions,
    open_usable,
    read_exclusions,
    require_usable,
    without_excluded,
    write_exclusions,
)
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.data.stats import compute_statistics, current_statistics, read_statistics
from wamkit.data.value_labels import SparseValueSettings, is_labelled, label_values

from .older_formats import as_v2


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


def test_values_are_written_without_the_excluded_episodes(tmp_path: Path) -> None:
    root = shutil.copytree(Path(__file__).parents[1] / "data" / "lerobot_v3", tmp_path / "set")  # one file of rows
    write_exclusions(root, {1: "never solved"})
    settings = SparseValueSettings()
    labelled = label_values(open_usable(root), settings)
    lengths = [record.length for record in labelled.episodes]
    for number, length in enumerate(lengths):
        values = labelled.columns(number)["value"]
        assert len(values) == length and (np.isnan if number == 1 else np.isfinite)(values).all()
    assert is_labelled(labelled, settings) and not is_labelled(labelled, SparseValueSettings(gamma=0.5))
    assert compute_statistics(without_excluded(labelled))["value"].count == lengths[0] + lengths[2]
    write_exclusions(root, {})
    assert not is_labelled(open_usable(root), settings), "the episode is wanted again, and has none yet"
    assert np.isfinite(label_values(open_usable(root), settings).columns(1)["value"]).all()


def test_values_follow_the_list_and_the_recording(write_dataset, caplog: pytest.LogCaptureFixture) -> None:
    root, _ = write_dataset(3)  # a file for each episode

    def label(gamma: float) -> list[np.ndarray]:
        """What `wamkit data values` does."""
        dataset, settings = open_usable(root), SparseValueSettings(gamma=gamma)
        if not is_labelled(dataset, settings):
            label_values(dataset, settings)
        found = LeRobotDataset(root)
        return [found.columns(number)["value"] for number in range(3)]

    expected = label(0.5)
    first = LeRobotDataset(root).fingerprint()
    label(0.9)
    write_exclusions(root, {1: "mine"}, fingerprint=LeRobotDataset(root).recorded_fingerprint())
    assert np.isnan(label(0.5)[1]).all(), "no earlier column stays"
    without_excluded(open_usable(root))
    assert "before the dataset changed" not in caplog.text, "a column of ours is no change"
    write_exclusions(root, {})
    assert [(found.episodes, found.remedy) for found in inspect(root).findings if found.kind == "non_finite"] == [
        ((1,), "run `wamkit data values` again")
    ]
    np.testing.assert_equal(label(0.5), expected)
    assert LeRobotDataset(root).fingerprint() == first, "equal content, equal fingerprint"
    assert not [found for found in inspect(root).findings if found.kind == "stale_values"]

    path = LeRobotDataset(root).data_path(0)
    table = pq.read_table(path)
    place = table.schema.get_field_index("next.success")
    solved = [False] * len(table)
    pq.write_table(table.set_column(place, "next.success", [solved]), path)
    assert not is_labelled(open_usable(root), SparseValueSettings(gamma=0.5))
    (stale,) = [found for found in inspect(root).findings if found.kind == "stale_values"]
    assert stale.severity == "warning" and "wamkit data values" in stale.remedy
    before, after = expected[0], label(0.5)[0]
    assert (before != after).any() and is_labelled(open_usable(root), SparseValueSettings(gamma=0.5))


def test_columns_from_before_their_source_was_kept(write_dataset) -> None:
    root, _ = write_dataset(2)
    settings = SparseValueSettings()
    label_values(LeRobotDataset(root), settings)
    info = json.loads((root / "meta/info.json").read_text())
    del info["wamkit"]["sources"]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert is_labelled(LeRobotDataset(root), settings)
    assert not [found for found in inspect(root).findings if found.kind == "stale_values"]


def test_an_excluded_episode_may_have_lost_its_files(
    write_dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_dataset(3)
    root = as_v2(source, tmp_path / "old")
    lost = LeRobotDataset(root).data_path(1)
    kept = lost.read_bytes()
    lost.unlink()
    assert main(["data", "values", str(root), "--kind", "sparse"]) == 2
    assert lost.name in capsys.readouterr().err
    write_exclusions(root, {1: "its file is missing"})
    for line in ("wrote sparse values of 2 episodes", "already has these sparse values"):
        assert main(["data", "values", str(root), "--kind", "sparse"]) == 0
        assert line in capsys.readouterr().out
    lost.write_bytes(kept)
    write_exclusions(root, {})
    assert main(["data", "values", str(root), "--kind", "sparse"]) == 0
    assert "of 3 episodes" in capsys.readouterr().out and len(LeRobotDataset(root).columns(1)["value"]) == 13


def test_excluded_episodes_are_not_chosen_by_number(write_dataset) -> None:
    root, _ = write_dataset(3)
    write_exclusions(root, {1: "black"})
    require_usable(root, [0, 2])
    with pytest.raises(DatasetError, match=r"that it does not exclude, got 1 \(black\); choose others"):
        require_usable(root, [0, 1])
