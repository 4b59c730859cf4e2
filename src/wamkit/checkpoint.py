"""Policy folders: everything a policy needs to act, in one folder that is never half written and never unpickled.

    model.safetensors   weights (shards with an index when large)
    config.json         the family's configuration, with its name under "type"
    spec.json           what the policy needs and gives (`PolicySpec`)
    statistics.json     normalisation of state and actions, formula and epsilon named
    training.json       recipe, commit, versions, seeds, data fingerprint
    README.md           model card
    codecs/             what the codecs need to load again

A training checkpoint is such a folder with the state for resuming beside it in `training_state/`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wamkit.atomic import DiskFull, atomic_file, atomic_folder, complete_folder, recover_folder, remove_folder
from wamkit.model_card import model_card
from wamkit.spec import PolicySpec

__all__ = [
    "TRAINING_STATE",
    "DiskFull",
    "PolicyFiles",
    "atomic_file",
    "atomic_folder",
    "complete_folder",
    "fingerprint_folder",
    "load_state",
    "read_json",
    "read_policy",
    "read_weights",
    "recover_folder",
    "remove_folder",
    "weight_files",
    "write_json",
    "write_policy",
    "write_weights",
]

TRAINING_STATE = "training_state"
_JSON_FILES = ("config.json", "spec.json", "statistics.json", "training.json")
_WEIGHT_NAMES = ("model", "diffusion_pytorch_model", "network")
_LISTED = 8


@dataclass(frozen=True, kw_only=True)
class PolicyFiles:
    """A policy folder that was read and checked; the weights are read when asked for.

    Args:
        folder: where the files lie.
        family: model family, for instance `wav`.
        config: the family's configuration, without "type".
        spec: what the policy needs and gives.
        statistics: normalisation of state and actions.
        training: how it was trained.
    """

    folder: Path
    family: str
    config: dict[str, Any]
    spec: PolicySpec
    statistics: dict[str, Any]
    training: dict[str, Any]

    @property
    def codecs(self) -> Path:
        """Folder of the codecs' files."""
        return self.folder / "codecs"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the folder's files, see `fingerprint_folder`; computed once, when asked for."""
        return fingerprint_folder(self.folder)

    def load_weights(self) -> dict[str, Tensor]:
        """The weights on the CPU, in the type they were saved with.

        Raises:
            ValueError: a weight file is damaged.
        """
        return read_weights(self.folder)


def write_policy(
    path: Path | str,
    *,
    family: str,
    network: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any],
    spec: PolicySpec,
    statistics: Mapping[str, Any],
    training: Mapping[str, Any],
    write_codecs: Callable[[Path], None] | None = None,
    dtype: torch.dtype | None = None,
    card: Mapping[str, str] | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a policy folder; a kill at any moment leaves the folder that was there, or the new one.

    Args:
        path: destination; a folder there is replaced as a whole.
        family: model family; equals `spec.family`.
        network: the network, or its state dict.
        config: the family's configuration, JSON-ready; "type" is added.
        spec: what the policy needs and gives.
        statistics: normalisation of state and actions, JSON-ready.
        training: recipe, commit, versions, seeds, data fingerprint, JSON-ready.
        write_codecs: fills the folder `codecs/` it is given, or `None` when the codecs need no files.
        dtype: type of the saved floating-point weights; `None` keeps theirs.
        card: extra sections of the model card, title -> Markdown text.
        max_shard_size: largest weight file, for instance `5GB`; larger networks are saved in shards with an index.

    Returns:
        `path`.

    Raises:
        ValueError: `family` and `spec.family` differ, or a value has no place in JSON.
        DiskFull: no room; what was at `path` is untouched.
    """
    path = Path(path)
    if family != spec.family or config.get("type", family) != family:
        raise ValueError(
            f"expected one family name, got family={family!r}, spec.family={spec.family!r} and "
            f"config['type']={config.get('type', family)!r}; write the policy with the spec of its own family"
        )
    weights = network.state_dict() if isinstance(network, nn.Module) else network
    with atomic_folder(path) as folder:
        write_weights(folder, weights, dtype=dtype, max_shard_size=max_shard_size)
        write_json(folder / "config.json", {"type": family, **config})
        write_json(folder / "spec.json", spec.to_dict())
        write_json(folder / "statistics.json", statistics)
        write_json(folder / "training.json", training)
        if write_codecs is not None:
            (folder / "codecs").mkdir()
            write_codecs(folder / "codecs")
        num_parameters = sum(tensor.numel() for tensor in weights.values())
        text = model_card(spec=spec, training=training, num_parameters=num_parameters, sections=card or {})
        (folder / "README.md").write_text(text, encoding="utf-8")
    return path


def read_policy(path: Path | str) -> PolicyFiles:
    """Read a policy folder and check that it is whole; nothing in it is executed or unpickled.

    Args:
        path: a policy folder, or a training checkpoint, which is one.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing; the message lists what is there.
        ValueError: a file is damaged or does not fit the others; the message names the file and what to do.
    """
    folder = complete_folder(path)
    if not folder.exists():
        beside = sorted(item.name for item in folder.parent.glob("*/") if (item / "config.json").is_file())[:_LISTED]
        hint = f"; policy folders beside it: {beside}" if beside else ""
        raise FileNotFoundError(f"expected a policy folder at {path}, found nothing{hint}; check the path")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a policy folder at {path}, found a file; give the folder that holds it")
    missing = [name for name in _JSON_FILES if not (folder / name).is_file()]
    if missing:
        there = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))[:_LISTED]
        raise FileNotFoundError(
            f"{path} is not a complete policy folder: {', '.join(missing)} not found; it holds {there}. Give a folder "
            "written by training, for instance one under checkpoints/, or copy the whole folder again"
        )
    config, spec, statistics, training = (read_json(folder / name) for name in _JSON_FILES)
    family = config.pop("type", None)
    if not isinstance(family, str):
        raise ValueError(f"{folder / 'config.json'}: expected the model family under 'type', got {family!r}")
    try:
        parsed = PolicySpec.from_dict(spec)
    except ValueError as error:
        raise ValueError(f"{folder / 'spec.json'}: {error}; restore the file from a backup, or train again") from error
    if parsed.family != family:
        raise ValueError(
            f"{path}: config.json says family {family!r}, spec.json says {parsed.family!r}; the folder mixes two "
            "policies, copy it again from one source"
        )
    for file in weight_files(folder):
        _tensor_names(file)
    return PolicyFiles(
        folder=folder, family=family, config=config, spec=parsed, statistics=statistics, training=training
    )


def fingerprint_folder(folder: Path | str) -> str:
    """sha256 over the names and bytes of a policy folder's files.

    The model card, hidden files (which downloaders add) and the state for resuming do not change what a policy does and
    are left out.

    Args:
        folder: a policy folder.

    Returns:
        64 hexadecimal digits.
    """
    folder = Path(folder)
    total = hashlib.sha256()
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        parts = file.relative_to(folder).parts
        if parts in (("README.md",),) or parts[0] == TRAINING_STATE or any(part.startswith(".") for part in parts):
            continue
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{'/'.join(parts)}\0{digest}\n".encode())
    return total.hexdigest()


def write_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    stem: str = "model",
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write tensors as `STEM.safetensors`, or as shards with an index when they are larger than one shard.

    Tensors that share memory (tied weights) are stored once; `read_weights` gives every name back.

    Args:
        folder: an existing folder.
        tensors: what to write.
        stem: file name without its ending.
        dtype: type of the written floating-point tensors; `None` keeps theirs.
        max_shard_size: largest file, for instance `5GB`.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if dtype is not None:
        # One cast per storage, or tied weights would come apart.
        cast: dict[tuple[int, ...], Tensor] = {}
        for name, tensor in plain.items():
            key = (tensor.data_ptr(), *tensor.shape, *tensor.stride())
            if tensor.is_floating_point():
                plain[name] = cast.setdefault(key, tensor.to(dtype)) if tensor.numel() else tensor.to(dtype)
    save_torch_state_dict(
        plain, folder, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=max_shard_size
    )


def weight_files(source: Path | str) -> list[Path]:
    """The weight files behind a path.

    Args:
        source: a `.safetensors` file, an index of shards (`….safetensors.index.json`), or a folder with either.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        ValueError: the index is damaged, or the folder holds several weight files and no index says which.
    """
    source = Path(source)
    if source.is_dir():
        return weight_files(_weights_in(source))
    if not source.exists():
        raise FileNotFoundError(
            f"expected weights at {source} (a safetensors file, an index or a folder), found nothing"
        )
    if source.suffix == ".safetensors":
        return [source]
    if not source.name.endswith(".safetensors.index.json"):
        raise ValueError(
            f"expected weights as .safetensors or .safetensors.index.json, got {source}; pickled files (.bin, .pt) can "
            "run code and are not read: convert them with safetensors first"
        )
    table = read_json(source).get("weight_map")
    names = sorted(set(table.values())) if isinstance(table, dict) and table else []
    # A shard's name comes from a file that may be foreign: it must not lead out of the folder.
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ValueError(
            f"{source}: expected a weight_map of tensor -> file name in the same folder, got {names[:_LISTED]}"
        )
    shards = [source.parent / name for name in names]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{source} names {len(shards)} shards, not found: {missing[:_LISTED]}; copy them beside it"
        )
    return shards


def read_weights(source: Path | str) -> dict[str, Tensor]:
    """Read tensors to the CPU from a file, an index of shards, or a folder with either.

    Args:
        source: see `weight_files`.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        ValueError: a file is damaged, or not weights; the message names it.
    """
    source = Path(source)
    source = _weights_in(source) if source.is_dir() else source
    tensors: dict[str, Tensor] = {}
    # Of tensors that share memory the writer stores one and names the others in the metadata, of shards in the index.
    aliases: dict[str, Any] = dict(read_json(source).get("metadata", {})) if source.suffix == ".json" else {}
    for file in weight_files(source):
        try:
            with safe_open(file, framework="pt", device="cpu") as reader:
                aliases |= reader.metadata() or {}
                tensors |= {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _damaged(file, error) from error
    tied = {
        name: tensors[kept]
        for name, kept in aliases.items()
        if isinstance(kept, str) and kept in tensors and name not in tensors
    }
    return tensors | tied


def load_state(network: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy tensors into a network; every name and shape must match.

    Args:
        network: what to fill, in place; values are cast to its types.
        tensors: name -> value.
        source: where they come from, for the message.

    Raises:
        ValueError: listing missing, unexpected and wrongly shaped tensors; the network is unchanged.
    """
    wanted = network.state_dict()
    missing = [f"{name} {_shape(tensor)}" for name, tensor in wanted.items() if name not in tensors]
    unexpected = [f"{name} {_shape(tensor)}" for name, tensor in tensors.items() if name not in wanted]
    wrong = [
        f"{name}: expected {_shape(tensor)}, got {_shape(tensors[name])}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {what}: {'; '.join(names[:_LISTED])}{' …' if len(names) > _LISTED else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        listed = "\n  - ".join(problems)
        raise ValueError(
            f"the tensors of {source} do not fit the network ({len(wanted)} tensors):\n  - {listed}\n"
            "Build the network from the configuration saved beside them, or give weights of this family and size."
        )
    network.load_state_dict(dict(tensors), strict=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object, strictly (no NaN) and readable.

    Raises:
        ValueError: a value has no place in JSON; the message names the file.
    """
    try:
        text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: expected plain finite numbers, strings, lists and dicts; {error}") from error
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no object; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a JSON file at {path}, found nothing; copy the folder again")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}; {os.path.getsize(path)} bytes); copy the folder again from its source"
        ) from error
    if not isinstance(data, dict):
        raise ValueError(
            f"{path}: expected a JSON object, got {type(data).__name__}; copy the folder again from its source"
        )
    return data


def _weights_in(folder: Path) -> Path:
    """The index or weight file of a folder; the usual names win over others."""
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = {file.name.removesuffix(pattern[1:]): file for file in sorted(folder.glob(pattern))}
        preferred = [found[name] for name in _WEIGHT_NAMES if name in found]
        if preferred or len(found) == 1:
            return (preferred or list(found.values()))[0]
        if found:
            raise ValueError(f"{folder} holds several weight files {list(found)[:_LISTED]} and no index; give one file")
    there = sorted(item.name for item in folder.iterdir())[:_LISTED]
    raise FileNotFoundError(f"expected weights (.safetensors) in {folder}, found {there}; copy the whole folder again")


def _tensor_names(file: Path) -> list[str]:
    """Names in a weight file; opening it checks that the header is sound and the length right."""
    try:
        with safe_open(file, framework="pt", device="cpu") as reader:
            return list(reader.keys())
    except SafetensorError as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: SafetensorError) -> ValueError:
    return ValueError(
        f"{file} is damaged or cut short ({error}; {os.path.getsize(file)} bytes); copy or download it again"
    )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
