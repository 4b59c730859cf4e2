"""The quality of world models whose frames are known: one that is always right, one that copies, one that drifts."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wamkit.cli.main import main
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.writer import LeRobotWriter
from wamkit.episode import Episode
from wamkit.evaluation.fvd import video_distance
from wamkit.evaluation.i3d import I3D
from wamkit.evaluation.lpips import LPIPS
from wamkit.evaluation.open_loop_results import DatasetIdentity
from wamkit.evaluation.report import write_report
from wamkit.evaluation.results import PolicyIdentity
from wamkit.evaluation.statistics import bootstrap_interval
from wamkit.evaluation.video_metrics import PSNR_CAP, FrameScores
from wamkit.evaluation.world_quality import (
    MetricNetworks,
    QualitySettings,
    WorldQuality,
    measure_world,
)
from wamkit.evaluation.world_rollouts import WorldModel, imagine_episodes, world_of
from wamkit.evaluation.world_scores import Clip, mean_change, rollout_quality, step_quality
from wamkit.models.worldvla import config as worldvla
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.policy import Policy
from wamkit.types import Observation
from wamkit.untrained import untrained_policy

from ..policies import make_policy

CAMERAS = ("front", "wrist")
SHORT = QualitySettings(horizons=(3,), min_frames=4, resamples=200)
LENGTHS = (6, 8, 3)

Imagine = Callable[..., Tensor]


def episodes(lengths: Sequence[int] = LENGTHS, cameras: Sequence[str] = CAMERAS) -> list[Episode]:
    return [
        synthetic_episodes(number + 1, length=length, height=16, width=20, cameras=cameras)[number]
        for number, length in enumerate(lengths)
    ]


def dataset(parts: Sequence[Episode] | None = None, cameras: Sequence[str] = CAMERAS) -> MemoryDataset:
    return MemoryDataset(episodes() if parts is None else parts, synthetic_robot(height=16, width=20, cameras=cameras))


def truth(data: MemoryDataset) -> Imagine:
    """A model that knows what was recorded."""

    def imagine(observation: Observation, actions: Tensor, *, keys: Sequence[tuple[int, ...]]) -> Tensor:
        found = []
        for episode, row in keys:
            last = data.episodes[episode % 100_000].length - 1
            rows = [min(row + 1 + step, last) for step in range(actions.shape[1])]
            found.append(np.stack([data.frames(episode % 100_000, camera, rows) for camera in data.cameras]))
        return torch.from_numpy(np.stack(found))

    return imagine


def copying(observation: Observation, actions: Tensor, *, keys: Sequence[tuple[int, ...]]) -> Tensor:
    return observation.video[:, :, -1:].expand(-1, -1, actions.shape[1], -1, -1, -1)


def brightening(observation: Observation, actions: Tensor, *, keys: Sequence[tuple[int, ...]]) -> Tensor:
    """Adds two levels at every step to what it saw or imagined before."""
    frame, seen = observation.video[:, :, -1], []
    for _ in range(actions.shape[1]):
        frame = frame + 2
        seen.append(frame)
    return torch.stack(seen, dim=2)


def world(imagine: Imagine, cameras: Sequence[str] = CAMERAS, **options: Any) -> WorldModel:
    options.setdefault("reconstruct", lambda video: video)
    return WorldModel(imagine=imagine, cameras=tuple(cameras), seen=lambda video: video, **options)


def measure(model: WorldModel, data: MemoryDataset, out: Path, **options: Any) -> WorldQuality:
    return measure_world(
        model,
        data,
        options.pop("entries", data.episodes),
        options.pop("settings", SHORT),
        options.pop("networks", MetricNetworks()),
        identity=PolicyIdentity(name="toy", fingerprint=""),
        source=DatasetIdentity(name="square", fingerprint=None, robot="square", was_trained_on=None),
        split="val_ind",
        out=out,
        num_films=options.pop("num_films", 0),
        **options,
    )


def front() -> MemoryDataset:
    """A camera and two episodes, where more would tell nothing more."""
    return dataset(episodes((5, 6), cameras=("front",)), cameras=("front",))


def still(length: int, shade: int) -> Episode:
    """Nothing moves."""
    frames = np.full((length, 16, 20, 3), shade, dtype=np.uint8)
    base = episodes([max(2, length)])[0]
    columns = {name: getattr(base, name)[:length] for name in ("actions", "state", "reward", "success")}
    return dataclasses.replace(base, video={camera: frames.copy() for camera in CAMERAS}, **columns)


def test_a_model_that_is_always_right(tmp_path: Path) -> None:
    data = dataset()
    found = measure(world(truth(data)), data, tmp_path / "out")
    assert found == WorldQuality.load(tmp_path / "out")
    assert found.episodes == (0, 1, 2) and found.short_episodes == (2,) and found.seen_at == (16, 20)
    for step in found.steps:
        assert step.model is not None and step.model.psnr.mean == PSNR_CAP == step.model.psnr_of_mean_error
        assert step.model.num_equal == step.num_frames
        assert step.ceiling is not None and step.ceiling.psnr.mean == PSNR_CAP
    for rollout in found.rollouts:
        assert rollout.model is not None and rollout.copy is not None
        assert rollout.model.psnr.mean == PSNR_CAP and rollout.model.ssim.mean == pytest.approx(100, abs=1e-3)
        assert rollout.copy.psnr.mean < 40 and rollout.copy.ssim.mean < 99.9
        gain = rollout.model.psnr_gain
        assert gain is not None and gain.mean == pytest.approx(PSNR_CAP - rollout.copy.psnr.mean)
        assert rollout.model.lpips is None and rollout.model.fvd is None


def test_what_is_counted(tmp_path: Path) -> None:
    """Clips per camera, as long as asked for; the first frame is no prediction; the episode of three rows is short."""
    data = dataset()
    found = measure(world(copying), data, tmp_path / "out", settings=dataclasses.replace(SHORT, horizons=(3, 6)))
    counted = [(item.frames, item.camera, item.num_clips, item.num_episodes) for item in found.rollouts]
    assert counted == [
        *((3, "all", 4, 2), (3, "front", 2, 2), (3, "wrist", 2, 2)),
        *((6, "all", 2, 1), (6, "front", 1, 1), (6, "wrist", 1, 1)),
        *((None, "all", 4, 2), (None, "front", 2, 2), (None, "wrist", 2, 2)),
    ]
    lengths = [(item.min_frames, item.mean_frames, item.max_frames) for item in found.rollouts[::3]]
    assert lengths == [(3, 3.0, 3), (6 + 1 - 1, 6.0, 6), (5, 6.0, 7)]
    steps = {(item.camera, item.frames): (item.num_frames, item.num_episodes) for item in found.steps}
    assert steps["all", "all"] == (2 * (5 + 7 + 2), 3) and steps["front", "all"] == (14, 3)


def test_a_model_that_copies_gains_nothing(tmp_path: Path) -> None:
    data = front()
    found = measure(world(copying, ("front",)), data, tmp_path / "out")
    for rollout in found.rollouts:
        assert rollout.model is not None and rollout.copy is not None and rollout.model.psnr_gain is not None
        assert rollout.model.psnr == rollout.copy.psnr and rollout.model.ssim == rollout.copy.ssim
        assert rollout.model.psnr_gain.mean == 0 and rollout.model.psnr_gain.interval == (0, 0)
        assert rollout.copy.psnr_gain is None
    for step in found.steps:
        assert step.model is not None and step.copy is not None and step.model.psnr_gain is not None
        assert step.model.psnr == step.copy.psnr and step.model.psnr_gain.mean == 0


def test_imagined_frames_are_fed_back(tmp_path: Path) -> None:
    """Plain frames that never change: after n steps the roll-out is 2 n levels off, each single step 2."""
    data = dataset([still(6, 50), still(8, 90)])
    found = measure(world(brightening), data, tmp_path / "out", settings=dataclasses.replace(SHORT, horizons=(3,)))

    def decibels(levels: int) -> float:
        return 20 * math.log10(255 / levels)

    first, whole = found.rollouts[0].model, found.rollouts[3].model
    assert first is not None and whole is not None
    assert first.psnr.mean == pytest.approx(np.mean([decibels(2 * n) for n in (1, 2, 3)]), abs=1e-4)
    per_clip = [np.mean([decibels(2 * n) for n in range(1, length)]) for length in (6, 8)]
    assert whole.psnr.mean == pytest.approx(np.mean(per_clip), abs=1e-4), "frames, then clips"
    assert whole.psnr.interval is not None
    assert whole.psnr.interval == pytest.approx((min(per_clip), max(per_clip)), abs=1e-4), "one or the other"
    every = found.steps[0]
    assert every.model is not None and every.copy is not None and every.model.psnr_gain is not None
    assert every.model.psnr.mean == pytest.approx(decibels(2), abs=1e-4)
    assert every.model.psnr_of_mean_error == pytest.approx(decibels(2), abs=1e-4)
    assert every.copy.num_equal == every.num_frames == 24 and every.copy.psnr.mean == PSNR_CAP
    assert every.model.psnr_gain.mean == pytest.approx(decibels(2) - PSNR_CAP, abs=1e-4), "copying wins where all rests"
    moving = [item for item in found.steps if item.frames == "moving"]
    assert len(moving) == 3
    assert all(item.num_frames == 0 and item.model is None and item.copy is None for item in moving)
    text = (tmp_path / "out" / "quality.json").read_text()
    assert "Infinity" not in text and "NaN" not in text


def test_frames_that_move_are_measured_alone(tmp_path: Path) -> None:
    """One camera changes by 3 levels in row 2 and by 1 in row 4; from 2 levels on a frame moves."""
    episode = still(6, 100)
    episode.video["wrist"][2:] = 103
    episode.video["wrist"][4:] = 104
    data = dataset([episode])
    change = mean_change(*(torch.from_numpy(episode.video["wrist"][rows]) for rows in (slice(5), slice(1, 6))))
    assert change.tolist() == [0, 3, 0, 1, 0]
    found = measure(world(brightening), data, tmp_path / "out")
    steps = {(item.camera, item.frames): item for item in found.steps}
    moving = steps["wrist", "moving"]
    assert (steps["front", "moving"].num_frames, moving.num_frames, steps["all", "moving"].num_frames) == (0, 1, 1)
    assert moving.model is not None and moving.copy is not None and moving.model.psnr_gain is not None
    assert moving.model.psnr.mean == pytest.approx(20 * math.log10(255 / 1), abs=1e-4), "100 + 2 for 103"
    assert moving.copy.psnr.mean == pytest.approx(20 * math.log10(255 / 3), abs=1e-4)
    assert moving.model.psnr_gain.mean == pytest.approx(20 * math.log10(3), abs=1e-4)
    assert moving.model.psnr.interval is None, "one episode tells nothing of others"
    every = steps["wrist", "all"]
    assert every.copy is not None and every.copy.num_equal == 3
    assert every.copy.psnr_of_mean_error == pytest.approx(10 * math.log10(255**2 / ((9 + 1) / 5)), abs=1e-4)


def test_the_ceiling_is_what_the_codec_gives(tmp_path: Path) -> None:
    data = front()
    darker = world(truth(data), ("front",), reconstruct=lambda video: video - (video > 10).to(torch.uint8) * 5)
    found = measure(darker, data, tmp_path / "a")
    step = found.steps[0]
    assert step.ceiling is not None and 34 < step.ceiling.psnr.mean < 34.5, "5 levels are 34.2 dB"
    rollout = found.rollouts[0]
    assert rollout.ceiling is not None and 34 < rollout.ceiling.psnr.mean < 34.5
    without = measure(world(truth(data), ("front",), reconstruct=None), data, tmp_path / "b")
    assert all(item.ceiling is None for item in (*without.rollouts, *without.steps))
    assert "no codec" in without.not_measured["ceiling"]


def test_what_the_model_is_shown() -> None:
    """Its memory, rows `context_stride` apart, with the first frame in place of those before the episode."""
    data = dataset([episodes()[1]])
    asked = []

    def imagine(observation: Observation, actions: Tensor, *, keys: Sequence[tuple[int, ...]]) -> Tensor:
        asked.append((observation, actions, keys))
        return copying(observation, actions, keys=keys)

    model = world(imagine, num_context=3, context_stride=2, max_rows=5)
    [frames] = imagine_episodes(model, data, data.episodes, seed=4)
    columns = data.columns(0)
    real = torch.from_numpy(np.stack([data.frames(0, camera, range(8)) for camera in CAMERAS]))
    assert torch.equal(frames.real, real) and frames.rolled.shape == frames.stepped.shape == (2, 7, 16, 20, 3)
    (whole, actions, keys), *steps = asked
    assert torch.equal(whole.video, real[None, :, [0, 0, 0]])
    assert whole.known is not None and whole.known.tolist() == [[False, False, True]]
    np.testing.assert_array_equal(actions[0], columns["action"][:7])
    assert keys == [(400_000, 0)] and whole.task == [data.episodes[0].task]
    assert [len(observation.video) for observation, _, _ in steps] == [5, 2]
    rows = {0: [0, 0, 0], 1: [0, 0, 1], 2: [0, 0, 2], 3: [0, 1, 3], 4: [0, 2, 4], 5: [1, 3, 5], 6: [2, 4, 6]}
    for observation, actions, keys in steps:
        for place, (episode, row) in enumerate(keys):
            assert episode == 400_000
            assert torch.equal(observation.video[place], real[:, rows[row]])
            assert observation.known is not None
            assert observation.known[place].tolist() == [row >= 4, row >= 2, True]
            np.testing.assert_array_equal(actions[place], columns["action"][row][None])
            np.testing.assert_array_equal(observation.state[place], columns["observation.state"][row])
    assert torch.equal(frames.stepped, real[:, :-1]), "in the order of the rows"


def test_a_batch_changes_nothing() -> None:
    """Episodes of different lengths side by side, and each on its own."""
    data = dataset()
    for rows in (1, 2, 16):
        found = list(imagine_episodes(world(brightening, max_rows=rows), data, data.episodes))
        assert [item.entry.index for item in found] == [1, 0, 2], "the longest first"
        for item in found:
            real = item.real[:, :1]
            steps = torch.arange(1, item.entry.length, dtype=torch.uint8).view(1, -1, 1, 1, 1)
            assert torch.equal(item.rolled, real + 2 * steps)
            assert torch.equal(item.stepped, item.real[:, :-1] + 2)
            assert item.rebuilt is not None and torch.equal(item.rebuilt, item.real)


def test_a_robot_that_feels_nothing() -> None:
    parts = [dataclasses.replace(item, state=item.state[:, :0]) for item in episodes()]
    data = MemoryDataset(parts, dataclasses.replace(synthetic_robot(height=16, width=20), state=()))
    asked = []

    def imagine(observation: Observation, actions: Tensor, *, keys: Sequence[tuple[int, ...]]) -> Tensor:
        asked.append(observation.state.shape[1])
        return copying(observation, actions, keys=keys)

    assert len(list(imagine_episodes(world(imagine), data, data.episodes))) == 3 and set(asked) == {0}


def test_one_camera_is_told_once(tmp_path: Path) -> None:
    data = dataset(episodes(cameras=("front",)), cameras=("front",))
    found = measure(world(copying, cameras=("front",)), data, tmp_path / "out")
    assert [(item.frames, item.camera) for item in found.rollouts] == [(3, "front"), (None, "front")]
    assert [(item.frames, item.camera) for item in found.steps] == [("all", "front"), ("moving", "front")]


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    data = dataset()
    found = measure(world(copying), data, tmp_path / "out", settings=QualitySettings())
    assert set(found.not_measured) == {"lpips", "fvd", "rollouts"}
    assert "--vgg" in found.not_measured["lpips"] and "--lpips" in found.not_measured["lpips"]
    assert "--i3d" in found.not_measured["fvd"]
    assert found.not_measured["rollouts"] == "no episode has min_frames = 22 frames or more"
    assert found.short_episodes == (0, 1, 2)
    assert all(item.num_clips == 0 and item.model is None and item.max_frames == 0 for item in found.rollouts)
    assert found.steps[0].model is not None, "single steps need no long episode"
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["not_measured"] == found.not_measured


def test_distances_of_clips_come_with_their_number_and_length() -> None:
    generator = torch.Generator().manual_seed(0)

    def clip(episode: int, camera: str, length: int) -> Clip:
        scores = FrameScores(psnr=torch.full((length,), 20.0 + episode), ssim=torch.zeros(length), lpips=None)
        features = {
            (name, frames): torch.randn(4, generator=generator)
            for name in ("real", "model", "copy")
            for frames in (9, None)
            if length >= 9
        }
        return Clip(episode=episode, camera=camera, scores={"model": scores, "copy": scores}, features=features)

    clips = [clip(0, "front", 12), clip(0, "wrist", 12), clip(1, "front", 9), clip(2, "front", 5)]
    found = rollout_quality(clips, 9, "all", resamples=50, seed=0)
    assert found.model is not None and found.model.fvd is not None and found.num_clips == 3
    shown, real = (torch.stack([item.features[name, 9] for item in clips[:3]]) for name in ("model", "real"))
    assert found.model.fvd.value == pytest.approx(video_distance(shown, real))
    assert (found.model.fvd.num_clips, found.model.fvd.min_frames, found.model.fvd.max_frames) == (3, 9, 9)
    whole = rollout_quality(clips, None, "all", resamples=50, seed=0)
    assert whole.model is not None and whole.model.fvd is not None and whole.num_clips == 4
    assert (whole.model.fvd.num_clips, whole.model.fvd.min_frames, whole.model.fvd.max_frames) == (3, 9, 12)
    assert whole.model.psnr.mean == pytest.approx((20 + 20 + 21 + 22) / 4), "every clip counts alike"
    assert whole.ceiling is None
    alone = rollout_quality(clips, 9, "wrist", resamples=50, seed=0)
    assert alone.model is not None and alone.model.fvd is None, "one clip has no covariance"
    assert step_quality([], "all", "front", resamples=50, seed=0).num_frames == 0


def test_intervals_draw_whole_groups() -> None:
    """Of two groups: the one alone, the other alone, or both; equal numbers give an equal interval."""
    assert bootstrap_interval([10.0, 60.0], [1, 3]) == (10.0, 20.0)
    assert bootstrap_interval([10.0], [1]) is None and bootstrap_interval([10.0, 0.0], [1, 0]) is None
    numbers = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(numbers.tolist(), [1] * 400, seed=3) or (0, 0)
    assert (low, high) == bootstrap_interval(numbers.tolist(), [1] * 400, seed=3)
    width = 1.96 * numbers.std() / 20
    assert low == pytest.approx(numbers.mean() - width, abs=0.02)
    assert high == pytest.approx(numbers.mean() + width, abs=0.02)


@pytest.mark.slow
def test_all_metrics_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = dataset(episodes((10, 11), cameras=("front",)), cameras=("front",))
    networks = MetricNetworks(lpips=LPIPS(), i3d=I3D())
    with torch.no_grad():
        for item in networks.lpips.heads().parameters():  # type: ignore[union-attr]
            item.abs_()
    settings = QualitySettings(horizons=(4, 9), min_frames=9, resamples=50)
    found = measure(world(truth(data), ("front",)), data, tmp_path / "a", settings=settings, networks=networks)
    short, nine, whole = found.rollouts
    for item in (nine, whole):
        assert item.model is not None and item.copy is not None and item.ceiling is not None
        assert item.model.lpips is not None and item.copy.lpips is not None
        assert item.model.lpips.mean == 0 < item.copy.lpips.mean
        assert item.model.fvd is not None and item.copy.fvd is not None
        assert 1e-13 < 100 * item.model.fvd.value + 1e-12 < item.copy.fvd.value
    assert whole.model is not None and whole.model.fvd is not None
    assert (whole.model.fvd.num_clips, whole.model.fvd.min_frames, whole.model.fvd.max_frames) == (2, 9, 10)
    assert short.model is not None and short.model.fvd is None
    assert found.not_measured == {"fvd": "not of front over 4 frames: 2 clips of 9 frames are needed"}


def test_films_and_pictures_show_the_first_episodes(tmp_path: Path) -> None:
    data = dataset([still(6, 50), still(8, 90), still(5, 120)])
    measure(world(brightening), data, tmp_path / "out", num_films=2)
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    pictures = [f"frames/episode_00000{number}_{camera}.png" for number in (0, 1) for camera in CAMERAS]
    assert files == [*pictures, "quality.json", "videos/episode_000000.mp4", "videos/episode_000001.mp4"]
    with av.open(io.BytesIO((tmp_path / "out" / "videos" / "episode_000001.mp4").read_bytes())) as film:
        decoded = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 20
    assert len(decoded) == 7 + 10
    height = decoded[0].shape[0]
    for number, frame in enumerate(decoded[:7], start=1):
        assert abs(int(frame[: height // 3, :150].mean()) - 90) <= 3
        assert abs(int(frame[-height // 3 :, :150].mean()) - (90 + 2 * number)) <= 3, "imagined below"
    picture = np.asarray(Image.open(tmp_path / "out" / "frames" / "episode_000001_front.png"))
    assert picture.shape == (2 * 16 * 6 + 2 + 8, 7 * (20 * 6 + 2), 3)
    assert (picture[:96, :120] == 90).all() and (picture[98 : 98 + 96, 6 * 122 : 6 * 122 + 120] == 90 + 14).all()


def test_the_report_shows_numbers_and_pictures(tmp_path: Path) -> None:
    data = dataset()
    for name, model in (("copying", copying), ("right", truth(data))):
        measure(world(model), data, tmp_path / name, num_films=1)
    page = tmp_path / "page.html"
    assert main(["report", "--quality", str(tmp_path / "copying"), str(tmp_path / "right"), "--output", str(page)]) == 0
    text = page.read_text()
    results = WorldQuality.load(tmp_path / "copying")
    step, rollout = results.steps[0], results.rollouts[0]
    assert step.copy is not None and rollout.copy is not None
    assert f"{step.copy.psnr.mean:.2f} dB" in text and f"{rollout.copy.psnr.mean:.2f} dB" in text
    assert "+0.00 dB" in text and "exact" in text and "Not measured: lpips: no weights" in text
    assert text.count("data:image/png") == 2 * len(CAMERAS) and "<title>World model: " in text
    with pytest.raises(FileNotFoundError, match="make it with `wamkit quality`"):
        write_report([], page, quality=[tmp_path])
    assert page.read_text() == text


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    data, out = front(), tmp_path / "out"
    measure(world(copying, ("front",)), data, out)
    with pytest.raises(ValueError, match=r"holds an earlier result; use another folder, or replace it \(--fresh"):
        measure(world(copying, ("front",)), data, out)
    measure(world(truth(data), ("front",)), data, out, fresh=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt', which `wamkit quality` did not write"):
        measure(world(copying, ("front",)), data, out, fresh=True)
    with pytest.raises(ValueError, match=r"expected a folder or nothing at .*quality.json, found a file"):
        measure(world(copying, ("front",)), data, out / "quality.json")
    with pytest.raises(FileNotFoundError, match="make it with `wamkit quality`"):
        WorldQuality.load(tmp_path)


def test_what_is_no_frame_is_refused(tmp_path: Path) -> None:
    data = dataset()
    for wrong in (
        lambda observation, actions, *, keys: copying(observation, actions, keys=keys).float(),
        lambda observation, actions, *, keys: copying(observation, actions, keys=keys)[:, :1],
        lambda observation, actions, *, keys: copying(observation, actions, keys=keys)[:, :, :, :8],
    ):
        with pytest.raises(
            ValueError, match=r"expected imagined frames after 7 actions of the world model as uint8 of"
        ):
            measure(world(wrong), data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"expected reconstructed frames of the world model as uint8 of shape \(1, 2"):
        measure(world(copying, reconstruct=lambda video: video[:, :, :2]), data, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing half written"


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    data = dataset()
    with pytest.raises(ValueError, match="the part 'val_ind' of square has none; choose others"):
        measure(world(copying), data, tmp_path / "out", entries=[])
    single = dataset([still(6, 50), still(1, 50)])
    with pytest.raises(ValueError, match="expected episodes of two rows or more, got one in episode 1; leave"):
        measure(world(copying), single, tmp_path / "out")
    for wrong in ({"horizons": (0,)}, {"horizons": (3, 3)}):
        with pytest.raises(ValueError, match="expected distinct horizons of 1 or more frames"):
            QualitySettings(**wrong)
    for wrong in ({"min_frames": 1}, {"motion": math.nan}, {"seed": -1}, {"resamples": 0}):
        with pytest.raises(ValueError, match="expected min_frames of 2 or more, motion and seed of 0 or more"):
            QualitySettings(**wrong)  # type: ignore[arg-type]
    for wrong in ({"cameras": ()}, {"max_rows": 0}, {"context_stride": 0}):
        with pytest.raises(ValueError, match="expected one or more cameras, and num_context, context_stride and"):
            world(copying, **{"cameras": CAMERAS, **wrong})
    with pytest.raises(ValueError, match=r"LPIPS needs two files, VGG16 \(--vgg\) and its heads \(--lpips\)"):
        MetricNetworks.load(vgg=tmp_path / "vgg.pth")
    with pytest.raises(FileNotFoundError, match="expected the weights of I3D at"):
        MetricNetworks.load(i3d=tmp_path / "i3d.pt")


def test_the_files_of_networks_are_recorded(tmp_path: Path) -> None:
    torch.save(I3D().state_dict(), tmp_path / "i3d.pt")
    networks = MetricNetworks.load(i3d=tmp_path / "i3d.pt")
    assert networks.i3d is not None and set(networks.files) == {"i3d"} and set(networks.missing) == {"lpips"}
    assert networks.files["i3d"].name == "i3d.pt" and len(networks.files["i3d"].digest) == 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder of the synthetic robot: a WorldVLA that has learned nothing."""
    policy = world_policy()
    config = dataclasses.asdict(world_config())
    return policy.save(tmp_path_factory.mktemp("policy") / "tiny", config=config, training={})


def world_config() -> WorldVLAConfig:
    tiny = worldvla.tiny(num_views=2, action_dim=3, state_dim=3)
    return dataclasses.replace(tiny, image_size=32, codec=dataclasses.replace(tiny.codec, fit_steps=2))


@functools.cache
def world_policy() -> Policy:
    return untrained_policy(world_config(), synthetic_robot(), execution_horizon=5)


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven demonstrations of one sentence, so that the last one is held out, and one of another."""
    root = tmp_path_factory.mktemp("quality") / "square"
    with LeRobotWriter(root, synthetic_robot()) as writer:
        for episode in synthetic_episodes(11, length=24):
            writer.add(dataclasses.replace(episode, task="push the square"))
    return root


def test_a_policy_is_asked_with_the_frames_of_its_memory() -> None:
    model = world_of(world_policy(), max_rows=3)
    assert (model.num_context, model.context_stride) == (2, 1)
    assert model.cameras == CAMERAS and model.max_rows == 3


def test_the_command_measures_the_held_out_episodes(
    folder: Path, square: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quality", str(folder), "--data", str(square)]
    assert main([*arguments, "--output", str(tmp_path / "a"), "--films", "1"]) == 0
    said = capsys.readouterr().out
    assert "tiny on square, 1 episodes (val_ind)" in said and "copying" in said and "codec" in said
    assert "not measured: lpips: no weights" in said and "not measured: fvd: no weights" in said
    found = WorldQuality.load(tmp_path / "a")
    assert found.episodes == (10,) and found.split == "val_ind" and found.dataset.name == "square"
    assert found.rollouts[0].num_clips == 2 and found.rollouts[3].num_clips == 0, "10 frames, and no 50"
    assert (tmp_path / "a" / "videos" / "episode_000010.mp4").is_file()
    assert main([*arguments, "--output", str(tmp_path / "b"), "--episodes", "0:2", "5", "--json", "--films", "0"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["episodes"] == [0, 1, 5] and printed["split"] == "0:2 5"
    assert printed == json.loads((tmp_path / "b" / "quality.json").read_text())
    gain = printed["rollouts"][0]["model"]["psnr_gain"]["mean"]
    assert gain < 0, "an untrained model is worse than copying"
    assert len(LeRobotDataset(square).episodes) == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "val_ood"], "the part 'val_ood' of square is empty"),
        (["--episodes", "11"], "expected some of the episodes 0 to 10"),
        (["--batch-size", "0"], "expected batch_size of 1 or more and films of 0 or more, got 0 and 2"),
        (["--vgg", "nowhere.pth"], "LPIPS needs two files"),
        (["--i3d", "nowhere.pt"], "expected the weights of I3D at nowhere.pt, found no such file"),
        (["--horizons", "0"], "expected distinct horizons of 1 or more frames, got [0]"),
    ],
)
def test_the_command_says_what_is_wrong(
    folder: Path, square: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quality", str(folder), "--data", str(square), "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_actions_that_are_clipped_are_told_of(square: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A share of the recorded numbers: of a policy whose limits leave the largest ones out."""
    policy = world_policy()
    recorded = [episode.actions[:-1] for episode in synthetic_episodes(2, length=24)]
    for limit, expected in ((50.0, 0.0), (0.5, float(np.mean(np.abs(np.concatenate(recorded)) > 0.5)))):
        edges = {"q01": (-limit,) * 3, "q99": (limit,) * 3, "constant": (), "widened": ()}
        normalizer = dataclasses.replace(policy.transforms.action.normalizer, kind="minmax", **edges)
        action = dataclasses.replace(policy.transforms.action, normalizer=normalizer)
        other = Policy(policy.model, policy.spec, dataclasses.replace(policy.transforms, action=action))
        name = f"limit{limit:g}"
        other.save(tmp_path / name, config=dataclasses.asdict(world_config()), training={})
        asked = ["quality", str(tmp_path / name), "--data", str(square), "--episodes", "0:2", "--films", "0"]
        assert main([*asked, "--output", str(tmp_path / f"{name}_out")]) == 0
        found = WorldQuality.load(tmp_path / f"{name}_out").clipped_actions
        assert found == pytest.approx(expected, abs=0.01) and (expected > 0) == (limit < 1)
        assert ("of the actions' numbers lay outside" in capsys.readouterr().out) == (limit < 1)


def test_a_policy_that_never_saw_a_future_frame_is_told_of(
    square: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "policy"
    recipe = {"stages": [{"needs_future": False}], "data": {"action_offset": 0}}
    world_policy().save(folder, config=dataclasses.asdict(world_config()), training={"recipe": recipe})
    common = [str(folder), "--data", str(square), "--output"]
    for command in (
        ["quality", *common, str(tmp_path / "a"), "--episodes", "0", "--films", "0"],
        ["imagine", *common, str(tmp_path / "b"), "--chunks", "1"],
    ):
        caplog.clear()
        assert main(command) == 0
        assert "never learned to imagine" in caplog.text


def test_a_family_without_a_world_model_is_refused() -> None:
    with pytest.raises(ValueError, match="family 'wav' imagines no frames along given actions"):
        world_of(make_policy())
