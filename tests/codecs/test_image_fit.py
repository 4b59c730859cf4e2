"""Images fitted to a grid of cells: which rectangle, how it is scaled, what is cropped."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wamkit.codecs.image_fit import fit_to_grid, fitted_size, require_image
from wamkit.draws import seeded


def noise(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (height, width, channels), dtype=torch.uint8, generator=seeded(height, width))


def ramp(height: int, width: int) -> Tensor:
    """Red grows to the right, green downwards."""
    y, x = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 40)], -1).round().to(torch.uint8)


@pytest.mark.parametrize("side", [32, 64, 256, 512])
def test_square_images_of_the_side_pass_unchanged(side: int) -> None:
    image = noise(side, side)
    before = image.clone()
    for crop in (None, seeded(0)):
        assert torch.equal(fit_to_grid(image, side=side, crop=crop), before)
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("height", "width", "side", "wanted"),
    [
        (100, 100, 256, (256, 256)),
        (480, 640, 256, (192, 256)),
        (480, 640, 512, (384, 512)),
        (640, 480, 256, (256, 192)),
        (100, 200, 256, (160, 320)),
        (100, 400, 256, (128, 512)),
        (10, 1000, 256, (128, 512)),  # at most four times as wide as high
        (1000, 10, 256, (512, 128)),
        (700, 600, 256, (224, 192)),
        (5, 9, 32, (32, 32)),
        (30, 40, 64, (64, 64)),
    ],
)
def test_the_rectangle_wastes_least(height: int, width: int, side: int, wanted: tuple[int, int]) -> None:
    assert fitted_size(height, width, side=side) == wanted
    assert fit_to_grid(noise(height, width), side=side).shape == (*wanted, 3)


def test_no_rectangle_wastes_less() -> None:
    """Against a search over all of them, with the waste as pixels cut from the scaled image."""
    for height, width, side in ((211, 377, 256), (90, 91, 128), (333, 100, 256), (720, 1280, 512), (17, 31, 96)):
        best_height, best_width = fitted_size(height, width, side=side)

        def waste(y: int, x: int, height: int = height, width: int = width) -> float:
            scale = max(y / height, x / width)
            return 1 - y * x / (height * scale * width * scale)

        cells = side // 32
        every = [
            (32 * y, 32 * x)
            for y in range(1, cells**2 + 1)
            for x in range(1, cells**2 + 1)
            if x * y <= cells**2 and max(x, y) <= 4 * min(x, y)
        ]
        assert (best_height, best_width) in every
        assert waste(best_height, best_width) <= min(waste(y, x) for y, x in every) + 1e-9
        least = [one for one in every if waste(*one) <= waste(best_height, best_width) + 1e-9]
        assert best_height * best_width == max(y * x for y, x in least)


def test_the_centre_is_kept_and_an_offset_drawn_on_demand() -> None:
    image = noise(32, 48)  # at a side of 32: fitted to a single cell
    assert torch.equal(fit_to_grid(image, side=32), image[:, 8:40])
    offsets = set()
    for seed in range(30):
        cropped = fit_to_grid(image, side=32, crop=seeded(seed))
        (offset,) = [left for left in range(17) if torch.equal(image[:, left : left + 32], cropped)]
        offsets.add(offset)
        assert torch.equal(cropped, fit_to_grid(image, side=32, crop=seeded(seed)))
    assert len(offsets) > 8 and min(offsets) < 3 and max(offsets) > 13


def test_large_images_are_averaged_before_they_are_scaled() -> None:
    image = noise(258, 260)  # twice too large at a side of 64, and twice again
    picture = Image.fromarray(image.numpy())
    for size in ((130, 129), (65, 64)):
        picture = picture.resize(size, Image.Resampling.BOX)
    wanted = np.asarray(picture)[:, :64]
    assert np.array_equal(fit_to_grid(image, side=64).numpy(), wanted)
    checker = (torch.arange(128)[:, None] + torch.arange(128)) % 2 * 255
    grey = fit_to_grid(checker.to(torch.uint8)[..., None].repeat(1, 1, 3), side=64)
    assert ((grey.int() - 127).abs() <= 1).all()


def test_scaling_is_bicubic_and_keeps_places() -> None:
    image = ramp(40, 40)
    wanted = Image.fromarray(image.numpy()).resize((64, 64), Image.Resampling.BICUBIC)
    found = fit_to_grid(image, side=64)
    assert np.array_equal(found.numpy(), np.asarray(wanted))
    assert (found.int() - ramp(64, 64).int()).abs().max() <= 4
    wide = fit_to_grid(ramp(30, 61), side=256)  # covers 160 by 320: a little is cut at the sides
    assert wide.shape == (160, 320, 3)
    assert wide[0, 0, 0] <= 3 and wide[0, -1, 0] >= 252
    assert abs(int(wide[80, :, 0].float().mean()) - 127) <= 1


def test_opacity_is_blended_onto_white() -> None:
    image = torch.zeros(32, 32, 4, dtype=torch.uint8)
    image[..., 0], image[:16, :, 3], image[16:, :16, 3] = 200, 255, 102
    found = fit_to_grid(image, side=32).int()
    assert found.shape == (32, 32, 3)
    assert (found[:16] == torch.tensor([200, 0, 0])).all()
    assert ((found[16:, :16] - torch.tensor([233, 153, 153])).abs() <= 1).all()
    assert (found[16:, 16:] == 255).all()


def test_wrong_input_is_refused() -> None:
    message = r"uint8 of shape \(height, width, 3 or 4\), got torch\.\w+ of \("
    for image in (noise(8, 8, 2), noise(8, 8)[:0]):
        with pytest.raises(ValueError, match=message):
            fit_to_grid(image, side=32)
    for image in (noise(8, 8).float() / 255, noise(8, 8)[None]):
        with pytest.raises(ValueError, match=message):
            require_image(image)
    for side in (0, 31, 48, -32):
        with pytest.raises(ValueError, match=f"positive multiple of 32 pixels, got {side}"):
            fit_to_grid(noise(8, 8), side=side)
