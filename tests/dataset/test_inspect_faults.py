"""One fault at a time, in each version of the format: it is found, alone, named, and given a remedy."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from wamkit.cli.main import main
from wamkit.data.exclusions import EXCLUDE_PATH, write_exclusions
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.stats import compute_statistics, write_statistics
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.video import VideoSettings, encode_video
from wamkit.data.writer import LeRobotWriter

from .older_formats import as_v2, read_lines, write_lines

SIZE = 32
VERSIONS = ("v3.0", "v2.1", "v2.0")


def own_statistics(root: Path) -> None:
    dataset = LeRobotDataset(root)
    write_statistics(root, compute_statistics(dataset), fingerprint=dataset.fingerprint())


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """The same sound dataset of 12 + 13 + 14 rows in each version."""
    folder = tmp_path_factory.mktemp("originals")
    with LeRobotWriter(folder / "v3.0", synthetic_robot(height=SIZE, width=SIZE)) as writer:
        for number in range(3):
            writer.add(synthetic_episodes(number + 1, length=12 + number, height=SIZE, width=SIZE)[number])
    roots = {"v3.0": folder / "v3.0"}
    roots |= {version: as_v2(folder / "v3.0", folder / version, version) for version in VERSIONS[1:]}
    for root in roots.values():
        own_statistics(root)
    return roots


class Planter:
    """Spoils a copy of a dataset, whatever its version."""

    def __init__(self, root: Path) -> None:
        self.root = root
        dataset = LeRobotDataset(root)
        self.data = [dataset.data_path(episode) for episode in range(3)]
        self.video = [dataset.video_path(episode, "front") for episode in range(3)]
        self.is_v3 = dataset.info["codebase_version"] == "v3.0"

    def column(self, episode: int, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        table = pq.read_table(self.data[episode])
        kind = table.schema.field(name).type
        values = table[name].to_numpy(zero_copy_only=False)
        changed = change(np.stack(values) if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else values)
        place = table.schema.get_field_index(name)
        pq.write_table(table.set_column(place, name, pa.array(changed.tolist(), kind)), self.data[episode])

    def all_rows(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """In every episode, with statistics of the result, so that the change is all there is to find."""
        for episode in range(3):
            self.column(episode, name, change)
        for path in ("meta/stats.json", "meta/episodes_stats.jsonl"):
            (self.root / path).unlink(missing_ok=True)
        if self.is_v3:
            table = self.root / "meta/episodes/chunk-000/file-000.parquet"
            rows = pq.read_table(table)
            pq.write_table(rows.drop_columns([key for key in rows.column_names if key.startswith("stats/")]), table)
        own_statistics(self.root)

    def table(self, episode: int, change: Callable[[pa.Table], pa.Table]) -> None:
        pq.write_table(change(pq.read_table(self.data[episode])), self.data[episode])

    def frames(self, episode: int, frames: np.ndarray, fps: int = 20) -> None:
        self.video[episode].write_bytes(encode_video(frames, fps=fps, settings=VideoSettings()))

    def cut(self, path: Path, share: float) -> None:
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    def info(self, change: Callable[[dict], None]) -> None:
        info = json.loads((self.root / "meta/info.json").read_text())
        change(info)
        (self.root / "meta/info.json").write_text(json.dumps(info))

    def numbers(self, path: str, change: Callable[[dict], None]) -> None:
        document = json.loads((self.root / path).read_text())
        change(document)
        (self.root / path).write_text(json.dumps(document))


def noise(num: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num, height, width, 3), dtype=np.uint8)


def still(num: int) -> np.ndarray:
    return synthetic_episodes(1, length=2, height=SIZE, width=SIZE)[0].video["front"][:1].repeat(num, axis=0)


def put(row: int, channel: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[row, channel] = value
        return rows

    return change


def swapped(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[[4, 5]] = values[[5, 4]]
    return values


def empty_cell(table: pa.Table) -> pa.Table:
    cells = table["observation.state"].to_pylist()
    cells[3][1] = None
    kind = table.schema.field("observation.state").type
    return table.set_column(
        table.schema.get_field_index("observation.state"), "observation.state", pa.array(cells, kind)
    )


def narrow(table: pa.Table) -> pa.Table:
    cells = pa.array([row[:2] for row in table["action"].to_pylist()], pa.list_(pa.float32()))
    return table.set_column(table.schema.get_field_index("action"), "action", cells)


# name: what is planted, kind, severity, a part of the message, episodes
FILES = {
    "missing video": (lambda at: at.video[1].unlink(), "missing_file", "error", "expected a video", (1,)),
    "truncated video": (lambda at: at.cut(at.video[1], 0.6), "damaged_file", "error", "video", (1,)),
    "short video": (lambda at: at.frames(1, noise(9)), "length", "error", "expected 13 frames by the", (1,)),
    "video of another rate": (lambda at: at.frames(1, noise(13), 30), "rate", "error", "got 30", (1,)),
    "video of another size": (lambda at: at.frames(1, noise(13, 16)), "size", "error", "got 16x32", (1,)),
    "black video": (
        lambda at: at.frames(1, noise(13) // 255),
        "blank_video",
        "warning",
        "the one colour [0, 0, 0] in 13 of 13 frames, first in frame 0",
        (1,),
    ),
    "black from the middle on": (
        lambda at: at.frames(1, noise(13) * (np.arange(13) < 8)[:, None, None, None].astype(np.uint8)),
        "blank_video",
        "warning",
        "in 5 of 13 frames, first in frame 8",
        (1,),
    ),
    "frozen video": (
        lambda at: at.frames(1, still(13)),
        "frozen_video",
        "warning",
        "got the same one in all 13 frames",
        (1,),
    ),
    "missing data file": (lambda at: at.data[1].unlink(), "missing_file", "error", "expected a data file", (1,)),
    "truncated data file": (lambda at: at.cut(at.data[1], 0.9), "damaged_file", "error", "cannot be read", (1,)),
    "too many rows": (
        lambda at: at.table(1, lambda table: pa.concat_tables([table, table])),
        "length",
        "error",
        "expected 13 rows by the episode table, got 26",
        (1,),
    ),
}
NUMBERS = {
    "times off the grid": (
        lambda at: at.column(1, "timestamp", lambda times: times + 0.01 * (np.arange(13) > 6)),
        "rate",
        "error",
        "expected 0.3500 s in row 7 at 20 rows/s, got 0.3600 s",
        (1,),
    ),
    "times that fall": (
        lambda at: at.column(1, "timestamp", swapped),
        "rate",
        "error",
        "expected rising times, got 0.2000 s in row 5 after 0.2500 s",
        (1,),
    ),
    "a gap in frame_index": (
        lambda at: at.column(1, "frame_index", lambda index: index + (index > 6)),
        "inconsistent",
        "error",
        "frame_index: expected 7 in row 7, got 8",
        (1,),
    ),
    "NaN in the state": (
        lambda at: at.column(1, "observation.state", put(3, 1, np.nan)),
        "non_finite",
        "error",
        "in 1 rows, first in row 3",
        (1,),
    ),
    "infinity in the action": (
        lambda at: at.column(1, "action", put(5, 0, np.inf)),
        "non_finite",
        "error",
        "in 1 rows, first in row 5",
        (1,),
    ),
    "an empty cell": (lambda at: at.table(1, empty_cell), "non_finite", "error", "in 1 rows, first in row 3", (1,)),
    "a narrow column": (lambda at: at.table(1, narrow), "width", "error", "expected shape [3] in every row", (1,)),
    "a missing column": (
        lambda at: at.table(1, lambda table: table.drop_columns(["action"])),
        "missing_column",
        "error",
        "expected the column 'action'",
        (1,),
    ),
    "a constant channel": (
        lambda at: at.all_rows("observation.state", lambda rows: rows * [1, 0, 1]),
        "constant_channel",
        "warning",
        "got 0 in every row",
        (),
    ),
    "a task out of range": (
        lambda at: at.column(1, "task_index", lambda index: index + 7),
        "task",
        "error",
        "got [",
        (1,),
    ),
    "a list of other episodes": (
        lambda at: (at.root / EXCLUDE_PATH).write_text('{"format": 1, "episodes": {"8": "bad"}}'),
        "exclusions",
        "error",
        "expected episodes from 0 to 2, got [8]",
        (),
    ),
    "an old list": (
        lambda at: write_exclusions(at.root, {}, fingerprint="of another day"),
        "exclusions",
        "warning",
        "from before it changed",
        (),
    ),
    "a wrong total of frames": (
        lambda at: at.info(lambda info: info.update(total_frames=40)),
        "metadata",
        "error",
        "total_frames: expected 39 by the tables, got 40",
        (),
    ),
    "more episodes announced": (
        lambda at: at.info(lambda info: info.update(total_episodes=5)),
        "metadata",
        "error",
        "total_episodes: expected 3 by the episode table, got 5",
        (),
    ),
    "statistics of other rows": (
        lambda at: at.numbers("meta/wamkit_statistics.json", lambda found: found["features"]["state"].update(count=12)),
        "stale_statistics",
        "warning",
        "expected statistics of 39 rows",
        (),
    ),
}


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("fault", [*FILES, *NUMBERS])
def test_one_fault(originals, tmp_path, version, fault):
    plant, kind, severity, message, episodes = (FILES | NUMBERS)[fault]
    root = Path(shutil.copytree(originals[version], tmp_path / "set"))
    plant(Planter(root))
    found = [
        finding for finding in inspect(root).findings if finding.kind != "stale_statistics" or kind == finding.kind
    ]
    assert [(finding.kind, finding.severity) for finding in found] == [(kind, severity)], found
    assert message in found[0].what and found[0].remedy and found[0].episodes == episodes


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_found_in_a_sound_dataset(originals, version):
    report = inspect(originals[version])
    assert report.findings == () and report.is_sound
    assert any("averages over the episodes" in note for note in report.notes) == (version == "v3.0")


# -- faults that need a robot, another table, or more than one episode -------------------------------------------------


@pytest.fixture
def planter(originals, tmp_path) -> Planter:
    return Planter(Path(shutil.copytree(originals["v3.0"], tmp_path / "set")))


def only(root: Path):
    (found,) = inspect(root).findings
    return found


def test_a_gripper_that_never_moves(planter):
    planter.all_rows("action", lambda rows: rows * [1, 1, 0] + [0, 0, 1])
    found = only(planter.root)
    assert (found.kind, found.where) == ("constant_channel", "action (gripper)")
    assert "expected a gripper that opens and closes, got 1" in found.what


@pytest.mark.parametrize("name", ["action", "observation.state"])
def test_a_dataset_without_what_training_needs(planter, name, capsys):
    planter.info(lambda info: info["features"].pop(name))
    with pytest.raises(ValueError, match=f"expected a column '{name}'"):
        compute_statistics(LeRobotDataset(planter.root))
    (error,) = inspect(planter.root).errors
    assert (error.kind, error.where, error.episodes) == ("missing_column", "meta/info.json", ())
    assert f"expected a column '{name}'" in error.what and "training refuses" in error.remedy
    assert main(["data", "inspect", str(planter.root), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["is_sound"]


def test_commands_outside_their_range(planter):
    planter.all_rows("action", lambda rows: np.concatenate([rows[:-1], rows[-1:] * [1, 1, 3]]))
    found = only(planter.root)
    assert (found.kind, found.severity, found.episodes) == ("range", "warning", (0, 1, 2))
    assert "within [-1, 1], got 3 rows outside, the farthest 3" in found.what and "action (gripper)" in found.where


def test_cameras_in_another_order_and_a_malformed_robot(planter):
    planter.info(lambda info: info["wamkit"]["robot"]["cameras"].reverse())
    found = {finding.kind: finding for finding in inspect(planter.root).findings}
    assert found["inconsistent"].severity == "warning"
    assert (
        "expected the order ['wrist', 'front'] by the robot spec, got ['front', 'wrist']" in found["inconsistent"].what
    )
    planter.info(lambda info: info["wamkit"]["robot"].pop("control_hz"))
    (error,) = inspect(planter.root).errors
    assert error.kind == "metadata" and "control_hz" in error.what


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_an_episode_of_one_row(originals, tmp_path, version):
    episode = synthetic_episodes(4, length=2, height=SIZE, width=SIZE)[3]
    short = dataclasses.replace(
        episode,
        actions=episode.actions[:1],
        state=episode.state[:1],
        video={camera: frames[:1] for camera, frames in episode.video.items()},
        reward=episode.reward[:1],
        success=episode.success[:1],
    )
    source = Path(shutil.copytree(originals["v3.0"], tmp_path / "source"))
    with LeRobotWriter(source, synthetic_robot(height=SIZE, width=SIZE)) as writer:
        writer.add(short)
    root = source if version == "v3.0" else as_v2(source, tmp_path / "older", version)
    own_statistics(root)
    found = only(root)
    assert (found.kind, found.severity, found.episodes) == ("too_short", "warning", (3,))


def test_episodes_without_a_sentence(originals, tmp_path):
    root = Path(shutil.copytree(originals["v2.1"], tmp_path / "set"))
    rows = read_lines(root / "meta/episodes.jsonl")
    tasks = read_lines(root / "meta/tasks.jsonl")
    write_lines(root / "meta/tasks.jsonl", [task | {"task": " "} for task in tasks])
    write_lines(root / "meta/episodes.jsonl", [row | {"tasks": [" "]} for row in rows])
    own_statistics(root)
    found = only(root)
    assert (found.kind, found.severity, found.episodes) == ("task", "warning", (0, 1, 2))


def test_episodes_beyond_the_total(planter):
    planter.info(lambda info: info.update(total_episodes=2, total_frames=25))
    found = [finding for finding in inspect(planter.root).findings if finding.kind == "metadata"]
    assert "total_episodes: expected 3 by the episode table, got 2" in found[0].what
    assert found[0].severity == "warning"  # readers take the first two


def test_lerobot_s_statistics_of_other_rows(planter):
    planter.numbers("meta/stats.json", lambda found: found["action"].update(mean=[9.0, 9.0, 9.0]))
    found = only(planter.root)
    assert (found.kind, found.where) == ("stale_statistics", "meta/stats.json")
    assert "action: expected a mean of [" in found.what and "got [9, 9, 9]" in found.what


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_pictures_inside_the_data_files(originals, tmp_path, camera):
    source = Path(shutil.copytree(originals["v3.0"], tmp_path / "source"))
    root = as_v2(source, tmp_path / "older", "v2.0", embedded=("front", "wrist"))
    own_statistics(root)
    assert inspect(root).findings == ()
    planter = Path(LeRobotDataset(root).data_path(1))
    table = pq.read_table(planter)
    name = f"observation.images.{camera}"
    cells = table[name].to_pylist()
    cells[6] = {"bytes": b"no picture", "path": ""}
    pq.write_table(
        table.set_column(table.schema.get_field_index(name), name, pa.array(cells, table.schema.field(name).type)),
        planter,
    )
    (error,) = inspect(root).errors
    assert error.kind == "damaged_file" and error.episodes == (1,) and "frame 6" in error.what


def test_many_findings_of_a_kind_are_told_in_one_line(planter):
    planter.video[0].unlink()
    report = inspect(planter.root)
    (finding,) = report.errors
    console = Console(width=200)
    with console.capture() as capture:
        console.print(dataclasses.replace(report, findings=(finding,) * 40).table())
    assert capture.get().count("missing_file") == 13 and "and 28 more" in capture.get()
