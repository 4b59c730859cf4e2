"""Pictures of a camera's size become pictures of the model's size: resizing, centre crops, random crops.

The same function serves training and control, so that a policy sees what it was trained on.

Source: WAV 6.1 of the specification.
Differs: frames are rounded to whole levels again, as every frame outside codecs is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from wamkit.codecs.base import to_uint8, to_unit_range
from wamkit.data.ssim import resize
from wamkit.draws import TrainingDraws
from wamkit.spec import Preprocess

FRAMES_AT_ONCE: Final = 64
SMALLEST_CROP: Final = 7 / 8

Crop = tuple[float, float, float, float]
"""Top, left, height and width, in parts of the image."""


def fit_images(
    images: UInt8[Tensor, "n h w 3"], *, height: int, width: int, preprocess: Preprocess
) -> UInt8[Tensor, "n y x 3"]:
    """Images in the model's size; those that have it stay as they are.

    Args:
        images: as a camera gives them.
        height: wanted, in pixels.
        width: wanted, in pixels.
        preprocess: `resize` stretches, bilinear and antialiased; `center_crop_resize` resizes until both sides reach
            the wanted ones and one of them equals it, then cuts out the middle; `exact` does neither.

    Raises:
        ValueError: another size under `exact`.
    """
    old_height, old_width = images.shape[1:3]
    if (old_height, old_width) == (height, width):
        return images
    if preprocess == "exact":
        raise ValueError(
            f"expected images of {height}x{width} px, the model's size, got {old_height}x{old_width}; set preprocess "
            "to 'resize' or 'center_crop_resize', or record images of that size"
        )
    new_height, new_width = height, width
    if preprocess == "center_crop_resize":
        scale = max(height / old_height, width / old_width)
        new_height, new_width = max(height, round(old_height * scale)), max(width, round(old_width * scale))
    top, left = (new_height - height) // 2, (new_width - width) // 2
    parts = []
    for start in range(0, len(images), FRAMES_AT_ONCE):  # floats take four times the memory
        floats = resize(to_unit_range(images[start : start + FRAMES_AT_ONCE]), new_height, new_width)
        parts.append(to_uint8(floats[..., top : top + height, left : left + width]))
    return torch.cat(parts) if parts else images.new_zeros(0, height, width, 3)


def fit_video(
    video: UInt8[Tensor, "*n h w 3"], *, size: tuple[int, int] | None, preprocess: Preprocess
) -> UInt8[Tensor, "*n y x 3"]:
    """`fit_images` for frames with any leading axes; `size` is (height, width), `None` leaves them as they are."""
    if size is None or tuple(video.shape[-3:-1]) == size:
        return video
    flat = fit_images(video.flatten(0, -4), height=size[0], width=size[1], preprocess=preprocess)
    return flat.unflatten(0, video.shape[:-3])


def crop_images(images: UInt8[Tensor, "n h w 3"], crop: Crop) -> UInt8[Tensor, "n y x 3"]:
    """A part of every image, the same in all."""
    height, width = images.shape[1:3]
    top, left = int(crop[0] * height), int(crop[1] * width)
    bottom, right = top + max(1, round(crop[2] * height)), left + max(1, round(crop[3] * width))
    return images[:, top : min(bottom, height), left : min(right, width)]


def draw_crops(num_views: int, draws: TrainingDraws) -> list[list[Crop]]:
    """A crop for every view of every row: sides of 7/8 or more, anywhere inside the image."""
    crops: list[list[Crop]] = []
    for row in draws.uniform("random crop", (num_views, 4)).tolist():
        crops.append([])
        for u in row:
            height, width = (SMALLEST_CROP + (1 - SMALLEST_CROP) * share for share in u[:2])
            crops[-1].append((u[2] * (1 - height), u[3] * (1 - width), height, width))
    return crops


def crop_and_fit(
    video: UInt8[np.ndarray, "v t h w 3"], crops: Sequence[Crop], *, height: int, width: int, preprocess: Preprocess
) -> UInt8[np.ndarray, "v t y x 3"]:
    """One crop for each view, brought to the model's size; under `exact`, which has no say in crops, stretched."""
    how: Preprocess = "resize" if preprocess == "exact" else preprocess
    views = []
    for frames, crop in zip(video, crops, strict=True):
        part = crop_images(torch.from_numpy(frames), crop)
        views.append(fit_images(part, height=height, width=width, preprocess=how))
    return torch.stack(views).numpy()
