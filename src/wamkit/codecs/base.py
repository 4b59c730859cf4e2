"""What every codec offers: three small protocols, and the one place where pixels change layout and range.

At the edge images are uint8 `… h w c`; inside codecs and models they are float `… c h w` in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor

_LISTED = 6


@dataclass(frozen=True, kw_only=True)
class TextTokens:
    """Embedded sentences.

    Args:
        tokens: one vector per token.
        mask: which tokens belong to the sentence; every row has at least one.
    """

    tokens: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]

    def to(self, device: torch.device | str) -> TextTokens:
        """The same tokens on `device`."""
        return TextTokens(tokens=self.tokens.to(device), mask=self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class LatentPosterior:
    """What an encoder knows of normalized latents: independent Gaussians, or plain numbers.

    Args:
        mean: the mode.
        std: spread, `None` for a codec without one.
    """

    mean: Float[Tensor, "n k ..."]
    std: Float[Tensor, "n k ..."] | None = None

    def sample(self, noise: Float[Tensor, "n k ..."]) -> Float[Tensor, "n k ..."]:
        """Latents from standard normal numbers; the mode when there is no spread."""
        return self.mean if self.std is None else self.mean + self.std * noise


@runtime_checkable
class VideoCodec(Protocol):
    """Pixels to normalized latents (about zero mean and unit variance per channel) and back.

    A clip of `1 + temporal * k` frames has `1 + k` latent frames: the first frame stands alone, each later latent frame
    covers `temporal` frames. Height and width shrink by `spatial`. `encode_…` gives the mode of the codec's posterior
    (control), `posterior_…` all of it (training draws from it).
    """

    @property
    def spatial(self) -> int: ...

    @property
    def temporal(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def encode_frames(self, frames: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n k y x"]:
        """Each frame on its own, as a one-frame video."""
        ...

    def encode_clip(self, clip: UInt8[Tensor, "n t h w c"]) -> Float[Tensor, "n k f y x"]:
        """Each clip as one video."""
        ...

    def posterior_frames(self, frames: UInt8[Tensor, "n h w c"]) -> LatentPosterior:
        """Each frame on its own; latents `n k y x`."""
        ...

    def posterior_clip(self, clip: UInt8[Tensor, "n t h w c"]) -> LatentPosterior:
        """Each clip as one video; latents `n k f y x`."""
        ...

    def decode_clip(self, latents: Float[Tensor, "n k f y x"]) -> UInt8[Tensor, "n t h w c"]:
        """Frames of each clip; one latent frame gives one frame."""
        ...

    def to(self, device: torch.device | str) -> VideoCodec:
        """The codec on `device`; use the one returned."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what `load` of the same class needs (a reference, where the weights are large and public)."""
        ...


@runtime_checkable
class ImageTokenizer(Protocol):
    """Pixels to codes of one codebook and back: each frame becomes a grid of `num_codes` possible values per place."""

    @property
    def spatial(self) -> int:
        """Pixels per code in each direction."""
        ...

    @property
    def num_codes(self) -> int: ...

    def encode(self, frames: UInt8[Tensor, "n h w c"]) -> Int[Tensor, "n y x"]:
        """Each frame on its own; int64 codes in `[0, num_codes)`."""
        ...

    def decode(self, codes: Int[Tensor, "n y x"]) -> UInt8[Tensor, "n h w c"]:
        """Frames of each grid of codes, of any signed integer type."""
        ...

    def to(self, device: torch.device | str) -> ImageTokenizer:
        """The tokeniser on `device`; use the one returned."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what `load` of the same class needs (a reference, where the weights are large and public)."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Sentences to `length` tokens of `width` channels."""

    @property
    def length(self) -> int: ...

    @property
    def width(self) -> int: ...

    def encode(self, sentences: list[str]) -> TextTokens:
        """One row per sentence; repeated sentences are computed once."""
        ...

    def to(self, device: torch.device | str) -> TextEncoder:
        """The encoder on `device`; use the one returned."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what `load` of the same class needs (a reference, where the weights are large and public)."""
        ...


@runtime_checkable
class CacheEncoder(Protocol):
    """What a cache of a dataset keeps: all that a family's frozen codecs make of its frames and sentences.

    Axis `q` holds what is known of each number `k y x`: mean and standard deviation of a posterior, or itself alone.
    Floats are kept as a run asks; whole numbers, which are token ids, as int16.
    """

    def encode_frames(self, frames: UInt8[Tensor, "n h w c"]) -> Num[Tensor, "n q k y x"]:
        """Each frame on its own."""
        ...

    def encode_clips(self, clips: UInt8[Tensor, "n t h w c"]) -> Num[Tensor, "n q k f y x"] | None:
        """Each future as one video; `None`, whatever is given, where it is what its frames are on their own."""
        ...

    def encode_text(self, sentences: list[str]) -> TextTokens | None:
        """One row per sentence; `None`, whatever is given, where sentences cost nothing and are not kept."""
        ...


def to_unit_range(images: UInt8[Tensor, "*n h w c"]) -> Float[Tensor, "*n c h w"]:
    """Edge images as floats in [-1, 1], channels first."""
    return rearrange(images, "... h w c -> ... c h w").to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n h w c"]:
    """Floats in [-1, 1], channels first, as edge images: rounded to the nearest level, clamped to 0-255."""
    levels = images.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0)
    return rearrange(levels, "... c h w -> ... h w c").to(torch.uint8).contiguous()


def require_frames(frames: Tensor, *, spatial: int, what: str = "frames") -> None:
    """Refuse frames that a codec of stride `spatial` cannot take.

    Args:
        frames: expected uint8 `n h w 3`.
        spatial: pixels per latent, in each direction.
        what: name for the message.

    Raises:
        ValueError: wrong dtype, rank, channel count, or a size that is not a positive multiple of `spatial`.
    """
    if frames.dtype != torch.uint8:
        raise ValueError(f"expected {what} as uint8 in 0-255, got {frames.dtype}; convert floats with to_uint8")
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected {what} of shape (n, height, width, 3), got {tuple(frames.shape)}")
    height, width = frames.shape[1:3]
    if height % spatial or width % spatial or not height or not width:
        raise ValueError(
            f"expected {what} whose height and width are multiples of {spatial}, got {height}x{width}; "
            f"record, resize or crop to a multiple of {spatial}"
        )


def require_codes(codes: Tensor, *, num_codes: int, what: str = "codes") -> None:
    """Refuse codes that a codebook of `num_codes` entries does not have.

    Args:
        codes: expected integers `n y x`; narrow ones, as caches keep them, will do.
        num_codes: size of the codebook.
        what: name for the message.

    Raises:
        ValueError: wrong dtype or rank, or a code outside `[0, num_codes)`.
    """
    if codes.dtype not in (torch.int16, torch.int32, torch.int64) or codes.ndim != 3:
        raise ValueError(f"expected {what} as integers of shape (n, y, x), got {codes.dtype} of {tuple(codes.shape)}")
    if not codes.numel():
        return
    least, largest = (int(value) for value in codes.aminmax())
    if least < 0 or largest >= num_codes:
        raise ValueError(
            f"expected {what} of 0 to {num_codes - 1}, got {least} to {largest}; "
            "take the vocabulary's image codes, not its ids"
        )


def require_clip(clip: Tensor, *, spatial: int, temporal: int, what: str = "clip") -> None:
    """Refuse a clip that a codec of these strides cannot take.

    Args:
        clip: expected uint8 `n t h w 3`.
        spatial: pixels per latent, in each direction.
        temporal: frames per latent frame after the first.
        what: name for the message.

    Raises:
        ValueError: as `require_frames`, or a frame count that is not `1 + temporal * k`.
    """
    if clip.ndim != 5:
        raise ValueError(f"expected {what} of shape (n, time, height, width, 3), got {tuple(clip.shape)}")
    count = clip.shape[1]
    if count < 1 or (count - 1) % temporal:
        below = max(1, 1 + (count - 1) // temporal * temporal)
        raise ValueError(
            f"expected {what} of 1 + {temporal} k frames, got {count}; use {below} or {below + temporal} frames"
        )
    require_frames(clip[:, 0], spatial=spatial, what=what)


def require_finite(tensors: Iterable[tuple[str, Tensor]], *, source: Path) -> None:
    """Refuse weights that hold NaN or infinity, which a codec would spread over every latent without an error.

    Args:
        tensors: names and values.
        source: file or folder they come from, for the message.

    Raises:
        ValueError: naming the source and the tensors.
    """
    # Smallest and largest are NaN when any value is, and come in one pass: 30 times as fast as isfinite(x).all().
    spoilt = [
        name
        for name, tensor in tensors
        if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, tensor.aminmax()))
    ]
    if spoilt:
        listed = f"{', '.join(spoilt[:_LISTED])}{' …' if len(spoilt) > _LISTED else ''}"
        raise ValueError(
            f"{source}: expected finite weights, got NaN or infinity in {listed}; copy or download it again"
        )
