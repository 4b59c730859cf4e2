"""Closeness of imagined frames to recorded ones: PSNR, SSIM and LPIPS, frame by frame.

Frames of any size are first brought to 256x256 px: bilinear, antialiased where that shrinks them, rounded to whole
levels again. Two clips are compared as far as the shorter one reaches.

Source: WorldVLA (arXiv 2506.21539), world-model quality; section 6.1 of the specification.
Differs: frames are compared as they lie in memory, not after a trip through an MP4 file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.data.images import fit_images
from wamkit.data.ssim import FRAMES_AT_ONCE, structural_similarity
from wamkit.evaluation.lpips import LPIPS

SIZE = 256
"""Height and width in pixels at which frames are compared."""
PSNR_CAP = 100.0
"""Decibels that equal frames count as: theirs are infinite, which no mean and no JSON can hold. Of frames that differ,
only those with one number of 196 608 off by one level have more (101)."""


@dataclass(frozen=True, kw_only=True)
class FrameScores:
    """Closeness of each frame of a clip to its counterpart.

    Args:
        psnr: decibels, at most `PSNR_CAP`.
        ssim: structural similarity times 100.
        lpips: perceptual distance times 100, or `None` without its network.
    """

    psnr: Float[Tensor, "t"]
    ssim: Float[Tensor, "t"]
    lpips: Float[Tensor, "t"] | None


def resized(frames: UInt8[Tensor, "t h w 3"]) -> UInt8[Tensor, "t y x 3"]:
    """Frames of 256x256 px."""
    return fit_images(frames, height=SIZE, width=SIZE, preprocess="resize")


def squared_error(shown: UInt8[Tensor, "t h w 3"], real: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, "t"]:
    """Mean squared difference of each pair of frames, over pixels and colours, in levels of 0 to 255 squared."""
    parts = zip(shown.split(FRAMES_AT_ONCE), real.split(FRAMES_AT_ONCE), strict=True)
    errors = [reduce((one.float() - other.float()).square(), "t h w c -> t", "mean") for one, other in parts]
    return torch.cat(errors) if errors else torch.zeros(0, device=real.device)


def decibels(error: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Peak signal to noise of 8-bit frames (of frames in [0, 1] with peak 1) by their mean squared error, capped."""
    return (10 * torch.log10(255.0**2 / error)).clamp(max=PSNR_CAP)


def similarity(shown: UInt8[Tensor, "t h w 3"], real: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, "t"]:
    """Structural similarity of each pair of frames, in [-1, 1]: window 11 px, sigma 1.5, the mean of red, green, blue.

    Only windows that lie inside the frame count, and variances divide by the number of pixels, as in Wang et al. 2004:
    what scikit-image gives for `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1`, and
    torchmetrics by default.
    """
    parts = []
    for one, other in zip(shown.split(FRAMES_AT_ONCE), real.split(FRAMES_AT_ONCE), strict=True):
        first, second = (rearrange(part, "t h w c -> (t c) h w").float() for part in (one, other))
        parts.append(reduce(structural_similarity(first, second), "(t c) -> t", "mean", c=3))
    return torch.cat(parts) if parts else torch.zeros(0, device=real.device)


@torch.inference_mode()
def score_clip(
    shown: Mapping[str, UInt8[Tensor, "_ _ _ 3"]],
    real: UInt8[Tensor, "t h w 3"],
    *,
    stills: Mapping[str, UInt8[Tensor, "_ _ 3"]] | None = None,
    lpips: LPIPS | None = None,
) -> dict[str, FrameScores]:
    """How close some clips are to a recorded one.

    Args:
        shown: clips by name, which may differ from the recorded one in size and length.
        real: what was recorded.
        stills: single frames by name, each held over the whole clip.
        lpips: its network, on the device of the frames; `None` leaves it out.

    Returns:
        By name, the scores of as many frames as both clips have, on the CPU.
    """
    held = {name: _Compared.of(frame[None], lpips) for name, frame in (stills or {}).items()}
    found: dict[str, list[FrameScores]] = {name: [] for name in (*shown, *held)}
    for start in range(0, len(real), FRAMES_AT_ONCE):
        place = slice(start, start + FRAMES_AT_ONCE)
        wanted = _Compared.of(real[place], lpips)
        for name, clip in shown.items():
            if len(part := clip[: len(real)][place]):
                found[name].append(_scores(_Compared.of(part, lpips), wanted.first(len(part)), lpips))
        for name, frame in held.items():
            found[name].append(_scores(frame, wanted, lpips))
    return {name: _joined(parts, with_lpips=lpips is not None) for name, parts in found.items()}


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """Frames of 256x256 px, and what LPIPS makes of them, computed once for all that they are compared with."""

    frames: Tensor
    features: list[Tensor] | None

    @classmethod
    def of(cls, frames: Tensor, lpips: LPIPS | None) -> _Compared:
        frames = resized(frames)
        return cls(frames=frames, features=None if lpips is None else lpips.encode(frames))

    def first(self, num: int) -> _Compared:
        features = None if self.features is None else [layer[:num] for layer in self.features]
        return _Compared(frames=self.frames[:num], features=features)


def _scores(shown: _Compared, real: _Compared, lpips: LPIPS | None) -> FrameScores:
    frames = shown.frames.expand_as(real.frames)  # a still is one frame
    distance = None
    if lpips is not None and shown.features is not None and real.features is not None:
        distance = 100 * lpips.distance(shown.features, real.features).cpu()
    return FrameScores(
        psnr=decibels(squared_error(frames, real.frames)).cpu(),
        ssim=100 * similarity(frames, real.frames).cpu(),
        lpips=distance,
    )


def _joined(parts: list[FrameScores], *, with_lpips: bool) -> FrameScores:
    nothing = torch.zeros(0)
    distances = [part.lpips for part in parts if part.lpips is not None]
    return FrameScores(
        psnr=torch.cat([nothing, *(part.psnr for part in parts)]),
        ssim=torch.cat([nothing, *(part.ssim for part in parts)]),
        lpips=torch.cat([nothing, *distances]) if with_lpips else None,
    )
