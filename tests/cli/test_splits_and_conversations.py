"""Splitting a dataset, writing it as conversations and making one of them, through the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from wamkit.cli.main import main
from wamkit.data.choices import choose_episodes, parse_episodes
from wamkit.data.exclusions import write_exclusions
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.splits import split_episodes
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.writer import LeRobotWriter


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tasks of one episode, but eleven of the first, with the robot's motion at rest in some rows."""
    root = tmp_path_factory.mktemp("recorded") / "ten tasks"
    with LeRobotWriter(root, synthetic_robot(height=16, width=16, cameras=("front",))) as writer:
        (episode,) = synthetic_episodes(1, length=4, height=16, width=16, cameras=("front",))
        actions = episode.actions.copy()
        actions[1] = [0, 0, actions[0, 2]]
        for letter in "a" * 10 + "abcdefghij":
            writer.add(dataclasses.replace(episode, actions=actions, task=f"do {letter}"))
    return root


def test_a_split_is_printed_as_training_takes_it(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "split", str(dataset)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["train: 18 episodes of 9 tasks", "  0:10 11:19", "val_ind: 1 episodes of 1 tasks", "  10"]
    assert lines[4:6] == ["val_ood: 1 episodes of 1 tasks (do_j)", "  19"] and lines[7] == "  0:20"
    assert main(["data", "split", str(dataset), "--json", "--legacy-lexicographic"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["val_ind"]["episodes"], found["val_ood"]["tasks"], found["all"]["count"]) == ([9], ["do_j"], 20)
    splits = split_episodes(LeRobotDataset(dataset).episodes, legacy_lexicographic=True)
    for part, facts in found.items():
        ranges = parse_episodes(facts["episodes"], setting="data.episodes")
        (numbers,) = choose_episodes(ranges, names=["ten"], counts=[20], setting="data.episodes")
        assert numbers == set(getattr(splits, part))


def test_excluded_episodes_are_in_no_part(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    write_exclusions(copy, {0: "blurred", 19: "dark"})
    assert main(["data", "split", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "all: 18 episodes of 9 tasks\n  1:19" in shown
    assert "val_ood: 0 episodes of 0 tasks\n  none: of fewer than ten tasks none is held out" in shown
    assert "train: 17 episodes of 9 tasks\n  1:10 11:19" in shown
    assert main(["data", "split", str(tmp_path)]) == 2
    assert "expected a LeRobot dataset" in capsys.readouterr().err


def test_there_and_back(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "frames", tmp_path / "back"
    command = ["data", "conversations", str(dataset), "--output", str(out)]
    assert main([*command, "--parts", "val_ood", "train", "--action-horizon", "2", "--idle", "drop"]) == 0
    shown = capsys.readouterr().out
    assert "holds 20 trajectories and 60 frames of front" in shown
    assert "ten_tasks_his_2_train_img_only_ck_2_16.json: 36 conversations" in shown
    assert "ten_tasks_his_1_val_ood_a2i_16.json: 2 conversations" in shown
    assert "20 rows that do nothing were left out" in shown
    convert = ["data", "convert", str(out), "--output", str(back)]
    assert main(convert) == 2
    assert "conversations do not say which robot they are of; expected it as --robot" in capsys.readouterr().err
    assert main([*convert, "--robot", str(dataset)]) == 0
    assert "holds 19 episodes and 57 rows of WorldVLA conversations" in capsys.readouterr().out
    assert LeRobotDataset(back).episodes[-1].task == "do j"
    lists = [str(path) for path in sorted(out.glob("*val_ood*.json"))]
    assert main(["data", "convert", *lists, "--output", str(tmp_path / "one"), "--robot", str(dataset), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 1


def test_what_has_no_lists_is_said(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "few"
    with LeRobotWriter(few, synthetic_robot(height=16, width=16)) as writer:
        writer.add(synthetic_episodes(1, length=4, height=16, width=16)[0])
    assert main(["data", "conversations", str(few), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "no lists of val_ind, val_ood" in shown and "1 episodes are too short for an answer of 5 actions" in shown
    assert main(["data", "conversations", str(few), "--output", str(tmp_path / "out")]) == 2
    assert "expected nothing at" in capsys.readouterr().err
    assert main(["data", "conversations", str(few), "--output", str(tmp_path / "o"), "--world-history", "0"]) == 2
    assert "world_history of 1 or more" in capsys.readouterr().err
    assert main(["data", "conversations", str(few), "--output", str(tmp_path / "o"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["empty"] == ["val_ind", "val_ood"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tokens.pkl", "--robot", "libero"), "a pickle of token ids, which may run any program"),
        (("list.json", "--task", "open it"), "--task: without effect on"),
        (("list.json", "--rename", "a=b"), "--rename: without effect on"),
        (("old", "older"), "expected one dataset or folder of HDF5 files, got 2 things"),
        (("old", "--camera", "front"), "--camera: without effect on"),
        (("file.hdf5", "--root", "x", "--action-text", "y"), "--root, --action-text: without effect on"),
        ((), "expected something to convert, got nothing"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tokens.pkl", "list.json", "file.hdf5"):
        Path(name).write_text("[]")
    assert main(["data", "convert", *arguments, "--output", "out"]) == 2
    assert message in capsys.readouterr().err and not Path("out").exists()
