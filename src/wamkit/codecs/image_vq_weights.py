"""Weights and settings of Chameleon's VQ-GAN as they were published, `vqgan.ckpt` and `vqgan.yaml`, read and written.

The checkpoint is a file of torch, of which only tensors are read: whatever else it may bring is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from wamkit.atomic import atomic_file
from wamkit.codecs.base import require_finite
from wamkit.codecs.image_vq_config import VQConfig
from wamkit.codecs.image_vq_network import VQNetwork, empty
from wamkit.codecs.reference import WeightsReference
from wamkit.typed import blame, read_value
from wamkit.weight_files import StoredWeights, load_state

CHECKPOINT_SUFFIX: Final = ".ckpt"

_SETTINGS = "vqgan.yaml"
_NAMES = ("vqgan.ckpt", "vqgan.safetensors")
_FOLDERS = ("", "chameleon/tokenizer")  # the second as it lies in WorldVLA's download
_CHAMELEON_PREFIXES = ("model.vqmodel.", "vqmodel.")  # Hugging Face's names for a VQ-GAN within the transformer
_IGNORED_PREFIX = "loss."  # the discriminator and the perceptual loss of its training

# What the network is built as; the keys of `vqgan.yaml` that would build another one.
_ARCHITECTURE: Final[Mapping[str, Any]] = {
    "double_z": False,
    "in_channels": 3,
    "out_ch": 3,
    "resamp_with_conv": True,
    "attn_type": "vanilla",
    "use_linear_attn": False,
    "give_pre_end": False,
    "tanh_out": False,
}
_SIZES: Final[Mapping[str, str]] = {"ch": "base_width", "num_res_blocks": "num_blocks", "z_channels": "latent_channels"}
_PUBLISHED_RESOLUTION = 512


def find_published(path: Path) -> Path:
    """The file or folder of weights that `path` means; see `VQImageTokenizer.from_pretrained`.

    Raises:
        FileNotFoundError: there is nothing of the kind.
    """
    if path.is_file():
        return path
    for folder in _FOLDERS:
        for name in _NAMES:
            if (path / folder / name).is_file():
                return path / folder / name
    if any(path.glob("*.safetensors")):
        return path
    raise FileNotFoundError(
        f"expected the VQ-GAN's weights at {path}: vqgan.ckpt or .safetensors, a folder that holds one, or WorldVLA's "
        "download with chameleon/tokenizer/vqgan.ckpt; download them there or correct the path"
    )


def moved(source: WeightsReference, path: Path) -> Path:
    """Where weights that a reference knows from elsewhere lie now, as far as names tell."""
    namesake = path / Path(source.root).name
    return namesake if namesake.is_file() else find_published(path)


def published_config(path: Path) -> VQConfig:
    """The sizes in `vqgan.yaml` beside weights, or the published ones where there is no such file."""
    settings = (path if path.is_dir() else path.parent) / _SETTINGS
    return read_vqgan_yaml(settings) if settings.is_file() else VQConfig.published()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The network's tensors under their own names; those of other parts are not read.

    Args:
        path: a checkpoint of torch, a safetensors file or a folder of shards.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: damaged, something else than weights, or not finite.
    """
    stored = _checkpoint(path) if path.suffix == CHECKPOINT_SUFFIX else StoredWeights(path)
    prefix = next((one for one in _CHAMELEON_PREFIXES if any(name.startswith(one) for name in stored)), "")
    names = [name for name in stored if name.startswith(prefix) and not name.startswith(_IGNORED_PREFIX)]
    tensors = {name.removeprefix(prefix): stored[name] for name in names}
    require_finite(tensors.items(), source=path)
    return tensors


def network_from(tensors: Mapping[str, Tensor], config: VQConfig, source: Path) -> VQNetwork:
    """A network in float32 with exactly these tensors.

    Raises:
        ValueError: listing missing, unexpected and wrongly shaped ones.
    """
    network = empty(config)
    load_state(network, tensors, source)
    return network


def read_vqgan_yaml(path: Path) -> VQConfig:
    """The sizes that a `vqgan.yaml` tells.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not plain YAML, a size is missing, or a setting asks for another architecture.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"expected the VQ-GAN's settings at {path}, found no file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected plain YAML ({error})") from error
    with blame(path):
        model = read_value(dict[str, Any], _need(content, "model"), "model")
        params = read_value(dict[str, Any], _need(model, "params"), "params")
        sizes = read_value(dict[str, Any], _need(params, "ddconfig"), "ddconfig")
        config = VQConfig(
            multipliers=read_value(tuple[int, ...], _need(sizes, "ch_mult"), "ch_mult"),
            code_width=read_value(int, _need(params, "embed_dim"), "embed_dim"),
            num_codes=read_value(int, _need(params, "n_embed"), "n_embed"),
            **{ours: read_value(int, _need(sizes, theirs), theirs) for theirs, ours in _SIZES.items()},
        )
        _require_architecture(sizes, params, len(config.multipliers))
        return config


def write_published(network: VQNetwork, folder: Path) -> None:
    """Writes `vqgan.ckpt` and `vqgan.yaml`; see `VQImageTokenizer.to_published`."""
    import yaml

    config = network.config
    if not config.has_decoder:
        raise ValueError("expected a VQ-GAN with its decoder, which vqgan.ckpt holds; these weights have none")
    fixed = {key: _ARCHITECTURE[key] for key in ("double_z", "in_channels", "out_ch")}
    sizes = {theirs: getattr(config, ours) for theirs, ours in _SIZES.items()}
    ddconfig = {**fixed, **sizes, "ch_mult": list(config.multipliers)}
    ddconfig |= {"resolution": _PUBLISHED_RESOLUTION, "attn_resolutions": [], "dropout": 0.0}
    params = {"embed_dim": config.code_width, "n_embed": config.num_codes, "ddconfig": ddconfig}
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    with atomic_file(folder / _NAMES[0]) as partial:
        torch.save({"state_dict": state}, partial)
    with atomic_file(folder / _SETTINGS) as partial:
        partial.write_text(yaml.safe_dump({"model": {"params": params}}, sort_keys=False), encoding="utf-8")


def _checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors under `state_dict` of a file of torch, mapped from the disk."""
    if not path.is_file():
        raise FileNotFoundError(f"expected weights at {path}, found no file; the download is incomplete")
    remedy = "download vqgan.ckpt again, or give its tensors as .safetensors"
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        content = {} if foreign else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file fails in as many ways as it can be damaged
        raise ValueError(f"{path} is damaged, or older than torch 1.6; {remedy}") from error
    if foreign:
        raise ValueError(
            f"{path} holds other objects than tensors ({', '.join(sorted(foreign))}), which can run code and are not "
            f"read; {remedy}"
        )
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path}: expected tensors under 'state_dict', got {_kind(content, state)}; {remedy}")
    return {str(name): tensor for name, tensor in state.items()}


def _kind(content: object, state: object) -> str:
    if not isinstance(content, dict):
        return type(content).__name__
    return f"the keys {', '.join(map(str, content))}" if state is None else "other values among them"


def _need(settings: object, key: str) -> object:
    if not isinstance(settings, dict) or key not in settings:
        known = f"the keys {', '.join(map(str, settings))}" if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"expected {key!r}, got {known}; take the vqgan.yaml that was published with the weights")
    return settings[key]


def _require_architecture(sizes: Mapping[str, Any], params: Mapping[str, Any], num_levels: int) -> None:
    for key, wanted in _ARCHITECTURE.items():
        if sizes.get(key, wanted) != wanted:
            raise ValueError(f"expected {key} of {wanted}, as this network is built, got {sizes[key]!r}")
    # Attention stands at levels of these sides; a side that no level has changes nothing.
    sides = read_value(tuple[int, ...], sizes.get("attn_resolutions", ()), "attn_resolutions")
    resolution = read_value(int, sizes.get("resolution", _PUBLISHED_RESOLUTION), "resolution")
    reached = sorted({resolution >> level for level in range(num_levels)} & set(sides))
    if reached:
        raise ValueError(
            f"expected no attention but in the middle, as this network is built, got attn_resolutions {reached}"
        )
    unknown = sizes.keys() - _ARCHITECTURE.keys() - _SIZES.keys() - {"ch_mult", "attn_resolutions", "resolution"}
    if unknown - {"dropout"}:  # of training alone
        raise ValueError(f"unknown setting {', '.join(sorted(unknown - {'dropout'}))}; this network is built without")
    if params.get("remap") is not None:
        raise ValueError(f"expected no remap of the codes, got {params['remap']!r}")
