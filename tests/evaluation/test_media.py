"""Films and pictures show the frames they were given."""

from __future__ import annotations

import base64
import io

import av
import numpy as np
import pytest
from PIL import Image

from wamkit.evaluation.media import (
    HOLD_FRAMES,
    encode_rollout,
    enlarge,
    peak_signal_to_noise,
    picture_uri,
    show_side_by_side,
)


def clip(height: int, width: int, shade: int, length: int = 5) -> np.ndarray:
    return np.full((length, height, width, 3), shade, dtype=np.uint8)


def test_cameras_stand_side_by_side_enlarged_by_whole_pixels() -> None:
    shown = show_side_by_side({"left": clip(64, 64, 10), "right": clip(48, 64, 200)})
    assert shown.shape == (5, 192, 192 + 4 + 192, 3)
    assert (shown[:, :192, :192] == 10).all()
    assert (shown[:, :144, 196:] == 200).all() and (shown[:, 144:, 196:] == 0).all()
    assert show_side_by_side({"large": clip(255, 255, 1)}).shape == (5, 256, 256, 3), "never smaller, always even"
    frames = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert (enlarge(frames, 3)[0, 3:, :3] == frames[0, 1, 0]).all()


def test_a_film_decodes_to_its_frames_and_holds_the_last() -> None:
    frames = np.stack([clip(64, 64, shade, 1)[0] for shade in (20, 90, 160, 230)])
    with av.open(io.BytesIO(encode_rollout({"one": frames}, fps=20))) as film:
        decoded = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 20
    assert len(decoded) == 4 + HOLD_FRAMES
    assert [abs(int(frame.mean()) - shade) <= 3 for frame, shade in zip(decoded, (20, 90, 160, 230), strict=False)]
    assert abs(int(decoded[-1].mean()) - 230) <= 3


def test_a_picture_survives_its_uri() -> None:
    frame = np.zeros((32, 48, 3), dtype=np.uint8)
    frame[:, 24:] = (250, 120, 10)
    kind, data = picture_uri(frame).split(",")
    assert kind == "data:image/webp;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert shown.shape == frame.shape
    assert np.abs(shown.astype(int) - frame).mean() < 4


def test_closeness_in_decibels() -> None:
    black, grey = clip(8, 8, 0), clip(8, 8, 51)
    assert peak_signal_to_noise(black, black) == float("inf")
    assert peak_signal_to_noise(black, grey) == pytest.approx(20 * np.log10(255 / 51))
