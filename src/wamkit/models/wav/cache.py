"""What a cache keeps for WAV: posteriors of single frames and of whole futures, and embedded sentences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.codecs.base import LatentPosterior, TextEncoder, TextTokens, VideoCodec


@dataclass(frozen=True, kw_only=True)
class WAVCacheEncoder:
    """WAV's frozen codecs, as a `CacheEncoder`.

    Args:
        video_codec: on the device that frames are given on.
        text_encoder: on any device.
    """

    video_codec: VideoCodec
    text_encoder: TextEncoder

    def encode_frames(self, frames: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n q k y x"]:
        """Each frame on its own, as it is remembered."""
        return _stacked(self.video_codec.posterior_frames(frames))

    def encode_clips(self, clips: UInt8[Tensor, "n t h w c"]) -> Float[Tensor, "n q k f y x"]:
        """Each future as one video."""
        return _stacked(self.video_codec.posterior_clip(clips))

    def encode_text(self, sentences: list[str]) -> TextTokens:
        """One row per sentence."""
        return self.text_encoder.encode(sentences)


def _stacked(posterior: LatentPosterior) -> Float[Tensor, "n q k ..."]:
    """Mean and, if there is one, standard deviation."""
    kinds = [posterior.mean] if posterior.std is None else [posterior.mean, posterior.std]
    return torch.stack(kinds, dim=1)
