"""The patch VQ tokeniser: exact and local codes, frames that come back, its folder, and its refusals."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wamkit.codecs.base import ImageTokenizer
from wamkit.codecs.image_patch_vq import PatchVQConfig, PatchVQTokenizer
from wamkit.codecs.load import load_image_tokenizer

TINY = PatchVQConfig.tiny()


def moving_square(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Frames of one smooth background with a square somewhere."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(7)) * 200.0
    background = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    frames = background.repeat(count, 1, 1, 1)
    places = torch.randint(0, size - 10, (count, 2), generator=torch.Generator().manual_seed(seed))
    for frame, (y, x) in zip(frames, places.tolist(), strict=True):
        frame[:, y : y + 10, x : x + 10] = torch.tensor([250.0, 30.0, 30.0])[:, None, None]
    return frames.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous()


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return moving_square(200)


@pytest.fixture(scope="module")
def tokenizer(frames: Tensor) -> PatchVQTokenizer:
    return PatchVQTokenizer.fit(frames, TINY, torch.Generator().manual_seed(0))


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(255.0**2 / (a.float() - b.float()).square().mean()))


def test_it_is_an_image_tokenizer(tokenizer: PatchVQTokenizer) -> None:
    assert isinstance(tokenizer, ImageTokenizer)
    assert (tokenizer.spatial, tokenizer.num_codes) == (8, 128)


def test_shapes_and_types(tokenizer: PatchVQTokenizer, frames: Tensor) -> None:
    wide = torch.zeros(2, 16, 24, 3, dtype=torch.uint8)
    codes = tokenizer.encode(frames[:3])
    assert codes.shape == (3, 4, 4) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < tokenizer.num_codes
    assert tokenizer.decode(codes).shape == frames[:3].shape and tokenizer.decode(codes).dtype == torch.uint8
    assert tokenizer.decode(tokenizer.encode(wide)).shape == wide.shape
    assert tokenizer.encode(frames[:0]).shape == (0, 4, 4)
    assert tokenizer.decode(codes[:0]).shape == (0, 32, 32, 3)


def test_narrow_codes_decode_alike(tokenizer: PatchVQTokenizer, frames: Tensor) -> None:
    codes = tokenizer.encode(frames[:3])
    assert torch.equal(tokenizer.decode(codes.to(torch.int16)), tokenizer.decode(codes))


def test_a_patch_changes_its_own_code_alone(tokenizer: PatchVQTokenizer, frames: Tensor) -> None:
    changed = frames[:20].clone()
    changed[:, 8:16, 16:24] = 255 - changed[:, 8:16, 16:24]
    differs = (tokenizer.encode(frames[:20]) != tokenizer.encode(changed)).any(dim=0)
    assert differs[1, 2] and differs.sum() == 1


def test_what_stands_still_keeps_its_codes(tokenizer: PatchVQTokenizer) -> None:
    one, other = moving_square(100, seed=3), moving_square(100, seed=4)
    still = (one == other).unflatten(1, (4, 8)).unflatten(3, (4, 8)).all(dim=(2, 4, 5))
    assert 0.1 < still.float().mean() < 0.9
    assert torch.equal(tokenizer.encode(one)[still], tokenizer.encode(other)[still])


def test_a_code_reaches_as_far_as_the_decoder_looks(tokenizer: PatchVQTokenizer, frames: Tensor) -> None:
    codes = tokenizer.encode(moving_square(1, size=64))
    changed = codes.clone()
    changed[0, 4, 4] = (changed[0, 4, 4] + 1) % tokenizer.num_codes
    differs = (tokenizer.decode(codes) != tokenizer.decode(changed))[0].any(-1)
    differs = differs.unflatten(0, (8, 8)).unflatten(2, (8, 8)).any(3).any(1)
    reach = TINY.num_blocks
    assert differs[4, 4]
    differs[4 - reach : 5 + reach, 4 - reach : 5 + reach] = False
    assert not differs.any()


def test_new_frames_come_back(tokenizer: PatchVQTokenizer, frames: Tensor) -> None:
    fresh = moving_square(50, seed=1)
    decoded = tokenizer.decode(tokenizer.encode(fresh))
    constant = frames.float().mean(dim=(0, 1, 2)).expand_as(fresh)
    mean_frame = frames.float().mean(0).expand_as(fresh)
    assert psnr(decoded, fresh) > psnr(constant, fresh) + 8.0
    assert psnr(decoded, fresh) > psnr(mean_frame, fresh) + 4.0


def test_the_convolutions_earn_their_keep(frames: Tensor) -> None:
    fresh = moving_square(50, seed=1)
    qualities = []
    for steps in (0, TINY.steps):
        config = dataclasses.replace(TINY, steps=steps)
        fitted = PatchVQTokenizer.fit(frames, config, torch.Generator().manual_seed(0))
        qualities.append(psnr(fitted.decode(fitted.encode(fresh)), fresh))
    assert qualities[1] > qualities[0] + 0.5


def test_fit_is_a_function_of_data_and_seed(tokenizer: PatchVQTokenizer, frames: Tensor) -> None:
    told: list[tuple[int, int]] = []
    again = PatchVQTokenizer.fit(
        frames, TINY, torch.Generator().manual_seed(0), progress=lambda *done: told.append(done)
    )
    other = PatchVQTokenizer.fit(frames, TINY, torch.Generator().manual_seed(1))
    assert told == [(step, TINY.steps) for step in range(1, TINY.steps + 1)]
    assert torch.equal(again.codebook.codes, tokenizer.codebook.codes)
    weights = tokenizer.decoder.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.decoder.state_dict().items())
    assert not torch.equal(other.codebook.codes, tokenizer.codebook.codes)


def test_few_and_flat_frames_will_do() -> None:
    grey = torch.full((2, 8, 8, 3), 130, dtype=torch.uint8)
    tokenizer = PatchVQTokenizer.fit(grey, TINY, torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.decode(tokenizer.encode(grey)), grey)


@pytest.mark.parametrize("patch", [1, 4, 16])
def test_other_patches(frames: Tensor, patch: int) -> None:
    config = dataclasses.replace(TINY, patch=patch, steps=2)
    tokenizer = PatchVQTokenizer.fit(frames, config, torch.Generator().manual_seed(0))
    codes = tokenizer.encode(frames[:5])
    assert codes.shape == (5, 32 // patch, 32 // patch)
    assert psnr(tokenizer.decode(codes), frames[:5]) > 18.0


def test_decoding_many_is_decoding_each(tokenizer: PatchVQTokenizer, frames: Tensor) -> None:
    many = tokenizer.encode(frames).repeat(4, 1, 1)  # above the pixels of one pass
    apart = tokenizer.decode(many[600:620]).int()
    assert (tokenizer.decode(many)[600:620].int() - apart).abs().max() <= 1


def test_folder_round_trip_bit_for_bit(tokenizer: PatchVQTokenizer, frames: Tensor, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "image")
    loaded = load_image_tokenizer(tmp_path / "image")
    assert sorted(path.name for path in (tmp_path / "image").iterdir()) == ["config.json", "model.safetensors"]
    assert isinstance(loaded, PatchVQTokenizer) and loaded.config == tokenizer.config
    codes = tokenizer.encode(frames)
    assert torch.equal(loaded.encode(frames), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    loaded.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "image" / name).read_bytes()
    tokenizer.save(tmp_path / "image")  # over an existing one


def test_defaults_stay_below_three_megabytes() -> None:
    tokenizer = PatchVQTokenizer.fit(
        moving_square(4), PatchVQConfig(steps=0, rounds=1), torch.Generator().manual_seed(0)
    )
    numbers = [*tokenizer.decoder.parameters(), tokenizer.codebook.projection, tokenizer.codebook.codes]
    assert 2 * sum(tensor.numel() for tensor in numbers) < 3e6


def test_damaged_folders_are_refused_by_name(tokenizer: PatchVQTokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json of a .patch_vq. codec in .*nowhere"):
        PatchVQTokenizer.load(tmp_path / "nowhere")
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "version": 99}))
    with pytest.raises(ValueError, match="version 1, got 'patch_vq' and 99"):
        PatchVQTokenizer.load(tmp_path)
    other = {**settings, "config": {**settings["config"], "num_codes": 64}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"codebook\.codes: expected int16 \(64, 16\), got int16 \(128, 16\)"):
        PatchVQTokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        PatchVQTokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors.*truncated or damaged.*copy the policy folder again"):
        PatchVQTokenizer.load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors in .*copy the policy folder again"):
        PatchVQTokenizer.load(tmp_path)


def test_weights_that_are_no_numbers_or_of_another_kind_are_refused(
    tokenizer: PatchVQTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    whole = tensors["codebook.codes"]
    save_file({**tensors, "codebook.codes": whole.float()}, path)
    with pytest.raises(ValueError, match=r"codebook\.codes: expected int16 \(128, 16\), got float32 \(128, 16\)"):
        PatchVQTokenizer.load(tmp_path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "codebook.codes"}, path)
    with pytest.raises(ValueError, match=r"codebook\.codes: expected int16 \(128, 16\), got nothing"):
        PatchVQTokenizer.load(tmp_path)
    save_file({**tensors, "more": whole.clone()}, path)
    with pytest.raises(ValueError, match=r"more: expected nothing, got int16 \(128, 16\)"):
        PatchVQTokenizer.load(tmp_path)
    tensors["decoder.tokens.weight"][3, 3] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"expected finite weights, got NaN or infinity in decoder\.tokens\.weight"):
        PatchVQTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": []}, "config: expected an object with the keys patch, "),
        ({"config": {"patch": "8"}}, 'expected patch as a whole number, got "8"'),
        ({"config": {"stride": 8}}, r"unknown: stride"),
        ({"config": {"num_codes": 0}}, "expected num_codes of 1 or more, got 0"),
        ({"version": None}, "version 1, got 'patch_vq' and None"),
    ],
)
def test_settings_of_another_kind_are_named(
    tokenizer: PatchVQTokenizer, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}.*copy the policy folder again"):
        PatchVQTokenizer.load(tmp_path)


def test_wrong_input_is_refused(tokenizer: PatchVQTokenizer, frames: Tensor) -> None:
    with pytest.raises(ValueError, match="multiples of 8, got 20x32"):
        tokenizer.encode(torch.zeros(1, 20, 32, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"of 0 to 127, got 0 to 128"):
        tokenizer.decode(torch.tensor([[[0, 128]]]))
    with pytest.raises(ValueError, match=r"of 0 to 127, got -1 to 0"):
        tokenizer.decode(torch.tensor([[[0, -1]]]))
    for few in (frames[:0], frames[:1, :8, :8]):
        with pytest.raises(ValueError, match=r"expected frames with two patches or more to fit to, got \([01], "):
            PatchVQTokenizer.fit(few, TINY, torch.Generator())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 0}, "patch VQ: expected patch of 1 or more, got 0"),
        ({"batch_size": 0}, "patch VQ: expected batch_size of 1 or more, got 0"),
        ({"steps": -1}, "patch VQ: expected steps of 0 or more, got -1"),
        ({"learning_rate": 0.0}, "patch VQ: expected a learning_rate above 0, got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchVQConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_codes(tokenizer: PatchVQTokenizer, frames: Tensor, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = PatchVQTokenizer.load(tmp_path, "cuda")
    codes = loaded.encode(frames.to("cuda"))
    assert torch.equal(codes.cpu(), tokenizer.encode(frames))
    assert (loaded.decode(codes).cpu().int() - tokenizer.decode(codes.cpu()).int()).abs().max() <= 1
