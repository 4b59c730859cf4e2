"""A pointer to large public weights: where they lie and what they are, instead of a copy in every policy folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.atomic import atomic_file

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


def read_settings(folder: Path, *, kind: str, version: int) -> dict[str, Any]:
    """The content of `config.json`, after checking its type and version.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not JSON, or another type or version.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected config.json of a {kind!r} codec in {folder}, found none")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        found = (settings["type"], settings["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a codec's settings with type and version ({error})") from error
    if found != (kind, version):
        raise ValueError(f"{path}: expected type {kind!r} and version {version}, got {found[0]!r} and {found[1]!r}")
    return dict(settings)


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
