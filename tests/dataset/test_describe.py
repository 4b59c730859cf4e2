"""Datasets that do not name their robot: GR00T's modality.json, descriptions, and what is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wamkit.cli.main import main
from wamkit.data.describe import describe_robot, write_robot
from wamkit.data.exclusions import without_excluded, write_exclusions
from wamkit.data.features import camera_key
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.data.modality import MODALITY_PATH, Modality, Slice, modality_of, read_modality, write_modality
from wamkit.data.synthetic import synthetic_robot
from wamkit.recipes.published_robots import libero_robot

from .older_formats import as_v2

PUSH = {
    "state": {"position": {"start": 0, "end": 2}, "gripper": {"start": 2, "end": 3}},
    "action": {
        "push": {"start": 0, "end": 2, "absolute": False, "rotation_type": "euler_angles_rpy", "dtype": "float32"},
        "gripper": {"start": 2, "end": 3, "absolute": True, "range": [-1, 1]},
        "base": {"start": 0, "end": 2, "original_key": "action.base"},
    },
    "video": {"hand": {"original_key": "observation.images.wrist"}},
    "annotation": {"human.task_description": {"original_key": "task_index"}, "human.coarse": {}},
}


def as_foreign(root: Path, **features: object) -> Path:
    """The dataset as another program would have written it: without our part, with other names."""
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info.pop("wamkit", None)
    info["robot_type"] = "square_arm"
    for key, names in features.items():
        info["features"][{"state": "observation.state"}.get(key, key)]["names"] = names
    path.write_text(json.dumps(info))
    return root


@pytest.fixture
def foreign(write_dataset) -> Path:
    root, _ = write_dataset(2, size=32)
    return as_foreign(root, state=None, action=None)


def write_file(root: Path, document: object) -> Path:
    (root / MODALITY_PATH).write_text(json.dumps(document))
    return root


def test_modality_is_read_as_published(foreign: Path) -> None:
    assert read_modality(foreign) is None
    found = read_modality(write_file(foreign, PUSH))
    assert found is not None
    assert found.state == (Slice(name="position", start=0, end=2), Slice(name="gripper", start=2, end=3))
    assert found.action == (
        Slice(name="push", start=0, end=2, absolute=False, rotation_type="euler_angles_rpy"),
        Slice(name="gripper", start=2, end=3, absolute=True),
    ), "slices of other columns are passed over"
    assert found.video == {"hand": "observation.images.wrist"}
    assert found.annotation == {"human.task_description": "task_index", "human.coarse": "annotation.human.coarse"}


@pytest.mark.parametrize("robot", [synthetic_robot(), libero_robot()], ids=lambda robot: robot.name)
def test_modality_of_our_robots_comes_back(tmp_path: Path, robot) -> None:
    (tmp_path / "meta").mkdir()
    wanted = modality_of(robot, {name: camera_key(name) for name in robot.camera_names})
    assert write_modality(tmp_path, wanted) == tmp_path / MODALITY_PATH
    assert read_modality(tmp_path) == wanted
    for slices, channels in ((wanted.state, robot.state), (wanted.action, robot.action)):
        assert [index for item in slices for index in range(item.start, item.end)] == list(range(len(channels)))
        assert len({item.name for item in slices}) == len(slices)
    gripper = wanted.action[-1]
    assert (gripper.name, gripper.absolute, wanted.action[0].absolute) == ("gripper", True, False)
    if robot.name == "panda/libero":
        assert [item.rotation_type for item in wanted.state] == ["", "axis_angle", ""]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected objects by name as 'state'"),
        ({"state": {}}, r"expected objects by name as 'action' .*got None"),
        ({"state": {"a": 3}, "action": {}}, "expected objects by name as 'state'"),
        ({"state": {"a": {"start": 2, "end": 2}}, "action": {}}, "state.a: expected whole numbers 0 <= start < end"),
        (
            {"state": {"a": {"start": 0}}, "action": {}},
            "state.a: expected whole numbers 0 <= start < end, got 0 and None",
        ),
        (
            {"state": {}, "action": {"a": {"start": 0, "end": 1, "absolute": "no"}}},
            "action.a: expected absolute as true",
        ),
        ({"state": {}, "action": {"a": {"start": 0, "end": 1, "rotation_type": "q"}}}, "rotation_type among"),
    ],
)
def test_a_damaged_modality_is_refused(foreign: Path, document: object, message: str) -> None:
    write_file(foreign, document)
    with pytest.raises(DatasetError, match=message) as caught:
        read_modality(foreign)
    assert MODALITY_PATH in str(caught.value)


def test_a_foreign_robot_is_described_by_both_files(foreign: Path) -> None:
    found = describe_robot(LeRobotDataset(write_file(foreign, PUSH)), gripper_sign="close_positive")
    robot = found.robot
    assert (robot.name, robot.control_hz, robot.action_kind) == ("square_arm", 20.0, "delta")
    assert [channel.name for channel in robot.state] == ["position_0", "position_1", "gripper"]
    assert [channel.rotation for channel in robot.action] == ["euler_angles_rpy", "euler_angles_rpy", ""]
    assert {channel.unit for channel in robot.action} == {"1"}
    assert (robot.gripper_channels, robot.gripper_sign) == ((2,), "close_positive")
    assert robot.camera_names == ("wrist",) and (robot.cameras[0].height, robot.cameras[0].width) == (32, 32)
    assert found.sources["action names"] == MODALITY_PATH and found.sources["state units"] == "not known"


@pytest.mark.parametrize(
    "names", [["x", "y", "grip"], {"motors": ["x", "y", "grip"]}, {"x": 0, "y": 1, "grip": 2}, [["x", "y"], ["grip"]]]
)
def test_names_of_single_channels_go_before_those_of_slices(write_dataset, names: object) -> None:
    root, _ = write_dataset(1)
    write_file(as_foreign(root, state=names, action=None), PUSH)
    robot = describe_robot(LeRobotDataset(root), gripper_sign="open_positive", cameras=["wrist", "front"]).robot
    assert [channel.name for channel in robot.state] == ["x", "y", "grip"]
    assert robot.camera_names == ("wrist", "front")


def test_what_nobody_says_is_asked_for(foreign: Path) -> None:
    dataset = LeRobotDataset(foreign)
    with pytest.raises(
        ValueError, match=r"positions or differences, meta/modality.json says nothing: give --action-kind"
    ):
        describe_robot(dataset)
    robot = describe_robot(dataset, action_kind="delta").robot
    assert [channel.name for channel in robot.action] == ["action_0", "action_1", "action_2"]
    assert robot.gripper_channels == () and robot.gripper_sign == "none"
    unsaid = {**PUSH, "action": {"push": {"start": 0, "end": 2}, "gripper": {"start": 2, "end": 3, "absolute": True}}}
    dataset = LeRobotDataset(write_file(foreign, unsaid))
    with pytest.raises(ValueError, match=r"says \{'push': None\}: give --action-kind"):
        describe_robot(dataset, gripper_sign="open_positive")
    with pytest.raises(ValueError, match=r"sign of the grippers, actions \['gripper'\]: say --gripper-sign"):
        describe_robot(dataset, action_kind="delta")
    assert describe_robot(dataset, action_kind="delta", gripper_channels=()).robot.gripper_channels == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"state_names": ["x"]}, "--state-names: expected one for each of the 3 channels"),
        ({"action_units": ["m", "m"]}, "--action-units: expected one for each of the 3 channels"),
        ({"state_names": ["x", "x", "y"]}, "3 different names of state channels"),
        ({"gripper_channels": [3]}, "--gripper-channels: expected different numbers from 0 to 2"),
        ({"gripper_channels": [1, 1]}, "--gripper-channels: expected different numbers from 0 to 2"),
        ({"cameras": ["top"]}, r"has the cameras \['front', 'wrist'\], not 'top'"),
    ],
)
def test_what_does_not_fit_is_refused(foreign: Path, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe_robot(LeRobotDataset(foreign), action_kind="delta", **given)


def test_modality_of_another_dataset_is_refused(foreign: Path) -> None:
    wide = {**PUSH, "state": {"position": {"start": 0, "end": 7}}}
    with pytest.raises(DatasetError, match=r"slices of the 3 channels of 'observation.state', 'position' ends beyond"):
        describe_robot(LeRobotDataset(write_file(foreign, wide)), action_kind="delta")
    other = {**PUSH, "video": {"top": {}}}
    with pytest.raises(DatasetError, match=r"expected cameras among .* got \['observation.images.top'\]"):
        describe_robot(LeRobotDataset(write_file(foreign, other)), action_kind="delta", gripper_channels=())


def test_a_robot_is_written_once(foreign: Path) -> None:
    before = json.loads((foreign / "meta" / "info.json").read_text())
    robot = describe_robot(LeRobotDataset(foreign), action_kind="delta").robot
    write_robot(foreign, robot)
    assert LeRobotDataset(foreign).robot == robot
    after = json.loads((foreign / "meta" / "info.json").read_text())
    assert after.pop("wamkit") == {"robot": json.loads(json.dumps(robot.to_dict()))} and after == before
    write_robot(foreign, robot)
    other = describe_robot(LeRobotDataset(foreign), action_kind="relative").robot
    with pytest.raises(DatasetError, match="already names its robot, 'square_arm'"):
        write_robot(foreign, other)
    write_robot(foreign, other, replace=True)
    assert LeRobotDataset(foreign).robot == other
    with pytest.raises(DatasetError, match=r"expected 3 channels of 'observation.state' in the robot, got 8"):
        write_robot(foreign, libero_robot(), replace=True)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_older_versions_are_described_too(write_dataset, tmp_path: Path, version: str) -> None:
    source, _ = write_dataset(2)
    root = as_foreign(as_v2(source, tmp_path / "older", version), state=None)
    before = LeRobotDataset(root)
    write_robot(root, describe_robot(before, action_kind="absolute", gripper_channels=()).robot)
    described = LeRobotDataset(root)
    assert described.robot is not None and described.robot.action_kind == "absolute"
    assert described.info["codebase_version"] == version and described.features == before.features
    write_exclusions(root, {1: "short"})
    assert [entry.index for entry in without_excluded(described).episodes] == [0]


def test_columns_under_other_names(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    robot = synthetic_robot()
    keys = {name: name for name in robot.camera_names}
    wanted = modality_of(robot, keys, state="state", action="actions")
    document = json.loads(write_modality(tmp_path, wanted).read_text())
    assert {item["original_key"] for item in document["action"].values()} == {"actions"}
    assert read_modality(tmp_path, state="state", action="actions") == wanted
    assert read_modality(tmp_path).state == ()
    write_file(tmp_path, PUSH)
    assert [item.name for item in read_modality(tmp_path, state="state", action="actions").state] == [
        "position",
        "gripper",
    ]


def test_the_command_line_describes(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe = ["data", "describe", str(foreign)]
    assert main(describe) == 2
    assert "give --action-kind absolute, delta" in capsys.readouterr().err
    given = ["--action-kind", "delta", "--gripper-channels", "2", "--gripper-sign", "close_positive"]
    given += ["--state-units", "m", "m", "1", "--action-names", "dx", "dy", "grip"]
    assert main([*describe, *given, "--dry-run"]) == 0
    assert "  0 state_0 [m]" in capsys.readouterr().out
    assert LeRobotDataset(foreign).robot is None
    assert main([*describe, *given, "--modality"]) == 0
    shown = capsys.readouterr().out
    assert "grippers grip, close_positive  (given)" in shown
    assert "wrote the robot into meta/info.json and meta/modality.json" in shown
    robot = LeRobotDataset(foreign).robot
    assert robot is not None and [channel.unit for channel in robot.state] == ["m", "m", "1"]
    modality = read_modality(foreign)
    assert modality is not None and modality.video == {
        "front": "observation.images.front",
        "wrist": "observation.images.wrist",
    }
    assert main([*describe, "--modality"]) == 0, "from the robot that is there"
    assert main(describe) == 0
    assert "names its robot already; nothing to do" in capsys.readouterr().out
    write_modality(foreign, Modality(video={}, annotation={}))
    assert main([*describe, "--modality"]) == 2
    assert "says something else" in capsys.readouterr().err
    assert main([*describe, "--modality", "--replace"]) == 0
    assert read_modality(foreign) == modality
