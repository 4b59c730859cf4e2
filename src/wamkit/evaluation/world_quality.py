"""How good a world model is at recorded episodes that it was not trained on.

Two questions, each beside what costs nothing (copying a frame) and what no roll-out can beat (encode and decode):

- *roll-outs*: from the first recorded frame along the recorded actions to the end of the episode, each imagined frame
  fed back; PSNR, SSIM, LPIPS and FVD over the first frames and over all of them, at 256x256 px;
- *steps*: the next frame from recorded ones, PSNR at the model's own size; on all frames, and on those that differ
  from the frame before, since copying is hard to beat where nothing moves.

quality.json           `WorldQuality`
videos/EPISODE.mp4     real frames above imagined ones, cameras side by side
frames/EPISODE_CAMERA.png    some of them as one picture

Source: WorldVLA (arXiv 2506.21539), world-model quality; sections 6.1 and 6.2 of the specification.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wamkit.atomic import atomic_folder
from wamkit.data.source import EpisodeEntry, EpisodeSource
from wamkit.evaluation.fvd import MIN_CLIPS
from wamkit.evaluation.i3d import I3D, MIN_FRAMES
from wamkit.evaluation.imagined import sheet
from wamkit.evaluation.lpips import LPIPS
from wamkit.evaluation.media import encode_comparison
from wamkit.evaluation.metric_weights import WeightsFile
from wamkit.evaluation.open_loop_films import MAX_FPS
from wamkit.evaluation.open_loop_results import DatasetIdentity, episode_name, video_path
from wamkit.evaluation.own_folder import require_own_folder
from wamkit.evaluation.results import PACKAGES, PolicyIdentity, read_results, write_json
from wamkit.evaluation.video_metrics import PSNR_CAP, SIZE
from wamkit.evaluation.world_rollouts import EpisodeFrames, WorldModel, imagine_episodes
from wamkit.evaluation.world_scores import (
    ALL,
    Clip,
    RolloutQuality,
    StepQuality,
    Steps,
    measure_clip,
    measure_steps,
    rollout_quality,
    step_quality,
)
from wamkit.progress import ProgressBar
from wamkit.versions import software_versions

FORMAT = "wamkit-quality/1"
RESULTS_FILE, VIDEOS_FOLDER, FRAMES_FOLDER = "quality.json", "videos", "frames"
OWN_FILES = (RESULTS_FILE, VIDEOS_FOLDER, FRAMES_FOLDER)
SHEET_FRAMES = 10


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What a measurement fixes.

    Args:
        horizons: numbers of first imagined frames that roll-outs are measured over, beside all of them.
        min_frames: recorded frames, the first included, below which an episode is too short for roll-outs.
        motion: mean absolute change from the frame before, in levels of 0 to 255, from which on a frame moves.
        seed: of the model's draws and of the intervals'.
        resamples: how often episodes are drawn anew for an interval.
    """

    horizons: tuple[int, ...] = (10, 50)
    min_frames: int = 22
    motion: float = 2.0
    seed: int = 0
    resamples: int = 2000

    def __post_init__(self) -> None:
        if min(self.horizons, default=1) < 1 or len(set(self.horizons)) != len(self.horizons):
            raise ValueError(f"expected distinct horizons of 1 or more frames, got {list(self.horizons)}")
        if self.min_frames < 2 or not self.motion >= 0 or self.seed < 0 or self.resamples < 1:
            raise ValueError(
                "expected min_frames of 2 or more, motion and seed of 0 or more and resamples of 1 or more, got "
                f"{self.min_frames}, {self.motion}, {self.seed} and {self.resamples}"
            )


@dataclass(frozen=True, kw_only=True)
class MetricNetworks:
    """Networks that some metrics need; those that are not there are left out, and the rest is measured.

    Args:
        lpips: or `None`.
        i3d: or `None`.
        files: what they were read from, by name.
    """

    lpips: LPIPS | None = None
    i3d: I3D | None = None
    files: dict[str, WeightsFile] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        *,
        vgg: Path | None = None,
        lpips: Path | None = None,
        i3d: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> MetricNetworks:
        """Read those whose weights are named.

        Args:
            vgg: torchvision's VGG16, for LPIPS.
            lpips: heads of LPIPS.
            i3d: I3D, for FVD.
            device: where they compute.

        Raises:
            FileNotFoundError: a named file is not there.
            ValueError: it holds something else, or one of the two files of LPIPS is not named.
        """
        if (vgg is None) != (lpips is None):
            raise ValueError(
                "LPIPS needs two files, VGG16 (--vgg) and its heads (--lpips), and one of them is named; name both or "
                "neither"
            )
        named = {"vgg": vgg, "lpips": lpips, "i3d": i3d}
        return cls(
            lpips=None if vgg is None or lpips is None else LPIPS.load(vgg=vgg, heads=lpips, device=device),
            i3d=None if i3d is None else I3D.load(i3d, device=device),
            files={name: WeightsFile.of(path) for name, path in named.items() if path is not None},
        )

    @property
    def missing(self) -> dict[str, str]:
        """Metrics that cannot be measured, and why."""
        reasons = {}
        if self.lpips is None:
            reasons["lpips"] = "no weights: name torchvision's VGG16 (--vgg) and the heads of LPIPS (--lpips)"
        if self.i3d is None:
            reasons["fvd"] = "no weights: name those of I3D (--i3d)"
        return reasons


@dataclass(frozen=True, kw_only=True)
class WorldQuality:
    """The content of `quality.json`.

    Args:
        settings: what was fixed.
        policy: whose world model.
        dataset: whose episodes.
        split: name of the part of the dataset.
        episodes: indices that were measured.
        short_episodes: those of them too short for roll-outs.
        cameras: in view order.
        compared_at: height and width in pixels of roll-outs when they are compared.
        seen_at: height and width in pixels of the model's frames, at which steps are compared.
        psnr_cap: decibels that equal frames count as.
        weights: files of the metrics' networks.
        not_measured: what was not, and why.
        clipped_actions: share of the actions' numbers that lay outside what the model was trained on, and were clipped;
            `None` for a model that clips none.
        rollouts: by number of frames and camera.
        steps: by camera and choice of frames.
        versions: wamkit, Python, torch, simulators.
    """

    settings: QualitySettings
    policy: PolicyIdentity
    dataset: DatasetIdentity
    split: str
    episodes: tuple[int, ...]
    short_episodes: tuple[int, ...]
    cameras: tuple[str, ...]
    compared_at: int = SIZE
    seen_at: tuple[int, int]
    psnr_cap: float = PSNR_CAP
    weights: dict[str, WeightsFile]
    not_measured: dict[str, str]
    rollouts: tuple[RolloutQuality, ...]
    steps: tuple[StepQuality, ...]
    versions: dict[str, str]
    clipped_actions: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `quality.json` holds."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def load(cls, folder: Path) -> WorldQuality:
        """Read `quality.json` of a folder.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: it is not a result of this format.
        """
        return read_results(folder / RESULTS_FILE, FORMAT, cls, advice=lambda: "make it with `wamkit quality`")


def measure_world(
    world: WorldModel,
    dataset: EpisodeSource,
    entries: Sequence[EpisodeEntry],
    settings: QualitySettings,
    networks: MetricNetworks,
    *,
    identity: PolicyIdentity,
    source: DatasetIdentity,
    split: str,
    out: Path,
    num_films: int = 2,
    fresh: bool = False,
) -> WorldQuality:
    """Measure a world model on some episodes, and write numbers, films and pictures.

    Args:
        world: the model.
        dataset: recorded episodes of its robot.
        entries: the episodes.
        settings: what is fixed.
        networks: of LPIPS and FVD, on the world's device.
        identity: whose model, for the record.
        source: whose episodes, for the record.
        split: name of the part that `entries` are, for the record.
        out: folder to make.
        num_films: episodes that are filmed, the first ones.
        fresh: replace an earlier measurement in the folder.

    Returns:
        What was written to `quality.json`.

    Raises:
        ValueError: no episodes, one of a single row, a missing column, a folder that holds something else, or a model
            that gives something other than frames.
        DiskFull: no room; what the folder held is untouched.
    """
    if not entries:
        raise ValueError(
            f"expected episodes to measure on, the part {split!r} of {source.name} has none; choose others"
        )
    require_own_folder(out, OWN_FILES, command="quality", fresh=fresh)
    horizons = (*settings.horizons, None)
    filmed = {entry.index for entry in sorted(entries, key=lambda entry: entry.index)[:num_films]}
    clips: list[Clip] = []
    steps: list[Steps] = []
    films: dict[int, EpisodeFrames] = {}
    seen_at = (0, 0)
    count = world.clipped
    before = (0, 0) if count is None else (count.num_seen, count.num_clipped)
    with ProgressBar("world model", len(entries), unit="episodes") as bar:
        for number, frames in enumerate(imagine_episodes(world, dataset, entries, seed=settings.seed), start=1):
            seen_at = (frames.real.shape[2], frames.real.shape[3])
            for view, camera in enumerate(world.cameras):
                steps.append(measure_steps(frames, view, camera, motion=settings.motion, device=world.device))
                if frames.entry.length >= settings.min_frames:
                    clips.append(
                        measure_clip(
                            frames,
                            view,
                            camera,
                            horizons=horizons,
                            lpips=networks.lpips,
                            i3d=networks.i3d,
                            device=world.device,
                        )
                    )
            if frames.entry.index in filmed:
                films[frames.entry.index] = frames
            bar.update(number)
    shown = (ALL, *world.cameras) if len(world.cameras) > 1 else world.cameras
    drawn = {"resamples": settings.resamples, "seed": settings.seed}
    missing = dict(networks.missing)
    if world.reconstruct is None:
        missing["ceiling"] = "the model has no codec that could encode and decode recorded frames"
    short = tuple(sorted(entry.index for entry in entries if entry.length < settings.min_frames))
    if len(short) == len(entries):
        missing["rollouts"] = f"no episode has min_frames = {settings.min_frames} frames or more"
    rollouts = [rollout_quality(clips, frames, camera, **drawn) for frames in horizons for camera in shown]
    without = [item for item in rollouts if item.model is not None and item.model.fvd is None]
    if networks.i3d is not None and without:
        groups = ", ".join(f"{item.camera} over {item.frames or 'all'} frames" for item in without)
        missing["fvd"] = f"not of {groups}: {MIN_CLIPS} clips of {MIN_FRAMES} frames are needed"
    results = WorldQuality(
        settings=settings,
        policy=identity,
        dataset=source,
        split=split,
        episodes=tuple(sorted(entry.index for entry in entries)),
        short_episodes=short,
        cameras=world.cameras,
        seen_at=seen_at,
        weights=networks.files,
        not_measured=missing,
        rollouts=tuple(rollouts),
        steps=tuple(step_quality(steps, which, camera, **drawn) for which in ("all", "moving") for camera in shown),
        versions=software_versions(PACKAGES),
        clipped_actions=None if count is None else (count.num_clipped - before[1]) / max(1, count.num_seen - before[0]),
    )
    rate = 1.0 if dataset.robot is None else dataset.robot.control_hz
    with atomic_folder(out) as folder:
        write_json(folder / RESULTS_FILE, results.to_dict())
        for frames in films.values():
            _write_film(folder, frames, world.cameras, fps=max(1, round(min(rate, MAX_FPS))))
    return results


def _write_film(folder: Path, frames: EpisodeFrames, cameras: Sequence[str], *, fps: int) -> None:
    """The roll-out beside what was recorded, as a film and as a picture for each camera."""
    real, imagined = frames.real[:, 1:].numpy(), frames.rolled.numpy()
    path = video_path(folder, frames.entry.index)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(
        encode_comparison(
            above=dict(zip(cameras, real, strict=True)),
            below=dict(zip(cameras, imagined, strict=True)),
            starts=[0],
            fps=fps,
        )
    )
    (folder / FRAMES_FOLDER).mkdir(exist_ok=True)
    places = np.unique(np.linspace(0, real.shape[1] - 1, SHEET_FRAMES).round().astype(int))
    for camera, above, below in zip(cameras, real, imagined, strict=True):
        picture = Image.fromarray(sheet(above[places], below[places], 1))
        picture.save(folder / FRAMES_FOLDER / f"{episode_name(frames.entry.index)}_{camera}.png")
