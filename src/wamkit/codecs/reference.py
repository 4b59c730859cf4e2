"""A pointer to large public weights: where they lie and what they are, instead of a copy in every policy folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wamkit.atomic import atomic_file
from wamkit.typed import COPY_AGAIN
from wamkit.weight_files import read_json

_EDGE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WeightsReference:
    """Files below one root, each with its size and a digest.

    The digest covers the size and the first and last MiB. It tells apart versions, precisions and truncated downloads
    in milliseconds (a safetensors file opens with the names and shapes of its tensors), not a flipped bit within.

    Args:
        root: absolute path when it was written; a folder, or the file itself.
        files: path below `root` (empty for the file itself) -> digest.
    """

    root: str
    files: dict[str, str]

    @classmethod
    def of(cls, root: Path, files: Iterable[Path]) -> WeightsReference:
        """Reference to `files`, which lie below `root` or are `root`."""
        root = root.absolute()  # not resolved: download caches are folders of links to files elsewhere
        return cls(root=str(root), files={_below(root, file.absolute()): _digest(file) for file in sorted(files)})

    def locate(self, elsewhere: Path | None = None) -> Path:
        """The root, after checking that it still holds these files.

        Args:
            elsewhere: where the weights lie now, when they have moved.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: a file is another one.
        """
        root = Path(self.root) if elsewhere is None else elsewhere
        for name, digest in self.files.items():
            path = root / name if name else root
            if not path.is_file():
                raise FileNotFoundError(
                    f"expected the pretrained weights {path}, found no such file; put the files {sorted(self.files)} "
                    f"there, or say where they are now (pretrained=…)"
                )
            found = _digest(path)
            if found != digest:
                raise ValueError(
                    f"{path} is not the file that this policy was trained with (digest {found}, expected {digest}); "
                    "restore it, or say where the right one is (pretrained=…)"
                )
        return root


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes `config.json` into `folder`, whole or not at all."""
    with atomic_file(folder / "config.json") as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_type(folder: Path) -> str:
    """The type of the codec that was saved in a folder.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it is not JSON, or names no type.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected a saved codec in {folder}, found no config.json there; {COPY_AGAIN}")
    kind = read_json(path).get("type")
    if not isinstance(kind, str):
        raise ValueError(f"{path}: expected the codec's type under 'type', got {kind!r}; {COPY_AGAIN}")
    return kind


def read_settings(folder: Path, *, kind: str, version: int) -> dict[str, Any]:
    """The content of `config.json`, after checking its type and version.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not JSON, or another type or version.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected config.json of a {kind!r} codec in {folder}, found none; {COPY_AGAIN}")
    settings = read_json(path)
    found = (settings.get("type"), settings.get("version"))
    if found != (kind, version) or isinstance(found[1], bool):
        raise ValueError(
            f"{path}: expected type {kind!r} and version {version}, got {found[0]!r} and {found[1]!r}; {COPY_AGAIN}"
        )
    return settings


def read_dtype(settings: dict[str, Any]) -> torch.dtype:
    """The type of weights that a codec's settings name.

    Raises:
        ValueError: they name none.
    """
    name = settings.get("dtype")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"expected dtype as the name of a type of weights, for instance bfloat16, got {name!r}")
    return dtype


def _below(root: Path, file: Path) -> str:
    return "" if file == root else file.relative_to(root).as_posix()


def _digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        digest.update(stream.read(_EDGE_BYTES))
        stream.seek(max(0, size - _EDGE_BYTES))
        digest.update(stream.read(_EDGE_BYTES))
    return digest.hexdigest()[:32]
