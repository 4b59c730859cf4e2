"""Every fault that is planted is found, named and given a remedy; a sound dataset has none."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from wamkit.data.added_columns import write_column
from wamkit.data.findings import Report
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.data.stats import compute_statistics, write_statistics
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.video import VideoSettings, encode_video
from wamkit.data.writer import LeRobotWriter

INFO, EPISODES = "meta/info.json", "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-{:03d}.parquet"
FRONT, WRIST = (f"videos/observation.images.{camera}/chunk-000/file-{{:03d}}.mp4" for camera in ("front", "wrist"))
ROBOT = synthetic_robot(height=64, width=64)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inspected") / "original"
    with LeRobotWriter(root, ROBOT) as writer:
        for number in range(3):
            writer.add(synthetic_episodes(number + 1, length=12 + number, height=64, width=64)[number])
    own_statistics(root)
    return root


@pytest.fixture
def root(original, tmp_path) -> Path:
    """A sound dataset of 12 + 13 + 14 rows to plant a fault in."""
    return Path(shutil.copytree(original, tmp_path / "set"))


def edit_info(root: Path, **changes) -> None:
    (root / INFO).write_text(json.dumps(json.loads((root / INFO).read_text()) | changes))


def edit_column(root: Path, number: int, name: str, values) -> None:
    table = pq.read_table(root / DATA.format(number))
    field = table.schema.field(name)
    values = values(table[name].to_numpy(zero_copy_only=False)) if callable(values) else values
    column = pa.array(np.stack(values).tolist() if values[0].__class__ is np.ndarray else values.tolist(), field.type)
    pq.write_table(table.set_column(table.schema.get_field_index(name), field, column), root / DATA.format(number))


def kinds(report: Report) -> list[str]:
    return sorted({finding.kind for finding in report.findings})


def own_statistics(root: Path) -> None:
    """Statistics of the dataset as it is now, so that a fault is all there is to find."""
    dataset = LeRobotDataset(root)
    write_statistics(root, compute_statistics(dataset), fingerprint=dataset.fingerprint())


def only(report: Report):
    assert len(report.findings) == 1, [(finding.kind, finding.where, finding.what) for finding in report.findings]
    assert report.findings[0].remedy
    return report.findings[0]


def test_a_sound_dataset(root):
    steps = []
    report = inspect(root, progress=lambda done, total: steps.append((done, total)))
    assert report.findings == () and report.is_sound
    assert steps == [(step, 9) for step in range(1, 10)]  # two videos and the rows of each of three episodes
    assert (report.num_episodes, report.num_frames, report.fps, report.version) == (3, 39, 20.0, "v3.0")
    assert report.cameras == {"front": (64, 64), "wrist": (64, 64)} and report.robot == "square/synthetic"
    assert report.columns["action"] == 3 and "observation.images.front" not in report.columns
    assert report.lengths == (12, 13.0, 14) and report.success_rate == 1.0
    assert sum(task.episodes for task in report.tasks) == 3 and sum(task.frames for task in report.tasks) == 39
    assert all(task.successes == task.episodes for task in report.tasks)


def test_the_report_is_shown_and_serialized(root):
    (root / FRONT.format(1)).unlink()
    report = inspect(root)
    console = Console(width=320, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for part in (
        "LeRobot v3.0",
        "39 at 20 per second",
        "front 64x64",
        "12 to 14 rows",
        "100.0%",
        "1 errors, 0 warnings",
    ):
        assert part in text
    assert "missing_file" in text and FRONT.format(1) in text
    document = json.loads(json.dumps(report.to_dict()))
    assert document["is_sound"] is False and document["findings"][0]["kind"] == "missing_file"
    assert document["findings"][0]["remedy"].startswith("copy it again, or record")
    console.print(inspect(shutil.copytree(root, root.parent / "empty", ignore=lambda *_: ["data", "videos"])).table())


def test_rates_count_failures_too(tmp_path):
    solved, failed = synthetic_episodes(2, length=8, height=16, width=16)
    failed = dataclasses.replace(failed, success=failed.success & False)
    with LeRobotWriter(tmp_path, synthetic_robot(height=16, width=16)) as writer:
        for episode in (solved, solved, failed):
            writer.add(episode)
    report = inspect(tmp_path)
    assert report.success_rate == pytest.approx(2 / 3)
    assert only(report).kind == "duplicate" and only(report).what.endswith("in episodes 0 to 1")
    assert [task.successes for task in report.tasks] == ([2, 0] if solved.task != failed.task else [2])


# -- files -----------------------------------------------------------------------------------------------------------


def test_missing_video(root):
    (root / WRIST.format(2)).unlink()
    finding = only(inspect(root))
    assert (finding.kind, finding.severity) == ("missing_file", "error")
    assert finding.where == f"{WRIST.format(2)} (episode 2)"


def test_truncated_and_damaged_videos(root):
    data = (root / FRONT.format(0)).read_bytes()
    (root / FRONT.format(0)).write_bytes(data[: len(data) // 2])
    other = bytearray((root / WRIST.format(1)).read_bytes())
    start = other.index(b"mdat") + 900  # behind the encoder's own note, inside the pictures
    other[start : start + 300] = bytes(300)
    (root / WRIST.format(1)).write_bytes(bytes(other))
    report = inspect(root)
    assert kinds(report) == ["damaged_file"] and len(report.errors) == 2
    assert [FRONT.format(0) in report.findings[0].where, WRIST.format(1) in report.findings[1].where] == [True, True]
    assert "damaged data" in report.findings[1].what


def test_video_shorter_or_longer_than_the_episode(root):
    shutil.copy(root / FRONT.format(0), root / FRONT.format(1))
    shutil.copy(root / WRIST.format(2), root / WRIST.format(1))
    short, long = inspect(root).findings
    assert (short.kind, short.severity) == ("length", "error")
    assert "expected 13 frames by the episode table, got 12" in short.what
    assert (long.kind, long.severity) == ("length", "warning") and "got 14" in long.what


def test_video_of_another_rate_or_size(root):
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
    (root / FRONT.format(0)).write_bytes(encode_video(frames, fps=30, settings=VideoSettings()))
    (root / WRIST.format(0)).write_bytes(encode_video(frames[:, :32], fps=20, settings=VideoSettings()))
    report = inspect(root)
    found = {finding.kind: finding for finding in report.findings}
    assert "expected 20 frames/s by meta/info.json, got 30" in found["rate"].what
    assert "expected 64x64 pixels by the features, got 32x64" in found["size"].what
    assert len(report.findings) == 2


def test_blank_video(root):
    black = np.zeros((12, 64, 64, 3), np.uint8)
    (root / WRIST.format(0)).write_bytes(encode_video(black, fps=20, settings=VideoSettings()))
    own_statistics(root)
    finding = only(inspect(root))
    assert (finding.kind, finding.severity, finding.episode) == ("blank_video", "warning", 0)
    assert "got the one colour [0, 0, 0] in 12 of 12 frames, first in frame 0" in finding.what


def test_missing_and_truncated_data_files(root):
    (root / DATA.format(0)).unlink()
    data = (root / DATA.format(1)).read_bytes()
    (root / DATA.format(1)).write_bytes(data[:-30])
    report = inspect(root)
    assert kinds(report) == ["damaged_file", "missing_file"]
    assert {finding.where for finding in report.findings} == {
        f"{DATA.format(0)} (episode 0)",
        f"{DATA.format(1)} (episode 1)",
    }
    assert report.success_rate == 1.0 and sum(task.successes or 0 for task in report.tasks) == 1  # of what was readable


def test_data_file_of_another_length(root):
    table = pq.read_table(root / DATA.format(2))
    pq.write_table(table[:10], root / DATA.format(2))
    report = inspect(root)
    assert kinds(report) == ["length"] and "expected 14 rows by the episode table, got 10" in report.findings[0].what
    pq.write_table(pa.concat_tables([table, table]), root / DATA.format(2))
    assert "expected 14 rows by the episode table, got 28" in only(inspect(root)).what


def test_leftover_files(root):
    (root / DATA.format(7)).write_bytes(b"?")
    (root / "meta/.info.json.partial").write_bytes(b"?")
    report = inspect(root)
    assert {finding.where for finding in report.findings} == {DATA.format(7), "meta/.info.json.partial"}
    assert kinds(report) == ["leftover"] and report.is_sound


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite(root):
    def spoil(rows):
        rows = np.stack(rows).copy()
        rows[4:6, 1] = np.nan
        return rows

    edit_column(root, 1, "observation.state", spoil)
    finding = only(inspect(root))
    assert (finding.kind, finding.severity, finding.episode) == ("non_finite", "error", 1)
    assert finding.where == "episode 1, observation.state (y)"
    assert "in 2 rows, first in row 4" in finding.what


def test_constant_channels(root):
    for number in range(3):
        edit_column(root, number, "action", lambda rows: np.stack(rows) * [1, 1, 0])
    own_statistics(root)
    finding = next(finding for finding in inspect(root).findings if finding.kind == "constant_channel")
    assert (finding.kind, finding.severity, finding.where) == ("constant_channel", "warning", "action (gripper)")


def test_columns_of_another_width(root):
    table = pq.read_table(root / DATA.format(1))
    narrow = pa.array([row[:2] for row in table["action"].to_pylist()], pa.list_(pa.float32(), 2))
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", narrow), root / DATA.format(1))
    finding = only(inspect(root))
    assert (finding.kind, finding.episode) == ("width", 1)
    assert "'action': expected shape [3] in every row (39 numbers), got 26" in finding.what


def test_missing_columns(root):
    pq.write_table(pq.read_table(root / DATA.format(0)).drop_columns(["next.reward"]), root / DATA.format(0))
    finding = only(inspect(root))
    assert finding.kind == "missing_column" and "expected the column 'next.reward'" in finding.what


def test_rows_out_of_step(root):
    edit_column(root, 0, "frame_index", lambda values: np.where(values == 5, 6, values))
    edit_column(root, 1, "timestamp", lambda values: values * 2)
    edit_column(root, 2, "task_index", lambda values: values + 9)
    edit_column(root, 2, "next.done", lambda values: np.ones_like(values))
    report = inspect(root)
    found = {(finding.kind, finding.episode): finding.what for finding in report.findings}
    assert found.keys() == {("inconsistent", 0), ("rate", 1), ("task", 2), ("inconsistent", 2)}
    assert len(report.findings) == 4 and "expected 0 to " in found["task", 2]
    assert found["inconsistent", 0] == "frame_index: expected 5 in row 5, got 6"
    assert "expected 0.0500 s in row 1 at 20 rows/s, got 0.1000 s" in found["rate", 1]


def test_rows_of_another_episode(root):
    table = pq.read_table(root / DATA.format(0))
    edit_column(root, 1, "episode_index", lambda values: values * 0)
    report = inspect(root)
    assert len(table) == 12 and "belong to episode 1, got episodes [0]" in report.findings[0].what
    assert kinds(report) == ["length"]


def test_duplicate_episodes(root):
    with LeRobotWriter(root, ROBOT) as writer:
        writer.add(synthetic_episodes(2, length=13, height=64, width=64)[1])
    finding = next(finding for finding in inspect(root).findings if finding.kind == "duplicate")
    assert finding.where == "episodes 1, 3" and "same actions and states" in finding.what


# -- metadata, added columns, statistics -----------------------------------------------------------------------------


def test_totals_that_disagree(root):
    edit_info(root, total_frames=40, total_tasks=17)
    whats = [finding.what for finding in inspect(root).findings if finding.kind == "metadata"]
    assert whats[0] == "total_frames: expected 39 by the tables, got 40" and "got 17" in whats[1]


def test_features_that_disagree_with_the_robot(root):
    info = json.loads((root / INFO).read_text())
    info["wamkit"]["robot"]["action"].append({"name": "extra", "unit": "1", "frame": "", "rotation": ""})
    info["wamkit"]["robot"]["cameras"][0]["height"] = 32
    info["wamkit"]["robot"]["control_hz"] = 10.0
    edit_info(root, wamkit=info["wamkit"])
    found = {finding.kind: finding.what for finding in inspect(root).findings}
    assert found["width"] == "action: expected 4 channels by the robot spec, got 3 in the features"
    assert found["size"] == "camera 'front': expected 32x64 by the robot spec, got 64x64"
    assert found["rate"] == "expected control_hz and fps to agree, got 10 and 20"


def test_a_declared_value_column_that_is_not_there(root):
    lengths = [12, 13, 14]
    rng = np.random.default_rng(0)
    write_column(
        root, "value", lambda e: rng.normal(size=(lengths[e], 2)), channels=("a", "b"), settings={"gamma": 0.99}
    )
    assert kinds(inspect(root)) == ["stale_statistics"]  # the statistics were computed before
    own_statistics(root)
    assert inspect(root).findings == ()
    pq.write_table(pq.read_table(root / DATA.format(1)).drop_columns(["value"]), root / DATA.format(1))
    finding = only(inspect(root))
    assert finding.kind == "missing_column" and finding.where == f"{DATA.format(1)} (episode 1)"
    assert finding.remedy == "run `wamkit data values` again"
    info = json.loads((root / INFO).read_text())
    del info["features"]["value"]
    edit_info(root, features=info["features"])
    assert "missing_column" in kinds(inspect(root))


def test_stale_statistics(root):
    ours = json.loads((root / "meta/wamkit_statistics.json").read_text())
    ours["features"]["action"]["count"] = 30
    (root / "meta/wamkit_statistics.json").write_text(json.dumps(ours))
    theirs = json.loads((root / "meta/stats.json").read_text())
    theirs["action"]["count"] = [25]
    (root / "meta/stats.json").write_text(json.dumps(theirs))
    ours, theirs = inspect(root).findings
    assert (ours.where, theirs.where) == ("meta/wamkit_statistics.json", "meta/stats.json")
    assert "expected statistics of 39 rows, got {'action': 30, 'state': 39}" in ours.what
    assert "wamkit data stats" in ours.remedy and {ours.severity, theirs.severity} == {"warning"}


def test_statistics_of_the_dataset_before_it_changed(root):
    with LeRobotWriter(root, ROBOT) as writer:
        writer.add(synthetic_episodes(9, length=12, height=64, width=64)[8])
    assert only(inspect(root)).kind == "stale_statistics"
    (root / "meta/wamkit_statistics.json").write_text("{")
    assert "got {}" in only(inspect(root)).what
    (root / "meta/wamkit_statistics.json").unlink()
    assert inspect(root).findings == ()


def test_rows_that_were_changed_after_recording(root):
    for number in (0, 2):
        edit_column(root, number, "action", lambda rows: np.stack(rows) * 10)
    stale, differing, theirs = inspect(root).findings
    assert theirs.where == "meta/stats.json" and theirs.what.startswith("action: expected a m")
    assert stale.where == "meta/wamkit_statistics.json" and "before it was changed" in stale.what
    assert (differing.kind, differing.severity) == ("stale_statistics", "warning")
    assert (differing.where, differing.episodes) == ("action of episodes 0, 2", (0, 2))
    assert "episode 0: expected a m" in differing.what and "by the episode table, got [" in differing.what
    assert "copy the dataset again" in differing.remedy


def test_missing_and_broken_task_table(root):
    tasks = root / "meta/tasks.parquet"
    tasks.write_bytes(b"?")
    assert only(inspect(root)).kind == "damaged_file"
    tasks.unlink()
    finding = only(inspect(root))
    assert (finding.kind, finding.where) == ("missing_file", "meta/tasks.parquet")


def test_metadata_that_cannot_be_read_stop_the_inspection(root, tmp_path):
    (root / EPISODES).write_bytes(b"?")
    with pytest.raises(DatasetError, match="episode table"):
        inspect(root)
    with pytest.raises(FileNotFoundError, match="expected a dataset folder"):
        inspect(tmp_path / "nowhere")


def test_everything_at_once_is_reported_at_once(root):
    (root / FRONT.format(0)).unlink()
    (root / DATA.format(1)).unlink()
    edit_column(root, 2, "observation.state", lambda rows: np.stack(rows) + np.inf)
    edit_info(root, total_frames=1)
    assert kinds(inspect(root)) == ["metadata", "missing_file", "non_finite"]
    assert len(inspect(root).findings) == 4
