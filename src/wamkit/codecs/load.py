"""The codecs of a policy folder, by the `type` in their `config.json`."""

from __future__ import annotations

from pathlib import Path

import torch

from wamkit.codecs.base import ImageTokenizer, TextEncoder, VideoCodec
from wamkit.codecs.reference import read_type


def load_video_codec(folder: Path, device: torch.device | str = "cpu", *, pretrained: Path | None = None) -> VideoCodec:
    """The video codec that was saved in `folder`.

    Args:
        folder: what a video codec's `save` wrote.
        device: where it runs.
        pretrained: where the pretrained weights lie now, when they have moved; codecs that carry theirs ignore it.

    Raises:
        FileNotFoundError: no `config.json`, or missing weights.
        ValueError: an unknown type or version, or damaged files.
    """
    kind = read_type(folder)
    if kind == "patch":
        from wamkit.codecs.patch import PatchCodec

        return PatchCodec.load(folder, device)
    if kind == "ltx":
        from wamkit.codecs.video_ltx import LTXVideoCodec

        return LTXVideoCodec.load(folder, device, pretrained=pretrained)
    raise ValueError(f"{folder / 'config.json'}: unknown video codec {kind!r}; known are 'patch' and 'ltx'")


def load_image_tokenizer(
    folder: Path, device: torch.device | str = "cpu", *, pretrained: Path | None = None
) -> ImageTokenizer:
    """The image tokeniser that was saved in `folder`; arguments and errors as `load_video_codec`."""
    kind = read_type(folder)
    if kind == "patch_vq":
        from wamkit.codecs.image_patch_vq import PatchVQTokenizer

        return PatchVQTokenizer.load(folder, device)
    if kind == "image_vq":
        from wamkit.codecs.image_vq import VQImageTokenizer

        return VQImageTokenizer.load(folder, device, pretrained=pretrained)
    raise ValueError(f"{folder / 'config.json'}: unknown image tokeniser {kind!r}; known are 'patch_vq' and 'image_vq'")


def load_text_encoder(
    folder: Path, device: torch.device | str = "cpu", *, pretrained: Path | None = None
) -> TextEncoder:
    """The text encoder that was saved in `folder`; arguments and errors as `load_video_codec`."""
    kind = read_type(folder)
    if kind == "text_hash":
        from wamkit.codecs.text_hash import HashedTextEncoder

        return HashedTextEncoder.load(folder, device)
    if kind == "text_t5":
        from wamkit.codecs.text_t5 import T5TextEncoder

        return T5TextEncoder.load(folder, device, pretrained=pretrained)
    raise ValueError(f"{folder / 'config.json'}: unknown text encoder {kind!r}; known are 'text_hash' and 'text_t5'")
