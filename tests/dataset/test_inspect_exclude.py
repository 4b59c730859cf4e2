"""What an inspection leaves out is written with its reasons, honoured by readers, and never left out in silence."""

import json
from pathlib import Path

import numpy as np
import pytest

from wamkit.cli.main import main
from wamkit.data.actions import ActionTransform
from wamkit.data.exclusions import EXCLUDE_PATH, open_usable, read_exclusions, without_excluded, write_exclusions
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import compute_statistics, current_statistics, write_statistics_file
from wamkit.data.synthetic import synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.data.writer import LeRobotWriter
from wamkit.spec import PolicySpec

from .older_formats import as_v2


@pytest.fixture
def root(write_dataset) -> Path:
    return write_dataset(4)[0]


def run(*arguments: object) -> int:
    return main(["data", "inspect", *map(str, arguments)])


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("fault", ["missing video", "truncated rows"])
def test_training_reads_what_is_left(root, tmp_path, capsys, version, fault):
    root = root if version == "v3.0" else as_v2(root, tmp_path / "older", version)
    dataset = LeRobotDataset(root)
    path = dataset.video_path(1, "wrist") if fault == "missing video" else dataset.data_path(1)
    path.write_bytes(path.read_bytes()[:40])
    if fault == "missing video":
        path.unlink()
    with pytest.raises((FileNotFoundError, ValueError)):
        LeRobotDataset(root)
    assert run(root, "--exclude", "--dry-run") == 1
    assert "would leave out episode 1: " in capsys.readouterr().out and not (root / EXCLUDE_PATH).exists()
    assert run(root) == 1 and not (root / EXCLUDE_PATH).exists()
    capsys.readouterr()
    assert run(root, "--exclude") == 0
    told = capsys.readouterr().out
    kind = "missing_file" if fault == "missing video" else "damaged_file"
    assert f"leaves out episode 1: {kind}: " in told and str(root / EXCLUDE_PATH) in told
    assert read_exclusions(root).episodes.keys() == {1} and kind in read_exclusions(root).episodes[1]

    usable = open_usable(root)
    view = without_excluded(usable)
    assert [entry.index for entry in view.episodes] == [0, 2, 3]
    statistics = current_statistics(usable, view=view)
    normalizers = {name: Normalizer.from_statistics("minmax", statistics[name]) for name in ("action", "state")}
    loader = WindowLoader(
        view,
        WindowConfig(context=2, chunk=2, action_horizon=4, sample_n_frames=9),
        action=ActionTransform(normalizer=normalizers["action"]),
        state=normalizers["state"],
        batch_size=40,
        seed=0,
    )
    assert set(loader.batch(0).episode_index.tolist()) == {0, 2, 3}
    assert run(root) == 0, "what is left out is no error any more, and the statistics are of the rest"
    assert "note: meta/wamkit_exclude.json leaves out episode 1" in capsys.readouterr().out.replace("\n", " ")


def test_the_list_keeps_earlier_entries(root, capsys):
    write_exclusions(root, {3: "the arm was pushed"}, made_by="me")
    dataset = LeRobotDataset(root)
    assert run(root, "--exclude") == 0
    assert "no further episode has to be left out; nothing written" in capsys.readouterr().out
    assert read_exclusions(root).made_by == "me"
    dataset.data_path(2).unlink()
    assert run(root, "--exclude") == 0
    assert read_exclusions(root).episodes[3] == "the arm was pushed" and set(read_exclusions(root).episodes) == {2, 3}


def test_warnings_are_left_out_when_asked(write_dataset, capsys):
    root, episodes = write_dataset(2)
    with LeRobotWriter(root, synthetic_robot(height=64, width=64)) as writer:
        writer.add(episodes[1])
    assert run(root, "--exclude") == 0 and not (root / EXCLUDE_PATH).exists()
    assert run(root, "--exclude", "--also", "duplicate", "--json") == 0
    out = capsys.readouterr().out
    document = json.loads(out[out.index("{\n") :])
    assert list(document["excluded"]) == ["2"] and document["excluded_now"] == [2]
    assert "duplicate: " in read_exclusions(root).episodes[2]


def test_faults_of_the_whole_dataset_are_told_apart(root, capsys):
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"total_frames": 9}))
    assert run(root, "--exclude") == 1
    told = capsys.readouterr().out
    assert "leaving out episodes does not mend this: meta/info.json: total_frames" in told
    assert not (root / EXCLUDE_PATH).exists()
    for path in (root / "data").rglob("*.parquet"):
        path.unlink()
    assert run(root, "--exclude") == 2
    assert "expected to leave some of the 4 episodes, all have errors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dry-run"], "--dry-run: without effect without --exclude"),
        (["--also", "duplicate"], "--also: without effect without --exclude"),
        (["--entry", "x"], "--entry: without effect without --against"),
        (["--against", "nowhere"], "expected a policy folder or a file of statistics at nowhere"),
    ],
)
def test_options_without_effect_are_refused(root, capsys, options, message):
    assert run(root, *options) == 2
    assert message in capsys.readouterr().err


# -- against a policy or statistics ------------------------------------------------------------------------------------


@pytest.fixture
def policy(root, tmp_path):
    """The folder of a policy made for the dataset, as far as an inspection reads it."""

    def make(*, robot=None, scale=1.0, kind="minmax", tasks=()) -> Path:
        statistics = compute_statistics(LeRobotDataset(root))
        spec = PolicySpec(
            family="wav",
            robot=robot or synthetic_robot(height=64, width=64),
            num_context=2,
            action_horizon=4,
            execution_horizon=2,
            normalization=kind,
            tasks=tasks,
        )
        folder = tmp_path / "policy"
        folder.mkdir()
        (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
        state = Normalizer.from_statistics(kind, statistics["state"]).to_dict()
        for name in ("q01", "q99", "mean", "std"):
            state[name] = (np.array(state[name]) * scale).tolist()
        action = ActionTransform(normalizer=Normalizer.from_statistics(kind, statistics["action"])).to_dict()
        (folder / "statistics.json").write_text(json.dumps({"state": state, "action": action, "value": None}))
        return folder

    return make


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
def test_a_policy_of_the_same_robot_and_numbers_fits(root, policy, kind):
    assert inspect(root, against=policy(kind=kind)).findings == ()


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
def test_statistics_in_another_unit_are_far_from_the_data(root, policy, kind):
    findings = inspect(root, against=policy(kind=kind, scale=0.01)).findings
    assert {(finding.kind, finding.severity) for finding in findings} == {("policy", "warning")}
    assert {"observation.state (x)", "observation.state (y)"} <= {finding.where for finding in findings}
    assert "normalised" in findings[0].what and "the rows lie from" in findings[0].what


def test_a_policy_of_another_robot_does_not_fit(root, policy):
    robot = synthetic_robot(height=32, width=64, cameras=("front", "top"), control_hz=10.0)
    folder = policy(robot=robot, tasks=("fold the towel",))
    report = inspect(root, against=folder)
    whats = "\n".join(finding.what for finding in report.errors)
    for part in ("'front': wanted 32x64 px, offered 64x64", "camera 'top' is wanted", "control_hz: wanted 10.0"):
        assert part in whats
    assert any("has not seen" in note for note in report.notes)
    assert all(not finding.episodes and finding.kind == "policy" for finding in report.errors)


def test_a_dataset_without_a_robot_is_compared_as_far_as_it_goes(root, policy, tmp_path):
    older = as_v2(root, tmp_path / "older", "v2.1")
    folder = policy(robot=synthetic_robot(height=32, width=64, cameras=("front", "top"), control_hz=10.0))
    report = inspect(older, against=folder)
    whats = "\n".join(finding.what for finding in report.errors)
    for part in ("'front': wanted 32x64 px", "camera 'top' is wanted", "wanted 10, offered 20 rows/s"):
        assert part in whats
    assert any("names no robot" in note for note in report.notes)


def test_a_file_of_statistics_is_compared_too(root, tmp_path, capsys):
    statistics = compute_statistics(LeRobotDataset(root))
    path = tmp_path / "statistics.json"
    write_statistics_file(path, statistics, fingerprint="x")
    assert run(root, "--against", path) == 0
    statistics["state"], statistics["action"] = statistics["action"], statistics["state"]
    write_statistics_file(path, statistics, fingerprint="x")
    capsys.readouterr()
    assert run(root, "--against", path) == 0  # warnings
    assert "policy" in capsys.readouterr().out
