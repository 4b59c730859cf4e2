"""Read a cache of latents and embedded sentences: what frozen codecs make of a dataset, computed once.

    cache.json                        what it was made of and for, sentences, whether it is complete
    text.safetensors                  tokens `n l d` and mask `n l` of every sentence, the empty one first
    codecs/                           the codecs themselves
    episodes/episode_000000.safetensors
        frames                        `t v q k y x`: every frame on its own
        clips                         `c v q k f y x`: the future of every current row, as one video

`q` is mean and standard deviation of the codec's posterior, or the mean alone for a codec without one. Files are mapped
into memory, so that a window costs the reading of its own latents. A row takes its own latent frame and those of its
future: with LTX at 256 px and 9 future frames 3 x 128 x 8 x 8 numbers, twice, for every camera (196 KB in float32).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wamkit.data.windows import WindowConfig
from wamkit.spec import Preprocess
from wamkit.types import EncodedWindows
from wamkit.weight_files import read_json, read_weights

FORMAT: Final = 1
MANIFEST: Final = "cache.json"
TEXT: Final = "text.safetensors"
OPEN_FILES: Final = 1024

CacheDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class CachePurpose:
    """What a cache was made of, and which windows and models it serves.

    Args:
        dataset: its fingerprint.
        cameras: in view order.
        image_size: (height, width) that frames were encoded in.
        preprocess: how they were brought to it.
        num_future: frames of a future clip.
        stride: rows between them.
        first_row: as in `WindowConfig`.
        codec: the codecs' settings, JSON-ready, without the place of pretrained ones.
        dtype: of the latents.
    """

    dataset: str
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    preprocess: Preprocess
    num_future: int
    stride: int
    first_row: int
    codec: Mapping[str, Any]
    dtype: CacheDtype = "float32"

    @classmethod
    def of(
        cls,
        *,
        dataset: str,
        cameras: Sequence[str],
        image_size: tuple[int, int],
        preprocess: Preprocess,
        windows: WindowConfig,
        codec: Mapping[str, Any],
        dtype: CacheDtype,
    ) -> CachePurpose:
        """From the settings of a run."""
        return cls(
            dataset=dataset,
            cameras=tuple(cameras),
            image_size=image_size,
            preprocess=preprocess,
            num_future=windows.chunk,
            stride=windows.stride,
            first_row=windows.first_row,
            codec={key: item for key, item in codec.items() if key != "pretrained"},
            dtype=dtype,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        plain = {**asdict(self), "cameras": list(self.cameras), "image_size": list(self.image_size)}
        return {**plain, "codec": dict(self.codec)}

    def require(self, found: Mapping[str, Any], folder: Path) -> None:
        """Refuse a cache that was made for something else.

        Raises:
            ValueError: every difference, and what to do.
        """
        wanted = self.to_dict()
        differing = [
            f"{key}: the cache has {found.get(key)!r}, this run {wanted[key]!r}"
            for key in wanted
            if found.get(key) != wanted[key]
        ]
        if differing:
            listed = "\n  - ".join(differing)
            raise ValueError(
                f"the cache {folder} was made for something else:\n  - {listed}\nUse the settings it was made with, or "
                "make another one: `wamkit data encode` with the settings of this run and another data.cache"
            )


class EncodedDataset:
    """A complete cache, opened for reading.

    Args:
        folder: what `wamkit data encode` wrote.
        purpose: what it has to have been made for.
        episodes: that it has to hold.

    Raises:
        FileNotFoundError: there is none, or a file of it is missing.
        ValueError: it was made for something else, is not complete, or its codecs are no longer those it was made with.
    """

    def __init__(self, folder: Path | str, purpose: CachePurpose, *, episodes: Sequence[int] = ()) -> None:
        self.folder = Path(folder)
        self.purpose = purpose
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise FileNotFoundError(
                f"expected a cache of latents at {folder}, found none; make it with `wamkit data encode` and the same "
                "settings, or leave data.cache out"
            )
        purpose.require(manifest["purpose"], self.folder)
        if not manifest["complete"]:
            raise ValueError(
                f"the cache {folder} is not complete; run the same `wamkit data encode` again, it continues where it "
                "was interrupted"
            )
        missing = [episode for episode in episodes if not episode_path(self.folder, episode).is_file()]
        if missing:
            others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"expected latents of episode {missing[0]}{others} in {folder}, found none; run `wamkit data encode` "
                "with the settings of this run, it adds them"
            )
        if codecs_digest(self.codecs) != manifest["codecs"]:
            raise ValueError(
                f"{self.codecs} has changed since the cache was made with it; restore it, or remove {folder} and make "
                "the cache again"
            )
        self._sentences = {sentence: row for row, sentence in enumerate(manifest["sentences"])}
        text = read_weights(self.folder / TEXT)
        self._text, self._text_mask = text["tokens"], text["mask"].bool()
        self._open = lru_cache(maxsize=OPEN_FILES)(self._opened)

    @property
    def codecs(self) -> Path:
        """The codecs that it was made with."""
        return self.folder / "codecs"

    def windows(
        self,
        *,
        episodes: Sequence[int],
        context: np.ndarray,
        current: np.ndarray,
        task: Sequence[str],
        need_future: bool,
    ) -> EncodedWindows:
        """Latents and sentences of some windows.

        Args:
            episodes: of each window.
            context: int64 `[b, P]`, memory rows.
            current: int64 `[b]`, rows that the windows look ahead from.
            task: a sentence each.
            need_future: whether future clips are wanted.

        Raises:
            ValueError: a sentence or row that the cache does not hold, or a damaged file.
        """
        unknown = [sentence for sentence in task if sentence not in self._sentences]
        if unknown:
            raise ValueError(f"the cache {self.folder} has no sentence {unknown[0]!r}; make it again")
        memory, future = [], []
        first = -1 if self.purpose.first_row else 0
        for episode, rows, now in zip(episodes, context.tolist(), current.tolist(), strict=True):
            memory.append(torch.cat([self._row(episode, "frames", row) for row in rows]).transpose(0, 1))
            if need_future:
                future.append(self._row(episode, "clips", now - first)[0])
        chosen = [self._sentences[sentence] for sentence in task]
        return EncodedWindows(
            context=torch.stack(memory),
            future=torch.stack(future) if need_future else None,
            text=self._text[chosen],
            text_mask=self._text_mask[chosen],
            empty_text=self._text[:1],
            empty_mask=self._text_mask[:1],
        )

    def _row(self, episode: int, name: str, row: int) -> Tensor:
        values: Tensor = self._open(episode).get_slice(name)[row : row + 1]
        if len(values) != 1:
            raise ValueError(f"{episode_path(self.folder, episode)}: expected a row {row} of {name}, it is shorter")
        return values

    def _opened(self, episode: int) -> Any:
        path = episode_path(self.folder, episode)
        if not path.is_file():
            raise FileNotFoundError(
                f"expected latents of episode {episode} at {path}, found none; make the cache again"
            )
        try:
            return safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it and run `wamkit data encode` again") from error


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """`cache.json` of a cache, complete or not; `None` when there is no cache.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a cache of format {FORMAT}, got {manifest.get('format')!r}; make it again")
    return manifest


def episode_path(folder: Path, episode: int) -> Path:
    """The file with an episode's latents."""
    return folder / "episodes" / f"episode_{episode:06d}.safetensors"


def codecs_digest(folder: Path) -> str:
    """Identifies the codecs saved in a folder by what their files hold."""
    total = hashlib.sha256()
    for part in ("video", "text"):
        for file in sorted(item for item in (folder / part).rglob("*") if item.is_file()):
            total.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
