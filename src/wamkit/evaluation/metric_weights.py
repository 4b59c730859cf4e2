"""Published weights of the networks that metrics need, read from files that a user names; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wamkit.codecs.base import require_finite
from wamkit.codecs.reference import WeightsReference
from wamkit.weight_files import load_state, read_weights


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """Which file a number was measured with, for the record.

    Args:
        name: of the file.
        digest: of its size and both ends, see `WeightsReference`.
    """

    name: str
    digest: str

    @classmethod
    def of(cls, path: Path) -> WeightsFile:
        """The file at `path`."""
        return cls(name=path.name, digest=WeightsReference.of(path, [path]).files[""])


def read_metric_weights(path: Path, *, what: str) -> dict[str, Tensor]:
    """The tensors of a published file, on the CPU.

    Args:
        path: `.safetensors`, or a file of torch (`.pth`, `.pt`) with a state dict, of which tensors alone are read.
        what: which weights are wanted, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds something other than named tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {what} at {path}, found no such file; correct the path or leave it out")
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch names a refused or damaged file by a dozen kinds of errors
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: expected {what} as a state dict of torch or .safetensors, got a file that holds other objects "
            f"(TorchScript, a whole model) or is damaged ({type(error).__name__}: {reason}); give the state dict"
        ) from error
    tensors = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(
            f"{path}: expected {what} as a state dict (names and tensors), got {type(tensors).__name__}; give the file "
            "as it is published"
        )
    return {str(name): tensor for name, tensor in tensors.items()}


def fill(network: nn.Module, tensors: Mapping[str, Tensor], *, source: str, layout: str) -> None:
    """Put published tensors into a network, in place.

    Args:
        network: whose names are the published ones.
        tensors: name -> value.
        source: the file, for messages.
        layout: the layout that is read, for messages.

    Raises:
        ValueError: names or shapes are others, or a number is not finite; the network is unchanged.
    """
    require_finite(tensors.items(), source=Path(source))
    try:
        load_state(network, tensors, source)
    except ValueError as error:
        raise ValueError(f"{error}\n{source}: expected {layout}") from error
