"""PSNR, SSIM and LPIPS of frames, against their definitions and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wamkit.data.images import fit_images
from wamkit.data.ssim import structural_similarity
from wamkit.evaluation.lpips import LPIPS
from wamkit.evaluation.video_metrics import PSNR_CAP, SIZE, decibels, resized, score_clip, similarity, squared_error


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def plain(shade: int, length: int = 1, side: int = 16) -> torch.Tensor:
    return torch.full((length, side, side, 3), shade, dtype=torch.uint8)


def ssim_by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """Window by window, colour by colour, in float64 (Wang et al. 2004, equation 13)."""
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for colour in range(3):
        for top in range(first.shape[0] - 10):
            for left in range(first.shape[1] - 10):
                x, y = (
                    picture[top : top + 11, left : left + 11, colour].astype(np.float64) for picture in (first, second)
                )
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                variance = (window * (x - mean_x) ** 2).sum() + (window * (y - mean_y) ** 2).sum()
                shared = (window * (x - mean_x) * (y - mean_y)).sum()
                likeness = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
                found.append(likeness / ((mean_x**2 + mean_y**2 + c1) * (variance + c2)))
    return float(np.mean(found))


def test_psnr_of_known_errors() -> None:
    real = plain(100, length=4)
    shown = torch.cat([plain(151), plain(99), plain(100), plain(100)])
    shown[3, 0, 0, 0] = 110
    error = squared_error(shown, real)
    assert error.tolist() == pytest.approx([51**2, 1, 0, 100 / (16 * 16 * 3)])
    found = decibels(error).tolist()
    assert found[0] == pytest.approx(20 * math.log10(5), abs=1e-4), "a fifth of the peak"
    assert found[1] == pytest.approx(20 * math.log10(255), abs=1e-4)
    assert found[2] == PSNR_CAP, "equal frames have no finite PSNR"
    assert found[3] == pytest.approx(10 * math.log10(255**2 / (100 / 768)), abs=1e-4)
    assert squared_error(real[:0], real[:0]).shape == (0,)


def test_similarity_against_its_definition() -> None:
    """The mean of the three colours, not that of the luminance."""
    first = noise(2, 14, 17)
    near = (first.float() * 0.8 + noise(2, 14, 17, seed=1).float() * 0.2).to(torch.uint8)
    expected = [ssim_by_definition(a, b) for a, b in zip(first.numpy(), near.numpy(), strict=True)]
    assert similarity(first, near).tolist() == pytest.approx(expected, abs=2e-5)
    assert similarity(near, first).tolist() == pytest.approx(expected, abs=2e-5), "symmetric"
    red = first.clone()
    red[..., 0] = noise(2, 14, 17, seed=2)[..., 0]
    for one, other, found in zip(first.numpy(), red.numpy(), similarity(first, red).tolist(), strict=True):
        assert found == pytest.approx(ssim_by_definition(one, other), abs=2e-5)
        assert found > 0.6, "two of three colours are equal"


def test_similarity_of_plain_frames_is_that_of_their_means() -> None:
    c1 = (0.01 * 255) ** 2
    expected = (2 * 60 * 120 + c1) / (60**2 + 120**2 + c1)
    assert similarity(plain(60), plain(120)).item() == pytest.approx(expected, abs=1e-5)
    assert similarity(plain(60), plain(60)).item() == pytest.approx(1.0, abs=1e-6)


def test_each_image_has_a_target_of_its_own() -> None:
    first, second = (noise(3, 12, 13, seed=seed)[..., 0].float() for seed in (0, 1))
    together = structural_similarity(first, second)
    alone = [structural_similarity(first[i : i + 1], second[i])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


def test_clips_are_compared_at_one_size_and_as_far_as_both_reach() -> None:
    real = noise(19, 32, 40)
    large = fit_images(real, height=SIZE, width=SIZE, preprocess="resize")
    assert torch.equal(resized(real), large)
    scores = score_clip({"same": large, "short": real[:9], "long": noise(30, 8, 8, seed=3)}, real)
    assert scores["same"].psnr.tolist() == [PSNR_CAP] * 19
    assert scores["same"].ssim.tolist() == pytest.approx([100.0] * 19, abs=1e-3)
    assert len(scores["short"].psnr) == len(scores["short"].ssim) == 9 and scores["short"].psnr[-1] == PSNR_CAP
    assert len(scores["long"].psnr) == 19 and scores["long"].ssim.abs().max() < 60
    assert all(item.lpips is None for item in scores.values())
    other = resized(noise(30, 8, 8, seed=3)[:19])
    torch.testing.assert_close(scores["long"].psnr, decibels(squared_error(other, large)))


def test_a_still_is_a_clip_that_does_not_move() -> None:
    real, frame = noise(11, 24, 24), noise(24, 24, seed=5)
    scores = score_clip({"clip": frame.expand(11, -1, -1, -1)}, real, stills={"still": frame})
    assert torch.equal(scores["still"].psnr, scores["clip"].psnr)
    assert torch.equal(scores["still"].ssim, scores["clip"].ssim)


def test_the_perceptual_distance_is_measured_on_the_same_frames() -> None:
    torch.manual_seed(0)
    network = LPIPS()
    real, shown = noise(2, 16, 16), noise(1, 20, 20, seed=1)
    scores = score_clip({"shown": shown}, real, stills={"still": real[1]}, lpips=network)
    distance = network.distance(network.encode(resized(shown)), network.encode(resized(real[:1])))
    assert scores["shown"].lpips is not None and scores["still"].lpips is not None
    torch.testing.assert_close(scores["shown"].lpips, 100 * distance)
    first, second = scores["still"].lpips.tolist()
    assert second == 0 and first != 0
