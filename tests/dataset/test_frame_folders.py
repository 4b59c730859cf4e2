"""Conversations and the files that they name are read whole, or refused by name."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wamkit.data.conversations import Conversation, read_conversation, read_conversations
from wamkit.data.convert_conversations import convert_conversations
from wamkit.data.layout import DatasetError
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import synthetic_robot
from wamkit.data.trajectories import find_trajectories, is_conversations, read_trajectory

from .frame_folders import ROBOT, about_actions, about_frames, action, frame, lay_out, write_list

SQUARE = synthetic_robot(height=16, width=16)


def test_of_what_several_lists_name_everything_is_taken_once(tmp_path: Path) -> None:
    root = tmp_path / "frames"
    for number in range(12):
        lay_out(root, "STUDY_SCENE1_open_it", number, 2)
    one = write_list(
        root / "a.json", [item for n in range(12) for item in about_frames("STUDY_SCENE1_open_it", n, [0])]
    )
    two = write_list(root / "b.json", about_frames("STUDY_SCENE1_open_it", 0, [0]))
    report = convert_conversations([root, one, two], tmp_path / "out", ROBOT)
    assert report.notes["files"] == ["a.json", "b.json"]
    back = LeRobotDataset(tmp_path / "out")
    assert [entry.metadata["trajectory"] for entry in back.episodes] == list(range(12)), "2 comes before 10"
    assert {entry.task for entry in back.episodes} == {"open it"}, "nobody asked about actions: the folder's name tells"
    assert back.robot is not None and [camera.name for camera in back.robot.cameras] == ["agentview"]
    assert (back.robot.cameras[0].height, back.robot.action) == (16, ROBOT.action)
    np.testing.assert_array_equal(back.columns(3)["action"][1], action("STUDY_SCENE1_open_it", 3, 1).astype(np.float32))
    wrist = convert_conversations([two], tmp_path / "wrist", ROBOT, camera="robot0_eye_in_hand")
    assert wrist.episodes == 1 and LeRobotDataset(tmp_path / "wrist").cameras == ("robot0_eye_in_hand",)


def test_a_row_of_which_half_is_named_is_completed_from_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out(tmp_path, "a", 0, 6)
    path = write_list(tmp_path / "list.json", about_actions("a", 0, range(5)))
    (whole,) = find_trajectories([path])
    assert (len(whole.images), whole.cut, whole.sentence) == (6, 0, "open it")
    _, frames = read_trajectory(whole, width=7)
    np.testing.assert_array_equal(frames[5], frame("a", 0, 5))
    (tmp_path / "a/trj_0/imgs/image_5.png").unlink()
    (shorter,) = find_trajectories([path])
    assert (len(shorter.actions), shorter.cut) == (5, 1)
    with caplog.at_level(logging.WARNING, logger="wamkit"):
        assert convert_conversations([path], tmp_path / "out", ROBOT).notes["cut_rows"] == 1
    assert "1 rows at the ends of trajectories are left out" in caplog.text


def test_other_questions_are_understood_when_they_are_given(tmp_path: Path) -> None:
    lay_out(tmp_path, "a", 0, 3)
    items = about_actions("a", 0, [0, 1])
    for item in items:
        item["conversations"][0]["value"] = "Next: open it, robot. <|image|>" + "\n<|image|>" * (len(item["image"]) - 1)
    path = write_list(tmp_path / "list.json", items)
    with pytest.raises(
        DatasetError, match=r"expected the question .* got 'Next: open it, robot.'; give the list's own"
    ):
        find_trajectories([path])
    (found,) = find_trajectories([path], action_text="Next: {task}, robot.")
    assert found.sentence == "open it"
    with pytest.raises(ValueError, match=r"expected \{task\} once"):
        find_trajectories([path], action_text="Next?")


# -- lists that are damaged --------------------------------------------------------------------------------------------


def test_an_item_is_read_as_it_was_written() -> None:
    for item in (*about_actions("a", 0, [0, 4]), *about_frames("a", 3, [2])):
        assert read_conversation(item).to_dict() == item
    longer = Conversation(
        kind="world",
        text="t",
        images=tuple(f"/x/a/trj_0/imgs/image_{row}.png" for row in (4, 5, 6)),
        actions=tuple(f"/x/a/trj_0/action/action_{row}.npy" for row in (4, 5)),
    )
    assert read_conversation(longer.to_dict()) == longer


def changed(**values: Any) -> dict[str, Any]:
    (item,) = about_actions("a", 0, [1])
    return item | values


def said(human: Any, gpt: Any, roles: tuple[str, str] = ("human", "gpt")) -> dict[str, Any]:
    return changed(
        conversations=[{"from": role, "value": value} for role, value in zip(roles, (human, gpt), strict=True)]
    )


BOTH, TWO = "<|image|><|image|>", "<|action|><|action|>"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", r"the keys conversations, image and action, got 'text'"),
        ({"image": []}, r"the keys conversations, image and action, got \['image'\]"),
        (changed(state=["s.npy"]), "got states too"),
        (changed(conversations="hello"), "expected two turns as 'conversations', got 'hello'"),
        (said("x" + BOTH, TWO, ("gpt", "human")), r"from human, then one from gpt, got \['gpt', 'human'\]"),
        (said(7, TWO), "expected a text 'value' from human"),
        (changed(image="a.png"), "a list of paths as 'image', got 'a.png'"),
        (changed(action=[1]), r"a list of paths as 'action', got \[1\]"),
        (said("x<|state|>" + BOTH, TWO), r"alone, got <\|state\|>"),
        (said("x<|image|>", TWO), r"as many image files as placeholders <\|image\|>, got 2 and 1"),
        (said("x" + BOTH, TWO + "<|action|>"), "as many action files as placeholders .* got 2 and 3"),
        (said("<|image|>x<|image|>", TWO), "one sentence, then placeholders alone"),
        (said("x" + BOTH, TWO + "."), "one sentence, then placeholders alone"),
        (said("x" + BOTH + TWO, ""), "images answered by actions"),
        (said("x<|action|><|image|><|image|>", "<|action|>"), "images answered by actions"),
        (changed(image=["a/trj_0/imgs/image_0.png", "a/trj_1/imgs/image_1.png"]), r"files of one trajectory"),
        (changed(image=["a/trj_0/imgs/image_0.png", "a/trj_0/imgs/image_2.png"]), r"got frames \[0, 2\] and actions"),
        (changed(action=["a/trj_0/action/action_2.npy", "a/trj_0/action/action_3.npy"]), "from the last one's on"),
        (
            changed(image=["a/trj_0/image_0.png"] * 2),
            r"image files as …/<task>/trj_0/imgs/image_0.png, got 'a/trj_0/im",
        ),
        (changed(action=["a/trj_0/imgs/image_0.png"] * 2), r"action files as …/<task>/trj_0/action/action_0.npy"),
    ],
)
def test_an_item_that_is_no_conversation_is_named(item: Any, message: str, tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.json", [*about_frames("a", 0, [0]), item])
    with pytest.raises(DatasetError, match=f"(?s)list.json: .*1 of 2 items are others:.*item 1: .*{message}"):
        read_conversations(path)


def test_world_rows_must_belong_together() -> None:
    (item,) = about_frames("a", 0, [3])
    with pytest.raises(ValueError, match="frames in a row and the action of each but the last"):
        read_conversation(item | {"action": ["a/trj_0/action/action_4.npy"]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.json", b"{", "got no JSON"),
        ("list.json", b"{}", "expected a list of conversations, got dict"),
        ("list.json", b"[]", "got an empty list"),
        ("list.json", b"\x80\x04K\x01.", "never opened; give the JSON lists"),
        ("tokens.pkl", b"whatever", "got a pickle of token ids, which may run any program"),
        ("record.json", b'[{"file": "0.pkl", "len": 600, "id": 0}]', "the record of pickles of token ids"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert is_conversations(tmp_path / name)
    with pytest.raises(DatasetError, match=message):
        convert_conversations([tmp_path / name], tmp_path / "out", ROBOT)
    with pytest.raises(FileNotFoundError, match=r"expected JSON lists of conversations at .*nowhere"):
        convert_conversations([tmp_path / "nowhere.json"], tmp_path / "out", ROBOT)
    with pytest.raises(FileNotFoundError, match="expected conversations at"):
        read_conversations(tmp_path / "nowhere.json")


def test_many_problems_are_listed_in_part(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.json", ["x"] * 30)
    with pytest.raises(DatasetError) as caught:
        read_conversations(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and lines[9] == "  - and 22 more" and lines[10].startswith("Correct them")


# -- files that are damaged --------------------------------------------------------------------------------------------


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Two trajectories of five rows, and a list about each."""
    root = tmp_path / "frames"
    for number in (0, 1):
        lay_out(root, "open_it", number, 5)
        write_list(
            root / f"list{number}.json",
            about_actions("open_it", number, range(4)) + about_frames("open_it", number, range(4)),
        )
    return root


def refused(root: Path, message: str, **options: Any) -> None:
    with pytest.raises(DatasetError, match=f"(?s){message}"):
        convert_conversations([root], root.parent / "out", options.pop("robot", ROBOT), **options)
    assert not (root.parent / "out").exists() and not list(root.parent.glob(".out*")), "nothing half written"


def test_missing_files_are_named_with_who_names_them(frames: Path) -> None:
    (frames / "open_it/trj_0/imgs/image_2.png").unlink()
    (frames / "open_it/trj_0/imgs/image_3.png").unlink()
    (frames / "open_it/trj_1/action/action_4.npy").unlink()
    refused(
        frames,
        r"whole trajectories, 2 problems.*open_it/trj_0/imgs/image_2.png and 1 others of the trajectory, named first "
        r"by item 2 of list0.json, found none\n.*trj_1/action/action_4.npy, named first by item 3 of list1.json.*Copy",
    )
    shutil.rmtree(frames / "open_it")
    refused(frames, r"4 problems.*image_0.png and 4 others")


def test_gaps_are_refused(frames: Path) -> None:
    write_list(frames / "list0.json", about_frames("open_it", 0, [0, 3]))
    refused(frames, r"trj_0: expected rows 0 to 4, row 2 is named by no conversation")
    write_list(frames / "list0.json", about_frames("open_it", 0, [2, 3]))
    refused(frames, r"trj_0: expected rows 0 to 4, row 0 is named by no conversation")
    write_list(frames / "list0.json", about_actions("open_it", 0, [0], ahead=3))
    (frames / "open_it/trj_0/imgs/image_1.png").unlink()
    refused(frames, r"trj_0: expected a frame and an action of row 1, one of them is neither named nor there")


def test_a_trajectory_has_one_sentence(frames: Path) -> None:
    write_list(frames / "more.json", about_actions("open_it", 1, [2], sentence="close it"))
    refused(
        frames, r"trj_1: expected one sentence, got 'open it' \(item 0 of list1.json\) and 'close it' \(item 0 of more"
    )


def test_paths_stay_below_the_folder_that_is_meant(frames: Path) -> None:
    (frames / "lists").mkdir()
    for number in (0, 1):
        (frames / f"list{number}.json").rename(frames / "lists" / f"list{number}.json")
    outside = about_frames("open_it", 0, range(4), root="../")
    write_list(frames / "lists" / "list0.json", outside)
    with pytest.raises(
        DatasetError, match=r"(?s)4 are not.*expected paths below .*lists, got '../open_it/trj_0'; name the"
    ):
        convert_conversations([frames / "lists" / "list0.json"], frames.parent / "out", ROBOT)
    write_list(frames / "lists" / "list0.json", about_frames("open_it", 0, range(4)))
    report = convert_conversations([frames / "lists"], frames.parent / "out", ROBOT, root=frames)
    assert report.episodes == 2
    absolute = write_list(frames.parent / "absolute.json", about_frames("open_it", 0, range(4), root=f"{frames}/"))
    assert convert_conversations([absolute], frames.parent / "two", ROBOT).episodes == 1
    foreign = write_list(
        frames.parent / "foreign.json", about_frames("open_it", 0, range(4), root="/home/someone/data/")
    )
    with pytest.raises(DatasetError, match=r"/home/someone/data/open_it/trj_0/imgs/image_0.png and 4 others"):
        convert_conversations([foreign], frames.parent / "three", ROBOT)
    assert convert_conversations([foreign], frames.parent / "three", ROBOT, root=frames).episodes == 1


def damage_actions(values: Any) -> Callable[[Path], None]:
    return lambda root: np.save(root / "open_it/trj_1/action/action_2.npy", values, allow_pickle=True)


def damage_picture(save: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda root: save(root / "open_it/trj_1/imgs/image_3.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_actions(np.zeros(4)), r"action_2.npy: expected 7 numbers, the robot's action, got float64 \[4\]"),
        (damage_actions(np.zeros((1, 7))), r"got float64 \[1, 7\]"),
        (damage_actions(np.zeros(7, dtype=bool)), r"got bool \[7\]"),
        (damage_actions(np.zeros(7, dtype="U3")), r"got <U3 \[7\]"),
        (damage_actions(np.full(7, np.nan)), "action_2.npy: expected finite numbers, got"),
        (damage_actions(np.array([{"a": 1}], dtype=object)), "action_2.npy: expected an array of 7 numbers, it cannot"),
        (lambda root: (root / "open_it/trj_1/action/action_2.npy").write_bytes(b"PK\x03\x04"), "it cannot be read"),
        (lambda root: (root / "open_it/trj_1/action/action_2.npy").write_bytes(b""), "it cannot be read"),
        (
            lambda root: (root / "open_it/trj_1/action/action_2.npy").write_bytes(
                (root / "open_it/trj_1/action/action_3.npy").read_bytes()[:-8]
            ),
            "it cannot be read",
        ),
        (damage_picture(lambda path: path.write_bytes(path.read_bytes()[:60])), "image_3.png: expected a PNG picture"),
        (damage_picture(lambda path: path.write_bytes(b"no picture")), "image_3.png: expected a PNG picture"),
        (
            damage_picture(lambda path: Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path, format="JPEG")),
            "expected a PNG picture, it cannot be read",
        ),
        (damage_picture(lambda path: Image.new("L", (16, 16)).save(path)), "expected a picture in RGB, got L"),
        (damage_picture(lambda path: Image.new("RGBA", (16, 16)).save(path)), "expected a picture in RGB, got RGBA"),
        (damage_picture(lambda path: Image.new("RGB", (18, 16)).save(path)), "expected 16x16 pixels .* got 16x18"),
    ],
)
def test_damaged_files_are_named(damage: Callable[[Path], Any], message: str, frames: Path) -> None:
    damage(frames)
    refused(frames, f"trj_1: expected frames and actions that can be used:.*{message}.*Copy the files again")


def test_a_robot_of_another_width_or_without_the_camera_is_refused(frames: Path) -> None:
    refused(frames, r"expected 3 numbers, the robot's action, got float64 \[7\]", robot=SQUARE)
    with pytest.raises(ValueError, match=r"has cameras \['agentview', 'robot0_eye_in_hand'\], not \['front'\]"):
        convert_conversations([frames], frames.parent / "out", ROBOT, camera="front")
    with pytest.raises(ValueError, match="expected a robot with a camera"):
        convert_conversations([frames], frames.parent / "out", dataclasses.replace(ROBOT, cameras=()))


def test_what_is_a_list_of_conversations(frames: Path) -> None:
    assert is_conversations(frames) and is_conversations(frames / "list0.json")
    (frames / "open_it" / "meta").mkdir()
    write_list(frames / "open_it" / "notes.json", {})
    assert not is_conversations(frames / "open_it") and not is_conversations(frames / "open_it" / "trj_0")
