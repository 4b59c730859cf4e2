"""Colour jitter: each change against the formula on single pixels, and one draw for all frames of a view."""

from __future__ import annotations

import colorsys
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wamkit.data.color_jitter import ORDERS, ColorChange, change_colors, draw_changes, jittered
from wamkit.data.image_settings import ColorJitter
from wamkit.draws import TrainingDraws
from wamkit.types import Batch

PUBLISHED = ColorJitter.published()


def frames(*shape: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, size=(*shape, 3), dtype=np.uint8))


def batch(rows: int = 4, views: int = 2, *, future: bool = True) -> Batch:
    return Batch(
        context=frames(rows, views, 2, 8, 8),
        future=frames(rows, views, 3, 8, 8, seed=1) if future else None,
        state=torch.zeros(rows, 3),
        actions=torch.zeros(rows, 3, 3),
        future_state=torch.zeros(rows, 3, 3),
        is_padded=torch.zeros(rows, 3, dtype=torch.bool),
        value_targets=None,
        task=["push"] * rows,
        episode_index=torch.arange(rows),
    )


def draws(rows: range, num_rows: int = 4, step: int = 5) -> TrainingDraws:
    return TrainingDraws(key=(3, step), rows=rows, num_rows=num_rows)


def test_the_published_strengths() -> None:
    assert dataclasses.astuple(PUBLISHED) == (0.3, 0.4, 0.5, 0.1)
    assert PUBLISHED.is_on and not ColorJitter().is_on


@pytest.mark.parametrize("turn", [-0.1, 0.03, 0.1, 0.5])
def test_hue_turns_as_colorsys_does(turn: float) -> None:
    image = frames(1, 9, 9)
    image[0, 0, 0] = torch.tensor([90, 90, 90])  # a gray, which has no hue
    image[0, 0, 1] = torch.tensor([200, 200, 10])  # two largest channels
    got = change_colors(image, ColorChange(hue=turn))
    for pixel, wanted in zip(got.reshape(-1, 3).tolist(), image.reshape(-1, 3).tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in wanted))
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        assert all(abs(channel - 255 * other) <= 0.5 + 1e-3 for channel, other in zip(pixel, expected, strict=True))


def test_brightness_contrast_and_saturation_by_hand() -> None:
    image = torch.tensor([[[[100, 50, 200], [20, 40, 60]]]], dtype=torch.uint8)  # one frame of 1 x 2 pixels
    grays = [0.299 * 100 + 0.587 * 50 + 0.114 * 200, 0.299 * 20 + 0.587 * 40 + 0.114 * 60]
    mean = sum(grays) / 2
    pixels = np.array([[100, 50, 200], [20, 40, 60]])
    expected = {
        "brightness": (1.5, np.clip(1.5 * pixels, 0, 255)),
        "contrast": (0.6, mean + 0.6 * (pixels - mean)),
        "saturation": (1.4, np.array(grays)[:, None] + 1.4 * (pixels - np.array(grays)[:, None])),
    }
    for name, (amount, wanted) in expected.items():
        got = change_colors(image, ColorChange(**{name: amount}))
        np.testing.assert_allclose(got[0, 0].numpy(), np.clip(wanted, 0, 255), atol=0.5 + 1e-3, err_msg=name)
    assert change_colors(image, ColorChange(brightness=2.0))[0, 0, 0].tolist() == [200, 100, 255], "clipped"
    assert (change_colors(image, ColorChange(saturation=0.0))[0, 0, 1] == round(grays[1])).all(), "gray"
    assert (change_colors(image, ColorChange(contrast=0.0)) == round(mean)).all(), "one gray for the image"


def test_changes_that_change_nothing() -> None:
    image = frames(3, 5, 7)
    for order in (ORDERS[0], ORDERS[-1]):
        assert torch.equal(change_colors(image, ColorChange(order=order)), image)
    turned = change_colors(change_colors(image, ColorChange(hue=0.5)), ColorChange(hue=-0.5))
    assert (turned.int() - image.int()).abs().max() <= 2, "half a circle and back, rounded twice"
    gray = frames(2, 4, 4)[..., :1].expand(-1, -1, -1, 3)
    for change in (ColorChange(hue=0.1), ColorChange(saturation=0.5)):
        assert torch.equal(change_colors(gray, change), gray), "grays have no colour to change"


def test_the_order_matters() -> None:
    image = frames(1, 6, 6)
    change = ColorChange(brightness=1.3, contrast=0.6)
    swapped = dataclasses.replace(change, order=("contrast", "brightness", "saturation", "hue"))
    assert not torch.equal(change_colors(image, change), change_colors(image, swapped))
    assert len(set(ORDERS)) == math.factorial(4)


def test_one_draw_for_all_frames_of_a_view() -> None:
    """The same picture as every frame of memory and future comes out the same everywhere, differently per view."""
    picture = frames(8, 8)
    same = dataclasses.replace(
        batch(), context=picture.expand(4, 2, 2, 8, 8, 3).clone(), future=picture.expand(4, 2, 3, 8, 8, 3).clone()
    )
    out = jittered(same, PUBLISHED, draws(range(4)))
    assert out.context.dtype == torch.uint8 and out.future is not None
    every = torch.cat((out.context, out.future), dim=2)
    assert (every == every[:, :, :1]).all()
    first = every[:, :, 0].flatten(0, 1)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 8, "a draw for each row and view"
    for name in ("state", "actions", "episode_index"):
        assert torch.equal(getattr(out, name), getattr(same, name))


def test_two_processes_draw_what_one_draws() -> None:
    whole = jittered(batch(), PUBLISHED, draws(range(4)))
    for rank in range(2):
        rows = range(rank, 4, 2)
        own = jittered(batch().rows(rows), PUBLISHED, draws(rows))
        assert torch.equal(own.context, whole.rows(rows).context)
        assert torch.equal(own.future, whole.rows(rows).future)
    assert not torch.equal(jittered(batch(), PUBLISHED, draws(range(4), step=6)).context, whole.context)


def test_future_frames_change_no_draw() -> None:
    with_future = jittered(batch(), PUBLISHED, draws(range(4)))
    without = jittered(batch(future=False), PUBLISHED, draws(range(4)))
    assert without.future is None and torch.equal(without.context, with_future.context)


def test_draws_fill_their_ranges_and_no_more() -> None:
    changes = [
        change
        for step in range(100)
        for row in draw_changes(PUBLISHED, 2, draws(range(4), step=step))
        for change in row
    ]
    for name, half in dataclasses.asdict(PUBLISHED).items():
        centre = 0.0 if name == "hue" else 1.0
        amounts = np.array([getattr(change, name) for change in changes]) - centre
        assert np.abs(amounts).max() <= half and np.abs(amounts).max() > 0.95 * half
        assert abs(amounts.mean()) < 4 * half / math.sqrt(3 * len(changes))
    assert len({change.order for change in changes}) == 24


@pytest.mark.parametrize(("name", "amount"), [("brightness", -0.1), ("saturation", 1.5), ("hue", 0.6)])
def test_strengths_out_of_range_are_refused(name: str, amount: float) -> None:
    with pytest.raises(ValueError, match=rf"colour jitter: expected {name} in \[0, "):
        ColorJitter(**{name: amount})
