"""Datasets whose files name cameras otherwise than the simulator: described, loaded and converted under its names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wamkit.cli.main import main
from wamkit.data.actions import ActionTransform
from wamkit.data.convert_v2 import convert_v2
from wamkit.data.describe import write_robot
from wamkit.data.exclusions import write_exclusions
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.data.loader import WindowLoader
from wamkit.data.modality import read_modality
from wamkit.data.synthetic import synthetic_episodes
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.data.writer import LeRobotWriter
from wamkit.robots import LIBERO_CAMERAS, libero_robot
from wamkit.spec import RobotSpec, SpecMismatch

from .older_formats import INFO, as_v2, edit_info, require_same_content

SIZE = 32
OWN = ("image", "wrist_image")
RENAMED = dict(zip(LIBERO_CAMERAS, OWN, strict=True))
KEYS = {name: f"observation.images.{own}" for name, own in RENAMED.items()}
VERSIONS = ("v2.0", "v2.1", "v3.0")


def published(root: Path, version: str = "v3.0", *, cameras: tuple[str, ...] = OWN, gripper: float = -1.0) -> Path:
    """A dataset as LIBERO's are published: cameras of other names, nothing of ours in info.json."""
    robot = libero_robot(SIZE, SIZE, cameras)
    source = root.parent / f"{root.name}.v3" if version != "v3.0" else root
    rng = np.random.default_rng(0)
    with LeRobotWriter(source, robot) as writer:
        for episode in synthetic_episodes(2, length=12, height=SIZE, width=SIZE, cameras=cameras):
            actions = rng.uniform(0, 1, (12, 7)).astype(np.float32)
            actions[:6, 6] = gripper
            state = rng.uniform(-1, 1, (12, 8)).astype(np.float32)
            writer.add(dataclasses.replace(episode, actions=actions, state=state))
    if version != "v3.0":
        as_v2(source, root, version)
    edit_info(root, wamkit=None, robot_type="panda")
    return root


def info_of(root: Path) -> dict:
    return json.loads((root / INFO).read_text())


def describe(root: Path, *options: str) -> int:
    return main(["data", "describe", str(root), *options])


def windows(dataset: LeRobotDataset, robot: RobotSpec) -> WindowLoader:
    def normalizer(width: int) -> Normalizer:
        return Normalizer(
            kind="minmax", q01=(-1.0,) * width, q99=(1.0,) * width, mean=(0.0,) * width, std=(1.0,) * width
        )

    return WindowLoader(
        dataset,
        WindowConfig(context=1, chunk=2, action_horizon=4, sample_n_frames=8),
        action=ActionTransform(normalizer=normalizer(7)),
        state=normalizer(8),
        batch_size=2,
        seed=0,
        robot=robot,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_published_dataset_is_read_as_the_simulators(tmp_path: Path, version: str, capsys) -> None:
    root = published(tmp_path / "set", version)
    before, plain = info_of(root), LeRobotDataset(root)
    assert plain.cameras == OWN
    assert describe(root, "--robot", "libero", "--dry-run") == 0 and info_of(root) == before
    shown = capsys.readouterr().out
    assert "agentview 32x32 (called image in the files)" in shown and "robot panda/libero" in shown
    assert describe(root, "--robot", "libero", "--modality") == 0
    after = info_of(root)
    robot = libero_robot(SIZE, SIZE)
    assert after.pop("wamkit") == {"robot": json.loads(json.dumps(robot.to_dict())), "cameras": RENAMED}
    assert after == before, "nothing else is touched"
    dataset = LeRobotDataset(root)
    assert (dataset.cameras, dataset.robot) == (LIBERO_CAMERAS, robot)
    for name, own in RENAMED.items():
        assert dataset.camera_key(name) == KEYS[name] and dataset.camera_name(KEYS[name]) == name
        assert dataset.video_path(1, name) == plain.video_path(1, own)
        np.testing.assert_array_equal(dataset.frames(1, name, range(12)), plain.frames(1, own, range(12)))
    with pytest.raises(ValueError, match=r"has the cameras \['agentview', 'robot0_eye_in_hand'\], not 'image'"):
        dataset.frames(0, "image", [0])
    modality = read_modality(root)
    assert modality is not None and modality.video == KEYS, "GR00T finds the files' own keys"
    report = inspect(root)
    assert report.is_sound and tuple(report.cameras) == LIBERO_CAMERAS
    assert {finding.kind for finding in report.findings} <= {finding.kind for finding in inspect(plain.root).findings}
    capsys.readouterr()
    assert describe(root, "--robot", "libero") == 0, "a second time"
    assert describe(root) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_the_loader_takes_it_for_the_simulators_policy(tmp_path: Path, version: str) -> None:
    root = published(tmp_path / "set", version)
    own = LeRobotDataset(root)
    with pytest.raises(SpecMismatch, match="say what it is with `wamkit data describe`"):
        windows(own, libero_robot(SIZE, SIZE))
    assert describe(root, "--robot", "libero") == 0
    described = LeRobotDataset(root)
    loader = windows(described, libero_robot(SIZE, SIZE))
    assert loader.cameras == LIBERO_CAMERAS
    one = loader.batch(0)
    # The same pictures as under the files' own names.
    write_robot(root, libero_robot(SIZE, SIZE, OWN), renamed={name: name for name in OWN}, replace=True)
    assert "cameras" not in info_of(root)["wamkit"]
    other = windows(LeRobotDataset(root), libero_robot(SIZE, SIZE, OWN)).batch(0)
    for key, value in vars(one).items():
        if value is not None and hasattr(value, "numpy"):
            np.testing.assert_array_equal(value.numpy(), vars(other)[key].numpy())


def test_embedded_pictures_and_columns_of_other_names(tmp_path: Path) -> None:
    source = published(tmp_path / "set")
    root = as_v2(source, tmp_path / "older", "v2.0", embedded=OWN)
    names = {"observation.images.image": "image", "observation.images.wrist_image": "wrist_image"}
    names |= {"action": "actions", "observation.state": "state"}
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)
    edit_info(root, features={names.get(key, key): feature for key, feature in info_of(root)["features"].items()})
    assert describe(root, "--robot", "libero", "--modality") == 0
    dataset, original = LeRobotDataset(root), LeRobotDataset(source)
    for name, own in RENAMED.items():
        assert dataset.camera_key(name) == own and dataset.video_path(0, name) is None
        np.testing.assert_array_equal(dataset.frames(0, name, [3, 1]), original.frames(0, own, [3, 1]))
    modality = read_modality(root, state="state", action="actions")
    assert modality is not None and modality.video == RENAMED
    assert inspect(root).is_sound and windows(dataset, libero_robot(SIZE, SIZE)).cameras == LIBERO_CAMERAS
    convert_v2(root, tmp_path / "new")
    require_same_content(LeRobotDataset(tmp_path / "new"), dataset)


def test_recording_into_renamed_cameras_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    robot = libero_robot(SIZE, SIZE, OWN)
    episode = synthetic_episodes(1, length=6, height=SIZE, width=SIZE, cameras=OWN)[0]
    episode = dataclasses.replace(episode, actions=np.zeros((6, 7), np.float32), state=np.zeros((6, 8), np.float32))
    with LeRobotWriter(root, robot) as writer:
        writer.add(episode)
    renamed = dict(zip(OWN, LIBERO_CAMERAS, strict=True))
    write_robot(root, libero_robot(SIZE, SIZE), renamed=renamed, replace=True)
    before = info_of(root)
    with pytest.raises(DatasetError, match="cameras are read under other names"):
        LeRobotWriter(root, libero_robot(SIZE, SIZE))
    assert info_of(root) == before and LeRobotDataset(root).cameras == LIBERO_CAMERAS
    described = published(tmp_path / "other", cameras=LIBERO_CAMERAS)
    assert describe(described, "--robot", "libero") == 0 and "cameras" not in info_of(described)["wamkit"]
    with pytest.raises(DatasetError, match=r"found one without its notes of \['video'\]"):
        LeRobotWriter(described, libero_robot(SIZE, SIZE))


def test_the_fingerprint_tells_names_apart(tmp_path: Path) -> None:
    root = published(tmp_path / "set")
    plain = LeRobotDataset(root).fingerprint()
    assert LeRobotDataset(root, renamed={"image": "agentview"}).fingerprint() != plain
    assert LeRobotDataset(root, renamed={}).fingerprint() == plain


def test_a_rate_that_the_robot_does_not_have_is_shown(tmp_path: Path, capsys) -> None:
    root = published(tmp_path / "set", "v2.1")
    edit_info(root, fps=10)
    assert describe(root, "--robot", "libero") == 0
    shown = capsys.readouterr().out
    assert "20 actions per second  (meta/info.json says 10 rows per second; a row is taken for one action)" in shown
    robot = LeRobotDataset(root, check=False).robot
    assert robot is not None and robot.control_hz == 20


def test_renaming_without_a_known_robot(tmp_path: Path, capsys) -> None:
    root = published(tmp_path / "set", "v2.1")
    given = ["--action-kind", "delta", "--gripper-sign", "close_positive", "--rename", "wrist_image=hand"]
    assert describe(root, *given) == 0
    dataset = LeRobotDataset(root)
    assert dataset.cameras == ("image", "hand") and dataset.robot is not None
    assert dataset.robot.camera_names == ("image", "hand")
    # A dataset that names its robot already: the robot's cameras follow, other names stay.
    assert describe(root, "--rename", "image=hand", "wrist_image=image") == 2
    assert "already names its robot, 'panda'" in capsys.readouterr().err
    assert describe(root, "--rename", "image=hand", "wrist_image=image", "--replace") == 0
    dataset = LeRobotDataset(root)
    assert dataset.robot is not None and dataset.robot.camera_names == dataset.cameras == ("hand", "image")
    assert info_of(root)["wamkit"]["cameras"] == {"hand": "image", "image": "wrist_image"}
    assert dataset.camera_key("image") == "observation.images.wrist_image"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rename", "top=agentview"], "--rename: expected cameras of the dataset, ['image', 'wrist_image'], got"),
        (["--rename", "image=hand", "wrist_image=hand"], "'hand' would be both 'image' and 'wrist_image'"),
        (["--rename", "image=wrist_image"], "'wrist_image' would be both 'image' and 'wrist_image'"),
        (["--rename", "image=a", "image=b"], "expected each camera once, got 'image' as 'a' and 'b'"),
        (["--rename", "agentview"], "expected OLD=NEW, as image=agentview, got 'agentview'"),
        (["--rename", "image="], "expected OLD=NEW"),
        (["--robot", "libero", "--rename", "image=agentview"], "--rename wrist_image=robot0_eye_in_hand says"),
        (["--robot", "libero", "--cameras", "top"], "has cameras ['agentview', 'robot0_eye_in_hand'], not ['top']"),
        (["--robot", "libero", "--action-kind", "delta", "--name", "x"], "--name, --action-kind: without effect"),
        (["--robot", "nobody"], "expected a robot's name (libero), a dataset or a JSON file"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    root = published(tmp_path / "set")
    before = info_of(root)
    assert describe(root, *options) == 2
    assert message in capsys.readouterr().err and info_of(root) == before


def test_other_widths_and_grippers_are_refused(tmp_path: Path, write_dataset, capsys) -> None:
    square, _ = write_dataset(1, name="square")
    assert describe(square, "--robot", "libero", "--rename", "front=agentview", "wrist=robot0_eye_in_hand") == 2
    assert "expected 3 channels of 'observation.state' in the robot, got 8 of 'panda/libero'" in capsys.readouterr().err
    root = published(tmp_path / "set", gripper=0.0)
    assert describe(root, "--robot", "libero") == 2
    assert "expected gripper actions from -1 to 1" in capsys.readouterr().err
    assert "wamkit" not in info_of(root)


def test_a_robot_is_told_without_the_excluded_episodes(tmp_path: Path) -> None:
    root = published(tmp_path / "set", "v2.1")
    write_exclusions(root, {0: "lost"})
    LeRobotDataset(root).data_path(0).unlink()
    assert main(["data", "convert", str(root), "--output", str(tmp_path / "out"), "--robot", "libero"]) == 0
    found = LeRobotDataset(tmp_path / "out")
    assert (found.cameras, found.num_episodes) == (LIBERO_CAMERAS, 1) and found.robot == libero_robot(SIZE, SIZE)


def test_a_robot_from_a_file_and_a_part_of_its_cameras(tmp_path: Path) -> None:
    root = published(tmp_path / "set", cameras=("image",))
    file = tmp_path / "robot.json"
    file.write_text(json.dumps(libero_robot(256, 256).to_dict()))
    assert describe(root, "--robot", str(file), "--cameras", "agentview", "--rename", "image=agentview") == 0
    assert LeRobotDataset(root).robot == libero_robot(SIZE, SIZE, ("agentview",))
    other = published(tmp_path / "other", "v2.1")
    assert describe(root, "--robot", "libero") == 2, "one camera of two"
    assert describe(other, "--robot", str(root), "--rename", "image=agentview") == 0, "like another dataset"


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        ([], "an object (with objects as robot, video, notes and cameras"),
        ({"agentview": 3}, "'agentview': expected the name of one of the cameras"),
        (
            {"agentview": "top"},
            "'agentview': expected the name of one of the cameras ['image', 'wrist_image'], got 'top'",
        ),
        ({"a": "image", "b": "image"}, "expected one name for camera 'image', got ['a', 'b']"),
        ({"wrist_image": "image"}, "'wrist_image' would be both 'image' and 'wrist_image'"),
        ({"": "image"}, "expected a name for camera 'image'"),
    ],
)
def test_a_damaged_map_is_refused(tmp_path: Path, cameras: object, message: str) -> None:
    root = published(tmp_path / "set")
    edit_info(root, wamkit={"cameras": cameras})
    with pytest.raises(DatasetError) as caught:
        LeRobotDataset(root)
    assert message in str(caught.value) and INFO in str(caught.value)


def test_conversion_keeps_the_names(tmp_path: Path, capsys) -> None:
    root = published(tmp_path / "set", "v2.1")
    plain = LeRobotDataset(root, renamed=dict(zip(OWN, LIBERO_CAMERAS, strict=True)))
    assert main(["data", "convert", str(root), "--output", str(tmp_path / "named"), "--robot", "libero"]) == 0
    assert "image as agentview, wrist_image as robot0_eye_in_hand" in capsys.readouterr().out
    assert describe(root, "--robot", "libero") == 0
    convert_v2(root, tmp_path / "kept")
    renames = ["--rename", "image=agentview", "wrist_image=hand"]
    assert main(["data", "convert", str(root), "--output", str(tmp_path / "other"), *renames]) == 0
    for name in ("named", "kept"):
        found = LeRobotDataset(tmp_path / name)
        assert found.robot == libero_robot(SIZE, SIZE) and found.wamkit["cameras"] == RENAMED
        require_same_content(found, plain)
        assert inspect(found.root).is_sound
    other = LeRobotDataset(tmp_path / "other")
    assert other.robot is not None and other.robot.camera_names == other.cameras == ("agentview", "hand")
    for bad in (["--rename", "top=x"], ["--rename", "image=hand", "wrist_image=hand"]):
        assert main(["data", "convert", str(root), "--output", str(tmp_path / "bad"), *bad]) == 2
    assert not (tmp_path / "bad").exists()
