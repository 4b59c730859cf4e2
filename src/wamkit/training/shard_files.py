"""Tensors that several processes write together, each its own parts, and any number of processes read again.

`torch.distributed.checkpoint` does the work, with its safetensors files: the header of each says which part of which
tensor it holds, so that there is no pickled index.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from wamkit.parallel import is_grouped


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a folder that all processes see; every process has to call it.

    Args:
        folder: existing, for these files alone.
        tensors: of a sharded tensor each process writes its part, of any other one process writes it all.

    Raises:
        OSError: what the process that could not write met, for instance a full disk; on every process.
    """
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer, no_dist=not is_grouped())
    except dcp.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def shapes_in(folder: Path) -> dict[str, tuple[list[int], torch.dtype]]:
    """Shape and type of every tensor in a folder of shards, without reading the tensors.

    Raises:
        ValueError: a file is damaged.
    """
    try:
        metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata()
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"a file in {folder} is damaged or cut short ({error})") from error
    found = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        found[name] = (list(entry.size), entry.properties.dtype)
    return found


def read_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors from a folder of shards, each process only its own parts; every process has to call it.

    Args:
        folder: what any number of processes wrote.
        into: sharded or whole tensors, of the shapes in the folder.

    Raises:
        ValueError: a file is damaged, on every process.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process reads: as meant
            dcp.load(dict(into), storage_reader=reader, no_dist=not is_grouped())
    except dcp.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise ValueError(f"the shards in {folder} cannot be read ({cause})") from error
