"""Tensors and JSON on disk: safetensors files, shards with an index, strict loading, clear errors; never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_WEIGHT_NAMES = ("model", "diffusion_pytorch_model", "network")
_LISTED = 8


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


def check_weights(source: Path | str) -> None:
    """Check, without reading the tensors, that every weight file is there, sound in its header and of the right length.

    Args:
        source: see `weight_files`.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        ValueError: a file is damaged; the message names it.
    """
    for file in weight_files(source):
        try:
            with safe_open(file, framework="pt", device="cpu"):
                pass
        except SafetensorError as error:
            raise _damaged(file, error) from error


class StoredWeights(Mapping[str, Tensor]):
    """Tensors of a file, an index of shards, or a folder with either; headers are read now, each tensor when asked for.

    Args:
        source: see `weight_files`.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        ValueError: a file is damaged, or not weights; the message names it.
    """

    def __init__(self, source: Path | str):
        self.source = Path(source)
        found = _weights_in(self.source) if self.source.is_dir() else self.source
        self.files = tuple(weight_files(found))
        # Of tensors that share memory the writer stores one and names the others in the metadata, of shards in the
        # index.
        aliases: dict[str, Any] = dict(read_json(found).get("metadata", {})) if found.suffix == ".json" else {}
        self._readers: dict[str, tuple[Any, str]] = {}
        for file in self.files:
            try:
                reader = safe_open(file, framework="pt", device="cpu")
                aliases |= reader.metadata() or {}
                self._readers |= {name: (reader, name) for name in reader.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise _damaged(file, error) from error
        tied = {
            name: self._readers[kept]
            for name, kept in aliases.items()
            if isinstance(kept, str) and kept in self._readers and name not in self._readers
        }
        self._readers |= tied

    def __getitem__(self, name: str) -> Tensor:
        reader, stored = self._readers[name]
        tensor: Tensor = reader.get_tensor(stored)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        reader, stored = self._readers[name]
        return tuple(reader.get_slice(stored).get_shape())

    def dtype(self, name: str) -> str:
        """A tensor's type as safetensors writes it (`F32`, `BF16`, `F8_E4M3`, `I64`), from the header."""
        reader, stored = self._readers[name]
        return str(reader.get_slice(stored).get_dtype())


def read_weights(source: Path | str) -> dict[str, Tensor]:
    """All tensors of a file, an index of shards, or a folder with either, on the CPU; tied ones share memory.

    Args:
        source: see `weight_files`.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        ValueError: a file is damaged, or not weights; the message names it.
    """
    stored = StoredWeights(source)
    tensors: dict[tuple[int, str], Tensor] = {}
    for key in stored._readers.values():
        tensors.setdefault((id(key[0]), key[1]), key[0].get_tensor(key[1]))
    return {name: tensors[id(reader), kept] for name, (reader, kept) in stored._readers.items()}


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
    except (ValueError, RecursionError) as error:
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
    inside = [item for item in sorted(folder.glob("*/")) if any(item.glob("*.safetensors*"))]
    remedy = f"did you mean {inside[0]}?" if inside else "copy the whole folder again"
    raise FileNotFoundError(f"expected weights (.safetensors) in {folder}, found {there}; {remedy}")


def _damaged(file: Path, error: SafetensorError) -> ValueError:
    return ValueError(
        f"{file} is damaged or cut short ({error}; {os.path.getsize(file)} bytes); copy or download it again"
    )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
