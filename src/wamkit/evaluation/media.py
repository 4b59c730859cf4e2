"""Pictures and videos of recorded episodes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wamkit.data.video import VideoSettings, encode_video

SHOWN_WIDTH = 192
"""Width in pixels below which a camera's picture is enlarged; simulators render at 64 px, which nobody can watch."""
HOLD_FRAMES = 12
GAP = 4
BAR, BAR_COLOUR = 8, (232, 160, 111)


def show_side_by_side(video: Mapping[str, UInt8[np.ndarray, "t h w 3"]]) -> UInt8[np.ndarray, "t y x 3"]:
    """All cameras side by side, enlarged by whole pixels, with even height and width as H.264 wants them."""
    pictures = [enlarge(frames, max(1, round(SHOWN_WIDTH / frames.shape[2]))) for frames in video.values()]
    height = max(picture.shape[1] for picture in pictures)
    width = sum(picture.shape[2] for picture in pictures) + GAP * (len(pictures) - 1)
    canvas = np.zeros((len(pictures[0]), height + height % 2, width + width % 2, 3), dtype=np.uint8)
    left = 0
    for picture in pictures:
        canvas[:, : picture.shape[1], left : left + picture.shape[2]] = picture
        left += picture.shape[2] + GAP
    return canvas


def enlarge(frames: UInt8[np.ndarray, "t h w 3"], factor: int) -> UInt8[np.ndarray, "t y x 3"]:
    """Every pixel repeated `factor` times in both directions."""
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def encode_rollout(video: Mapping[str, UInt8[np.ndarray, "t h w 3"]], *, fps: int) -> bytes:
    """An MP4 (H.264) of all cameras side by side; the last frame is held for a moment.

    Args:
        video: frames per camera, all equally long.
        fps: frames per second of the film.
    """
    frames = show_side_by_side(video)
    held = np.concatenate([frames, frames[-1:].repeat(HOLD_FRAMES, axis=0)])
    # Seen from start to end, never by index: rare key-frames keep the file small.
    return encode_video(held, fps=fps, settings=VideoSettings(crf=23, keyframe_interval=50))


def encode_comparison(
    *,
    above: Mapping[str, UInt8[np.ndarray, "t h w 3"]],
    below: Mapping[str, UInt8[np.ndarray, "t h w 3"]],
    starts: Sequence[int],
    fps: int,
) -> bytes:
    """An MP4 (H.264) of two films, cameras side by side, one film above the other.

    The bar between them lights up on the frames at which a new prediction starts.

    Args:
        above: frames per camera, all equally long.
        below: as many of the same sizes.
        starts: numbers of the frames that light up.
        fps: frames per second.
    """
    upper, lower = show_side_by_side(above), show_side_by_side(below)
    bar = np.zeros((len(upper), BAR, upper.shape[2], 3), dtype=np.uint8)
    bar[list(starts)] = BAR_COLOUR
    frames = np.concatenate([upper, bar, lower], axis=1)
    held = np.concatenate([frames, frames[-1:].repeat(max(1, fps // 2), axis=0)])
    return encode_video(held, fps=fps, settings=VideoSettings(crf=23, keyframe_interval=50))


def picture_uri(frame: UInt8[np.ndarray, "h w 3"], quality: int = 90) -> str:
    """A WebP picture as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="WEBP", quality=quality, method=4)
    return data_uri(buffer.getvalue(), "image/webp")


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def peak_signal_to_noise(first: UInt8[np.ndarray, "t h w 3"], second: UInt8[np.ndarray, "t h w 3"]) -> float:
    """PSNR in decibels over all frames together; infinite for equal frames."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))
