"""The linear patch codec: what a principal-component codec must satisfy, its folder, and its refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wamkit.codecs.base import VideoCodec
from wamkit.codecs.patch import PatchCodec, PatchCodecConfig

SMALL = PatchCodecConfig(patch=8, temporal=4, channels=12, clip_rank=24)


def moving_scenes(count: int, t: int, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth coloured backgrounds with one square that moves at constant velocity."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 200.0
    background = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    video = background[:, None].expand(count, t, 3, size, size).clone()
    start = torch.randint(0, size - 12, (count, 2), generator=generator)
    speed = torch.randint(-1, 2, (count, 2), generator=generator)
    for n in range(count):
        for k in range(t):
            y, x = (start[n] + k * speed[n]).clamp(0, size - 6).tolist()
            video[n, k, :, y : y + 6, x : x + 6] = torch.tensor([250.0, 30.0, 30.0])[:, None, None]
    return video.permute(0, 1, 3, 4, 2).round().to(torch.uint8).contiguous()


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return moving_scenes(80, 9)


@pytest.fixture(scope="module")
def codec(clips: Tensor) -> PatchCodec:
    return PatchCodec.fit(clips.flatten(0, 1), clips, config=SMALL, generator=torch.Generator().manual_seed(0))


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(255.0**2 / (a.float() - b.float()).square().mean()))


def test_it_is_a_video_codec(codec: PatchCodec) -> None:
    assert isinstance(codec, VideoCodec)
    assert (codec.spatial, codec.temporal, codec.channels) == (8, 4, 12)


def test_shapes(codec: PatchCodec, clips: Tensor) -> None:
    wide = torch.zeros(2, 5, 16, 24, 3, dtype=torch.uint8)
    assert codec.encode_clip(clips[:3]).shape == (3, 12, 3, 4, 4)
    assert codec.encode_frames(clips[:3, 0]).shape == (3, 12, 4, 4)
    assert codec.decode_clip(codec.encode_clip(clips[:3])).shape == clips[:3].shape
    assert codec.decode_clip(codec.encode_clip(wide)).shape == wide.shape
    assert codec.encode_clip(clips[:0]).shape == (0, 12, 3, 4, 4)


def test_latents_of_the_fitting_data_are_whitened_and_uncorrelated() -> None:
    clips = moving_scenes(60, 5)
    config = PatchCodecConfig(patch=4, temporal=4, channels=12, clip_rank=48, max_patches=100_000)
    codec = PatchCodec.fit(clips.flatten(0, 1), clips, config=config, generator=torch.Generator().manual_seed(0))
    for latents in (codec.encode_frames(clips.flatten(0, 1)), codec.encode_clip(clips)[:, :, 1]):
        rows = latents.movedim(1, -1).reshape(-1, 12).double()
        assert rows.mean(0).abs().max() < 1e-3
        torch.testing.assert_close(torch.cov(rows.T), torch.eye(12, dtype=torch.float64), atol=2e-3, rtol=0.0)


def test_bases_are_orthonormal(codec: PatchCodec) -> None:
    for basis in (codec.frame.basis, codec.clip.basis):
        torch.testing.assert_close(basis.T @ basis, torch.eye(12), atol=1e-4, rtol=0.0)


def test_round_trip_keeps_the_explained_share_on_new_scenes(codec: PatchCodec) -> None:
    fresh = moving_scenes(20, 9, seed=1)
    decoded = codec.decode_clip(codec.encode_clip(fresh))
    assert psnr(decoded[:, 0], fresh[:, 0]) > 27.0
    assert psnr(decoded[:, 1:], fresh[:, 1:]) > 23.0
    assert 0.9 < codec.explained["clip"] <= codec.explained["frame"] <= 1.0
    lost = 1.0 - codec.explained["frame"]
    error = (decoded[:, 0].float() - fresh[:, 0].float()).square().mean() / 127.5**2
    patches = fresh[:, 0].reshape(20, 4, 8, 4, 8, 3).transpose(2, 3).reshape(-1, 192).float() / 127.5
    assert error / patches.var(0).mean() == pytest.approx(lost, rel=0.35)


def test_all_channels_make_it_lossless() -> None:
    clips = torch.randint(0, 256, (60, 3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = PatchCodecConfig(patch=2, temporal=1, channels=12)
    codec = PatchCodec.fit(clips.flatten(0, 1), config=config, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.decode_clip(codec.encode_clip(clips)), clips)


def test_decoding_then_encoding_returns_the_latents(codec: PatchCodec, clips: Tensor) -> None:
    latents = codec.encode_clip(clips[:8])
    again = codec.encode_clip(codec.decode_clip(latents))
    # Only rounding and clamping to grey levels come between.
    assert (again - latents).abs().mean() < 0.05


def test_a_frame_is_encoded_like_the_first_frame_of_a_clip(codec: PatchCodec, clips: Tensor) -> None:
    torch.testing.assert_close(codec.encode_frames(clips[:6, 0]), codec.encode_clip(clips[:6])[:, :, 0])


def test_it_is_causal_and_groups_do_not_mix(codec: PatchCodec, clips: Tensor) -> None:
    changed = clips[:4].clone()
    changed[:, 5:] = 255 - changed[:, 5:]
    before, after = codec.encode_clip(clips[:4]), codec.encode_clip(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2], after[:, :, 2], atol=0.1)


def test_patches_do_not_mix(codec: PatchCodec, clips: Tensor) -> None:
    changed = clips[:4].clone()
    changed[:, :, 8:16, 16:24] = 0
    differs = (codec.encode_clip(clips[:4]) != codec.encode_clip(changed)).any(dim=(0, 1, 2))
    assert differs[1, 2] and differs.sum() == 1


def test_large_batches_are_cut_without_a_change(codec: PatchCodec, clips: Tensor) -> None:
    many = clips.repeat(2, 1, 1, 1, 1)  # above the pixels of one product
    latents = codec.encode_clip(many)
    torch.testing.assert_close(latents[70:90], codec.encode_clip(many[70:90]), atol=1e-4, rtol=1e-4)
    decoded = codec.decode_clip(latents)[70:90].int() - codec.decode_clip(latents[70:90]).int()
    assert decoded.abs().max() <= 1


def test_one_frame_per_latent_uses_the_frame_basis(clips: Tensor) -> None:
    config = PatchCodecConfig(patch=8, temporal=1, channels=12)
    codec = PatchCodec.fit(clips.flatten(0, 1), config=config, generator=torch.Generator().manual_seed(0))
    latents = codec.encode_clip(clips[:2])
    assert latents.shape == (2, 12, 9, 4, 4)
    torch.testing.assert_close(latents[:, :, 5], codec.encode_frames(clips[:2, 5]))
    assert psnr(codec.decode_clip(latents), clips[:2]) > 27.0


def test_fit_is_a_function_of_data_and_seed(clips: Tensor, codec: PatchCodec) -> None:
    again = PatchCodec.fit(clips.flatten(0, 1), clips, config=SMALL, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.clip.basis, codec.clip.basis) and torch.equal(again.frame.scale, codec.frame.scale)


def test_constant_images_are_encoded_without_infinities() -> None:
    grey = torch.full((20, 5, 16, 16, 3), 128, dtype=torch.uint8)
    codec = PatchCodec.fit(grey.flatten(0, 1), grey, config=SMALL, generator=torch.Generator().manual_seed(0))
    latents = codec.encode_clip(grey)
    assert torch.isfinite(latents).all()
    assert torch.equal(codec.decode_clip(latents), grey)


def test_folder_round_trip(codec: PatchCodec, clips: Tensor, tmp_path: Path) -> None:
    codec.save(tmp_path / "video")
    loaded = PatchCodec.load(tmp_path / "video")
    assert sorted(path.name for path in (tmp_path / "video").iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.config == codec.config and loaded.explained == codec.explained
    assert torch.equal(loaded.encode_clip(clips[:2]), codec.encode_clip(clips[:2]))
    codec.save(tmp_path / "video")  # over an existing one


def test_damaged_folders_are_refused_by_name(codec: PatchCodec, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json of a .patch. codec in .*nowhere"):
        PatchCodec.load(tmp_path / "nowhere")
    codec.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "version": 99}))
    with pytest.raises(ValueError, match="version 1, got 'patch' and 99"):
        PatchCodec.load(tmp_path)
    other = {**settings, "config": {**settings["config"], "channels": 6}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"frame\.basis: expected \(192, 6\), got \(192, 12\)"):
        PatchCodec.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        PatchCodec.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors.*truncated or damaged.*copy the policy folder again"):
        PatchCodec.load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors in .*copy the policy folder again"):
        PatchCodec.load(tmp_path)


@pytest.mark.parametrize("name", ["frame.mean", "clip.basis", "clip.scale"])
def test_weights_that_are_no_numbers_are_refused(codec: PatchCodec, tmp_path: Path, name: str) -> None:
    codec.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for value, message in ((float("nan"), "NaN or infinity in"), (float("-inf"), "NaN or infinity in")):
        tensors[name].view(-1)[-1] = value
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=rf"model\.safetensors: expected finite weights, got {message} {name}"):
            PatchCodec.load(tmp_path)


def test_a_scale_of_nothing_is_refused(codec: PatchCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["clip.scale"][0] = 0.0
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected a positive clip\.scale, got 0"):
        PatchCodec.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": []}, "config: expected an object with the keys patch, "),
        ({"config": {"patch": "8"}}, 'expected patch as a whole number, got "8"'),
        ({"config": {"stride": 8}}, r"unknown: stride"),
        ({"config": {"channels": -1}}, "expected channels of 1 or more, got -1"),
        ({"explained": {"frame": None}}, r"expected explained\['frame'\] as a finite number, got null"),
        ({"version": None}, "version 1, got 'patch' and None"),
    ],
)
def test_settings_of_another_kind_are_named(
    codec: PatchCodec, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    codec.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}.*copy the policy folder again"):
        PatchCodec.load(tmp_path)


def test_wrong_input_is_refused(codec: PatchCodec) -> None:
    with pytest.raises(ValueError, match="multiples of 8, got 20x32"):
        codec.encode_frames(torch.zeros(1, 20, 32, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"1 \+ 4 k frames, got 4"):
        codec.encode_clip(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="latents of 12 channels"):
        codec.decode_clip(torch.zeros(1, 11, 1, 4, 4))


def test_impossible_settings_and_too_little_data_are_refused(clips: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="temporal of 1 or more, got 0"):
        PatchCodecConfig(temporal=0)
    with pytest.raises(ValueError, match="48 numbers, too few for 64 channels"):
        PatchCodecConfig(patch=4, channels=64)
    with pytest.raises(ValueError, match=r"clips of 1 \+ 4 k frames"):
        PatchCodec.fit(clips[:, 0], config=SMALL, generator=generator)
    with pytest.raises(ValueError, match="at least 5 frames, got 1"):
        PatchCodec.fit(clips[:, 0], clips[:, :1], config=SMALL, generator=generator)
    with pytest.raises(ValueError, match="4 patches are too few for 12 channels"):
        PatchCodec.fit(clips[:1, 0, :16, :16], clips[:, :, :16, :16], config=SMALL, generator=generator)
