"""Random changes of colour: one draw for all frames of a view, so that memory and future still belong together.

The four changes come in random order, each clipped to the range of pixels.

Source: WAV 3.4 of the specification.
Differs: frames are rounded to whole levels again afterwards, as every frame in a batch is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Final

import torch
from einops import einsum, reduce
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.data.image_settings import ColorJitter
from wamkit.data.ssim import LUMINANCE
from wamkit.draws import TrainingDraws
from wamkit.types import Batch

ORDERS: Final = tuple(permutations(("brightness", "contrast", "saturation", "hue")))


@dataclass(frozen=True, kw_only=True)
class ColorChange:
    """One change of colours; the defaults change nothing.

    Args:
        brightness: factor of the pixels.
        contrast: factor of their distance from the image's mean gray.
        saturation: factor of their distance from their own gray.
        hue: turn, in parts of the whole circle.
        order: in which they are done.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[str, ...] = ORDERS[0]


def draw_changes(settings: ColorJitter, num_views: int, draws: TrainingDraws) -> list[list[ColorChange]]:
    """A change for every view of every row; it follows from the row's number in the global batch and the view's."""
    changes: list[list[ColorChange]] = []
    for row in draws.uniform("color jitter", (num_views, 5)).tolist():
        changes.append([])
        for brightness, contrast, saturation, hue, order in row:
            changes[-1].append(
                ColorChange(
                    brightness=1 + settings.brightness * (2 * brightness - 1),
                    contrast=1 + settings.contrast * (2 * contrast - 1),
                    saturation=1 + settings.saturation * (2 * saturation - 1),
                    hue=settings.hue * (2 * hue - 1),
                    order=ORDERS[int(order * len(ORDERS))],
                )
            )
    return changes


def jittered(batch: Batch, settings: ColorJitter, draws: TrainingDraws) -> Batch:
    """The batch with the colours of each of its views changed.

    Args:
        batch: on any device.
        settings: how far.
        draws: of the batch's rows; processes that share a batch draw what one would draw.
    """
    if batch.context is None:
        raise ValueError("colours of latents cannot be changed; train from frames, or without colour jitter")
    changes = draw_changes(settings, batch.context.shape[1], draws)
    changed: dict[str, Any] = {}
    for key in ("context", "future"):
        video = getattr(batch, key)
        if video is not None:
            rows = zip(video, changes, strict=True)
            views = [[change_colors(view, own) for view, own in zip(*row, strict=True)] for row in rows]
            changed[key] = torch.stack([torch.stack(row) for row in views])
    return dataclasses.replace(batch, **changed)


def change_colors(frames: UInt8[Tensor, "t h w 3"], change: ColorChange) -> UInt8[Tensor, "t h w 3"]:
    """Frames with a change made to all of them alike."""
    x = frames.movedim(-1, 0).to(torch.float32) / 255
    for name in change.order:
        amount = getattr(change, name)
        if amount != getattr(ColorChange, name):
            x = _CHANGES[name](x, amount).clamp(0, 1)
    return (x * 255).round().to(torch.uint8).movedim(0, -1)


def _brighter(x: Float[Tensor, "3 t h w"], factor: float) -> Float[Tensor, "3 t h w"]:
    return x * factor


def _contrasted(x: Float[Tensor, "3 t h w"], factor: float) -> Float[Tensor, "3 t h w"]:
    mean = reduce(_gray(x), "t h w -> t 1 1", "mean")
    return mean + factor * (x - mean)


def _saturated(x: Float[Tensor, "3 t h w"], factor: float) -> Float[Tensor, "3 t h w"]:
    gray = _gray(x)
    return gray + factor * (x - gray)


def _turned(x: Float[Tensor, "3 t h w"], turn: float) -> Float[Tensor, "3 t h w"]:
    """Pixels with the same value and saturation (of the HSV cone) at another hue."""
    red, green, blue = x
    value = x.amax(dim=0)
    chroma = value - x.amin(dim=0)
    safe = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sixths = sixths + 6 * turn
    # Each channel is the value, less the chroma as far as the hue is away from that channel.
    away = torch.stack([(offset + sixths) % 6 for offset in (5.0, 3.0, 1.0)])
    return value - chroma * torch.minimum(away, 4 - away).clamp(0, 1)


def _gray(x: Float[Tensor, "3 t h w"]) -> Float[Tensor, "t h w"]:
    return einsum(x, x.new_tensor(LUMINANCE), "c t h w, c -> t h w")


_CHANGES: Final = {"brightness": _brighter, "contrast": _contrasted, "saturation": _saturated, "hue": _turned}
