"""Reading v3.0 as others write it too: many episodes per file, foreign columns, embedded images; and clear refusals."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wamkit.data.added_columns import write_column
from wamkit.data.inspect import inspect
from wamkit.data.layout import read_tasks
from wamkit.data.lerobot import DatasetError, LeRobotDataset, VideoError
from wamkit.data.source import EpisodeSource
from wamkit.data.video import VideoSettings, encode_video

INFO, EPISODES = "meta/info.json", "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-{:03d}.parquet"
VIDEO = "videos/observation.images.{}/chunk-000/file-{:03d}.mp4"


def edit_info(root: Path, **changes) -> None:
    info = json.loads((root / INFO).read_text()) | changes
    (root / INFO).write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def edit_episodes(root: Path, change) -> None:
    rows = pq.read_table(root / EPISODES).to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows), root / EPISODES)


def as_lerobot_writes(root: Path, episodes, fps: int = 20) -> None:
    """Rewrite a recording the way LeRobot lays it out: everything in one file each, no wamkit key, index column."""
    with pq.ParquetWriter(root / "data/all.parquet", pq.read_schema(root / DATA.format(0))) as writer:
        for number in range(len(episodes)):
            writer.write_table(pq.read_table(root / DATA.format(number)))
    for number in range(len(episodes)):
        (root / DATA.format(number)).unlink()
    (root / "data/all.parquet").rename(root / DATA.format(0))
    for camera in ("front", "wrist"):
        frames = np.concatenate([episode.video[camera] for episode in episodes])
        shutil.rmtree((root / VIDEO.format(camera, 0)).parent)
        (root / VIDEO.format(camera, 0)).parent.mkdir()
        (root / VIDEO.format(camera, 0)).write_bytes(encode_video(frames, fps=fps, settings=VideoSettings(codec="av1")))

    def place(row):
        row["data/file_index"] = 0
        for camera in ("front", "wrist"):
            prefix = f"videos/observation.images.{camera}/"
            row[f"{prefix}file_index"] = 0
            row[f"{prefix}from_timestamp"] = row["dataset_from_index"] / fps
            row[f"{prefix}to_timestamp"] = row["dataset_to_index"] / fps
        del row["wamkit/metadata"]

    edit_episodes(root, place)
    tasks = pq.read_table(root / "meta/tasks.parquet").rename_columns({"task": "__index_level_0__"})
    pq.write_table(tasks.replace_schema_metadata(None), root / "meta/tasks.parquet")
    edit_info(root, wamkit=None)


def test_what_was_written_is_read(write_dataset):
    root, episodes = write_dataset(3)
    dataset = LeRobotDataset(root)
    source: EpisodeSource = dataset
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 12 + 13 + 14, 20.0)
    assert source.cameras == ("front", "wrist") and source.robot is not None
    assert source.robot.state[2].name == "gripper_opening"
    assert source.robot is dataset.robot, "read once"
    for number, episode in enumerate(episodes):
        record = dataset.episodes[number]
        assert (record.index, record.length, record.task) == (number, len(episode), episode.task)
        assert record.metadata == episode.metadata
        columns = dataset.columns(number)
        np.testing.assert_array_equal(columns["action"], episode.actions)
        np.testing.assert_array_equal(columns["observation.state"], episode.state)
        np.testing.assert_array_equal(columns["next.reward"], episode.reward)
        np.testing.assert_array_equal(columns["next.success"], episode.success)
        assert columns["next.success"].dtype == bool and columns["action"].dtype == np.float32
        for camera in dataset.cameras:
            frames = dataset.frames(number, camera, range(len(episode)))
            assert np.abs(frames.astype(int) - episode.video[camera]).mean() < 5
            np.testing.assert_array_equal(dataset.frames(number, camera, np.array([7, 2])), frames[[7, 2]])


@pytest.mark.golden
def test_a_dataset_written_by_lerobot(write_dataset):
    """`tests/data/lerobot_v3` was written by lerobot 0.4.4 (`create`, `add_frame`, `save_episode`, `finalize`).

    Frame n of the whole set shows the number n, state is (n, -n, 0.5), action is (frame index, episode index).
    """
    root = Path(__file__).parents[1] / "data" / "lerobot_v3"
    dataset = LeRobotDataset(root)
    assert (dataset.num_episodes, dataset.num_frames, dataset.robot, dataset.cameras) == (3, 24, None, ("front",))
    assert [record.task for record in dataset.episodes] == ["push the square", "pull the square", "push the square"]
    assert read_tasks(root) == ["push the square", "pull the square"]
    numbers = iter(range(24))
    for record in dataset.episodes:
        columns, rows = dataset.columns(record.index), range(record.length)
        expected = [next(numbers) for _ in rows]
        assert [read_number(frame) for frame in dataset.frames(record.index, "front", rows)] == expected
        assert read_number(dataset.frames(record.index, "front", [record.length - 1])[0]) == expected[-1]
        np.testing.assert_array_equal(columns["observation.state"], [[n, -n, 0.5] for n in expected])
        np.testing.assert_array_equal(columns["action"], [[t, record.index] for t in rows])
    assert [finding.where for finding in inspect(root).findings] == ["observation.state (gripper_opening)"]  # the 0.5
    # What we write has the same column types wherever LeRobot has the column.
    ours, _ = write_dataset(2)
    for name in (DATA.format(0), EPISODES):
        theirs = {field.name: field.type for field in pq.read_schema(root / name)}
        written = {field.name: field.type for field in pq.read_schema(ours / name)}
        assert written | theirs | {"action": written.get("action")} == written | {"action": written.get("action")}
    info, written = (json.loads((folder / INFO).read_text()) for folder in (root, ours))
    assert list(info) == [key for key in written if key != "wamkit"]
    assert {key: type(value) for key, value in info.items()} == {key: type(written[key]) for key in info}
    for key in ("observation.images.front", "timestamp", "frame_index", "observation.state"):
        assert info["features"][key].keys() == written["features"][key].keys()
    assert (
        info["features"]["observation.images.front"]["info"].keys()
        == written["features"]["observation.images.front"]["info"].keys()
    )


def read_number(frame: np.ndarray) -> int:
    """The number a frame shows as eight black or white bars in its upper quarter."""
    height, width = frame.shape[:2]
    bars = frame[: height // 4].mean((0, 2)).reshape(8, width // 8).mean(1) > 127
    return int(np.packbits(bars)[0])


def test_only_the_named_columns_are_read(write_dataset):
    root, _ = write_dataset(1)
    columns = LeRobotDataset(root).columns(0, ["action"])
    assert list(columns) == ["action"]
    with pytest.raises(DatasetError, match=r"has the columns \[.*'action'.*\], not \['actions'\]"):
        LeRobotDataset(root).columns(0, ["actions"])


def test_many_episodes_in_one_file(write_dataset):
    root, episodes = write_dataset(4)
    as_lerobot_writes(root, episodes)
    dataset = LeRobotDataset(root)
    assert dataset.robot is None and dataset.episodes[2].metadata == {}
    assert [record.task for record in dataset.episodes] == [episode.task for episode in episodes]
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(dataset.columns(number)["observation.state"], episode.state)
        frames = dataset.frames(number, "front", [0, len(episode) - 1, 4])
        expected = episode.video["front"][[0, len(episode) - 1, 4]]
        assert np.abs(frames.astype(int) - expected).mean() < 5
        others = np.abs(frames.astype(int) - episodes[(number + 1) % 4].video["front"][[0, 11, 4]]).mean()
        assert others > 5  # another episode's frames would have been noticed


def test_row_groups_need_not_follow_episodes(write_dataset):
    root, episodes = write_dataset(4)
    as_lerobot_writes(root, episodes)
    pq.write_table(pq.read_table(root / DATA.format(0)), root / DATA.format(0), row_group_size=5)
    dataset = LeRobotDataset(root)
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(dataset.columns(number)["action"], episode.actions)


def test_unknown_keys_and_columns_are_ignored(write_dataset):
    root, episodes = write_dataset(2)
    edit_info(root, future_key={"nested": [1]})
    edit_episodes(root, lambda row: row.update({"quality/stars": 5, "__index_level_0__": row["episode_index"]}))
    for number in range(2):
        table = pq.read_table(root / DATA.format(number))
        events = pa.array([[{"role": "user", "content": "hm"}]] * len(table))
        index = pa.array(np.arange(len(table)))
        table = table.append_column("language_events", events).append_column("__index_level_0__", index)
        pq.write_table(table, root / DATA.format(number))
    dataset = LeRobotDataset(root)
    assert dataset.info["future_key"] == {"nested": [1]}
    assert not {"language_events", "__index_level_0__"} & dataset.columns(1).keys()
    np.testing.assert_array_equal(dataset.columns(1)["action"], episodes[1].actions)


@pytest.mark.parametrize("name", ["task", "__index_level_0__", "sentence"])
def test_the_column_of_sentences(write_dataset, name):
    root, _ = write_dataset(2)
    expected = read_tasks(root)
    table = pq.read_table(root / "meta/tasks.parquet").rename_columns({"task": name}).replace_schema_metadata(None)
    if name != "sentence":
        table = table.add_column(0, "author", pa.array(["a"] * len(table)))
    pq.write_table(table, root / "meta/tasks.parquet")
    assert read_tasks(root) == expected


def test_the_episode_table_may_be_several_files(write_dataset):
    root, episodes = write_dataset(4)
    table = pq.read_table(root / EPISODES)
    pq.write_table(table[:1], root / EPISODES)
    for number, part in ((1, table[3:]), (2, table[1:3])):
        pq.write_table(part, root / f"meta/episodes/chunk-000/file-{number:03d}.parquet")
    dataset = LeRobotDataset(root)
    assert [record.length for record in dataset.episodes] == [len(episode) for episode in episodes]
    np.testing.assert_array_equal(dataset.columns(3)["action"], episodes[3].actions)


def test_variable_lists_and_more_axes_are_read(write_dataset):
    root, episodes = write_dataset(1)
    table = pq.read_table(root / DATA.format(0))
    rows = len(table)
    pose = np.arange(rows * 6, dtype=np.float64).reshape(rows, 2, 3)
    table = table.set_column(1, "action", pa.array(episodes[0].actions.tolist(), pa.list_(pa.float32())))
    table = table.append_column("pose", pa.array(pose.tolist())).append_column("words", pa.array(["a"] * rows))
    pq.write_table(table, root / DATA.format(0))
    features = json.loads((root / INFO).read_text())["features"]
    features |= {"pose": {"dtype": "float64", "shape": [2, 3], "names": None}}
    features |= {"words": {"dtype": "string", "shape": [1], "names": None}}
    edit_info(root, features=features)
    columns = LeRobotDataset(root).columns(0)
    np.testing.assert_array_equal(columns["pose"], pose)
    np.testing.assert_array_equal(columns["action"], episodes[0].actions)
    assert columns["words"].tolist() == ["a"] * rows


def test_images_embedded_in_the_data_are_cameras_too(write_dataset):
    root, episodes = write_dataset(1)

    def png(pixels: np.ndarray) -> dict:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    table = pq.read_table(root / DATA.format(0))
    cells = pa.array([png(pixels) for pixels in episodes[0].video["wrist"]])
    pq.write_table(table.append_column("observation.image", cells), root / DATA.format(0))
    features = json.loads((root / INFO).read_text())["features"]
    features["observation.image"] = {"dtype": "image", "shape": [64, 64, 3], "names": None}
    edit_info(root, features=features)
    dataset = LeRobotDataset(root)
    assert dataset.cameras == ("front", "wrist", "observation.image")
    frames = dataset.frames(0, "observation.image", [3, 1])
    np.testing.assert_array_equal(frames, episodes[0].video["wrist"][[3, 1]])
    assert "observation.image" not in dataset.columns(0) and dataset.video_path(0, "observation.image") is None
    assert dataset.video_path(0, "wrist") == root / VIDEO.format("wrist", 0)


def test_paths_follow_the_templates(write_dataset):
    root, episodes = write_dataset(1)
    (root / DATA.format(0)).rename(root / "data/rows-0-0.pq")
    edit_info(root, data_path="data/rows-{chunk_index}-{file_index}.pq")
    np.testing.assert_array_equal(LeRobotDataset(root).columns(0)["action"], episodes[0].actions)


def test_a_dataset_without_episodes_opens(write_dataset):
    root, _ = write_dataset(0)
    dataset = LeRobotDataset(root)
    assert (dataset.num_episodes, dataset.num_frames) == (0, 0)
    with pytest.raises(ValueError, match="expected a dataset with episodes, got 0 of 0"):
        dataset.columns(0)


# -- fingerprint -----------------------------------------------------------------------------------------------------


def test_fingerprint_follows_the_content_only(write_dataset):
    root, _ = write_dataset(2, name="a")
    same, _ = write_dataset(2, name="b")
    more, _ = write_dataset(3, name="c")
    fingerprint = LeRobotDataset(root).fingerprint()
    assert fingerprint == LeRobotDataset(same).fingerprint() and len(fingerprint) == 64
    assert fingerprint != LeRobotDataset(more).fingerprint()
    info = json.loads((same / INFO).read_text())
    edit_info(same, wamkit=info["wamkit"] | {"notes": {"next": 3}})
    assert fingerprint == LeRobotDataset(same).fingerprint()
    edit_info(same, wamkit=info["wamkit"] | {"value": {"gamma": 0.9}})
    assert fingerprint != LeRobotDataset(same).fingerprint()


def test_fingerprint_notices_other_numbers(write_dataset):
    root, _ = write_dataset(2)
    before = LeRobotDataset(root).fingerprint()
    edit_episodes(root, lambda row: row.update({"stats/action/mean": [0.0, 0.0, row["episode_index"] * 1.0]}))
    assert LeRobotDataset(root).fingerprint() != before


def ten_times_the_actions(root: Path) -> None:
    table = pq.read_table(root / DATA.format(1))
    place, field = table.schema.get_field_index("action"), table.schema.field("action")
    actions = pa.array([[10 * number for number in row] for row in table["action"].to_pylist()], field.type)
    pq.write_table(table.set_column(place, field, actions), root / DATA.format(1))


def pictures_of_another_camera(root: Path) -> None:
    shutil.copy(root / VIDEO.format("front", 1), root / VIDEO.format("wrist", 1))


def another_column(root: Path) -> None:
    table = pq.read_table(root / DATA.format(1))
    pq.write_table(table.append_column("value", pa.array(range(len(table)), pa.float32())), root / DATA.format(1))


@pytest.mark.parametrize(
    ("change", "is_noticed"),
    [
        (ten_times_the_actions, True),
        (pictures_of_another_camera, True),
        (another_column, False),
        (lambda root: None, False),
    ],
)
def test_fingerprint_notices_other_files_but_neither_copies_nor_undeclared_columns(
    write_dataset, tmp_path, change, is_noticed
):
    root, _ = write_dataset(2)
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    change(copy)
    assert (LeRobotDataset(copy).fingerprint() != LeRobotDataset(root).fingerprint()) is is_noticed


def test_the_numbers_of_an_added_column_are_known_by_its_settings_alone(write_dataset):
    prints = []
    for name, scale in (("a", 1), ("b", 7)):
        root, episodes = write_dataset(2, name=name)
        values = [scale * np.arange(len(episode)) for episode in episodes]
        write_column(root, "value", values.__getitem__, channels=("v",), settings={"gamma": 0.9})
        prints.append(LeRobotDataset(root).fingerprint())
    assert prints[0] == prints[1]


# -- refusals --------------------------------------------------------------------------------------------------------


def test_folders_that_are_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a dataset folder at .*nowhere, found none; check the path"):
        LeRobotDataset(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"meta/info\.json in .*photos, found \['cat\.jpg'\]"):
        LeRobotDataset(tmp_path / "photos")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"codebase_version": "v1.6"},
            r"expected a LeRobot version in \['v2\.0', 'v2\.1', 'v3\.0'\] .*, got 'v1\.6'; HDF5",
        ),
        ({"codebase_version": None}, "got None"),
        ({"fps": 0}, "expected a positive number as fps, got 0"),
        ({"data_path": None}, r"the keys .*\['data_path'\] are missing"),
        ({"video_path": None}, "expected the key 'video_path', since there are videos"),
        ({"features": 3}, r"info\.json: expected an object as features, got 3"),
        ({"features": {"action": None}}, r"expected a dtype and a shape .* as features\.action, got None"),
        ({"features": {"action": {"dtype": "float32"}}}, r"as features\.action, got \{'dtype': 'float32'\}"),
        ({"features": {"action": {"dtype": 3, "shape": [3]}}}, r"as features\.action, got"),
        ({"features": {"action": {"dtype": "float32", "shape": "3"}}}, r"as features\.action, got"),
        ({"features": {"observation.images.a": {"dtype": "video", "shape": [3]}}}, "three for a camera"),
        ({"fps": "20"}, "expected a positive number as fps, got '20'"),
        ({"fps": True}, "expected a positive number as fps, got True"),
        ({"total_episodes": "2"}, "expected a whole number as total_episodes, got '2'"),
        ({"total_episodes": [2]}, r"expected a whole number as total_episodes, got \[2\]"),
        ({"total_frames": -1}, "expected a whole number as total_frames, got -1"),
        ({"data_path": 7}, r"expected a path with \{chunk_index\} and \{file_index\} as data_path, got 7"),
        ({"data_path": "data/{episode}.parquet"}, "as data_path, got 'data/{episode}.parquet'"),
        ({"video_path": ["v"]}, "as video_path, got"),
        ({"wamkit": []}, r"expected an object .* as wamkit, got \[\]"),
        ({"wamkit": {"robot": 3}}, "as wamkit, got"),
        ({"total_episodes": 5}, r"expected the episodes 0 to 4 once each, got 2 rows \(episode 2 is missing"),
        ({"total_frames": 9}, r"expected total_frames to be the episodes' 25 rows, got 9"),
    ],
)
def test_metadata_that_cannot_be_right(write_dataset, changes, message):
    root, _ = write_dataset(2)
    edit_info(root, **changes)
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root)


@pytest.mark.parametrize("key", ["features", "fps", "total_episodes", "total_frames", "data_path", "wamkit"])
def test_metadata_that_hold_nothing(write_dataset, key):
    root, _ = write_dataset(0)
    info = json.loads((root / INFO).read_text()) | {key: None}
    (root / INFO).write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=rf"info\.json: expected .* as {key}, got None; copy the dataset again"):
        LeRobotDataset(root)


def test_broken_metadata_files(write_dataset):
    root, _ = write_dataset(1)
    table = (root / EPISODES).read_bytes()
    (root / EPISODES).write_bytes(table[:-100])
    with pytest.raises(DatasetError, match=r"file-000\.parquet: expected a complete Parquet file"):
        LeRobotDataset(root)
    (root / EPISODES).unlink()
    with pytest.raises(FileNotFoundError, match="expected the episode table"):
        LeRobotDataset(root)
    (root / INFO).write_text("{")
    with pytest.raises(DatasetError, match=r"info\.json: expected JSON"):
        LeRobotDataset(root)


def test_an_episode_table_without_a_column(write_dataset):
    root, _ = write_dataset(1)
    pq.write_table(pq.read_table(root / EPISODES).drop_columns(["dataset_from_index"]), root / EPISODES)
    with pytest.raises(DatasetError, match=r"expected the columns \['dataset_from_index'\], found"):
        LeRobotDataset(root)


def test_files_that_are_missing_or_short_are_named_at_opening(write_dataset):
    root, _ = write_dataset(2)
    data, video = root / DATA.format(1), root / VIDEO.format("wrist", 1)
    rows, frames = data.read_bytes(), video.read_bytes()

    pq.write_table(pq.read_table(data)[:9], data)
    with pytest.raises(DatasetError, match=r"file-001\.parquet: expected 13 rows, got 9"):
        LeRobotDataset(root)
    data.write_bytes(rows[:-20])
    with pytest.raises(DatasetError, match=r"file-001\.parquet: expected a complete Parquet file"):
        LeRobotDataset(root)
    data.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the data file .*file-001\.parquet"):
        LeRobotDataset(root)
    data.write_bytes(rows)

    video.write_bytes(frames[: len(frames) // 2])
    with pytest.raises(VideoError, match=r"wrist.*file-001\.mp4: expected a complete MP4"):
        LeRobotDataset(root)
    shutil.copy(root / VIDEO.format("wrist", 0), video)
    with pytest.raises(VideoError, match=r"wrist.*file-001\.mp4: expected 13 frames or more, got 12"):
        LeRobotDataset(root)
    video.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a video at .*wrist.*file-001\.mp4"):
        LeRobotDataset(root)
    video.write_bytes(frames)
    assert LeRobotDataset(root).num_episodes == 2


def test_an_episode_that_starts_between_two_frames_names_both_times(write_dataset):
    root, episodes = write_dataset(2)
    as_lerobot_writes(root, episodes)
    column = "videos/observation.images.front/from_timestamp"
    edit_episodes(root, lambda row: row.update({column: row[column] + 0.00009}))
    assert len(LeRobotDataset(root).frames(1, "front", range(13))) == 13  # within the tolerance
    edit_episodes(root, lambda row: row.update({column: row[column] + 0.002}))
    with pytest.raises(VideoError, match=r"expected a frame at 0\.652090 s, got frames at .* and 0\.700000 s"):
        LeRobotDataset(root).frames(1, "front", [1])


def test_rows_that_disagree_with_the_features(write_dataset):
    root, episodes = write_dataset(2)
    table = pq.read_table(root / DATA.format(1))
    narrow = pa.array(episodes[1].actions[:, :2].tolist(), pa.list_(pa.float32(), 2))
    pq.write_table(table.set_column(1, "action", narrow), root / DATA.format(1))
    dataset = LeRobotDataset(root)
    with pytest.raises(
        DatasetError, match=r"file-001.*'action': expected shape \[3\] in every row \(39 numbers\), got 26"
    ):
        dataset.columns(1)
    holes = pa.array([None, *episodes[1].reward[1:].tolist()], pa.float32())
    pq.write_table(table.set_column(2, "next.reward", holes), root / DATA.format(1))
    with pytest.raises(DatasetError, match=r"'next\.reward': expected no empty cells, got 1"):
        dataset.columns(1)
    pq.write_table(table.drop_columns(["observation.state"]), root / DATA.format(1))
    with pytest.raises(DatasetError, match=r"expected the columns \['observation\.state'\], found"):
        dataset.columns(1)
    shutil.copy(root / DATA.format(0), root / DATA.format(1))
    edit_episodes(root, lambda row: row.update(length=12))
    edit_info(root, total_frames=24)
    with pytest.raises(DatasetError, match=r"belong to episode 1, got episodes \[0\]"):
        LeRobotDataset(root).columns(1)


def test_requests_outside_the_dataset(write_dataset):
    root, _ = write_dataset(1)
    dataset = LeRobotDataset(root)
    with pytest.raises(ValueError, match="expected an episode from 0 to 0, got 1 of 1"):
        dataset.columns(1)
    with pytest.raises(ValueError, match=r"has the cameras \['front', 'wrist'\], not 'top'"):
        dataset.frames(0, "top", [0])
    with pytest.raises(ValueError, match=r"expected frame indices from 0 to 11, got \[12\]"):
        dataset.frames(0, "front", [12])
    with pytest.raises(ValueError, match=r"expected frame indices from 0 to 11, got \[\]"):
        dataset.frames(0, "front", [])
