"""Layout and range conversions, and the checks that every video codec shares."""

import pytest
import torch

from wamkit.codecs.base import require_clip, require_codes, require_frames, to_uint8, to_unit_range


def test_every_grey_level_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3)
    unit = to_unit_range(levels)
    assert unit.shape == (2, 3, 16, 16)
    assert unit.min() == -1.0 and unit.max() == 1.0
    assert torch.equal(to_uint8(unit), levels)


def test_conversion_moves_the_channel_axis_and_leaves_its_input_alone() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    unit = to_unit_range(images)
    assert unit.shape == (2, 3, 3, 4, 5)
    assert unit[1, 2, 0, 3, 4].item() == pytest.approx(images[1, 2, 3, 4, 0].item() / 127.5 - 1.0)
    kept = unit.clone()
    to_uint8(unit)
    assert torch.equal(images, before) and torch.equal(unit, kept)


def test_values_outside_the_range_are_clamped_and_rounded() -> None:
    values = torch.tensor([-7.0, -1.0, 0.4 / 127.5 - 1.0, 0.6 / 127.5 - 1.0, 1.0, 9.0]).reshape(1, 1, 6)
    assert to_uint8(values).flatten().tolist() == [0, 0, 0, 1, 255, 255]


def test_frames_of_wrong_type_rank_or_size_are_refused() -> None:
    good = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    require_frames(good, spatial=32)
    with pytest.raises(ValueError, match=r"uint8.*float32"):
        require_frames(good.float(), spatial=32)
    with pytest.raises(ValueError, match=r"\(n, height, width, 3\), got \(2, 3, 64, 96\)"):
        require_frames(good.permute(0, 3, 1, 2), spatial=32)
    with pytest.raises(ValueError, match="multiples of 32, got 64x90"):
        require_frames(good[:, :, :90], spatial=32)


@pytest.mark.parametrize("count", [1, 9, 17])
def test_frame_counts_of_one_plus_multiples_are_taken(count: int) -> None:
    require_clip(torch.zeros(1, count, 32, 32, 3, dtype=torch.uint8), spatial=32, temporal=8)


@pytest.mark.parametrize(("count", "hint"), [(0, "1 or 9"), (5, "1 or 9"), (8, "1 or 9"), (16, "9 or 17")])
def test_other_frame_counts_are_refused_with_the_nearest_ones(count: int, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"1 \+ 8 k frames, got {count}; use {hint}"):
        require_clip(torch.zeros(1, count, 32, 32, 3, dtype=torch.uint8), spatial=32, temporal=8)


def test_codes_of_a_codebook() -> None:
    for dtype in (torch.int16, torch.int32, torch.int64):
        require_codes(torch.tensor([[[0, 7]]], dtype=dtype), num_codes=8)
    require_codes(torch.zeros(0, 2, 2, dtype=torch.int64), num_codes=8)
    for codes, message in (
        (torch.tensor([[[0, 8]]]), "expected codes of 0 to 7, got 0 to 8; take the vocabulary's image codes"),
        (torch.tensor([[[-1, 2]]]), "got -1 to 2"),
        (torch.zeros(2, 2, dtype=torch.int64), r"integers of shape \(n, y, x\), got torch\.int64 of \(2, 2\)"),
        (torch.zeros(1, 2, 2), r"got torch\.float32 of \(1, 2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            require_codes(codes, num_codes=8)
