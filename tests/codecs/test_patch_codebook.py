"""The codebook of patches: exact arithmetic, and codes where patches are hard."""

import pytest
import torch
from torch import Tensor

from wamkit.codecs.patch_codebook import PatchCodebook, coarseness, coordinates, fit_codebook


def patches_of(count: int, size: int, seed: int = 0) -> Tensor:
    """Patches about some centres, with a few of the brightest and darkest there can be."""
    generator = torch.Generator().manual_seed(seed)
    centres = 255 * torch.rand(40, size, generator=torch.Generator().manual_seed(7)).round()
    of = torch.randint(40, (count,), generator=generator)
    noise = 20 * torch.randn(count, size, generator=generator)
    return (centres[of] * 0.8 + noise).clamp(0, 255).to(torch.uint8)


def fitted(patches: Tensor, num_codes: int = 64, num_directions: int = 24, seed: int = 0) -> PatchCodebook:
    return fit_codebook(
        patches,
        num_codes=num_codes,
        num_directions=num_directions,
        max_patches=1500,
        rounds=8,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("size", [3, 192, 768, 1200])
def test_nothing_is_rounded_but_the_coordinates(size: int) -> None:
    codebook = fitted(patches_of(2000, size), num_directions=min(24, size))
    projection, codes = codebook.projection.long(), codebook.codes.long()
    assert torch.equal(codebook.projection, projection) and torch.equal(codebook.codes, codes)
    draws = torch.Generator().manual_seed(1)
    extremes = (255 * torch.randint(0, 2, (300, size), generator=draws)).to(torch.uint8)
    patches = torch.cat([patches_of(300, size, seed=1), extremes])

    projected = (patches.long() - 128) @ projection
    rows = (projected.double() / (256 * coarseness(size))).round().long()
    assert ((patches.long() - 128).abs() @ projection.abs()).max() < 2**24
    assert 3 * max(rows.square().sum(1).max(), codes.square().sum(1).max()) < 2**24
    assert torch.equal(coordinates(patches, codebook.projection), rows)
    assert torch.equal(codebook.nearest(patches), (rows[:, None] - codes).square().sum(2).argmin(1))


def test_a_patch_has_its_code_in_every_batch_and_order() -> None:
    patches = patches_of(700, 192)
    codebook = fitted(patches)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(2))
    codes = codebook.nearest(patches)
    assert torch.equal(codebook.nearest(patches[order]), codes[order])
    assert torch.equal(torch.cat([codebook.nearest(patch) for patch in patches[:40].split(1)]), codes[:40])
    assert torch.equal(codebook.to("cpu").nearest(patches), codes)


def test_each_patch_is_near_its_code_and_codes_are_their_patches_means() -> None:
    patches = patches_of(1500, 192)
    codebook = fitted(patches, num_codes=40)
    rows, nearest = coordinates(patches, codebook.projection), codebook.nearest(patches)
    assert (rows - codebook.codes[nearest]).square().sum(1).mean() < 0.1 * (rows - rows.mean(0)).square().sum(1).mean()
    for code in nearest.unique().tolist():
        assert (rows[nearest == code].mean(0) - codebook.codes[code]).norm() < 60


def test_decoding_gives_patches_back() -> None:
    patches = patches_of(400, 12)
    codebook = fitted(patches, num_codes=400, num_directions=12)
    decoded = (codebook.decode()[codebook.nearest(patches)] + 1) * 127.5
    assert (decoded - patches.float()).square().mean().sqrt() < 15


def test_rare_patches_that_differ_have_codes() -> None:
    background = torch.randint(90, 110, (1, 192), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    rare = patches_of(60, 192)
    codebook = fitted(torch.cat([background.expand(6000, 192), rare]), num_codes=32)
    rows = coordinates(rare, codebook.projection)
    error = (rows - codebook.codes[codebook.nearest(rare)]).square().sum(1).mean()
    assert error < 0.25 * (rows - rows.mean(0)).square().sum(1).mean()
    still = coordinates(background, codebook.projection)
    assert (still - codebook.codes[codebook.nearest(background)]).norm() < 2


def test_more_codes_than_patches_will_do() -> None:
    patches = patches_of(5, 48)
    codebook = fitted(patches, num_codes=64, num_directions=3)
    assert codebook.codes.shape == (64, 3)
    assert (coordinates(patches, codebook.projection) - codebook.codes[codebook.nearest(patches)]).abs().max() <= 1


def test_it_is_a_function_of_data_and_seed() -> None:
    patches = patches_of(2000, 48)
    one, again, other = (fitted(patches, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.codes, again.codes) and torch.equal(one.projection, again.projection)
    assert not torch.equal(one.codes, other.codes)
