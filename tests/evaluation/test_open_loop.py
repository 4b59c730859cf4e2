"""Open-loop validation of a WAV `tiny` that was trained for a few steps, on synthetic demonstrations."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wamkit.cli.main import main
from wamkit.data.exclusions import write_exclusions
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.value_labels import ArmChannels, DenseValueSettings, label_values
from wamkit.data.video import VideoReader
from wamkit.data.writer import LeRobotWriter
from wamkit.evaluation.open_loop import open_loop
from wamkit.evaluation.open_loop_predictions import EpisodePrediction
from wamkit.evaluation.open_loop_protocol import OpenLoopProtocol, make_protocol
from wamkit.evaluation.open_loop_results import DatasetIdentity, OpenLoopResults, prediction_path, video_path
from wamkit.evaluation.report import write_report
from wamkit.evaluation.results import PolicyIdentity
from wamkit.models.wav import config as wav
from wamkit.planning.config import WAV
from wamkit.policy import Policy, load_policy
from wamkit.recipes import RECIPES
from wamkit.recipes.execute import execute
from wamkit.recipes.run import DataConfig
from wamkit.spec import SpecMismatch

from ..policies import watched

ARMS = (ArmChannels(name="", wrist_camera="wrist", state=(0, 1), action=(0, 1)),)
LENGTH = 22
PLANNER = dataclasses.replace(WAV, iterations=1, num_videos=3, num_values=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled demonstrations of a square that is pushed into a corner."""
    root = tmp_path_factory.mktemp("open-loop") / "square"
    with LeRobotWriter(root, synthetic_robot()) as writer:
        for episode in synthetic_episodes(3, length=LENGTH):
            writer.add(episode)
    label_values(LeRobotDataset(root), DenseValueSettings(third_person="front", arms=ARMS, image_size=None))
    return root


@pytest.fixture(scope="module")
def folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy trained for two steps in each stage."""
    base = RECIPES["debug"]()
    stages = tuple(dataclasses.replace(stage, steps=2, batch_size=8, warmup_steps=0) for stage in base.stages)
    output = tmp_path_factory.mktemp("trained")
    run = dataclasses.replace(
        base,
        model=wav.tiny(action_dim=3, state_dim=3),
        data=DataConfig(root=dataset),
        output=output,
        stages=stages,
        device="cpu",
        save_every=1000,
    )
    execute(run)
    return output / "policy"


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(folder, num_steps=2)


def protocol(name: str, policy: Policy, **options: int) -> OpenLoopProtocol:
    return make_protocol(name, policy.spec, {"recipe": {"data": {"action_offset": 0}}}, **options)


def validate(policy: Policy, source: Any, out: Path, name: str = "policy", **options: Any) -> OpenLoopResults:
    data = LeRobotDataset(source) if isinstance(source, Path) else source
    return open_loop(
        policy,
        data,
        options.pop("protocol", None) or protocol(name, policy),
        identity=PolicyIdentity(name="tiny", fingerprint=policy.fingerprint),
        source=DatasetIdentity(name="square", fingerprint=None, robot="square", was_trained_on=None),
        out=out,
        **options,
    )


def in_memory(episodes: Sequence[Any] | None = None, width: int | None = 10, **robot: Any) -> MemoryDataset:
    chosen = list(synthetic_episodes(2, length=LENGTH, seed=3) if episodes is None else episodes)
    values = None if width is None else [np.zeros((len(episode), width), dtype=np.float32) for episode in chosen]
    return MemoryDataset(chosen, dataclasses.replace(synthetic_robot(), **robot), values)


@pytest.mark.parametrize("planner", [None, PLANNER])
def test_predictions_are_those_of_a_policy_that_saw_the_same_frames(
    folder: Path, dataset: Path, tmp_path: Path, planner: Any
) -> None:
    """Actions, value and imagined frames equal those of `act` in a slot that is shown the recorded rows in order."""
    policy = load_policy(folder, num_steps=2, planner=planner)
    validate(policy, dataset, tmp_path / "out", episodes=[2], seeds=[7])
    found = EpisodePrediction.load(prediction_path(tmp_path / "out", 2, 7))
    data = LeRobotDataset(dataset)
    columns = data.columns(2)
    state = torch.from_numpy(columns["observation.state"].astype(np.float32))
    frames = np.stack([data.frames(2, camera, range(LENGTH)) for camera in ("front", "wrist")])
    horizon = policy.spec.execution_horizon
    assert found.current.tolist() == list(range(0, LENGTH, horizon))
    assert found.value is not None and found.video is not None
    policy.reset([0], seeds=[700_002])
    for call, row in enumerate(found.current.tolist()):
        chunk = policy.act(
            [0],
            video=torch.from_numpy(frames[:, row])[None],
            state=state[row][None],
            task=[data.episodes[2].task],
            executed=[horizon if call else 0],
            record=True,
        )
        imagined = chunk.imagined
        assert imagined is not None and imagined.video is not None and imagined.value is not None
        np.testing.assert_allclose(found.actions.predicted[call], chunk.actions[0], atol=1e-5)
        np.testing.assert_allclose(found.value.predicted[call, :, 0], imagined.value[0], atol=1e-4)
        for index, ahead in enumerate(imagined.video_steps or ()):
            if row + ahead < LENGTH:
                real = frames[:, row + ahead].astype(float)
                ours = ((imagined.video[0, :, index].numpy() - real) ** 2).mean(axis=(1, 2, 3))
                still = ((frames[:, row].astype(float) - real) ** 2).mean(axis=(1, 2, 3))
                np.testing.assert_allclose(found.video.error[call, index], ours, rtol=1e-3, atol=0.5)
                np.testing.assert_allclose(found.video.copy_error[call, index], still, rtol=1e-4)


@pytest.mark.parametrize("name", ["policy", "reference"])
def test_truth_is_what_the_dataset_holds_at_the_rows(policy: Policy, dataset: Path, tmp_path: Path, name: str) -> None:
    """In physical units, in the network's range, and for values z-scored: symexp undoes the network's symlog."""
    validate(policy, dataset, tmp_path / "out", name, episodes=[0])
    found = EpisodePrediction.load(prediction_path(tmp_path / "out", 0, 0))
    columns = LeRobotDataset(dataset).columns(0)
    rows = found.rows[found.is_inside]
    starts = [0, 4, 8, 12, 16, 20] if name == "policy" else [0, 9, 18]
    assert found.rows[:, 0].tolist() == starts and set(rows.tolist()) == set(range(LENGTH))
    np.testing.assert_array_equal(found.actions.true[found.is_inside], columns["action"][rows])
    assert found.states is not None and found.value is not None
    np.testing.assert_array_equal(found.states.true[found.is_inside], columns["observation.state"][rows])
    np.testing.assert_array_equal(found.value.true[found.is_inside][:, 0], columns[VALUE][rows, -1])
    transforms = policy.transforms
    assert transforms.value is not None
    # by hand, from the statistics that travel with the weights: 2 (x - q01) / (q99 - q01 + epsilon) - 1
    stored = transforms.to_dict()["action"]
    low, half = np.array(stored["q01"]), (np.array(stored["q99"]) - np.array(stored["q01"]) + stored["epsilon"]) / 2
    wanted = (columns["action"][rows] - low) / half - 1
    np.testing.assert_allclose(found.actions.true_normalized[found.is_inside], wanted, atol=1e-6)
    mean, std = transforms.value.mean[-1], transforms.value.std[-1]
    np.testing.assert_allclose(
        found.value.true_normalized[found.is_inside][:, 0], (columns[VALUE][rows, -1] - mean) / std, atol=1e-3
    )
    # predictions obey the same transforms
    np.testing.assert_allclose((found.actions.normalized + 1) * half + low, found.actions.predicted, atol=1e-5)
    np.testing.assert_allclose(found.value.normalized * std + mean, found.value.predicted, rtol=1e-3, atol=1e-3)


def test_errors_are_those_of_the_stored_numbers(policy: Policy, dataset: Path, tmp_path: Path) -> None:
    results = validate(policy, dataset, tmp_path / "out", episodes=[0, 2], seeds=[0, 1])
    parts = {
        (episode, seed): EpisodePrediction.load(prediction_path(tmp_path / "out", episode, seed))
        for episode in (0, 2)
        for seed in (0, 1)
    }
    error, wide = [], []
    for part in parts.values():
        error.append((part.actions.predicted - part.actions.true)[part.is_inside])
        wide.append((part.actions.normalized - part.actions.true_normalized)[:, 0])
    physical, first = np.concatenate(error), np.concatenate(wide)
    total = results.total
    assert total.num_rows == len(physical) and total.num_chunks == 4 * 6
    assert [item.name for item in total.actions] == ["dx", "dy", "gripper"]
    assert [item.unit for item in total.actions] == ["m", "m", "1"]
    np.testing.assert_allclose([item.mse for item in total.actions], (physical**2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose([item.mae for item in total.actions], np.abs(physical).mean(axis=0), rtol=1e-5)
    assert [(item.first, item.last) for item in total.windows] == [(0, 1), (1, 9)]
    np.testing.assert_allclose(total.windows[0].action_mse or 0.0, (first**2).mean(), rtol=1e-5)
    assert total.value is not None and total.value.mae > 0 and total.windows[1].value_mse is not None
    assert [item.name for item in total.video[:4]] == ["all", "front", "wrist", "+1"]
    video = [part.video for part in parts.values()]
    inside = np.concatenate([item.rows < LENGTH for item in video if item is not None])
    mse = np.concatenate([item.copy_error for item in video if item is not None])[inside].mean()
    assert total.video[0].copy_psnr == pytest.approx(10 * np.log10(255**2 / mse), rel=1e-4)
    assert {item.episode for item in results.episodes} == {0, 2}
    assert results.episodes[0].errors.num_rows == total.num_rows // 2
    assert parts[0, 0].actions.predicted.tolist() != parts[0, 1].actions.predicted.tolist(), "seeds draw anew"
    assert OpenLoopResults.load(tmp_path / "out") == results


def test_the_same_seed_gives_the_same_numbers_in_any_batch(policy: Policy, dataset: Path, tmp_path: Path) -> None:
    first = validate(policy, dataset, tmp_path / "a", episodes=[0, 1])
    again = validate(policy, dataset, tmp_path / "b", episodes=[0, 1])
    assert dataclasses.replace(again, wall_seconds=first.wall_seconds) == first
    alone = validate(policy, dataset, tmp_path / "c", episodes=[1], batch_size=5)
    assert alone.episodes[0].errors.actions[0].mse == pytest.approx(first.episodes[1].errors.actions[0].mse, rel=1e-4)
    for name in ("plots/episode_000001/value.svg", "videos/episode_000001.mp4"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["policy", "reference"])
def test_films_and_plots(policy: Policy, dataset: Path, tmp_path: Path, name: str) -> None:
    """A film runs once through the episode, real above imagined; every channel and the value have a plot."""
    validate(policy, dataset, tmp_path / "out", name, episodes=[1])
    plots = sorted(path.stem for path in (tmp_path / "out" / "plots" / "episode_000001").iterdir())
    assert plots == [
        "action_00_dx",
        "action_01_dy",
        "action_02_gripper",
        "state_00_x",
        "state_01_y",
        "state_02_gripper_opening",
        "value",
    ]
    text = (tmp_path / "out" / "plots" / "episode_000001" / "value.svg").read_text()
    assert text.count('class="start"') == (6 if name == "policy" else 3), "one rule where each chunk starts"
    assert "xmlns" in text and "recorded" in text
    with VideoReader(video_path(tmp_path / "out", 1)) as reader:
        info = reader.info
    assert (info.width, info.height) == (2 * 192 + 4, 2 * 192 + 8)
    # nine frames of every chunk that does not overlap the one before, as far as the episode goes; then a hold
    assert info.num_frames == {"policy": 9 + 9, "reference": 9 + 9 + 4}[name] + 10


def test_values_and_frames_can_be_left_out(policy: Policy, tmp_path: Path) -> None:
    results = validate(
        policy, in_memory(width=None), tmp_path / "out", with_values=False, with_video=False, batch_size=3
    )
    assert results.total.value is None and results.total.video == ()
    assert results.total.windows[0].value_mse is None
    assert not (tmp_path / "out" / "videos").exists()
    assert not (tmp_path / "out" / "plots" / "episode_000001" / "value.svg").exists()


def test_a_dataset_of_another_robot_is_refused(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(SpecMismatch, match=r"(?s)policy tiny and dataset square do not fit.*control_hz: wanted 20"):
        validate(policy, in_memory(control_hz=10.0), tmp_path / "out")
    nameless = in_memory()
    nameless.robot = None
    with pytest.raises(SpecMismatch, match=r"policy tiny was trained for the robot .* and dataset square .* does not"):
        validate(policy, nameless, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def changed(episode: Any, **columns: np.ndarray) -> list[Any]:
    return [episode, dataclasses.replace(episode, **columns)]


def test_bad_data_is_named(policy: Policy, tmp_path: Path) -> None:
    good = synthetic_episodes(1, length=LENGTH)[0]
    broken = good.actions.copy()
    broken[5, 1] = np.nan
    cases: list[tuple[MemoryDataset, dict[str, Any], str]] = [
        (in_memory(changed(good, actions=broken)), {}, "episode 1, row 5: expected finite numbers in column 'action'"),
        (in_memory(), {"episodes": [0, 2]}, r"distinct episodes among those of the dataset \(0 to 1\), got \[0, 2\]"),
        (in_memory(), {"episodes": []}, "distinct episodes"),
        (in_memory(width=None), {}, "expected a column 'value'.*--no-values"),
        (in_memory(width=4), {}, "expected 10 channels in column 'value', as the policy was trained on, got 4"),
        (in_memory(), {"seeds": [1, 1]}, "distinct seeds"),
        (in_memory(), {"seeds": [-1]}, r"seeds of 0 or more, got 16 and \[-1\]"),
        (in_memory(), {"batch_size": 0}, "batch_size >= 1"),
    ]
    for data, options, message in cases:
        with pytest.raises(ValueError, match=message):
            validate(policy, data, tmp_path / "out", **options)
    short = in_memory()
    short.episodes[1] = dataclasses.replace(short.episodes[1], length=1)
    with pytest.raises(ValueError, match="episode 1: expected an episode of 2 or more rows, got 1; choose a longer"):
        validate(policy, short, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prediction_that_is_not_a_number_is_named(folder: Path, tmp_path: Path) -> None:
    policy = load_policy(folder, num_steps=2)
    with torch.no_grad():
        for name, parameter in policy.model.network.named_parameters():
            if name.startswith("action_"):
                parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="predicted actions that are not finite numbers in episode 1, row 0, seed 0"):
        validate(policy, in_memory(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_episode_shorter_than_a_chunk_is_masked(policy: Policy, tmp_path: Path) -> None:
    results = validate(policy, in_memory(synthetic_episodes(2, length=3)), tmp_path / "out", "reference")
    assert (results.total.num_chunks, results.total.num_rows) == (1, 3)
    assert results.total.video[0].num_frames == 2 * 3


def test_only_an_earlier_validation_is_ever_replaced(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before = validate(policy, in_memory(), out, with_video=False)
    with pytest.raises(ValueError, match="holds an earlier result; use another folder, or replace it"):
        validate(policy, in_memory(), out)
    with monkeypatch.context() as patched:

        def full(self: EpisodePrediction, path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(EpisodePrediction, "save", full)
        with pytest.raises(OSError, match="while writing"):
            validate(policy, in_memory(), out, fresh=True, seeds=[3], with_video=False)
    assert OpenLoopResults.load(out) == before, "a failure while writing leaves the old one whole"
    assert validate(policy, in_memory(), out, fresh=True, seeds=[3], with_video=False) == OpenLoopResults.load(out)
    with pytest.raises(ValueError, match=r"expected a folder or nothing at .*openloop.json, found a file"):
        validate(policy, in_memory(), out / "openloop.json")
    (out / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds 'results.json', which `wamkit openloop` did not write"):
        validate(policy, in_memory(), out, fresh=True)


def test_damaged_results_are_explained(policy: Policy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="make it with `wamkit openloop`"):
        OpenLoopResults.load(out)
    validate(policy, in_memory(), out, with_video=False)
    path = prediction_path(out, 1, 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="expected the predictions of an episode, got something else"):
        EpisodePrediction.load(path)
    data = json.loads((out / "openloop.json").read_text())
    for wrong in ({**data, "format": "other/1"}, {**data, "total": {}}, {"format": data["format"]}):
        (out / "openloop.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"openloop\.json: .*expected .*(format|the keys)"):
            OpenLoopResults.load(out)


REPORT = """
import sys
from pathlib import Path
from wamkit.evaluation.report import write_report
write_report([], Path(sys.argv[2]), open_loop=[Path(sys.argv[1])])
assert "torch" not in sys.modules
"""


def test_the_report_shows_it_without_torch(policy: Policy, dataset: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "report.html"
    validate(policy, dataset, out, episodes=[0, 1, 2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", REPORT, str(out), str(page)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert 'id="openloop"' in text and 'id="success"' not in text
    assert "<title>Open loop: tiny</title>" in text
    assert text.count("data:video/mp4") == 2, "two episodes in detail"
    # closeness, and 3 actions, 3 states and the value of both
    assert text.count('<svg class="chart"') == 1 + 2 * 7
    assert "Episodes 2 are in the numbers" in text
    (out / "openloop.json").unlink()
    with pytest.raises(FileNotFoundError, match="make it with `wamkit openloop`"):
        write_report([], page, open_loop=[out])
    with pytest.raises(ValueError, match="with --openloop"):
        write_report([], page)


def test_the_report_says_when_a_policy_saw_the_data_in_training(
    folder: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out", tmp_path / "report.html"
    arguments = ["openloop", str(folder), "--data", str(dataset), "--num-steps", "2", "--output", str(out)]
    assert main([*arguments, "--no-video"]) == 0
    assert main(["report", "--openloop", str(out), "--output", str(page)]) == 0
    assert "wrote" in capsys.readouterr().out
    assert "The policy was trained on this dataset." in page.read_text()
    assert "data:video" not in page.read_text()


@pytest.mark.usefixtures("types_unchecked")
def test_a_memory_with_a_stride_is_that_of_the_closed_loop(tmp_path: Path) -> None:
    """Predictions equal those of `act` in a slot that is told of the row before too."""
    policy, model = watched(1)
    data = in_memory()
    validate(policy, data, tmp_path / "out", episodes=[1], seeds=[7], with_video=False)
    found = EpisodePrediction.load(prediction_path(tmp_path / "out", 1, 7))
    state = torch.from_numpy(data.columns(1)["observation.state"].astype(np.float32))
    cameras = policy.spec.robot.camera_names
    frames = torch.from_numpy(np.stack([data.frames(1, camera, range(LENGTH)) for camera in cameras], axis=1))
    rows = found.current.tolist()
    assert rows == list(range(0, LENGTH, 4))
    shown = torch.cat(model.memories)
    assert torch.equal(shown, torch.stack([frames[[max(0, row - 1), row]] for row in rows]))
    assert [seen for call in model.known for seen in call or ()] == [[row > 0, True] for row in rows]
    policy.reset([0], seeds=[700_001])
    for call, row in enumerate(rows):
        if call:
            policy.remember([0], video=frames[[row - 1]], executed=[3])
        chunk = policy.act(
            [0], video=frames[[row]], state=state[[row]], task=[data.episodes[1].task], executed=[min(call, 1)]
        )
        np.testing.assert_allclose(found.actions.predicted[call], chunk.actions[0], atol=1e-5)


def test_the_command_line(
    folder: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["openloop", str(folder), "--data", str(dataset), "--num-steps", "2"]
    assert main([*arguments, "--output", str(tmp_path / "a"), "--json", "--episodes", "0", "1", "--planner", "wav",
                 "--planner-iterations", "1", "--candidates", "2", "--value-samples", "2"]) == 0  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "a" / "openloop.json").read_text())
    assert printed["policy"]["planner"]["num_videos"] == 2
    assert printed["policy"]["fingerprint"] == load_policy(folder).fingerprint
    assert printed["dataset"]["fingerprint"] == LeRobotDataset(dataset).fingerprint()
    assert printed["dataset"]["was_trained_on"] is True
    assert printed["protocol"] == {
        "name": "policy",
        "execution_horizon": 4,
        "memory_threshold": 1,
        "action_offset": 0,
        "context_stride": None,
    }
    assert main([*arguments, "--output", str(tmp_path / "b"), "--protocol", "reference", "--no-video"]) == 0
    table = capsys.readouterr().out
    assert "The policy was trained on this dataset" in table and "gripper" in table and "1 to 8" in table
    assert "3 calls, 22 rows; protocol reference" in table and "PSNR" not in table
    for wrong, message in (
        (["--episodes", "9"], "(0 to 2), got [9]"),
        (["--protocol", "reference", "--action-offset", "0"], "action_offset: without effect"),
        (["--candidates", "3"], "--planner none uses none"),
        (["--num-steps", "0"], "expected num_steps >= 1"),
        (["--device", "cuda:64"], "got 'cuda:64'"),
    ):
        assert main([*arguments, "--output", str(tmp_path / "c"), *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["openloop", str(tmp_path), "--data", str(dataset), "--output", str(tmp_path / "c")]) == 2
    assert "wamkit openloop: error:" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    write_exclusions(copy, {1: "black"})
    for command in (["openloop", "--episodes", "0", "1"], ["imagine", "--episode", "1"]):
        told = [command[0], str(folder), "--data", str(copy), "--output", str(tmp_path / "c"), *command[1:]]
        assert main(told) == 2
        assert "does not exclude, got 1 (black)" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "b" / "plots")
    assert main([*arguments, "--output", str(tmp_path / "b")]) == 2
    assert "--fresh" in capsys.readouterr().err
