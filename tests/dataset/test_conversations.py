"""Datasets become frame folders and conversations and come back."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wamkit.data.conversations import ACTION_TEXT, WORLD_TEXT
from wamkit.data.convert_conversations import convert_conversations
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.splits import split_episodes
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.trajectories import find_trajectories, read_trajectory
from wamkit.data.write_conversations import ConversationSettings, folder_name, write_conversations
from wamkit.data.writer import LeRobotWriter

SQUARE = synthetic_robot(height=16, width=16)
SETTINGS = ConversationSettings(name="square", action_horizon=3)
TASKS = ("push it: a, b", "open the drawer", "push it: a, b")


def record(
    root: Path, tasks: tuple[str, ...] = TASKS, *, change: Callable[[Any, int], Any] = lambda one, _: one
) -> Path:
    """Episodes of 5, 6, 7, … rows."""
    with LeRobotWriter(root, SQUARE) as writer:
        for number, task in enumerate(tasks):
            (episode,) = synthetic_episodes(1, length=5 + number, height=16, width=16, seed=number)
            writer.add(change(dataclasses.replace(episode, task=task), number))
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recorded") / "set")


def load(path: Path) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(path.read_text())
    return items


# -- writing -----------------------------------------------------------------------------------------------------------


def test_the_lists_have_the_published_form(dataset: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = write_conversations(dataset, tmp_path / "out", SETTINGS, progress=lambda *step: steps.append(step))
    actions, world = "square_his_2_train_img_only_ck_3_16.json", "square_his_1_train_a2i_16.json"
    assert report.files == {actions: 3 + 4 + 5, world: 4 + 5 + 6}, "T - K + 1 and T - 1 of each"
    assert (report.episodes, report.frames, report.camera) == (3, 18, "front") and steps[-1] == (3, 3)
    assert report.empty == ("val_ind", "val_ood") and report.short_episodes == report.dropped_rows == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("open_the_drawer", "push_it_a,_b", world, actions)
    ]
    first, second, *_ = load(tmp_path / "out" / actions)
    at = "push_it_a,_b/trj_0"
    assert first == {
        "conversations": [
            {"from": "human", "value": "What action should the robot take to push it: a, b?<|image|>"},
            {"from": "gpt", "value": "<|action|><|action|><|action|>"},
        ],
        "image": [f"{at}/imgs/image_0.png"],
        "action": [f"{at}/action/action_{row}.npy" for row in (0, 1, 2)],
    }
    assert second["conversations"][0]["value"].endswith("?<|image|><|image|>")
    assert second["image"] == [f"{at}/imgs/image_0.png", f"{at}/imgs/image_1.png"]
    assert load(tmp_path / "out" / world)[1] == {
        "conversations": [
            {"from": "human", "value": f"{WORLD_TEXT}<|image|><|action|>"},
            {"from": "gpt", "value": "<|image|>"},
        ],
        "image": [f"{at}/imgs/image_1.png", f"{at}/imgs/image_2.png"],
        "action": [f"{at}/action/action_1.npy"],
    }
    last = load(tmp_path / "out" / actions)[-1]
    assert last["action"][-1] == "push_it_a,_b/trj_1/action/action_6.npy", "the second of its task, to its last row"
    assert ACTION_TEXT == "What action should the robot take to {task}?"


def test_files_hold_what_was_recorded(dataset: Path, tmp_path: Path) -> None:
    write_conversations(dataset, tmp_path / "out", SETTINGS)
    source = LeRobotDataset(dataset)
    for episode, at in ((0, "push_it_a,_b/trj_0"), (1, "open_the_drawer/trj_0"), (2, "push_it_a,_b/trj_1")):
        folder, length = tmp_path / "out" / at, source.episodes[episode].length
        assert len(list(folder.rglob("*.*"))) == 2 * length
        for row, real in enumerate(source.frames(episode, "front", range(length))):
            np.testing.assert_array_equal(np.asarray(Image.open(folder / f"imgs/image_{row}.png")), real)
            stored = np.load(folder / f"action/action_{row}.npy", allow_pickle=False)
            assert stored.dtype == np.float32
            np.testing.assert_array_equal(stored, source.columns(episode)["action"][row])


def test_longer_histories_grow_from_the_beginning(dataset: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, action_history=4, world_history=2, action_horizon=1)
    report = write_conversations(dataset, tmp_path / "out", settings)
    assert list(report.files) == ["square_his_4_train_img_only_ck_1_16.json", "square_his_2_train_a2i_16.json"]
    actions, world = (load(tmp_path / "out" / name) for name in report.files)
    assert [len(item["image"]) for item in actions[:5]] == [1, 2, 3, 4, 4]
    assert [len(item["action"]) for item in world[:4]] == [1, 2, 2, 2]
    assert world[1]["conversations"][0]["value"] == f"{WORLD_TEXT}<|image|><|action|><|image|><|action|>"


def test_an_episode_shorter_than_an_answer_is_asked_about_frames_alone(dataset: Path, tmp_path: Path) -> None:
    report = write_conversations(dataset, tmp_path / "out", dataclasses.replace(SETTINGS, action_horizon=7))
    assert report.short_episodes == 2 and list(report.files.values()) == [1, 15]


def test_parts_follow_the_split(tmp_path: Path) -> None:
    tasks = tuple(f"task {letter}" for letter in "abcdefghij")
    root = record(tmp_path / "ten", tasks)
    settings = dataclasses.replace(SETTINGS, parts=("train", "val_ood", "all"), action_horizon=14)
    report = write_conversations(root, tmp_path / "out", settings)
    assert report.files == {
        "square_his_2_train_img_only_ck_14_16.json": 0,
        "square_his_1_train_a2i_16.json": sum(range(4, 13)),
        "square_his_2_all_img_only_ck_14_16.json": 1,
        "square_his_1_all_a2i_16.json": sum(range(4, 14)),
        "square_his_2_val_ood_img_only_ck_14_16.json": 1,
        "square_his_1_val_ood_a2i_16.json": 13,
    }
    assert load(tmp_path / "out" / "square_his_2_train_img_only_ck_14_16.json") == []
    (held_out,) = split_episodes(LeRobotDataset(root).episodes).val_ood
    assert held_out == 9
    assert load(tmp_path / "out" / "square_his_1_val_ood_a2i_16.json")[0]["image"][0].startswith("task_j/")


def test_pictures_can_be_turned_and_another_camera_chosen(dataset: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, pictures="turn", camera="wrist")
    assert write_conversations(dataset, tmp_path / "out", settings).camera == "wrist"
    (real,) = LeRobotDataset(dataset).frames(1, "wrist", [4])
    turned = np.asarray(Image.open(tmp_path / "out/open_the_drawer/trj_0/imgs/image_4.png"))
    np.testing.assert_array_equal(turned, real[::-1, ::-1])


def test_rows_that_do_nothing_can_be_left_out(tmp_path: Path) -> None:
    def rest(episode: Any, _: int) -> Any:
        actions = episode.actions.copy()
        actions[[0, 2], :2], actions[:, 2] = 0, -1
        return dataclasses.replace(episode, actions=actions)

    root = record(tmp_path / "set", ("open it",), change=rest)
    report = write_conversations(root, tmp_path / "out", dataclasses.replace(SETTINGS, idle="drop"))
    assert (report.frames, report.dropped_rows) == (3, 2)
    source = LeRobotDataset(root)
    for row, kept in enumerate((1, 3, 4)):
        folder = tmp_path / "out/open_it/trj_0"
        np.testing.assert_array_equal(np.load(folder / f"action/action_{row}.npy"), source.columns(0)["action"][kept])
        picture = np.asarray(Image.open(folder / f"imgs/image_{row}.png"))
        np.testing.assert_array_equal(picture, source.frames(0, "front", [kept])[0])


def test_published_names_and_prompts(tmp_path: Path) -> None:
    scenes = ("KITCHEN_SCENE3_open_it.bddl", "STUDY_SCENE1_open_it.bddl")
    root = record(
        tmp_path / "set",
        ("open it", "open it"),
        change=lambda episode, number: dataclasses.replace(episode, metadata={"bddl_file": scenes[number]}),
    )
    plain = write_conversations(root, tmp_path / "plain", SETTINGS)
    assert {item["image"][0].split("/")[1] for item in load(tmp_path / "plain" / next(iter(plain.files)))} == {
        "trj_0",
        "trj_1",
    }
    legacy = write_conversations(root, tmp_path / "legacy", dataclasses.replace(SETTINGS, legacy_prompt=True))
    prompts = {
        item["conversations"][0]["value"].split("<")[0] for item in load(tmp_path / "legacy" / next(iter(legacy.files)))
    }
    assert prompts == {
        f"What action should the robot take to {scene} open it?" for scene in ("KITCHEN SCENE3", "STUDY SCENE1")
    }
    report = convert_conversations([tmp_path / "legacy"], tmp_path / "back", SQUARE)
    back = LeRobotDataset(tmp_path / "back")
    assert report.episodes == 2 and {entry.task for entry in back.episodes} == {"open it"}, (
        "the scene is no instruction"
    )
    assert [entry.metadata["task_folder"] for entry in back.episodes] == [
        "KITCHEN_SCENE3_open_it",
        "STUDY_SCENE1_open_it",
    ]


def test_a_setting_without_effect_is_said(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="wamkit"):
        write_conversations(dataset, tmp_path / "out", dataclasses.replace(SETTINGS, legacy_prompt=True))
    assert "legacy_prompt has no effect" in caplog.text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("open the drawer", "open_the_drawer"),
        (" a/b\\c: \x00d ", "a_b_c_d"),
        ("../up", "_up"),
        ("öffne die Tür, schnell", "öffne_die_Tür,_schnell"),
        ("x" * 300, "x" * 200),
        ("", ""),
        ("..", ""),
    ],
)
def test_names_of_folders(text: str, name: str) -> None:
    assert folder_name(text) == name


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("open: it", "open/ it"), r"different names, got 'open_it' for 'open: it' and 'open/ it'"),
        (("..",), r"episode 0: expected a sentence to name its folder by, got '..'"),
        (("say <|image|>",), "expected a sentence without placeholders"),
    ],
)
def test_sentences_that_name_no_folder_are_refused(tasks: tuple[str, ...], message: str, tmp_path: Path) -> None:
    root = record(tmp_path / "set", tasks)
    with pytest.raises(ValueError, match=message):
        write_conversations(root, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_history": 0}, "action_history of 1 or more, got 0"),
        ({"action_horizon": -1}, "action_horizon of 1 or more"),
        ({"world_history": 0}, "world_history of 1 or more"),
        ({"parts": ()}, r"some of the parts \['train', 'val_ind', 'val_ood', 'all'\], got \[\]"),
        ({"name": "a/b"}, r"got 'a/b'; try 'a_b'"),
        ({"action_text": "Do it!"}, r"action text: expected \{task\} once"),
        ({"world_text": "What next?<|image|>"}, "world text: expected no placeholders"),
    ],
)
def test_settings_that_make_no_lists_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_datasets_that_cannot_be_written_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a camera among \['front', 'wrist'\], got 'top'; choose one with --camera"):
        write_conversations(dataset, tmp_path / "out", dataclasses.replace(SETTINGS, camera="top"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"expected nothing at .*full, found \['mine.txt'\]"):
        write_conversations(dataset, tmp_path / "full", SETTINGS)
    drop = dataclasses.replace(SETTINGS, idle="drop")
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    info = json.loads((copy / "meta/info.json").read_text())
    absolute = {"robot": SQUARE.to_dict() | {"action_kind": "absolute"}}
    for own, message in ((absolute, "is driven by positions; keep every row"), ({}, "a dataset that names its robot")):
        (copy / "meta/info.json").write_text(json.dumps(info | {"wamkit": own}))
        with pytest.raises(ValueError, match=message):
            write_conversations(copy, tmp_path / "out", drop)
    still = record(
        tmp_path / "still",
        ("rest",),
        change=lambda episode, _: dataclasses.replace(episode, actions=np.zeros_like(episode.actions)),
    )
    with pytest.raises(ValueError, match="episode 0: expected actions that move the robot, got none"):
        write_conversations(still, tmp_path / "out", drop)
    assert not (tmp_path / "out").exists()


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
def test_a_dataset_comes_back(absolute: bool, dataset: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, absolute_paths=absolute, pictures="turn")
    report = write_conversations(dataset, tmp_path / "out", settings)
    (first,) = load(tmp_path / "out" / next(iter(report.files)))[0]["image"]
    assert Path(first).is_absolute() == absolute
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "out", moved)
    root = moved if absolute else None  # absolute paths mean the old place
    converted = convert_conversations([moved], tmp_path / "back", SQUARE, root=root, pictures="turn")
    assert (converted.episodes, converted.frames, converted.source) == (3, 18, "WorldVLA conversations")
    before, after = LeRobotDataset(dataset), LeRobotDataset(tmp_path / "back")
    assert after.robot == dataclasses.replace(SQUARE.with_cameras(("front",)), state=())
    assert not {"observation.state", "next.reward", "next.success"} & after.features.keys()
    assert after.wamkit["notes"]["conversion"] == converted.notes and converted.notes["cut_rows"] == 0
    assert [entry.task for entry in after.episodes] == [TASKS[1], TASKS[0], TASKS[2]], "by task, then by number"
    trajectories = find_trajectories([moved / name for name in report.files], root=root)
    for (new, old), trajectory in zip(enumerate((1, 0, 2)), trajectories, strict=True):
        rows = range(before.episodes[old].length)
        np.testing.assert_array_equal(after.columns(new)["action"], before.columns(old)["action"])
        real = before.frames(old, "front", rows)
        actions, frames = read_trajectory(trajectory, width=3)
        np.testing.assert_array_equal(frames[:, ::-1, ::-1], real)
        np.testing.assert_array_equal(actions, before.columns(old)["action"])
        assert np.abs(after.frames(new, "front", rows).astype(int) - real).mean() < 3, "but for the video's own loss"
    assert inspect(tmp_path / "back").is_sound
