"""The LTX autoencoder as a codec: tiny random weights in the published layouts, and the published size on `meta`."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wamkit.codecs.base import VideoCodec, to_unit_range
from wamkit.codecs.load import load_video_codec
from wamkit.codecs.ltx_weights import ltx_vae_config
from wamkit.codecs.video_ltx import LTXOptions, LTXVideoCodec

TINY = {
    **ltx_vae_config(),
    "latent_channels": 8,
    "block_out_channels": (8, 16, 24, 24),
    "decoder_block_out_channels": (8, 16, 24, 24),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
}
CONDITIONED = {  # the decoder of 0.9.1 in small: timestep conditioning, noise inside its blocks
    **TINY,
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "decoder_inject_noise": (True, True, True, False),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}


def random_vae(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKLLTXVideo

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLLTXVideo.from_config(config)
        vae.latents_mean.copy_(torch.randn(8))
        vae.latents_std.copy_(torch.rand(8) + 0.5)
        for name, parameter in vae.named_parameters():
            if "per_channel_scale" in name:  # starts at zero, which would hide the injected noise
                parameter.data.fill_(0.5)
    return vae


def random_clips(n: int, t: int, height: int = 32, width: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, t, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ltx-video")
    random_vae(TINY).save_pretrained(root / "vae")
    return root


@pytest.fixture(scope="module")
def codec(folder: Path) -> LTXVideoCodec:
    return LTXVideoCodec.from_pretrained(folder)


def original_key(key: str) -> str:
    """The name of a diffusers tensor in the original file of 0.9.0, written from the block lists of that release."""
    if key.startswith("latents_"):
        return f"vae.per_channel_statistics.{key.removeprefix('latents_')}-of-means"
    blocks = {
        "encoder": "0=0 0.downsamplers.0=1 0.conv_out=2 1=3 1.downsamplers.0=4 1.conv_out=5 2=6 2.downsamplers.0=7 3=8",
        "decoder": "0=1 1.upsamplers.0=2 1=3 2.conv_in=4 2.upsamplers.0=5 2=6 3.conv_in=7 3.upsamplers.0=8 3=9",
    }
    tower, rest = key.split(".", 1)
    name = {"encoder": "down_blocks", "decoder": "up_blocks"}[tower]
    rest = rest.replace("mid_block.", f"{name}.{'9' if tower == 'encoder' else '-'}.")
    pairs = sorted((pair.split("=") for pair in blocks[tower].split()), key=lambda pair: -len(pair[0]))
    for ours, theirs in pairs:
        if rest.startswith(f"{name}.{ours}."):
            rest = f"{name}.@{theirs}." + rest.removeprefix(f"{name}.{ours}.")
            break
    rest = rest.replace(".-.", ".0.").replace("@", "").replace("resnets", "res_blocks")
    rest = rest.replace("conv_shortcut.conv", "conv_shortcut")
    return f"vae.{tower}." + re.sub(r"norm3\.(weight|bias)", r"norm3.norm.\1", rest)


@pytest.fixture(scope="module")
def original_file(folder: Path) -> Path:
    state = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    tensors = {original_key(key): tensor for key, tensor in state.items()}
    assert len(tensors) == len(state)
    for unused in ("mean-of-stds", "channel", "mean-of-stds_over_std-of-means"):
        tensors[f"vae.per_channel_statistics.{unused}"] = torch.zeros(8)
    tensors["model.diffusion_model.patchify_proj.weight"] = torch.zeros(4, 8)
    path = folder / "ltx-video-tiny.safetensors"
    save_file(tensors, path)
    return path


def test_published_architecture_has_the_published_size() -> None:
    from diffusers import AutoencoderKLLTXVideo

    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo.from_config(ltx_vae_config())
    encoder, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (vae.encoder, vae.decoder))
    assert round(encoder) == 180 and round(decoder) == 239
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (32, 8)
    assert vae.latents_mean.shape == (128,)


def test_shapes_and_protocol(codec: LTXVideoCodec) -> None:
    assert isinstance(codec, VideoCodec)
    assert (codec.spatial, codec.temporal, codec.channels) == (32, 8, 8)
    clip = random_clips(2, 9)
    latents = codec.encode_clip(clip)
    assert latents.shape == (2, 8, 2, 1, 2) and latents.dtype == torch.float32
    assert codec.decode_clip(latents).shape == clip.shape
    assert codec.encode_frames(clip[:, 0]).shape == (2, 8, 1, 2)
    assert codec.decode_clip(latents[:, :, :1]).shape == (2, 1, 32, 64, 3)
    assert codec.encode_clip(clip[:0]).shape == (0, 8, 2, 1, 2)


def test_latents_are_the_normalized_posterior_mode(codec: LTXVideoCodec, folder: Path) -> None:
    from diffusers import AutoencoderKLLTXVideo

    vae = AutoencoderKLLTXVideo.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval()
    clip = random_clips(2, 9)
    with torch.no_grad():
        mode = vae.encode(to_unit_range(clip).transpose(1, 2)).latent_dist.mode()
        expected = (mode - vae.latents_mean.reshape(1, 8, 1, 1, 1)) / vae.latents_std.reshape(1, 8, 1, 1, 1)
        pixels = vae.decode(mode).sample.transpose(1, 2)
    assert vae.latents_mean.abs().max() > 0.5
    torch.testing.assert_close(codec.encode_clip(clip), expected)
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).movedim(2, -1)
    assert (codec.decode_clip(expected).float() - levels).abs().max() <= 0.51


def test_frames_are_encoded_on_their_own(codec: LTXVideoCodec) -> None:
    frames = random_clips(3, 1)[:, 0]
    together = codec.encode_frames(frames)
    for index in range(3):
        alone = codec.encode_clip(frames[index : index + 1, None])
        torch.testing.assert_close(together[index], alone[0, :, 0], atol=1e-5, rtol=1e-5)
    # The encoder is causal: the first latent frame of a clip sees the first frame alone.
    clip = random_clips(1, 9)
    torch.testing.assert_close(codec.encode_clip(clip)[:, :, 0], codec.encode_frames(clip[:, 0]), atol=1e-5, rtol=1e-5)


def test_posterior_sample_is_the_mode_plus_scaled_noise(codec: LTXVideoCodec) -> None:
    clip = random_clips(1, 1).expand(64, -1, -1, -1, -1)
    mode = codec.encode_clip(clip)
    found = codec.posterior_clip(clip)
    assert torch.equal(found.mean, mode)
    noise = torch.randn(mode.shape, generator=torch.Generator().manual_seed(3))
    sample = found.sample(noise)
    assert not torch.equal(sample, mode)
    with torch.no_grad():
        posterior = codec._vae.encode(to_unit_range(clip[:1]).transpose(1, 2)).latent_dist
    expected = posterior.std[0].mean(dim=(1, 2, 3)) / codec._vae.latents_std
    assert ((sample - mode).std(dim=(0, 2, 3, 4)) / expected - 1.0).abs().max() < 0.35
    assert (sample - mode).mean().abs() < 0.1


def test_slices_change_nothing(folder: Path, codec: LTXVideoCodec) -> None:
    sliced = LTXVideoCodec.from_pretrained(folder, options=LTXOptions(slice_size=2))
    clip = random_clips(3, 9)
    posterior, sliced_posterior = codec.posterior_clip(clip), sliced.posterior_clip(clip)
    torch.testing.assert_close(sliced_posterior.mean, posterior.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sliced_posterior.std, posterior.std, atol=1e-5, rtol=1e-5)
    whole = posterior.mean
    difference = sliced.decode_clip(whole).int() - codec.decode_clip(whole).int()
    assert difference.abs().max() <= 1


def test_tiles_cut_large_images_only(folder: Path, codec: LTXVideoCodec) -> None:
    tiled = LTXVideoCodec.from_pretrained(folder, options=LTXOptions(tile_pixels=128, tile_overlap=32))
    frames = random_clips(1, 1, 128, 224)[:, 0]
    whole, parts = codec.encode_frames(frames), tiled.encode_frames(frames)
    assert parts.shape == whole.shape == (1, 8, 4, 7)
    assert not torch.equal(parts, whole)
    small = random_clips(1, 1, 64, 64)[:, 0]
    assert torch.equal(tiled.encode_frames(small), codec.encode_frames(small))
    assert tiled.decode_clip(parts[:, :, None]).shape == (1, 1, 128, 224, 3)


def test_original_single_file_gives_the_same_weights(codec: LTXVideoCodec, original_file: Path) -> None:
    loaded = LTXVideoCodec.from_pretrained(original_file, architecture=TINY)
    ours, theirs = codec.vae.state_dict(), loaded.vae.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_published_names_convert_one_to_one() -> None:
    from diffusers import AutoencoderKLLTXVideo
    from diffusers.loaders.single_file_utils import convert_ltx_vae_checkpoint_to_diffusers

    with torch.device("meta"):
        state = AutoencoderKLLTXVideo.from_config(ltx_vae_config()).state_dict()
    original = {original_key(key): tensor for key, tensor in state.items()}
    assert "vae.decoder.up_blocks.9.res_blocks.0.conv1.conv.weight" in original
    assert "vae.encoder.down_blocks.9.res_blocks.3.conv2.conv.bias" in original
    assert "vae.per_channel_statistics.std-of-means" in original
    assert convert_ltx_vae_checkpoint_to_diffusers(original).keys() == state.keys()


def test_sharded_folder(folder: Path, codec: LTXVideoCodec, tmp_path: Path) -> None:
    codec._vae.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    frames = random_clips(1, 1)[:, 0]
    loaded = LTXVideoCodec.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode_frames(frames), codec.encode_frames(frames))


def test_bfloat16_stays_close_and_normalizes_in_float32(folder: Path, codec: LTXVideoCodec) -> None:
    half = LTXVideoCodec.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half._vae.latents_mean, codec._vae.latents_mean)
    clip = random_clips(1, 9)
    a, b = half.encode_clip(clip), codec.encode_clip(clip)
    assert a.dtype == torch.float32
    assert (a - b).abs().mean() < 0.05 * b.abs().mean() + 0.01
    assert half.decode_clip(b).dtype == torch.uint8


def test_conditioned_decoder_takes_its_noise_from_the_generator_alone() -> None:
    codec = LTXVideoCodec(random_vae(CONDITIONED))
    latents = codec.encode_clip(random_clips(3, 9))
    state = torch.get_rng_state()
    first = codec.decode_clip(latents)
    assert torch.equal(first, codec.decode_clip(latents))
    assert torch.equal(state, torch.get_rng_state())
    other = codec.decode_clip(latents, torch.Generator().manual_seed(9))
    assert not torch.equal(first, other)
    assert torch.equal(other, codec.decode_clip(latents, torch.Generator().manual_seed(9)))
    assert first.shape == (3, 9, 32, 64, 3)


def test_conditioned_decoder_follows_its_pipeline() -> None:
    config = {**CONDITIONED, "decoder_inject_noise": (False, False, False, False)}
    vae = random_vae(config)
    options = LTXOptions(decode_timestep=0.4, decode_noise_scale=0.3, slice_size=1)
    codec = LTXVideoCodec(vae, options=options)
    latents = torch.randn(3, 8, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    mean, std = (buffer.reshape(1, 8, 1, 1, 1) for buffer in (vae.latents_mean, vae.latents_std))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mixed = 0.7 * (latents * std + mean) + 0.3 * noise
        expected = vae.decode(mixed, torch.full((3,), 0.4)).sample.transpose(1, 2)
    levels = ((expected.clamp(-1, 1) + 1) * 127.5).movedim(2, -1)
    decoded = codec.decode_clip(latents, torch.Generator().manual_seed(2)).float()
    assert (decoded - levels).abs().max() <= 0.51
    plain = LTXVideoCodec(vae, options=LTXOptions(decode_timestep=0.03)).decode_clip(latents)
    assert not torch.equal(plain.float(), decoded)


def test_weights_are_frozen(codec: LTXVideoCodec) -> None:
    assert not codec.vae.training and not any(p.requires_grad for p in codec.vae.parameters())
    assert not codec.encode_frames(random_clips(1, 1)[:, 0]).requires_grad


def test_saved_codec_refers_to_its_weights(folder: Path, original_file: Path, tmp_path: Path) -> None:
    frames = random_clips(1, 1)[:, 0]
    for name, path, architecture in (("folder", folder, None), ("file", original_file, TINY)):
        options = LTXOptions(slice_size=4)
        saved = LTXVideoCodec.from_pretrained(path, architecture=architecture, options=options, dtype=torch.bfloat16)
        saved.save(tmp_path / name)
        assert [item.name for item in (tmp_path / name).iterdir()] == ["config.json"]
        loaded = load_video_codec(tmp_path / name)
        assert isinstance(loaded, LTXVideoCodec)
        assert loaded.options == options and loaded.dtype == torch.bfloat16
        assert torch.equal(loaded.encode_frames(frames), saved.encode_frames(frames))


def test_codec_from_memory_saves_its_weights(codec: LTXVideoCodec, tmp_path: Path) -> None:
    LTXVideoCodec(copy.deepcopy(codec.vae)).save(tmp_path)
    frames = random_clips(1, 1)[:, 0]
    assert torch.equal(LTXVideoCodec.load(tmp_path).encode_frames(frames), codec.encode_frames(frames))


def test_moved_and_exchanged_weights(tmp_path: Path) -> None:
    random_vae(TINY).save_pretrained(tmp_path / "old" / "vae")
    LTXVideoCodec.from_pretrained(tmp_path / "old").save(tmp_path / "codec")
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match=r"old.*say where they are now"):
        LTXVideoCodec.load(tmp_path / "codec")
    assert LTXVideoCodec.load(tmp_path / "codec", pretrained=tmp_path / "new" / "vae").channels == 8
    weights = tmp_path / "new" / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({**state, "latents_mean": state["latents_mean"] + 1.0}, weights)
    with pytest.raises(ValueError, match="not the file that this policy was trained with"):
        LTXVideoCodec.load(tmp_path / "codec", pretrained=tmp_path / "new" / "vae")


def test_unusable_weights_are_refused_by_name(folder: Path, tmp_path: Path, original_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vae/config\.json and vae/diffusion_pytorch_model\.safetensors"):
        LTXVideoCodec.from_pretrained(tmp_path / "nowhere")
    state = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    config = json.loads((folder / "vae" / "config.json").read_text())

    def write(tensors: dict[str, Tensor], **changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")

    write({key: tensor for key, tensor in state.items() if key != "latents_mean"})
    with pytest.raises(ValueError, match=r"1 tensors do not fit.*latents_mean: expected \(8,\), got None"):
        LTXVideoCodec.from_pretrained(tmp_path)
    write({**state, "encoder.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"encoder\.extra: expected None, got \(1,\)"):
        LTXVideoCodec.from_pretrained(tmp_path)
    write(state, _class_name="AutoencoderKLWan")
    with pytest.raises(ValueError, match="expected an AutoencoderKLLTXVideo, got 'AutoencoderKLWan'"):
        LTXVideoCodec.from_pretrained(tmp_path)
    write({**state, "latents_std": torch.zeros(8)})
    with pytest.raises(ValueError, match="positive latents_std"):
        LTXVideoCodec.from_pretrained(tmp_path)
    spoilt = state["decoder.conv_in.conv.weight"].clone()
    spoilt.view(-1)[3] = float("nan")
    write({**state, "decoder.conv_in.conv.weight": spoilt})
    with pytest.raises(ValueError, match=r"expected finite weights, got .* in decoder\.conv_in\.conv\.weight"):
        LTXVideoCodec.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        LTXVideoCodec.from_pretrained(tmp_path)
    write(state)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        LTXVideoCodec.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"do not fit the architecture.*LTX-Video 0\.9\.0"):
        LTXVideoCodec.from_pretrained(original_file)  # tiny tensors against the published sizes
    save_file({"patchify_proj.weight": torch.zeros(1)}, tmp_path / "transformer.safetensors")
    with pytest.raises(ValueError, match=r"tensors named vae\.encoder"):
        LTXVideoCodec.from_pretrained(tmp_path / "transformer.safetensors")


def test_wrong_input_is_refused(codec: LTXVideoCodec) -> None:
    with pytest.raises(ValueError, match=r"1 \+ 8 k frames, got 8; use 1 or 9"):
        codec.encode_clip(random_clips(1, 8))
    with pytest.raises(ValueError, match="multiples of 32, got 48x64"):
        codec.encode_frames(random_clips(1, 1, 48)[:, 0])
    with pytest.raises(ValueError, match="latents of 8 channels"):
        codec.decode_clip(torch.zeros(1, 9, 1, 1, 1))
    with pytest.raises(ValueError, match="slice_size of 1 or more"):
        LTXOptions(slice_size=0)
    with pytest.raises(ValueError, match="0 < tile_overlap < tile_pixels"):
        LTXOptions(tile_pixels=64, tile_overlap=64)
    with pytest.raises(ValueError, match="multiples of 32, got 100 and 36"):
        LTXVideoCodec(codec.vae, options=LTXOptions(tile_pixels=100, tile_overlap=36))
