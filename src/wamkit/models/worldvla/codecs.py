"""The tokenisers that a configuration names: found where they are pretrained, made where they are not."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from wamkit.codecs.base import ImageTokenizer
from wamkit.codecs.text_tokens import (
    ByteTokenizer,
    PublishedTokenizer,
    TextTokenizer,
    WordTokenizer,
    find_tokenizer,
)
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.progress import ProgressBar


def make_text_tokenizer(config: WorldVLAConfig) -> TextTokenizer:
    """The tokenizer of sentences.

    Raises:
        FileNotFoundError: the pretrained one is not in the folder that the configuration names.
        ValueError: it is named without a folder.
    """
    codec = config.codec
    if codec.text == "words":
        return WordTokenizer(num_codes=codec.num_codes)
    if codec.text == "bytes":
        return ByteTokenizer(num_codes=codec.num_codes)
    if not codec.pretrained:
        raise ValueError("Chameleon's tokenizer is pretrained: set model.codec.pretrained to its folder")
    return PublishedTokenizer(find_tokenizer(Path(codec.pretrained)))


def fit_image_tokenizer(
    config: WorldVLAConfig, frames: UInt8[Tensor, "n h w c"] | None, generator: torch.Generator
) -> ImageTokenizer:
    """The tokeniser of images, found or fitted.

    Args:
        config: names it.
        frames: what a fitted one learns from.
        generator: of the fit.

    Raises:
        FileNotFoundError: the pretrained one is not in the folder that the configuration names.
        ValueError: it does not fit the configuration, or there are no frames to fit one to.
    """
    codec = config.codec
    if codec.pretrained:
        from wamkit.codecs.image_vq import VQImageTokenizer

        return VQImageTokenizer.from_pretrained(Path(codec.pretrained))
    if frames is None or not len(frames):
        raise ValueError("an image tokeniser is fitted to frames, and there are none; or set model.codec.pretrained")
    if codec.image == "patch_vq":
        from wamkit.codecs.image_patch_vq import PatchVQConfig, PatchVQTokenizer

        settings = PatchVQConfig(patch=codec.spatial, num_codes=codec.num_codes, steps=codec.fit_steps)
        with ProgressBar("fitting the image tokeniser", unit="steps") as bar:
            return PatchVQTokenizer.fit(frames, settings, generator, progress=bar.show)
    from wamkit.codecs.image_vq import VQImageTokenizer
    from wamkit.codecs.image_vq_config import VQConfig

    sizes = VQConfig.tiny(num_codes=codec.num_codes)
    with ProgressBar("fitting the image tokeniser", unit="steps") as bar:
        return VQImageTokenizer.fit(frames, sizes, generator, steps=codec.fit_steps, progress=bar.show)
