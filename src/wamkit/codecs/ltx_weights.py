"""Weights of the LTX-Video autoencoder: the published architecture and strict loading of both published layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wamkit.codecs.base import require_finite
from wamkit.weight_files import read_json, weight_files

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


def ltx_vae_config() -> dict[str, Any]:
    """The published architecture, LTX-Video 0.9.0, as arguments of diffusers' `AutoencoderKLLTXVideo`.

    Source: LTX-Video 0.9.0: 180 M encoder and 239 M decoder parameters.
    """
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 128,
        "block_out_channels": (128, 256, 512, 512),
        "decoder_block_out_channels": (128, 256, 512, 512),
        "layers_per_block": (4, 3, 3, 3, 4),
        "decoder_layers_per_block": (4, 3, 3, 3, 4),
        "spatio_temporal_scaling": (True, True, True, False),
        "decoder_spatio_temporal_scaling": (True, True, True, False),
        "decoder_inject_noise": (False, False, False, False, False),
        "upsample_residual": (False, False, False, False),
        "upsample_factor": (1, 1, 1, 1),
        "timestep_conditioning": False,
        "patch_size": 4,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "scaling_factor": 1.0,
        "encoder_causal": True,
        "decoder_causal": False,
    }


def vae_folder(path: Path) -> Path:
    """The folder in diffusers' layout at `path` or `path/vae`.

    Raises:
        FileNotFoundError: neither holds settings and weights.
    """
    for folder in (path / "vae", path):
        if (folder / "config.json").is_file() and any((folder / name).is_file() for name in (_WEIGHTS, _INDEX)):
            return folder
    raise FileNotFoundError(
        f"expected LTX-Video's autoencoder at {path}: a folder holding vae/config.json and vae/{_WEIGHTS} (or the vae "
        "folder itself), or the original single .safetensors file; download it there or correct the path"
    )


def vae_from_folder(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The autoencoder of a folder in diffusers' layout, whole or in shards.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another class, or missing, foreign, misshapen or truncated tensors.
    """
    folder = vae_folder(folder)
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKLLTXVideo":
        raise ValueError(f"{folder}: expected an AutoencoderKLLTXVideo, got {config.get('_class_name')!r}")
    whole = folder / _WEIGHTS
    state: dict[str, Tensor] = {}
    for file in weight_files(whole if whole.is_file() else folder / _INDEX):
        state |= _read(file, prefix="")
    return _build(config, state, dtype, folder)


def vae_from_original(path: Path, dtype: torch.dtype, architecture: Mapping[str, Any]) -> nn.Module:
    """The autoencoder of an original single file; tensors that are not `vae.*` are not read.

    Raises:
        ValueError: no such tensors, or missing, foreign, misshapen or truncated ones.
    """
    from diffusers.loaders.single_file_utils import convert_ltx_vae_checkpoint_to_diffusers

    state = _read(path, prefix="vae.")
    if "vae.encoder.conv_out.conv.weight" not in state:
        raise ValueError(
            f"{path}: expected an original LTX-Video file with tensors named vae.encoder.…, found {len(state)} named "
            "vae.…; take ltx-video-2b-v0.9.safetensors or a folder in diffusers' layout"
        )
    return _build(architecture, convert_ltx_vae_checkpoint_to_diffusers(state), dtype, path)


def _read(path: Path, *, prefix: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"expected weights at {path}, found no file; the download is incomplete")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); download it again") from error
    require_finite(tensors.items(), source=path)
    return tensors


def _build(config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype, path: Path) -> nn.Module:
    """The autoencoder with exactly these tensors; nothing is initialized at random."""
    from diffusers import AutoencoderKLLTXVideo

    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo.from_config({key: value for key, value in config.items() if key[0] != "_"})
    expected = {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        listed = "; ".join(f"{key}: expected {expected.get(key)}, got {found.get(key)}" for key in wrong[:5])
        raise ValueError(
            f"{path}: {len(wrong)} tensors do not fit the architecture ({listed}); use the weights of LTX-Video 0.9.0, "
            "or a folder whose config.json describes them"
        )
    # The normalization stays in float32: rounding it would shift every latent of a channel alike.
    cast = {key: tensor.to(torch.float32 if key.startswith("latents_") else dtype) for key, tensor in state.items()}
    vae.load_state_dict(cast, strict=True, assign=True)
    return vae
