"""From v2 to v3.0 nothing is lost: numbers, pictures, sentences, statistics, notes; a failure leaves no output."""

import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wamkit.cli.main import main
from wamkit.data.convert_v2 import convert_v2
from wamkit.data.episode_stats import image_stats
from wamkit.data.exclusions import EXCLUDE_PATH, write_exclusions
from wamkit.data.inspect import inspect
from wamkit.data.layout import read_tasks
from wamkit.data.lerobot import DatasetError, LeRobotDataset, VideoError
from wamkit.data.synthetic import synthetic_robot
from wamkit.data.value_labels import SparseValueSettings, is_labelled, label_values
from wamkit.data.video import VideoReader
from wamkit.data.writer import LeRobotWriter

from .older_formats import DATA, INFO, VIDEO, as_v2, edit_info, read_lines, require_same_content, write_lines

FRONT = "observation.images.front"
DATA_V3 = "data/chunk-000/file-{:03d}.parquet"


@pytest.fixture
def older(write_dataset, tmp_path):
    """The same content in v3.0 and in an older version."""

    def make(version="v2.1", num=3, **settings):
        source, _ = write_dataset(num)
        return LeRobotDataset(source), as_v2(source, tmp_path / "older", version, **settings)

    return make


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_nothing_is_lost(older, tmp_path, version):
    source, root = older(version)
    steps = []
    report = convert_v2(root, tmp_path / "out", progress=lambda done, total: steps.append((done, total)))
    assert (report.source, report.episodes, report.frames) == (f"LeRobot {version}", 3, 39)
    assert (report.copied_videos, report.encoded_videos) == (6, 0) and steps == [(1, 3), (2, 3), (3, 3)]
    found = LeRobotDataset(tmp_path / "out")
    require_same_content(found, source)
    require_same_content(found, LeRobotDataset(root))
    assert found.info["codebase_version"] == "v3.0" and found.robot is None
    assert found.wamkit["notes"]["conversion"] == report.notes
    assert (report.notes["name"], report.notes["version"]) == ("older", version)
    assert not {"total_chunks", "total_videos"} & found.info.keys() and found.info["robot_type"] == "square"
    for record in found.episodes:
        for camera in found.cameras:
            copied, original = found.video_path(record.index, camera), source.video_path(record.index, camera)
            assert copied.read_bytes() == original.read_bytes()
    # The same types as what we record, so that LeRobot reads it too.
    for name in (DATA_V3.format(0), "meta/tasks.parquet"):
        assert pq.read_schema(tmp_path / "out" / name).equals(pq.read_schema(source.root / name))
    kinds = {
        entry.name: entry.type for entry in pq.read_schema(source.root / "meta/episodes/chunk-000/file-000.parquet")
    }
    table = pq.read_schema(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")
    assert all(kinds[entry.name] == entry.type for entry in table)
    report = inspect(tmp_path / "out")
    assert [finding.what for finding in report.findings] == [finding.what for finding in inspect(source.root).findings]


@pytest.mark.parametrize(("version", "has_quantiles"), [("v2.0", True), ("v2.1", False)])
def test_statistics_per_episode(older, tmp_path, version, has_quantiles):
    source, root = older(version)
    convert_v2(root, tmp_path / "out")
    found = LeRobotDataset(tmp_path / "out")
    for ours, theirs in zip(found.episode_statistics(), source.episode_statistics(), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours["action"].items():
            np.testing.assert_array_equal(value, theirs["action"][name])
        assert ("q01" in ours[FRONT]) is has_quantiles
        np.testing.assert_array_equal(ours[FRONT]["count"], theirs[FRONT]["count"])
    pictures = image_stats(found.frames(1, "front", range(13)))["mean"]
    stored = source if version == "v2.1" else found  # in v2.1 they are taken over, in v2.0 computed from the video
    expected = stored.episode_statistics()[1][FRONT]["mean"]
    np.testing.assert_array_equal(found.episode_statistics()[1][FRONT]["mean"], expected)
    np.testing.assert_allclose(pictures, expected, atol=0.02)
    whole, theirs = (json.loads((folder / "meta/stats.json").read_text()) for folder in (found.root, source.root))
    np.testing.assert_allclose(whole["action"]["mean"], theirs["action"]["mean"])
    assert whole["action"]["count"] == [39]


def test_embedded_images_stay_embedded(older, tmp_path):
    source, root = older("v2.0", embedded=("front", "wrist"))
    report = convert_v2(root, tmp_path / "out")
    require_same_content(LeRobotDataset(tmp_path / "out"), source)
    assert report.copied_videos == report.encoded_videos == 0 and not (tmp_path / "out/videos").exists()
    stats = LeRobotDataset(tmp_path / "out").episode_statistics()[0][FRONT]
    np.testing.assert_array_equal(stats["mean"], image_stats(source.frames(0, "front", range(12)))["mean"])
    assert stats["mean"].shape == (3, 1, 1)


def test_what_others_added_is_kept(older, tmp_path):
    source, root = older()
    table = pq.read_table(root / DATA.format(0, 1))
    pose, rows = np.arange(13 * 6, dtype=np.float64).reshape(13, 2, 3), len(table)
    for index in range(3):
        path, length = root / DATA.format(index // 2, index), 12 + index
        table = pq.read_table(path)
        pose = np.arange(length * 6, dtype=np.float64).reshape(length, 2, 3)
        table = table.append_column("pose", pa.array(pose.tolist())).append_column("said", pa.array(["a"] * length))
        table = table.append_column("odd", pa.array(range(length)))
        table = table.append_column("force", pa.array([[0.1 * row] for row in range(length)]))
        pq.write_table(table, path)
    features = source.features | {
        "pose": {"dtype": "float64", "shape": [2, 3], "names": None},
        "said": {"dtype": "string", "shape": [1], "names": None},
        "force": {"dtype": "float64", "shape": [1], "names": None},
    }
    edit_info(root, features=features, future_key=7, wamkit={"notes": {"mine": 1}})
    lines = read_lines(root / "meta/episodes.jsonl")
    lines[1] |= {"tasks": [*lines[1]["tasks"], "another sentence"], "quality": {"stars": 5}}
    write_lines(root / "meta/episodes.jsonl", lines)
    (root / "meta/modality.json").write_text('{"state": {}}')
    convert_v2(root, tmp_path / "out")
    found = LeRobotDataset(tmp_path / "out")
    np.testing.assert_array_equal(found.columns(2)["pose"], pose)
    assert found.columns(2)["said"].tolist() == ["a"] * 14 and rows == 13
    np.testing.assert_array_equal(found.columns(2)["force"], [0.1 * row for row in range(14)])
    assert pq.read_table(found.data_path(2))["odd"].to_pylist() == list(range(14))
    assert found.info["future_key"] == 7 and set(found.wamkit["notes"]) == {"mine", "conversion"}
    assert found.episodes[1].tasks == (source.episodes[1].task, "another sentence")
    assert found.episodes[1].metadata == {"quality": {"stars": 5}}
    assert (found.root / "meta/modality.json").read_text() == '{"state": {}}'
    statistics = found.episode_statistics()[0]
    assert statistics["pose"]["mean"].shape == (2, 3) and "said" not in statistics
    assert not list((found.root / "meta").glob("*.jsonl")) and inspect(found.root).is_sound


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_excluded_episodes_are_left_out(older, tmp_path, caplog, version):
    source, root = older(version, num=4)
    write_exclusions(root, {1: "front camera is lost"})
    (root / VIDEO.format(0, FRONT, 1)).unlink()
    pq.write_table(pq.read_table(root / DATA.format(0, 1)).slice(0, 5), root / DATA.format(0, 1))
    edit_info(root, splits={"train": "0:3", "test": "3:4", "note": "odd"})
    steps = []
    with caplog.at_level("INFO", logger="wamkit"):
        report = convert_v2(root, tmp_path / "out", progress=lambda *step: steps.append(step))
    assert "1 of 4 episodes are left out by meta/wamkit_exclude.json: 1 (front camera is lost)" in caplog.text
    assert (report.episodes, report.frames, report.left_out) == (3, 41, 1) and steps == [(1, 3), (2, 3), (3, 3)]
    assert report.notes["excluded_episodes"] == {"1": "front camera is lost"}
    found = LeRobotDataset(tmp_path / "out")
    assert found.wamkit["notes"]["conversion"] == report.notes and not (found.root / EXCLUDE_PATH).exists()
    assert (found.info["total_episodes"], found.info["total_frames"]) == (3, 41)
    assert found.info["splits"] == {"train": "0:2", "test": "2:3", "note": "odd"}
    first = 0
    for number, old in enumerate((0, 2, 3)):
        columns, others = found.columns(number), source.columns(old)
        length = 12 + old
        assert (found.episodes[number].length, found.episodes[number].tasks) == (length, source.episodes[old].tasks)
        for key in columns.keys() - {"episode_index", "index"}:
            np.testing.assert_array_equal(columns[key], others[key])
        assert columns["episode_index"].tolist() == [number] * length
        assert columns["index"].tolist() == list(range(first, first + length))
        ours, theirs = found.episode_statistics()[number], source.episode_statistics()[old]
        np.testing.assert_array_equal(ours["action"]["mean"], theirs["action"]["mean"])
        assert ours["episode_index"]["max"] == [number] and ours["index"]["min"] == [first]
        assert found.video_path(number, "front").read_bytes() == source.video_path(old, "front").read_bytes()
        if version == "v2.1":
            np.testing.assert_array_equal(ours[FRONT]["mean"], theirs[FRONT]["mean"])
        first += length
    assert inspect(found.root).is_sound


def test_values_are_as_current_as_they_were(older, tmp_path):
    _, root = older()
    settings = SparseValueSettings()
    label_values(LeRobotDataset(root), settings)
    labelled = LeRobotDataset(root)
    convert_v2(root, tmp_path / "current")
    write_exclusions(root, {0: "bad"})
    convert_v2(root, tmp_path / "fewer")
    for name, episodes in (("current", (0, 1, 2)), ("fewer", (1, 2))):
        found = LeRobotDataset(tmp_path / name)
        assert is_labelled(found, settings)
        assert "stale_values" not in [finding.kind for finding in inspect(found.root).findings]
        for number, old in enumerate(episodes):
            np.testing.assert_array_equal(found.columns(number)["value"], labelled.columns(old)["value"])
    shutil.copy(root / VIDEO.format(0, FRONT, 1), root / VIDEO.format(1, FRONT, 2))  # recorded anew
    edit_length(root, 2, 13)
    convert_v2(root, tmp_path / "stale")
    assert not is_labelled(LeRobotDataset(tmp_path / "stale"), settings)
    assert "stale_values" in [finding.kind for finding in inspect(tmp_path / "stale").findings]


def edit_length(root, episode, length):
    """Cut an episode off, in its data file and in the tables."""
    path = root / DATA.format(episode // 2, episode)
    pq.write_table(pq.read_table(path).slice(0, length), path)
    lines = read_lines(root / "meta/episodes.jsonl")
    total = sum(line["length"] for line in lines) - lines[episode]["length"] + length
    lines[episode] |= {"length": length}
    write_lines(root / "meta/episodes.jsonl", lines)
    edit_info(root, total_frames=total)


def test_excluded_episodes_are_not_looked_at_for_the_robot_either(older, tmp_path, capsys):
    _, root = older()
    robot = tmp_path / "robot.json"
    robot.write_text(json.dumps(synthetic_robot(height=64, width=64).to_dict()))
    (root / VIDEO.format(0, FRONT, 0)).unlink()
    arguments = ["data", "convert", str(root), "--output", str(tmp_path / "out"), "--robot", str(robot)]
    assert main(arguments) == 2
    assert "copy it back or exclude the episode" in capsys.readouterr().err
    write_exclusions(root, {0: "lost"})
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "holds 2 episodes and 27 rows" in shown.out and "1 episodes of it were left out" in shown.out
    assert LeRobotDataset(tmp_path / "out").robot.name == "square/synthetic"
    write_exclusions(root, dict.fromkeys(range(3), "lost"))
    assert main([*arguments[:-3], str(tmp_path / "new")]) == 2
    assert "it excludes all of them" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_folder_that_has_only_what_wav_asks_for(older, tmp_path):
    source, root = older()
    for record in source.episodes:
        path = root / DATA.format(record.index // 2, record.index)
        pq.write_table(pq.read_table(path, columns=["action", "observation.state"]), path)
    features = {key: source.features[key] for key in ("action", "observation.state", FRONT)}
    edit_info(root, codebase_version=None, total_episodes=None, total_frames=None, features=features)
    convert_v2(root, tmp_path / "out")
    found = LeRobotDataset(tmp_path / "out")
    for record in source.episodes:
        columns, others = found.columns(record.index), source.columns(record.index)
        for key in ("action", "observation.state", "timestamp", "frame_index", "episode_index", "index", "task_index"):
            np.testing.assert_array_equal(columns[key], others[key])
            assert columns[key].dtype == others[key].dtype
    assert read_tasks(found.root) == source.read_tasks() and inspect(found.root).is_sound


def test_the_robot_is_stored_when_it_fits(older, tmp_path):
    _, root = older()
    robot = synthetic_robot(height=64, width=64)
    convert_v2(root, tmp_path / "out", robot=robot)
    assert LeRobotDataset(tmp_path / "out").robot == robot
    with pytest.raises(ValueError, match=r"(?s)camera 'front' of 32x32: the dataset has 64x64\n"):
        convert_v2(root, tmp_path / "other", robot=synthetic_robot())
    robot = synthetic_robot(height=64, width=64, cameras=("top",))
    with pytest.raises(ValueError, match=r"camera 'top' of 64x64: the dataset has the cameras \['front', 'wrist'\]"):
        convert_v2(root, tmp_path / "other", robot=robot)


def write_off_grid(path, frames, times):
    """Losslessly encoded frames shown at the given times (milliseconds)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=20, options={"crf": "0", "preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_video_off_the_clock_is_encoded_anew_in_order(older, tmp_path):
    source, root = older("v2.0")
    frames = source.frames(1, "front", range(13))
    write_off_grid(root / VIDEO.format(0, FRONT, 1), frames, [50 * row + row % 3 for row in range(13)])
    with pytest.raises(VideoError, match=r"expected a frame at 0\.050000 s, got frames at .* and 0\.051000 s"):
        LeRobotDataset(root).frames(1, "front", [1])
    report = convert_v2(root, tmp_path / "out")
    assert (report.copied_videos, report.encoded_videos) == (5, 1) and report.notes["encoded_videos"] == 1
    found = LeRobotDataset(tmp_path / "out")
    read = found.frames(1, "front", range(13)).astype(int)
    assert np.abs(read - frames).mean() < 3 < np.abs(read[1:] - frames[:-1].astype(int)).mean() + 3
    nearest = [np.argmin([np.abs(one - other).mean() for other in frames.astype(int)]) for one in read]
    assert nearest == list(range(13))
    with VideoReader(found.video_path(1, "front")) as reader:
        np.testing.assert_allclose(reader.times(), np.arange(13) / 20)


def test_a_video_off_the_clock_with_frames_of_nobody_is_refused(older, tmp_path):
    source, root = older("v2.0")
    frames = source.frames(2, "front", range(14))
    write_off_grid(root / VIDEO.format(0, FRONT, 1), frames, [51 * row for row in range(14)])
    message = (
        r"episode_000001\.mp4: expected frame 1 at 0\.050000 s \(13 frames at 20 per second\), got 0\.051000 s \(14"
    )
    with pytest.raises(VideoError, match=message):
        convert_v2(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(older, tmp_path, capsys):
    source, root = older()
    robot = tmp_path / "robot.json"
    robot.write_text(json.dumps(synthetic_robot(height=64, width=64).to_dict()))
    out = tmp_path / "out"
    assert main(["data", "convert", str(root), "--output", str(out), "--robot", str(robot), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["output"], printed["episodes"], printed["copied_videos"]) == (str(out), 3, 6)
    require_same_content(LeRobotDataset(out), source)
    assert LeRobotDataset(out).robot.name == "square/synthetic"
    assert main(["data", "convert", str(root), "--output", str(tmp_path / "again")]) == 0
    assert "6 videos were copied as they are, 0 encoded anew" in capsys.readouterr().out
    for arguments, message in (
        ([str(root), "--output", str(out)], "expected nothing at"),
        ([str(out), "--output", str(tmp_path / "new")], "is a dataset in LeRobot v3.0 already"),
        ([str(root), "--output", str(tmp_path / "new"), "--idle", "drop"], "--idle: without effect"),
        ([str(root), "--output", str(tmp_path / "new"), "--skip-broken"], "--skip-broken: without effect"),
        ([str(tmp_path / "nowhere"), "--output", str(tmp_path / "new")], "expected a dataset folder at"),
    ):
        assert main(["data", "convert", *arguments]) == 2
        shown = capsys.readouterr()
        assert message in shown.err and not shown.out
    assert not (tmp_path / "new").exists()


# -- refusals --------------------------------------------------------------------------------------------------------


def test_an_interruption_leaves_nothing_and_can_be_repeated(older, tmp_path):
    source, root = older()
    out = tmp_path / "made/out"

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_v2(root, out, progress=interrupt)
    assert not out.exists()
    (out.parent / f".{out.name}.partial").mkdir()  # of a process that was killed
    out.mkdir()
    convert_v2(root, out)
    require_same_content(LeRobotDataset(out), source)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_where_something_is_nothing_is_written(older, tmp_path):
    source, root = older()
    with pytest.raises(
        FileExistsError, match=r"expected nothing at .*set, found \['.lock', 'data'.*choose another folder"
    ):
        convert_v2(root, source.root)
    with pytest.raises(ValueError, match="expected an output beside the source"):
        convert_v2(root, root / "v3")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="found a file"):
        convert_v2(root, tmp_path / "file")
    with pytest.raises(ValueError, match=r"is a dataset in LeRobot v3\.0 already; there is nothing to convert"):
        convert_v2(source.root, tmp_path / "out")


def test_what_is_broken_is_named_and_not_converted(older, tmp_path):
    _, root = older()
    features = json.loads((root / INFO).read_text())["features"]
    edit_info(root, features=features | {"action": {"dtype": "float32", "shape": [4], "names": None}})
    with pytest.raises(DatasetError, match=r"'action': expected shape \[4\] in every row"):
        convert_v2(root, tmp_path / "out")
    edit_info(root, features=features)
    shutil.rmtree(root / "videos/chunk-001")
    with pytest.raises(FileNotFoundError, match=r"expected a video at .*episode_000002\.mp4"):
        convert_v2(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_converted_can_be_recorded_on(older, tmp_path, write_dataset):
    source, root = older()
    robot = synthetic_robot(height=64, width=64)
    own = source.info["wamkit"] | {"robot": robot.to_dict()}
    edit_info(root, wamkit=own)
    convert_v2(root, tmp_path / "out")
    _, episodes = write_dataset(1, name="more")
    with LeRobotWriter(tmp_path / "out", robot) as writer:
        assert writer.add(episodes[0]) == 3
    assert LeRobotDataset(tmp_path / "out").num_episodes == 4 and inspect(tmp_path / "out").is_sound
