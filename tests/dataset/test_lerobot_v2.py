"""LeRobot v2.0 and v2.1 are read where they lie, exactly as the same content in v3.0; what is broken is named."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wamkit.data.actions import ActionTransform
from wamkit.data.added_columns import write_column
from wamkit.data.convert_v2 import convert_v2
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import DatasetError, LeRobotDataset, VideoError
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import compute_statistics
from wamkit.data.synthetic import synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.data.writer import LeRobotWriter

from .older_formats import DATA, VIDEO, as_v2, edit_info, read_lines, require_same_content, write_lines

FRONT = "observation.images.front"


@pytest.fixture
def datasets(write_dataset, tmp_path):
    """The same content in v3.0 and in an older version."""

    def make(version="v2.1", num=3, **settings):
        source, _ = write_dataset(num)
        return LeRobotDataset(source), as_v2(source, tmp_path / "older", version, **settings)

    return make


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_the_same_content_is_read(datasets, version):
    source, root = datasets(version)
    dataset = LeRobotDataset(root)
    require_same_content(dataset, source)
    assert dataset.data_path(2) == root / DATA.format(1, 2)
    assert dataset.video_path(2, "front") == root / VIDEO.format(1, FRONT, 2)
    np.testing.assert_array_equal(dataset.frames(1, "wrist", [9, 2]), source.frames(1, "wrist", [9, 2]))
    statistics = dataset.episode_statistics()
    if version == "v2.1":
        assert set(statistics[1]["action"]) == {"min", "max", "mean", "std", "count"}
        np.testing.assert_array_equal(statistics[1]["action"]["mean"], source.episode_statistics()[1]["action"]["mean"])
        assert statistics[1][FRONT]["mean"].shape == (3, 1, 1)
    else:
        assert statistics == [{}, {}, {}]
    report = inspect(root)
    assert report.is_sound and report.version == version and report.cameras == {"front": (64, 64), "wrist": (64, 64)}
    assert [finding.what for finding in report.findings] == [finding.what for finding in inspect(source.root).findings]


def test_images_embedded_in_v2_0_without_any_video(datasets):
    source, root = datasets("v2.0", embedded=("front", "wrist"))
    dataset = LeRobotDataset(root)
    require_same_content(dataset, source)
    assert dataset.video_path(0, "front") is None and not (root / "videos").exists()
    assert inspect(root).is_sound


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": None, "path": "frame_000002.png"}, "expected the bytes of an image, got 'frame_000002.png'; embed"),
        ({"bytes": b"no picture", "path": None}, "expected a readable image, got damage"),
        (None, "expected the bytes of an image, got 'nothing'"),
    ],
)
def test_embedded_images_that_are_none(datasets, cell, message):
    _, root = datasets("v2.0", embedded=("front", "wrist"))
    table = pq.read_table(root / DATA.format(0, 1))
    place = table.schema.get_field_index(FRONT)
    cells = table[FRONT].to_pylist()
    cells[2] = cell
    pq.write_table(
        table.set_column(place, FRONT, pa.array(cells, table.schema.field(FRONT).type)), root / DATA.format(0, 1)
    )
    with pytest.raises(DatasetError, match=rf"episode_000001\.parquet: episode 1, frame 2, {FRONT}: {message}"):
        LeRobotDataset(root).frames(1, "front", [0, 2])


def test_paths_follow_the_templates(datasets):
    source, root = datasets()
    for record in source.episodes:
        chunk = record.index // 2
        (root / DATA.format(chunk, record.index)).rename(root / f"data/rows-{chunk}-{record.index}.pq")
        for camera in source.cameras:
            key = f"observation.images.{camera}"
            (root / VIDEO.format(chunk, key, record.index)).rename(root / f"videos/{key}-{record.index}.mp4")
    edit_info(root, data_path="data/rows-{episode_chunk}-{episode_index}.pq")
    edit_info(root, video_path="videos/{video_key}-{episode_index}.mp4")
    require_same_content(LeRobotDataset(root), source)


def test_what_others_add_is_kept_or_ignored(datasets):
    source, root = datasets()
    edit_info(root, future_key={"nested": [1]}, features=source.features | {
        FRONT: source.features[FRONT] | {"shape": [3, 64, 64], "names": ["channels", "height", "width"]},
        "action": source.features["action"] | {"names": {"motors": ["dx", "dy", "gripper"]}},
    })  # fmt: skip
    rows = read_lines(root / "meta/episodes.jsonl")
    rows[0] |= {"tasks": "one sentence"}
    rows[1] |= {"tasks": ["first", "second"], "action_config": [{"start": 0}]}
    rows[2] |= {"tasks": []}
    write_lines(root / "meta/episodes.jsonl", rows[::-1])  # in any order
    (root / "meta/episodes.jsonl").open("a").write("\n\n")
    table = pq.read_table(root / DATA.format(0, 0))
    pq.write_table(table.append_column("odd", pa.array(range(len(table)))), root / DATA.format(0, 0))
    dataset = LeRobotDataset(root)
    assert [record.tasks for record in dataset.episodes] == [("one sentence",), ("first", "second"), ("",)]
    assert dataset.episodes[1].metadata == {"action_config": [{"start": 0}]}
    assert "odd" not in dataset.columns(0) and dataset.info["future_key"] == {"nested": [1]}
    assert inspect(root).cameras["front"] == (64, 64)


def test_a_folder_that_has_only_what_wav_asks_for(datasets, tmp_path):
    source, root = datasets()
    edit_info(root, codebase_version=None, total_episodes=None, total_frames=None, total_tasks=None)
    (root / "meta/episodes_stats.jsonl").unlink()
    (tmp_path / "meta").mkdir()
    (root / "meta/tasks.jsonl").rename(tmp_path / "meta/tasks.jsonl")  # one table for all domains
    for record in source.episodes:
        path = root / DATA.format(record.index // 2, record.index)
        pq.write_table(pq.read_table(path, columns=["action", "observation.state"]), path)
    info = json.loads((root / "meta/info.json").read_text())
    edit_info(root, features={key: info["features"][key] for key in ("action", "observation.state", FRONT)})
    dataset = LeRobotDataset(root)
    assert (dataset.num_episodes, dataset.num_frames) == (3, source.num_frames)
    assert dataset.read_tasks() == source.read_tasks() and dataset.episode_statistics() == [{}, {}, {}]
    np.testing.assert_array_equal(dataset.columns(1)["action"], source.columns(1)["action"])
    np.testing.assert_array_equal(dataset.frames(1, "front", [3]), source.frames(1, "front", [3]))
    with pytest.raises(FileNotFoundError, match=r"found \['.*older', '.*set'\]; give one of these datasets"):
        LeRobotDataset(tmp_path)


@pytest.fixture
def with_names_of_others(datasets):
    """A folder with the names that WAV's LIBERO data have, a value column, and one axis more around the actions."""
    source, root = datasets("v2.0", embedded=("front", "wrist"))
    theirs = {"action": "actions", "observation.state": "state"}
    theirs |= {"observation.images.front": "image", "observation.images.wrist": "wrist_image"}
    for record in source.episodes:
        path = root / DATA.format(record.index // 2, record.index)
        table = pq.read_table(path)
        table = table.rename_columns([theirs.get(name, name) for name in table.column_names])
        nested = pa.array([[row] for row in table["actions"].to_pylist()], pa.list_(pa.list_(pa.float32())))
        table = table.set_column(table.schema.get_field_index("actions"), "actions", nested)
        values = pa.array([[record.index, row, 0.5] for row in range(record.length)], pa.list_(pa.float32()))
        pq.write_table(table.append_column("state_value", values), path)
    info = json.loads((root / "meta/info.json").read_text())
    features = {theirs.get(key, key): feature for key, feature in info["features"].items()}
    features["actions"]["shape"] = [1, 3]
    features["state_value"] = {"dtype": "float32", "shape": [3], "names": ["value"]}
    robot = synthetic_robot(height=64, width=64, cameras=("image", "wrist_image"))
    edit_info(root, features=features, wamkit={"robot": robot.to_dict()})
    return source, root


def test_columns_that_others_name_otherwise(with_names_of_others, tmp_path):
    source, root = with_names_of_others
    convert_v2(root, tmp_path / "out")
    for folder in (root, tmp_path / "out"):
        dataset = LeRobotDataset(folder)
        assert dataset.cameras == ("image", "wrist_image") and dataset.stored_name("action") == "actions"
        columns = dataset.columns(1)
        for key in ("action", "observation.state"):
            np.testing.assert_array_equal(columns[key], source.columns(1)[key])
        np.testing.assert_array_equal(columns["value"][:, 1], np.arange(13))
        np.testing.assert_array_equal(dataset.frames(1, "wrist_image", [4]), source.frames(1, "wrist", [4]))
        assert not {"actions", "state", "state_value"} & columns.keys()
        assert inspect(folder).is_sound and not [f for f in inspect(folder).findings if f.kind == "stale_statistics"]
        statistics = compute_statistics(dataset)
        assert {name: len(one.mean) for name, one in statistics.items()} == {
            "action": 3, "action_delta": 3, "state": 3, "value": 3
        }  # fmt: skip
        assert windows(dataset, dataset.robot).actions.shape == (4, 4, 3)
        with pytest.raises(DatasetError, match="'value' is a recorded feature"):
            write_column(folder, "value", lambda episode: np.zeros(1), channels=("v",), settings={})
    write_column(root, "extra", lambda e: np.zeros(source.episodes[e].length), channels=("e",), settings={})
    assert "actions" in json.loads((root / "meta/info.json").read_text())["features"]
    assert LeRobotDataset(root).columns(0)["extra"].shape == (12,)


def windows(dataset, robot):
    statistics = compute_statistics(dataset)
    return WindowLoader(
        dataset,
        WindowConfig(context=2, chunk=2, action_horizon=4, sample_n_frames=8),
        action=ActionTransform.from_statistics("absolute", "meanstd", statistics, robot),
        state=Normalizer.from_statistics("meanstd", statistics["state"]),
        batch_size=4,
        seed=5,
        robot=robot,
    ).batch(3)


def test_windows_for_training_equal_those_of_v3(datasets):
    source, root = datasets()
    robot = synthetic_robot(height=64, width=64)
    edit_info(root, wamkit={"robot": robot.to_dict()})
    ours, theirs = windows(source, robot), windows(LeRobotDataset(root), robot)
    assert ours.task == theirs.task and ours.context.shape == (4, 2, 2, 64, 64, 3)
    for name in ("context", "future", "state", "actions", "future_state", "is_padded", "episode_index"):
        assert (getattr(ours, name) == getattr(theirs, name)).all()


def test_a_column_is_added_in_place(datasets):
    source, root = datasets()
    before = LeRobotDataset(root).fingerprint()
    values = [np.arange(record.length, dtype=np.float32) for record in source.episodes]
    write_column(root, "value", values.__getitem__, channels=("v",), settings={"gamma": 0.9})
    dataset = LeRobotDataset(root)
    for number, expected in enumerate(values):
        np.testing.assert_array_equal(dataset.columns(number)["value"], expected)
        np.testing.assert_array_equal(dataset.columns(number)["action"], source.columns(number)["action"])
    assert dataset.fingerprint() != before and dataset.info["codebase_version"] == "v2.1" and inspect(root).is_sound
    described = json.loads(pq.read_schema(dataset.data_path(0)).metadata[b"huggingface"])["info"]["features"]
    assert set(described) == {"action", "value"}  # what the reader of Hugging Face goes by


def test_recording_into_an_older_version_is_refused(datasets):
    _, root = datasets()
    robot = synthetic_robot(height=64, width=64)
    edit_info(root, wamkit={"robot": robot.to_dict(), "video": {}})
    with pytest.raises(DatasetError, match=r"in LeRobot v3\.0, found v2\.1, .*`wamkit data convert`"):
        LeRobotWriter(root, robot)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks_size": None}, r"the keys .*\['chunks_size'\] are missing"),
        ({"chunks_size": 0}, "expected a whole number of 1 or more as chunks_size, got 0"),
        ({"data_path": "data/{file_index}.parquet"}, r"a path with \{episode_chunk\} and \{episode_index\} as data"),
        ({"video_path": None}, "expected the key 'video_path', since there are videos"),
        ({"total_episodes": 4}, r"episodes\.jsonl: expected the episodes 0 to 3 once each, got 3 rows \(episode 3"),
        ({"total_frames": 9}, r"expected total_frames to be the episodes' 39 rows, got 9"),
        ({"features": {"a": {"dtype": "image", "shape": [3]}}}, "three for a camera"),
    ],
)
def test_metadata_that_cannot_be_right(datasets, changes, message):
    _, root = datasets()
    edit_info(root, **changes)
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"episodes\.jsonl, line 2: expected a JSON object, got '\{'"),
        ("[1]", r"line 2: expected a JSON object with a whole number as episode_index, got '\[1\]'"),
        ('{"episode_index": "1"}', "line 2: expected a JSON object with a whole number as episode_index"),
        ('{"episode_index": 0, "length": 3, "tasks": []}', r"line 2: expected each episode_index once, got 0 here and"),
        ('{"episode_index": 7, "length": 13, "tasks": []}', r"the episodes 0 to 2 once each, .*\(episode 1 is missing"),
        ('{"episode_index": 1, "tasks": []}', "expected a length of 1 or more rows for episode 1, got None"),
        ('{"episode_index": 1, "length": 13, "tasks": [3]}', r"expected a sentence or a list of them .*, got \[3\]"),
        ('{"episode_index": 1, "length": 12, "tasks": []}', "expected total_frames to be the episodes' 38 rows"),
    ],
)
def test_a_table_of_episodes_with_a_wrong_line(datasets, line, message):
    _, root = datasets()
    path = root / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root)


def test_a_table_of_episodes_that_is_missing_or_no_text(datasets):
    _, root = datasets()
    path = root / "meta/episodes.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"episodes\.jsonl: expected lines of JSON"):
        LeRobotDataset(root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the table of episodes .*episodes\.jsonl, found none"):
        LeRobotDataset(root)


def test_broken_tables_of_sentences_and_statistics(datasets):
    _, root = datasets()
    tasks, statistics = root / "meta/tasks.jsonl", root / "meta/episodes_stats.jsonl"
    statistics.write_text('{"episode_index": 0, "stats": 3}\n')
    with pytest.raises(DatasetError, match=r"episodes_stats\.jsonl, line 1: expected an object of features as stats"):
        LeRobotDataset(root).episode_statistics()
    tasks.write_text('{"task_index": 1, "task": "a"}\n')
    with pytest.raises(DatasetError, match=r"tasks\.jsonl: expected the task indices 0 to 0, got \[1\]"):
        LeRobotDataset(root).read_tasks()
    tasks.write_text('{"task_index": 0, "task": 5}\n')
    with pytest.raises(DatasetError, match=r"tasks\.jsonl, line 1: expected a sentence as task, got '5'"):
        LeRobotDataset(root).read_tasks()
    tasks.unlink()
    statistics.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the task table .*tasks\.jsonl"):
        LeRobotDataset(root).read_tasks()
    (finding,) = inspect(root).errors
    assert (finding.kind, finding.where) == ("missing_file", "meta/tasks.jsonl")


def test_files_that_are_missing_or_of_another_length(datasets):
    _, root = datasets()
    data, video = root / DATA.format(0, 1), root / VIDEO.format(0, FRONT, 1)
    rows, frames = data.read_bytes(), video.read_bytes()
    pq.write_table(pq.read_table(data)[:9], data)
    with pytest.raises(DatasetError, match=r"episode_000001\.parquet: expected 13 rows, got 9; it is shorter"):
        LeRobotDataset(root)
    shutil.copy(root / DATA.format(1, 2), data)
    with pytest.raises(DatasetError, match=r"episode_000001\.parquet: expected 13 rows, got 14; it is longer"):
        LeRobotDataset(root)
    data.write_bytes(rows[:-20])
    with pytest.raises(DatasetError, match=r"episode_000001\.parquet: expected a complete Parquet file"):
        LeRobotDataset(root)
    data.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the data file .*episode_000001\.parquet"):
        LeRobotDataset(root)
    data.write_bytes(rows)
    video.write_bytes(frames[: len(frames) // 2])
    with pytest.raises(VideoError, match=r"episode_000001\.mp4: expected a complete MP4"):
        LeRobotDataset(root)
    shutil.copy(root / VIDEO.format(0, FRONT, 0), video)
    with pytest.raises(VideoError, match=r"episode_000001\.mp4: expected 13 frames or more, got 12"):
        LeRobotDataset(root)
    video.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a video at .*episode_000001\.mp4"):
        LeRobotDataset(root)
    assert {finding.kind for finding in inspect(root).errors} == {"missing_file"}


def test_a_robot_that_is_none_is_named_with_its_file(datasets):
    _, root = datasets()
    edit_info(root, wamkit={"robot": synthetic_robot().to_dict() | {"state": [3]}})
    with pytest.raises(DatasetError, match=r"older/meta/info\.json, wamkit\.robot: state\[0\]: .*; correct it there"):
        _ = LeRobotDataset(root).robot


def test_statistics_that_are_none_do_not_stop_the_inspection(datasets):
    _, root = datasets("v2.0")
    (root / "meta/stats.json").write_text('{"action": [1]}')
    assert inspect(root).is_sound


def test_rows_of_another_episode(datasets):
    _, root = datasets()
    table = pq.read_table(root / DATA.format(0, 1))
    place = table.schema.get_field_index("episode_index")
    table = table.set_column(place, "episode_index", pa.array([2] * len(table)))
    pq.write_table(table, root / DATA.format(0, 1))
    with pytest.raises(DatasetError, match=r"belong to episode 1, got episodes \[2\]"):
        LeRobotDataset(root).columns(1)
