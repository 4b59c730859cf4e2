"""Recording and labelling a dataset through the command line, with the real simulator."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from wamkit.cli.main import main
from wamkit.cli.record import Options, attempt_request
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.stats import read_statistics
from wamkit.envs.base import observe
from wamkit.envs.metaworld import MetaWorldFactory

pytestmark = pytest.mark.sim
SMALL = ("--size", "16", "--cameras", "corner2", "gripperPOV", "--settle-steps", "1", "--workers", "1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One demonstration of a short task."""
    root = tmp_path_factory.mktemp("recorded") / "dataset"
    assert main(["record", "button-press-topdown-v3", "--output", str(root), "--episodes", "1", *SMALL]) == 0
    return root


def record(root: Path, *arguments: str) -> int:
    return main(["record", "button-press-topdown-v3", "--output", str(root), *SMALL, *arguments])


def test_a_pattern_names_tasks(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["record", "button-press-topdown-v?", "--output", str(dataset), "--episodes", "1", *SMALL]
    assert main([*command, "--json"]) == 0
    assert [task["task"] for task in json.loads(capsys.readouterr().out)["tasks"]] == ["button-press-topdown-v3"]
    assert main(["record", "buton-*", *command[2:]]) == 2


def test_recording_continues_where_it_stopped(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(dataset, "--episodes", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["new_episodes"] == 0
    assert record(dataset, "--episodes", "2") == 0
    shown = capsys.readouterr().out
    assert "button-press-topdown-v3: 2/2 episodes, 0 attempts dropped" in shown and "added 1 episodes" in shown
    assert LeRobotDataset(dataset).num_episodes == 2


def test_lossless_frames_are_what_was_rendered(dataset: Path, tmp_path: Path) -> None:
    """The same attempt, kept in both ways: only lossy frames differ from what the simulator gives again."""
    assert record(tmp_path / "exact", "--episodes", "1", "--video", "lossless") == 0
    options = Options(tasks=("button-press-topdown-v3",), output=tmp_path)
    simulator = MetaWorldFactory(cameras=("corner2", "gripperPOV"), height=16, width=16)()
    simulator.reset(attempt_request(options, "button-press-topdown-v3", 0))
    start = observe(simulator).video["corner2"]
    simulator.close()
    lossless, lossy = (
        LeRobotDataset(root).frames(0, "corner2", [0])[0].astype(int) for root in (tmp_path / "exact", dataset)
    )
    assert np.abs(lossless - start).max() <= 3, "RGB to YUV and back rounds"
    assert np.abs(lossy - start).max() > 10
    assert record(dataset, "--episodes", "1", "--video", "lossless") == 2


def test_the_dataset_names_the_simulator_that_recorded_it(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    path = copy / "meta" / "info.json"
    info = json.loads(path.read_text())
    (simulator,) = info["wamkit"]["notes"]["simulators"]
    assert {key: simulator[key] for key in ("mujoco", "metaworld")} == {
        name: importlib.metadata.version(name) for name in ("mujoco", "metaworld")
    }
    assert simulator["gl_backend"] in ("egl", "osmesa")
    older = simulator | {"mujoco": "2.3.7"}
    info["wamkit"]["notes"]["simulators"] = [older]
    path.write_text(json.dumps(info))
    assert record(copy, "--episodes", str(info["total_episodes"] + 1)) == 0
    assert json.loads(path.read_text())["wamkit"]["notes"]["simulators"] == [older, simulator]
    assert "'mujoco': '2.3.7'" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--noise-std", "0.1"), "noise_std: now 0.1, before 0.0"),
        (("--layout-seed", "7"), "layout_seed: now 7, before 42"),
        (("--cameras", "corner2"), "cameras"),
        (("--suite", "metawrld"), "did you mean 'metaworld'"),
        (("--no-record-video",), "needs its videos"),
        (("--episodes", "0"), "episodes and max_attempts of 1 or more"),
        (("--workers", "0"), "--workers of 1 or more, got 0"),
        (("--max-attempts", "0"), "of 1 or more for each task, got 40 and 0"),
        (("--max-attempts", "100001"), "max_attempts of at most 100000"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(
    arguments: tuple[str, ...], message: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (dataset / "meta" / "info.json").read_bytes()
    assert record(dataset, *arguments) == 2
    assert message in capsys.readouterr().err
    assert (dataset / "meta" / "info.json").read_bytes() == before


def test_no_two_attempts_share_noise_whatever_is_wanted() -> None:
    def seed(number: int, episodes: int, index: int) -> int:
        options = Options(tasks=("button-press-v3",), output=Path("dataset"), episodes=episodes, seed=number)
        return attempt_request(options, "button-press-v3", index).seed

    assert [seed(0, 1, index) for index in range(3)] == [0, 1, 2]
    assert seed(1, 1, 5) == seed(1, 40, 5), "a recording with more episodes continues a shorter one"
    attempts = (0, 10, 399, 99_999)
    assert len({seed(number, 40, index) for number in range(4) for index in attempts}) == 4 * len(attempts)


def test_an_unknown_task_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "drawer-opne-v3", "--output", str(tmp_path / "dataset")]) == 2
    assert "did you mean 'drawer-open-v3'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "65"), "expected even height and width for yuv420p, got 65x65; choose an even size (--size)"),
        (("--seed", "-1"), "expected seed of 0 or more, got -1"),
        (("--layout-seed", "-1"), "expected layout_seed of 0 or more, got -1"),
        (("--noise-std", "nan"), "expected a finite noise_std >= 0"),
    ],
)
def test_settings_that_cannot_be_recorded_make_nothing(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record(tmp_path / "dataset", *arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_recording_without_an_episode_does_not_stand_in_the_way(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    assert record(root, "--episodes", "1", "--max-attempts", "1", "--max-steps", "3") == 1
    assert record(root, "--episodes", "1", "--size", "32", "--noise-std", "0.01") == 0
    dataset = LeRobotDataset(root)
    assert dataset.num_episodes == 1 and dataset.features["observation.images.corner2"]["shape"] == [32, 32, 3]
    assert dataset.wamkit["notes"]["demonstrations"]["noise_std"] == 0.01


def test_help_says_when_a_dataset_takes_no_more_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["record", "--help"])
    assert "`wamkit data values` adds one: record all episodes before" in " ".join(capsys.readouterr().out.split())


def test_a_task_that_is_given_up_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "dataset"
    assert record(root, "--episodes", "1", "--max-attempts", "2", "--max-steps", "3") == 1
    assert "0/1 episodes, 2 attempts dropped\n    2 x the task was not solved" in capsys.readouterr().out


def test_values_and_statistics(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "values", str(dataset), "--image-size", "0", "--gamma", "0.9"]) == 0
    labelled = LeRobotDataset(dataset)
    assert labelled.columns(0)["value"].shape == (labelled.episodes[0].length, 10)
    assert read_statistics(dataset, fingerprint=labelled.fingerprint())["value"].width == 10
    capsys.readouterr()
    assert main(["data", "stats", str(dataset), "--json"]) == 0
    statistics = json.loads(capsys.readouterr().out)
    assert statistics["action"]["count"] == labelled.num_frames
    assert main(["data", "values", str(dataset), "--kind", "sparse", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "sparse"
    assert LeRobotDataset(dataset).features["value"]["shape"] == [1]


def test_a_labelled_dataset_takes_no_episodes_and_no_simulator_starts(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    assert main(["data", "values", str(copy), "--kind", "sparse"]) == 0
    recorded = LeRobotDataset(copy).num_episodes
    assert record(copy, "--episodes", str(recorded)) == 0, "nothing is missing, so nothing stands in the way"
    caplog.set_level("INFO", logger="wamkit")
    assert record(copy, "--episodes", str(recorded + 1)) == 2
    message = capsys.readouterr().err
    assert "added columns ['value']" in message and "into a new folder" in message
    assert "simulators" not in caplog.text and LeRobotDataset(copy).num_episodes == recorded


def test_inspection_tells_sound_from_damaged(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    assert main(["data", "inspect", str(copy)]) == 0
    assert "sawyer/metaworld" in capsys.readouterr().out
    video = next(copy.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:100])
    assert main(["data", "inspect", str(copy), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["is_sound"] and report["findings"][0]["kind"] == "damaged_file"


def test_an_option_without_effect_is_refused(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "values", str(dataset), "--kind", "sparse", "--image-size", "64"]) == 2
    assert "image_size: without effect on sparse values" in capsys.readouterr().err


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(tmp_path / "nowhere")]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
