"""Numbers of a world model's quality, from the frames of its episodes: of clips, and of single steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wamkit.data.ssim import FRAMES_AT_ONCE
from wamkit.evaluation.fvd import MIN_CLIPS, video_distance
from wamkit.evaluation.i3d import I3D, MIN_FRAMES
from wamkit.evaluation.lpips import LPIPS
from wamkit.evaluation.statistics import bootstrap_interval
from wamkit.evaluation.video_metrics import FrameScores, decibels, resized, score_clip, squared_error
from wamkit.evaluation.world_rollouts import EpisodeFrames

MODEL, COPY, CEILING = "model", "copy", "ceiling"
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, with a 95 % interval from drawing whole episodes anew; `None` with fewer than two episodes."""

    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class VideoDistance:
    """A Frechet video distance, which means nothing without the number and length of its clips.

    Args:
        value: the distance.
        num_clips: on each side.
        min_frames: of the shortest clip.
        max_frames: of the longest.
    """

    value: float
    num_clips: int
    min_frames: int
    max_frames: int


@dataclass(frozen=True, kw_only=True)
class ClipQuality:
    """How close some clips are to what was recorded: means over the frames of a clip, then over clips.

    Args:
        psnr: decibels; equal frames count as 100.
        psnr_gain: of `psnr` over that of the baseline; `None` for the baseline itself.
        ssim: times 100.
        lpips: times 100; `None` when it was not measured.
        fvd: or `None` when it was not measured.
    """

    psnr: Estimate
    psnr_gain: Estimate | None
    ssim: Estimate
    lpips: Estimate | None
    fvd: VideoDistance | None


@dataclass(frozen=True, kw_only=True)
class RolloutQuality:
    """Roll-outs from the first recorded frame, over their first frames.

    Args:
        frames: how many imagined frames of each clip count; `None`: all of them.
        camera: whose, or `all`.
        num_clips: clips that are that long; an episode seen by a camera is one.
        num_episodes: of these clips.
        min_frames: imagined frames that count of the shortest clip; 0 without clips.
        mean_frames: of a clip on average.
        max_frames: of the longest.
        model: what was imagined; `None` without clips, as the next two.
        copy: the first frame held, which any model should beat.
        ceiling: recorded frames, encoded and decoded; `None` for a model without a codec too.
    """

    frames: int | None
    camera: str
    num_clips: int
    num_episodes: int
    min_frames: int
    mean_frames: float
    max_frames: int
    model: ClipQuality | None
    copy: ClipQuality | None
    ceiling: ClipQuality | None


@dataclass(frozen=True, kw_only=True)
class StepCloseness:
    """PSNR of single frames.

    Args:
        psnr: decibels, mean over frames; equal frames count as 100.
        psnr_gain: of `psnr` over that of copying; `None` for copying itself.
        psnr_of_mean_error: decibels of the squared error of all frames together.
        num_equal: frames without any error.
    """

    psnr: Estimate
    psnr_gain: Estimate | None
    psnr_of_mean_error: float
    num_equal: int


@dataclass(frozen=True, kw_only=True)
class StepQuality:
    """The next frame from recorded ones, in the model's size.

    Args:
        camera: whose frames, or `all`.
        frames: `all` of them, or the `moving` ones, which differ enough from the frame before.
        num_frames: that many.
        num_episodes: they come from.
        model: what was imagined; `None` without frames, as the next two.
        copy: the frame before, which any model should beat.
        ceiling: the recorded frame, encoded and decoded; `None` for a model without a codec too.
    """

    camera: str
    frames: Literal["all", "moving"]
    num_frames: int
    num_episodes: int
    model: StepCloseness | None
    copy: StepCloseness | None
    ceiling: StepCloseness | None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What was measured on the roll-out of one episode in one camera.

    Args:
        episode: index.
        camera: name.
        scores: of each imagined frame, by what was shown.
        features: of I3D, by what was shown (`real` too) and how many frames; `None` are all of them.
    """

    episode: int
    camera: str
    scores: Mapping[str, FrameScores]
    features: Mapping[tuple[str, int | None], Float[Tensor, "k"]]

    @property
    def num_frames(self) -> int:
        """Imagined frames."""
        return len(self.scores[MODEL].psnr)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Squared errors of the next frames of one episode in one camera, in levels squared, by what was shown."""

    episode: int
    camera: str
    errors: Mapping[str, Float[Tensor, "p"]]
    is_moving: Bool[Tensor, "p"]


def measure_clip(
    frames: EpisodeFrames,
    view: int,
    camera: str,
    *,
    horizons: Sequence[int | None],
    lpips: LPIPS | None,
    i3d: I3D | None,
    device: torch.device | str,
) -> Clip:
    """Compare a roll-out with what was recorded, its first frame left out, which is no prediction."""
    real = frames.real[view].to(device)
    shown = {MODEL: frames.rolled[view].to(device)}
    if frames.rebuilt is not None:
        shown[CEILING] = frames.rebuilt[view, 1:].to(device)
    scores = score_clip(shown, real[1:], stills={COPY: real[0]}, lpips=lpips)
    features = {}
    if i3d is not None:
        clips = {"real": real[1:], **shown, COPY: real[:1].expand(len(real) - 1, -1, -1, -1)}
        for name, clip in clips.items():
            for horizon in horizons:
                if len(clip[:horizon]) >= MIN_FRAMES and (horizon is None or len(clip) >= horizon):
                    features[name, horizon] = i3d.encode(resized(clip[:horizon])).cpu()
    return Clip(episode=frames.entry.index, camera=camera, scores=scores, features=features)


def measure_steps(frames: EpisodeFrames, view: int, camera: str, *, motion: float, device: torch.device | str) -> Steps:
    """Compare next frames with what was recorded; `motion` is the mean absolute change in levels of a moving frame."""
    real = frames.real[view].to(device)
    before, after = real[:-1], real[1:]
    errors = {
        MODEL: squared_error(frames.stepped[view].to(device), after).cpu(),
        COPY: squared_error(before, after).cpu(),
    }
    if frames.rebuilt is not None:
        errors[CEILING] = squared_error(frames.rebuilt[view, 1:].to(device), after).cpu()
    return Steps(
        episode=frames.entry.index, camera=camera, errors=errors, is_moving=mean_change(before, after).cpu() >= motion
    )


def mean_change(before: UInt8[Tensor, "t h w 3"], after: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, "t"]:
    """Mean absolute change of each pair of frames, over pixels and colours, in levels of 0 to 255."""
    parts = zip(before.split(FRAMES_AT_ONCE), after.split(FRAMES_AT_ONCE), strict=True)
    return torch.cat([reduce((one.float() - other.float()).abs(), "t h w c -> t", "mean") for one, other in parts])


def rollout_quality(
    clips: Sequence[Clip], frames: int | None, camera: str, *, resamples: int, seed: int
) -> RolloutQuality:
    """Numbers over the clips of a camera (`all`: of every camera) that have that many imagined frames."""
    chosen = [
        clip
        for clip in clips
        if camera in (ALL, clip.camera) and clip.num_frames and (frames is None or clip.num_frames >= frames)
    ]
    lengths = [len(clip.scores[MODEL].psnr[:frames]) for clip in chosen]
    groups = [clip.episode for clip in chosen]

    def estimate(read: Callable[[Clip], Tensor]) -> Estimate:
        means = [float(read(clip)[:frames].double().mean()) for clip in chosen]
        return _estimate(means, groups, resamples=resamples, seed=seed)

    def quality(name: str) -> ClipQuality | None:
        if not chosen or any(name not in clip.scores for clip in chosen):
            return None
        has_lpips = all(clip.scores[name].lpips is not None for clip in chosen)
        return ClipQuality(
            psnr=estimate(lambda clip: clip.scores[name].psnr),
            psnr_gain=None if name == COPY else estimate(lambda clip: clip.scores[name].psnr - clip.scores[COPY].psnr),
            ssim=estimate(lambda clip: clip.scores[name].ssim),
            lpips=estimate(lambda clip: _given(clip.scores[name].lpips)) if has_lpips else None,
            fvd=_distance(chosen, name, frames),
        )

    return RolloutQuality(
        frames=frames,
        camera=camera,
        num_clips=len(chosen),
        num_episodes=len(set(groups)),
        min_frames=min(lengths, default=0),
        mean_frames=sum(lengths) / len(lengths) if lengths else 0.0,
        max_frames=max(lengths, default=0),
        model=quality(MODEL),
        copy=quality(COPY),
        ceiling=quality(CEILING),
    )


def step_quality(
    steps: Sequence[Steps], frames: Literal["all", "moving"], camera: str, *, resamples: int, seed: int
) -> StepQuality:
    """Numbers over the next frames of a camera (`all`: of every camera)."""
    chosen = [item for item in steps if camera in (ALL, item.camera)]
    kept = [item.is_moving if frames == "moving" else torch.ones_like(item.is_moving) for item in chosen]
    groups = [item.episode for item, keep in zip(chosen, kept, strict=True) for _ in range(int(keep.sum()))]

    def errors(name: str) -> Tensor:
        return torch.cat([item.errors[name][keep] for item, keep in zip(chosen, kept, strict=True)]).double()

    def closeness(name: str) -> StepCloseness | None:
        if not groups or any(name not in item.errors for item in chosen):
            return None
        error = errors(name)
        psnr = decibels(error)
        gain = None if name == COPY else (psnr - decibels(errors(COPY))).tolist()
        return StepCloseness(
            psnr=_estimate(psnr.tolist(), groups, resamples=resamples, seed=seed),
            psnr_gain=None if gain is None else _estimate(gain, groups, resamples=resamples, seed=seed),
            psnr_of_mean_error=float(decibels(error.mean())),
            num_equal=int((error == 0).sum()),
        )

    return StepQuality(
        camera=camera,
        frames=frames,
        num_frames=len(groups),
        num_episodes=len(set(groups)),
        model=closeness(MODEL),
        copy=closeness(COPY),
        ceiling=closeness(CEILING),
    )


def _estimate(numbers: Sequence[float], groups: Sequence[int], *, resamples: int, seed: int) -> Estimate:
    """Mean of some numbers, each of an episode."""
    totals: dict[int, float] = {}
    counts: dict[int, int] = {}
    for number, group in zip(numbers, groups, strict=True):
        totals[group] = totals.get(group, 0.0) + number
        counts[group] = counts.get(group, 0) + 1
    ordered = sorted(totals)  # the order of computing must not decide what is drawn
    interval = bootstrap_interval(
        [totals[group] for group in ordered], [counts[group] for group in ordered], seed=seed, resamples=resamples
    )
    return Estimate(mean=sum(numbers) / len(numbers), interval=interval)


def _distance(clips: Sequence[Clip], name: str, frames: int | None) -> VideoDistance | None:
    chosen = [clip for clip in clips if (name, frames) in clip.features]
    if len(chosen) < MIN_CLIPS:
        return None
    shown, real = (torch.stack([clip.features[which, frames] for clip in chosen]) for which in (name, "real"))
    lengths = [len(clip.scores[MODEL].psnr[:frames]) for clip in chosen]
    return VideoDistance(
        value=video_distance(shown, real), num_clips=len(chosen), min_frames=min(lengths), max_frames=max(lengths)
    )


def _given(numbers: Tensor | None) -> Tensor:
    assert numbers is not None, "asked for only where it was measured"
    return numbers
