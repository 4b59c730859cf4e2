"""An image of any size on the grid of a tokeniser: the best rectangle of cells, scaled to cover it, and a crop."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

CELL = 32
"""Pixels by which a fitted image's sides are counted."""

_MAX_ASPECT = 4


def fit_to_grid(
    image: UInt8[Tensor, "h w c"], *, side: int, crop: torch.Generator | None = None
) -> UInt8[Tensor, "y x 3"]:
    """The image in a rectangle of cells of 32 pixels, no larger in area than `side` by `side`.

    It is halved by averaging while it is at least twice too large, scaled to cover the rectangle (bicubic), and
    cropped. A square image of `side` passes through unchanged.

    Args:
        image: three channels, or four with opacity, which is blended onto white.
        side: pixels, a multiple of 32.
        crop: draws the crop's offset, for augmentation; `None` crops the centre.

    Raises:
        ValueError: an empty image, another dtype or count of channels, or a side that is no multiple of 32.

    Source: WorldVLA 2.2 of the specification.
    """
    require_image(image)
    height, width = fitted_size(*image.shape[:2], side=side)
    picture = _on_white(image)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    covering = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if picture.size != covering:
        picture = picture.resize(covering, Image.Resampling.BICUBIC)
    top, left = (_offset(spare, crop) for spare in (covering[1] - height, covering[0] - width))
    pixels = np.array(picture.crop((left, top, left + width, top + height)))
    return torch.from_numpy(pixels).to(image.device)


def require_image(image: Tensor) -> None:
    """Refuse what is no image of bytes with three or four channels.

    Raises:
        ValueError: an empty image, or another dtype, rank or count of channels.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] not in (3, 4) or not image.numel():
        raise ValueError(
            f"expected an image as uint8 of shape (height, width, 3 or 4), got {image.dtype} of {tuple(image.shape)}"
        )


@functools.lru_cache
def fitted_size(height: int, width: int, *, side: int) -> tuple[int, int]:
    """Height and width of the rectangle of cells that wastes least of an image scaled to cover it.

    Of rectangles that waste the same the largest is taken, then the widest.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        side: see `fit_to_grid`.

    Raises:
        ValueError: a side that is no multiple of 32.

    Differs: the reference walks along the largest rectangles alone and may waste a little more of the image, for
        instance of 640 by 480 at a side of 256. Square images, all that was published, come out the same.
    """
    if side < CELL or side % CELL:
        raise ValueError(f"expected a side that is a positive multiple of {CELL} pixels, got {side}")
    count = (side // CELL) ** 2
    rectangles = [
        (y, x) for y in range(1, count + 1) for x in range(1, count // y + 1) if max(x, y) <= _MAX_ASPECT * min(x, y)
    ]

    def worth(cells: tuple[int, int]) -> tuple[Fraction, int, int]:
        y, x = cells
        kept = Fraction(min(x * height, y * width), max(x * height, y * width))  # exact: equal shares are equal
        return kept, x * y, x

    y, x = max(rectangles, key=worth)
    return y * CELL, x * CELL


def _on_white(image: UInt8[Tensor, "h w c"]) -> Image.Image:
    picture = Image.fromarray(image.cpu().numpy())
    if picture.mode == "RGB":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _offset(spare: int, crop: torch.Generator | None) -> int:
    return spare // 2 if crop is None else int(torch.randint(spare + 1, (), generator=crop))
