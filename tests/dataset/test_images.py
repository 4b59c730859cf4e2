"""Pictures brought to the model's size, against plain bilinear resizing and hand-drawn crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wamkit.data.actions import ActionTransform
from wamkit.data.images import SMALLEST_CROP, crop_images, draw_crops, fit_images, fit_video
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import feature_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.draws import TrainingDraws


def images(num: int, height: int, width: int) -> Tensor:
    rng = np.random.default_rng(height * width)
    return torch.from_numpy(rng.integers(0, 256, size=(num, height, width, 3), dtype=np.uint8))


def bilinear(pictures: Tensor, height: int, width: int) -> Tensor:
    """The library's own antialiased resizing, on floats."""
    floats = pictures.movedim(-1, 1).float()
    return F.interpolate(floats, size=(height, width), mode="bilinear", antialias=True).movedim(1, -1)


@pytest.mark.parametrize("size", [(16, 16), (24, 8), (40, 60), (100, 70)])
def test_resize_is_bilinear_and_antialiased(size: tuple[int, int]) -> None:
    pictures = images(70, 48, 60)  # more than are resized at once
    got = fit_images(pictures, height=size[0], width=size[1], preprocess="resize")
    assert got.dtype == torch.uint8 and got.shape == (70, *size, 3)
    assert (got.float() - bilinear(pictures, *size)).abs().max() <= 0.5 + 1e-3, "rounded to the nearest level"


def test_the_shorter_side_then_the_middle() -> None:
    wide, tall = images(2, 32, 64), images(2, 90, 30)
    half = fit_images(wide, height=16, width=16, preprocess="center_crop_resize")
    assert (half.float() - bilinear(wide, 16, 32)[:, :, 8:24]).abs().max() <= 0.5 + 1e-3
    upper = fit_images(tall, height=20, width=30, preprocess="center_crop_resize")
    assert torch.equal(upper, tall[:, 35:55]), "the shorter side is right already: a crop alone"
    for size in ((16, 16), (20, 30), (50, 10), (33, 47)):
        shape = fit_images(wide, height=size[0], width=size[1], preprocess="center_crop_resize").shape
        assert shape == (2, *size, 3)


def test_a_picture_stretched_alike_in_both_directions_needs_no_crop() -> None:
    pictures = images(3, 40, 60)
    both = [fit_images(pictures, height=20, width=30, preprocess=how) for how in ("resize", "center_crop_resize")]
    assert torch.equal(*both)


@pytest.mark.parametrize("how", ["exact", "resize", "center_crop_resize"])
def test_pictures_of_the_right_size_stay_as_they_are(how: str) -> None:
    pictures = images(2, 12, 20)
    assert fit_images(pictures, height=12, width=20, preprocess=how) is pictures
    assert fit_images(pictures[:0], height=12, width=20, preprocess=how).shape == (0, 12, 20, 3)


def test_another_size_is_refused_with_the_ways_out() -> None:
    with pytest.raises(ValueError, match=r"images of 16x16 px, .* got 12x20; .*'resize' or 'center_crop_resize'"):
        fit_images(images(1, 12, 20), height=16, width=16, preprocess="exact")


def test_videos_keep_their_leading_axes() -> None:
    video = images(12, 12, 20).unflatten(0, (2, 2, 3))
    got = fit_video(video, size=(6, 10), preprocess="resize")
    assert got.shape == (2, 2, 3, 6, 10, 3)
    assert torch.equal(got[1, 0], fit_images(video[1, 0], height=6, width=10, preprocess="resize"))
    assert fit_video(video, size=None, preprocess="exact") is video
    assert fit_video(video[:, :0], size=(6, 10), preprocess="resize").shape == (2, 0, 3, 6, 10, 3)


def test_crops_are_as_large_as_published_and_inside() -> None:
    crops = [
        crop
        for step in range(50)
        for row in draw_crops(2, TrainingDraws(key=(1, step), rows=range(4), num_rows=4))
        for crop in row
    ]
    top, left, height, width = np.array(crops).T
    for offset, side in ((top, height), (left, width)):
        assert side.min() >= SMALLEST_CROP == 7 / 8 and side.max() <= 1
        assert offset.min() >= 0 and offset.max() <= 1 / 8 and (offset + side).max() <= 1
        assert np.ptp(side) > 0.1 and np.ptp(offset) > 0.05
    assert len(set(crops)) == len(crops)
    picture = images(1, 80, 160)
    assert torch.equal(crop_images(picture, (0.1, 0.05, 0.9, 0.875)), picture[:, 8:80, 8:148])


def loader(*, height: int = 24, width: int = 32, **settings: object) -> WindowLoader:
    episodes = synthetic_episodes(2, length=12, height=height, width=width)
    action, state = (
        Normalizer.from_statistics("minmax", feature_statistics(np.concatenate([getattr(e, name) for e in episodes])))
        for name in ("actions", "state")
    )
    return WindowLoader(
        MemoryDataset(episodes, synthetic_robot(height=height, width=width)),
        WindowConfig(context=2, chunk=3, action_horizon=6, sample_n_frames=30),
        action=ActionTransform(normalizer=action),
        state=state,
        batch_size=4,
        seed=3,
        **settings,
    )


@pytest.mark.parametrize("cache_frames", [0, "auto"])
def test_batches_come_in_the_model_s_size(cache_frames: int | str) -> None:
    plain = loader().batch(2)
    small = loader(image_size=(16, 16), preprocess="resize", cache_frames=cache_frames).batch(2)
    for recorded, fitted in ((plain.context, small.context), (plain.future, small.future)):
        assert torch.equal(fitted, fit_video(recorded, size=(16, 16), preprocess="resize"))
    assert torch.equal(plain.actions, small.actions)
    with pytest.raises(ValueError, match="images of 16x16 px"):
        loader(image_size=(16, 16))


@pytest.mark.parametrize("cache_frames", [0, "auto"])
def test_a_random_crop_is_one_part_of_each_view(cache_frames: int | str) -> None:
    """Of memory and future alike, drawn anew for each row, the same for two processes."""
    recorded = loader().batch(2)
    cropping = loader(image_size=(24, 32), random_crop=True, cache_frames=cache_frames)
    batch = cropping.batch(2)
    crops = draw_crops(2, TrainingDraws(key=(3, 2), rows=range(4), num_rows=4))
    for row in range(4):
        for view in range(2):
            for before, after in ((recorded.context, batch.context), (recorded.future, batch.future)):
                part = crop_images(before[row, view], crops[row][view])
                wanted = fit_images(part, height=24, width=32, preprocess="resize")
                assert torch.equal(after[row, view], wanted)
    odd = cropping.batch(2, rows=range(1, 4, 2))
    assert torch.equal(odd.context, batch.rows(range(1, 4, 2)).context)
    assert not torch.equal(cropping.batch(3).context, loader().batch(3).context)


def test_a_crop_keeps_its_proportions_when_asked() -> None:
    """Crops are taken from the recorded size; then the whole picture's rule applies to them."""
    recorded = loader().batch(1)
    batch = loader(image_size=(8, 16), preprocess="center_crop_resize", random_crop=True).batch(1)
    crop = draw_crops(2, TrainingDraws(key=(3, 1), rows=range(4), num_rows=4))[0][1]
    part = crop_images(recorded.context[0, 1], crop)
    assert torch.equal(batch.context[0, 1], fit_images(part, height=8, width=16, preprocess="center_crop_resize"))
