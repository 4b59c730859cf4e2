"""How published weight files name their tensors: official names, and those of LTX-Video's original single file.

Source: state-dict layouts of LTX-Video (diffusers and original), GE-base, GE-act and WAV's stages; see README.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from wamkit.weight_files import StoredWeights

ORIGINAL_PREFIX = "model.diffusion_model."
_ORIGINAL_NAMES = {
    "patchify_proj.": "proj_in.",
    "adaln_single.": "time_embed.",
    ".q_norm.": ".norm_q.",
    ".k_norm.": ".norm_k.",
}


class OfficialNames(Mapping[str, Tensor]):
    """Stored weights under the official names, whatever layout they are stored in.

    Args:
        stored: tensors of a file or folder. In the original single file of LTX-Video, tensors of the autoencoder
            (`vae.*`) lie beside the transformer's and are left out.

    Raises:
        ValueError: two tensors get one name.
    """

    def __init__(self, stored: StoredWeights):
        self.stored = stored
        self.is_original = any(name.startswith(ORIGINAL_PREFIX) for name in stored)
        self._names = {name: name for name in stored}
        if self.is_original:
            taken = [name for name in stored if not name.startswith("vae.")]
            self._names = {official_name(name): name for name in taken}
            if len(self._names) != len(taken):
                raise ValueError(f"{stored.source}: two tensors have the same official name; the file is damaged")

    @property
    def left_out(self) -> int:
        """Tensors of other networks in the same file."""
        return len(self.stored) - len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header."""
        return self.stored.shape(self._names[name])

    def dtype(self, name: str) -> str:
        """A tensor's type as safetensors writes it, from the file's header."""
        return self.stored.dtype(self._names[name])


def official_name(original: str) -> str:
    """Official name of a tensor of LTX-Video's original single file."""
    name = original.removeprefix(ORIGINAL_PREFIX)
    for theirs, ours in _ORIGINAL_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def open_weights(source: Path | str) -> OfficialNames:
    """Weights at a path under their official names; headers are read, tensors not yet.

    Args:
        source: a safetensors file, an index of shards, a folder with either, or a pipeline's folder in diffusers'
            layout, whose `transformer/` is taken.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        ValueError: a file is damaged, or not weights; the message names it.
    """
    source = Path(source)
    if (source / "model_index.json").is_file() and (source / "transformer").is_dir():
        source = source / "transformer"
    return OfficialNames(StoredWeights(source))
