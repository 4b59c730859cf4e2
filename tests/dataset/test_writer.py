"""The written folder is LeRobot v3.0, and nothing that happens while writing makes it unreadable."""

import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wamkit.data import writer as writer_module
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.video import VideoSettings
from wamkit.data.writer import LeRobotWriter
from wamkit.spec import SpecMismatch

ROBOT = synthetic_robot(height=64, width=64)


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file's content, by relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# -- the format, fact by fact ----------------------------------------------------------------------------------------


def test_info_has_the_keys_of_v3(write_dataset):
    root, episodes = write_dataset(3)
    info = json.loads((root / "meta/info.json").read_text())
    rows = sum(len(episode) for episode in episodes)
    sentences = list(dict.fromkeys(episode.task for episode in episodes))
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, rows, len(sentences))
    assert info["splits"] == {"train": "0:3"}
    assert info["fps"] == 20 and isinstance(info["fps"], int)
    assert (info["chunks_size"], info["data_files_size_in_mb"], info["video_files_size_in_mb"]) == (1000, 100, 200)
    assert info["robot_type"] == "square/synthetic"
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["video_path"] == "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    assert not {"total_chunks", "total_videos"} & info.keys()


def test_features_describe_every_column_and_camera(write_dataset):
    root, _ = write_dataset(1)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    for camera in ("front", "wrist"):
        video = features[f"observation.images.{camera}"]
        assert (video["dtype"], video["shape"]) == ("video", [64, 64, 3])
        assert video["names"] == ["height", "width", "channels"]
        assert video["info"] == {
            "video.fps": 20,
            "video.height": 64,
            "video.width": 64,
            "video.channels": 3,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "has_audio": False,
        }
    assert features["observation.state"] == {"dtype": "float32", "shape": [3], "names": ["x", "y", "gripper_opening"]}
    assert features["action"] == {"dtype": "float32", "shape": [3], "names": ["dx", "dy", "gripper"]}
    scalars = {"next.reward": "float32", "next.done": "bool", "next.success": "bool", "timestamp": "float32"}
    scalars |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    for key, dtype in scalars.items():
        assert features[key] == {"dtype": dtype, "shape": [1], "names": None}


def test_data_files_hold_typed_columns_and_one_row_group(write_dataset):
    root, episodes = write_dataset(3)
    first = 0
    for number, episode in enumerate(episodes):
        path = root / f"data/chunk-000/file-{number:03d}.parquet"
        assert pq.ParquetFile(path).metadata.num_row_groups == 1
        table = pq.read_table(path)
        assert {field.name: field.type for field in table.schema} == {
            "observation.state": pa.list_(pa.float32(), 3),
            "action": pa.list_(pa.float32(), 3),
            "next.reward": pa.float32(),
            "next.done": pa.bool_(),
            "next.success": pa.bool_(),
            "timestamp": pa.float32(),
            "frame_index": pa.int64(),
            "episode_index": pa.int64(),
            "index": pa.int64(),
            "task_index": pa.int64(),
        }
        rows = len(episode)
        np.testing.assert_array_equal(np.array(table["action"].to_pylist(), np.float32), episode.actions)
        np.testing.assert_array_equal(np.array(table["observation.state"].to_pylist(), np.float32), episode.state)
        assert table["frame_index"].to_pylist() == list(range(rows))
        assert table["index"].to_pylist() == list(range(first, first + rows))
        assert table["episode_index"].to_pylist() == [number] * rows
        np.testing.assert_allclose(table["timestamp"].to_numpy(), np.arange(rows) / 20, atol=1e-6)
        assert table["next.done"].to_pylist() == [False] * (rows - 1) + [True]
        assert table["next.success"].to_pylist() == episode.success.tolist()
        np.testing.assert_array_equal(table["next.reward"].to_numpy(), episode.reward)
        first += rows


def test_episode_table_places_every_episode(write_dataset):
    root, episodes = write_dataset(3)
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    first = 0
    for number, (row, episode) in enumerate(zip(rows, episodes, strict=True)):
        assert (row["episode_index"], row["tasks"], row["length"]) == (number, [episode.task], len(episode))
        assert (row["data/chunk_index"], row["data/file_index"]) == (0, number)
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (first, first + len(episode))
        assert (row["meta/episodes/chunk_index"], row["meta/episodes/file_index"]) == (0, 0)
        for camera in ("front", "wrist"):
            prefix = f"videos/observation.images.{camera}/"
            assert (row[f"{prefix}chunk_index"], row[f"{prefix}file_index"]) == (0, number)
            assert row[f"{prefix}from_timestamp"] == 0.0
            assert row[f"{prefix}to_timestamp"] == pytest.approx(len(episode) / 20)
            assert (root / f"videos/observation.images.{camera}/chunk-000/file-{number:03d}.mp4").is_file()
        assert json.loads(row["wamkit/metadata"]) == episode.metadata
        first += len(episode)


def test_tasks_are_a_table_indexed_by_sentence(write_dataset):
    root, episodes = write_dataset(6)
    table = pq.read_table(root / "meta/tasks.parquet")
    sentences = list(dict.fromkeys(episode.task for episode in episodes))
    assert len(sentences) > 1
    assert table["task"].to_pylist() == sentences and table["task_index"].to_pylist() == list(range(len(sentences)))
    note = json.loads(table.schema.metadata[b"pandas"])
    assert note["index_columns"] == ["task"]
    assert [column["field_name"] for column in note["columns"]] == ["task_index", "task"]
    indices = [LeRobotDataset(root).columns(e)["task_index"][0] for e in range(6)]
    assert [sentences[index] for index in indices] == [episode.task for episode in episodes]


def test_statistics_per_episode_and_over_the_dataset(write_dataset):
    root, episodes = write_dataset(3)
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    names = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
    for row, episode in zip(rows, episodes, strict=True):
        np.testing.assert_allclose(row["stats/action/mean"], episode.actions.mean(0), rtol=1e-5)
        np.testing.assert_allclose(row["stats/action/q90"], np.quantile(episode.actions, 0.9, axis=0), rtol=1e-5)
        assert row["stats/action/count"] == [len(episode)]
        pixels = episode.video["front"] / 255.0
        image = np.array(row["stats/observation.images.front/std"])
        assert image.shape == (3, 1, 1)
        np.testing.assert_allclose(image[:, 0, 0], pixels.std((0, 1, 2)), rtol=1e-9)
        median = np.quantile(episode.video["front"], 0.5, axis=(0, 1, 2), method="lower") / 255
        np.testing.assert_allclose(np.array(row["stats/observation.images.front/q50"])[:, 0, 0], median)
    stats = json.loads((root / "meta/stats.json").read_text())
    assert stats.keys() == json.loads((root / "meta/info.json").read_text())["features"].keys()
    assert all(set(one) == names for one in stats.values())
    together = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_allclose(stats["action"]["mean"], together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["action"]["std"], together.std(0), rtol=1e-5)
    np.testing.assert_allclose(stats["action"]["max"], together.max(0), rtol=1e-6)
    assert stats["action"]["count"] == [len(together)]
    assert np.array(stats["observation.images.wrist"]["mean"]).shape == (3, 1, 1)


def test_robot_with_one_channel_stores_plain_scalars(tmp_path):
    episode = synthetic_episodes(1, height=64, width=64)[0]
    narrow = dataclasses.replace(ROBOT, state=ROBOT.state[:1])
    with LeRobotWriter(tmp_path / "set", narrow) as writer:
        writer.add(dataclasses.replace(episode, state=episode.state[:, :1]))
    table = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet")
    assert table.schema.field("observation.state").type == pa.float32()
    np.testing.assert_array_equal(
        LeRobotDataset(tmp_path / "set").columns(0)["observation.state"], episode.state[:, :1]
    )


def test_long_recordings_move_on_to_further_chunks_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "FILES_PER_CHUNK", 2)
    monkeypatch.setattr(writer_module, "EPISODES_PER_TABLE", 2)
    episodes = synthetic_episodes(5, length=6, height=64, width=64)
    for part in (episodes[:3], episodes[3:]):
        with LeRobotWriter(tmp_path, ROBOT) as writer:
            for episode in part:
                writer.add(episode)
    assert (tmp_path / "data/chunk-002/file-000.parquet").is_file()
    tables = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("meta/episodes/*/*"))
    assert tables == [f"meta/episodes/chunk-00{n // 2}/file-00{n % 2}.parquet" for n in range(3)]
    dataset = LeRobotDataset(tmp_path)
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(dataset.columns(number)["action"], episode.actions)
        assert dataset.frames(number, "wrist", [5]).shape == (1, 64, 64, 3)


# -- what is refused -----------------------------------------------------------------------------------------------


def change_first(values: np.ndarray, value: float) -> np.ndarray:
    changed = values.copy()
    changed[2, 1] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"actions": e.actions[:, :2]}, r"actions: expected \[T, 3\] for robot .*, got \[20, 2\]"),
        (lambda e: {"state": e.state[:, 0]}, r"state: expected \[T, 3\]"),
        (lambda e: {"actions": change_first(e.actions, np.nan)}, r"actions: expected finite .* row 2"),
        (lambda e: {"state": change_first(e.state, np.inf)}, r"state: expected finite .* row 2"),
        (
            lambda e: {"video": {"front": e.video["front"]}},
            r"expected the cameras \['front', 'wrist'\], got \['front'\]",
        ),
        (lambda e: {"video": {k: v[:, ::2] for k, v in e.video.items()}}, r"'front': expected uint8 \[T, 64, 64, 3\]"),
        (lambda e: {"metadata": {"layout": np.int64(3)}}, r"metadata: expected JSON"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_leaves_no_trace(write_dataset, change, message):
    root, _ = write_dataset(1)
    before = snapshot(root)
    episode = synthetic_episodes(1, height=64, width=64)[0]
    with LeRobotWriter(root, ROBOT) as writer, pytest.raises(ValueError, match=message):
        writer.add(dataclasses.replace(episode, **change(episode)))
    assert snapshot(root) == before


def test_another_robot_is_refused(write_dataset):
    root, _ = write_dataset(1)
    fewer = dataclasses.replace(ROBOT, action=ROBOT.action[:2], gripper_channels=())
    with pytest.raises(SpecMismatch, match=r"(?s)this recording and the dataset .*action width: wanted 2 .*offered 3"):
        LeRobotWriter(root, fewer)
    with pytest.raises(SpecMismatch, match="rendering: wanted 'ray-traced', offered 'numpy'"):
        LeRobotWriter(root, dataclasses.replace(ROBOT, rendering="ray-traced"))
    with pytest.raises(SpecMismatch, match=r"has the cameras \['front'\], the dataset .* has \['front', 'wrist'\]"):
        LeRobotWriter(root, ROBOT.with_cameras(("front",)))
    with pytest.raises(SpecMismatch, match="cameras"):
        LeRobotWriter(root, ROBOT.with_cameras(("wrist", "front")))


@pytest.mark.parametrize(
    ("robot", "settings"),
    [
        (ROBOT.with_cameras(("wrist",)), {}),
        (ROBOT, {"fps": 10}),
        (ROBOT, {"video": VideoSettings(crf=40)}),
    ],
)
def test_a_dataset_without_episodes_counts_as_empty(write_dataset, robot, settings):
    root, _ = write_dataset(0)
    with LeRobotWriter(root, robot, **settings):
        pass
    dataset = LeRobotDataset(root)
    assert dataset.robot == robot and dataset.fps == settings.get("fps", 20)
    assert dataset.wamkit["video"]["crf"] == (40 if "video" in settings else 23)


def test_a_size_that_cannot_be_encoded_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match="even height and width for yuv420p, got 63x64"):
        LeRobotWriter(tmp_path / "set", synthetic_robot(height=63, width=64))
    assert not (tmp_path / "set").exists()


def test_other_settings_are_refused(write_dataset, tmp_path):
    root, _ = write_dataset(1)
    with pytest.raises(ValueError, match="20 frames/s, the recording 10"):
        LeRobotWriter(root, ROBOT, fps=10)
    with pytest.raises(ValueError, match=r"is encoded with .*crf=23.*asks for .*crf=40"):
        LeRobotWriter(root, ROBOT, video=VideoSettings(crf=40))
    with pytest.raises(ValueError, match=r"whole number of frames per second .*, got 12\.5"):
        LeRobotWriter(tmp_path / "new", dataclasses.replace(ROBOT, control_hz=12.5))


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match=r"expected an empty folder or a dataset .*thesis\.tex"):
        LeRobotWriter(tmp_path, ROBOT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_writers_at_once_are_refused(tmp_path):
    with LeRobotWriter(tmp_path, ROBOT), pytest.raises(BlockingIOError, match="another process is writing"):
        LeRobotWriter(tmp_path, ROBOT)
    LeRobotWriter(tmp_path, ROBOT).close()


def test_columns_added_later_stop_further_recording_but_not_opening(write_dataset):
    root, _ = write_dataset(1)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["value"] = {"dtype": "float32", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    with LeRobotWriter(root, ROBOT) as writer, pytest.raises(ValueError, match=r"added columns \['value'\]"):
        writer.add(synthetic_episodes(1, height=64, width=64)[0])


# -- reopening, killing, full disks ----------------------------------------------------------------------------------


def test_reopening_continues_and_equals_one_go(tmp_path):
    episodes = synthetic_episodes(4, length=8, height=64, width=64)
    with LeRobotWriter(tmp_path / "once", ROBOT) as writer:
        assert [writer.add(episode) for episode in episodes] == [0, 1, 2, 3]
    for part in (episodes[:1], [], episodes[1:]):
        with LeRobotWriter(tmp_path / "often", ROBOT) as writer:
            for episode in part:
                writer.add(episode)
    assert snapshot(tmp_path / "once") == snapshot(tmp_path / "often")


def test_notes_change_with_the_episode_count(tmp_path):
    episode = synthetic_episodes(1, height=64, width=64)[0]
    with LeRobotWriter(tmp_path, ROBOT) as writer:
        writer.add(episode, notes={"next": 7})
        writer.notes["next"] = 8  # a copy: only `add` and `set_notes` store
    with LeRobotWriter(tmp_path, ROBOT) as writer:
        assert writer.notes == {"next": 7}
        writer.add(episode)
        assert writer.notes == {"next": 7}
        writer.set_notes({"next": 9})
    assert LeRobotDataset(tmp_path).wamkit["notes"] == {"next": 9}


# Imports once, then forks a recorder for every line it reads; prints its process id, what it completed, and its end.
RECORDERS = """
import os, sys
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.writer import LeRobotWriter
episodes = synthetic_episodes(4, length=8, height=64, width=64)
while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        writer = LeRobotWriter(sys.argv[1], synthetic_robot(height=64, width=64))
        while True:
            index = writer.add(episodes[writer.num_episodes % 4], notes={"next": writer.num_episodes + 1})
            print(index, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_killed_at_any_moment_the_dataset_is_whole_and_continues(tmp_path):
    """Kills of a real recorder at random moments, one after the other into the same folder.

    Eight of them, or more until one hit a file being written and one an episode between its renames.
    """
    episodes = synthetic_episodes(4, length=8, height=64, width=64)
    rng = np.random.default_rng(0)
    completed = partial = uncommitted = 0
    command = [sys.executable, "-c", RECORDERS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as recorders:
        for number in range(100):
            if number >= 8 and partial and uncommitted:
                break
            print(file=recorders.stdin, flush=True)
            process, completed = int(recorders.stdout.readline()), int(recorders.stdout.readline()) + 1
            time.sleep(float(rng.uniform(0.0, 0.15)))
            os.kill(process, signal.SIGKILL)
            for line in iter(recorders.stdout.readline, "dead\n"):
                completed = int(line) + 1
            partial += bool(list(tmp_path.rglob(".*.partial")))
            dataset = LeRobotDataset(tmp_path)
            assert dataset.num_episodes >= completed
            assert dataset.wamkit["notes"].get("next", 0) == dataset.num_episodes
            uncommitted += len(list(tmp_path.rglob("file-*.mp4"))) > 2 * dataset.num_episodes
            completed = dataset.num_episodes
            for record in dataset.episodes:
                actions = dataset.columns(record.index)["action"]
                np.testing.assert_array_equal(actions, episodes[record.index % 4].actions)
        recorders.stdin.close()
    assert completed >= 8
    assert partial > 0 and uncommitted > 0
    LeRobotWriter(tmp_path, ROBOT).close()
    require_intact(tmp_path, completed)


def test_an_episode_interrupted_between_renames_is_cleaned_up(write_dataset):
    root, _ = write_dataset(2)
    for name in ("data/chunk-000/file-002.parquet", "videos/observation.images.front/chunk-000/file-002.mp4"):
        (root / name).write_bytes(b"half an episode")
    (root / "data/chunk-000/.file-002.parquet.partial").write_bytes(b"half a file")
    assert LeRobotDataset(root).num_episodes == 2
    LeRobotWriter(root, ROBOT).close()
    assert not (root / "data/chunk-000/file-002.parquet").exists()
    assert not (root / "videos/observation.images.front/chunk-000/file-002.mp4").exists()
    assert not list(root.rglob(".*.partial"))


def fill_until_refused(root: Path) -> OSError:
    """Adds noisy (incompressible) episodes until one is refused."""
    rng = np.random.default_rng(0)
    episode = synthetic_episodes(1, length=150, height=64, width=64)[0]
    noise = {name: rng.integers(0, 256, frames.shape, dtype=np.uint8) for name, frames in episode.video.items()}
    with LeRobotWriter(root, ROBOT) as writer:
        for _ in range(20):
            try:
                writer.add(dataclasses.replace(episode, video=noise))
            except OSError as error:
                return error
    raise AssertionError("twenty noisy episodes found room")


def require_intact(root: Path, episodes: int) -> None:
    dataset = LeRobotDataset(root)
    assert dataset.num_episodes == episodes
    assert not list(root.rglob(".*.partial"))
    assert len(list(root.rglob("*.mp4"))) == 2 * episodes and len(list(root.glob("data/*/*"))) == episodes
    for record in dataset.episodes:
        dataset.columns(record.index)
        dataset.frames(record.index, "front", range(record.length))


def test_a_full_disk_is_reported_and_costs_only_the_episode(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root; the file size limit below is tested in its place")
    try:
        root = tmp_path / "set"
        error = fill_until_refused(root)
        assert error.errno == errno.ENOSPC
        assert "No space left on device while writing" in str(error) and "run again" in str(error)
        count = LeRobotDataset(root).num_episodes
        assert count >= 1
        require_intact(root, count)
        # Once there is room the same folder continues.
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path)], check=True)
        with LeRobotWriter(root, ROBOT) as writer:
            assert writer.add(synthetic_episodes(1, height=64, width=64)[0]) == count
        require_intact(root, count + 1)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_size_limit_is_reported_and_costs_only_the_episode(tmp_path):
    small = synthetic_episodes(1, height=64, width=64)[0]
    with LeRobotWriter(tmp_path, ROBOT) as writer:
        writer.add(small)
    before = snapshot(tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, old[1]))
    try:
        error = fill_until_refused(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert os.strerror(errno.EFBIG) in str(error) and "mp4" in str(error)
    assert snapshot(tmp_path) == before
    require_intact(tmp_path, 1)
