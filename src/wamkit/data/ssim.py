"""Likeness of images: mean squared error and structural similarity, many frames against one target at a time."""

from __future__ import annotations

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
FRAMES_AT_ONCE = 8
"""Few enough that the maps of 256x256 px stay in the processor's cache."""


def resize(images: Float[Tensor, "*n h w"], height: int, width: int) -> Float[Tensor, "*n y x"]:
    """Bilinear resizing, antialiased when it shrinks, as two matrix products (several times faster on a CPU)."""
    if images.shape[-2:] == (height, width):
        return images
    rows, columns = _resizing(images.shape[-2], height, images), _resizing(images.shape[-1], width, images)
    return _separable(images, rows, columns)


def luminance(images: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t h w"]:
    """Weighted sum of red, green and blue, in the units of the pixels."""
    return einsum(images, images.new_tensor(LUMINANCE), "t c h w, c -> t h w")


def mean_squared_error(
    images: Float[Tensor, "t c h w"], target: Float[Tensor, "c h w"], *, height: int, width: int
) -> Float[Tensor, "t"]:
    """Mean over channels and pixels of the squared difference from `target`, both resized to `height` x `width` first.

    Resizing is linear, D -> R D C', so the sum of squares is that of D * (R'R D C'C): nothing is ever enlarged.
    """
    difference = images - target
    rows, columns = _resizing(target.shape[-2], height, images), _resizing(target.shape[-1], width, images)
    weighted = _separable(difference, rows.T @ rows, columns.T @ columns)
    total = reduce(difference * weighted, "t c h w -> t", "sum")
    return total.clamp(min=0) / (len(target) * height * width)


def structural_similarity(
    images: Float[Tensor, "t h w"],
    target: Float[Tensor, "h w"] | Float[Tensor, "t h w"],
    *,
    window: int = 11,
    sigma: float = 1.5,
    pixel_range: float = 255.0,
) -> Float[Tensor, "t"]:
    """Mean structural similarity of gray images with `target`, over every position of a Gaussian window inside them.

    Args:
        images: gray images.
        target: what they are compared with: one image, or one for each.
        window: side of the window in pixels, odd.
        sigma: standard deviation of the window in pixels.
        pixel_range: largest minus smallest pixel value possible.

    Raises:
        ValueError: the window is even or larger than the images.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", equation 13,
        K1 = 0.01, K2 = 0.03.
    """
    height, width = target.shape[-2:]
    if window % 2 == 0 or window > min(height, width):
        raise ValueError(
            f"expected an odd window of at most {min(height, width)} px (images of {height}x{width}), got {window}; "
            "choose a smaller window or resize the images first"
        )
    blur_rows, blur_columns = (_blurring(size, window, sigma, images) for size in (height, width))
    # Deviations do not change when all pixels are shifted; centred numbers lose fewer digits in E[x^2] - E[x]^2.
    shift = target.mean()
    x, y = images - shift, (target if target.ndim == 3 else target[None]) - shift
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        _separable(image, blur_rows, blur_columns) for image in (x, y, x * x, y * y, x * y)
    )
    variance = (mean_xx - mean_x.square()) + (mean_yy - mean_y.square())
    covariance = mean_xy - mean_x * mean_y
    mean_x, mean_y = mean_x + shift, mean_y + shift
    c1, c2 = (0.01 * pixel_range) ** 2, (0.03 * pixel_range) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x.square() + mean_y.square() + c1) * (variance + c2))
    return reduce(likeness, "t h w -> t", "mean")


def likeness_to_target(
    frames: UInt8[np.ndarray, "t h w 3"],
    target: UInt8[np.ndarray, "h w 3"],
    *,
    image_size: int | None,
    pixel_range: float = 255.0,
    window: int = 11,
    sigma: float = 1.5,
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """Mean squared error and structural similarity (of luminance) of each frame with the target.

    Args:
        frames: of one camera.
        target: of the same camera.
        image_size: both sides in pixels that images are resized to first; `None` compares them as they are.
        pixel_range: what 255 is scaled to before the mean squared error; structural similarity does not depend on it.
        window: side of the Gaussian window in pixels.
        sigma: standard deviation of the window in pixels.

    Returns:
        Mean squared error in units of `pixel_range` squared, and similarity in [-1, 1]; float64.
    """
    errors, similarities = [], []
    height, width = (image_size, image_size) if image_size is not None else target.shape[:2]
    end = _pixels(target[None])
    gray_end = resize(luminance(end), height, width)[0]
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        images = _pixels(frames[start : start + FRAMES_AT_ONCE])
        error = mean_squared_error(images, end[0], height=height, width=width)
        errors.append(error * (pixel_range / 255) ** 2)
        gray = resize(luminance(images), height, width)
        similarities.append(structural_similarity(gray, gray_end, window=window, sigma=sigma))
    return torch.cat(errors).double().numpy(), torch.cat(similarities).double().numpy()


def _pixels(frames: np.ndarray) -> Float[Tensor, "t c h w"]:
    images = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> t c h w")
    return images.to(torch.float32).contiguous()


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows @ image @ columns.T` for every image."""
    return rows @ (images @ columns.T)


def _resizing(old: int, new: int, like: Tensor) -> Tensor:
    """Matrix `[new, old]` of bilinear resizing along one axis."""
    unit = torch.eye(old, dtype=like.dtype, device=like.device)
    resized = F.interpolate(unit[None, None], size=(new, old), mode="bilinear", antialias=True, align_corners=False)
    return resized[0, 0]


def _blurring(size: int, window: int, sigma: float, like: Tensor) -> Tensor:
    """Matrix `[size - window + 1, size]` of a Gaussian window along one axis, only where it fits."""
    offsets = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    places = size - window + 1
    matrix = torch.zeros(places, size, dtype=torch.float64)
    index = torch.arange(places)[:, None] + torch.arange(window)
    matrix.scatter_(1, index, (weights / weights.sum()).expand(places, window))
    return matrix.to(like)
