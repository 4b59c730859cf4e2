"""What a cache keeps for WorldVLA: the codes of every frame."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int, UInt8
from torch import Tensor

from wamkit.codecs.base import ImageTokenizer


@dataclass(frozen=True)
class WorldVLACacheEncoder:
    """The image tokeniser, as a `CacheEncoder`; sentences cost nothing, and a future is just frames.

    Args:
        image_tokenizer: on the device that frames are given on.
    """

    image_tokenizer: ImageTokenizer

    def encode_frames(self, frames: UInt8[Tensor, "n h w c"]) -> Int[Tensor, "n 1 1 y x"]:
        """The codes of each frame."""
        return self.image_tokenizer.encode(frames)[:, None, None]

    def encode_clips(self, clips: UInt8[Tensor, "n t h w c"]) -> None:
        """Nothing beside the frames."""

    def encode_text(self, sentences: list[str]) -> None:
        """Nothing."""
