"""Read a cache of latents or token ids, and embedded sentences: what frozen codecs make of a dataset, computed once.

    cache.json                        what it was made of and for, sentences, whether it is complete
    text.safetensors                  tokens `n l d` and mask `n l` of every sentence, the empty one first
    codecs/                           the codecs themselves
    episodes/episode_000000.safetensors
        frames                        `t v q k y x`: every frame on its own
        clips                         `c v q k f y x`: the future of every current row, as one video

`q` is mean and standard deviation of the codec's posterior, or the mean alone for a codec without one. Where a future
is what its frames are on their own there are no `clips`, where sentences are not embedded no text, and token ids are
int16 (`wamkit.codecs.base.CacheEncoder`). Files are mapped into memory, so that a window costs the reading of its own
latents. A row takes its own latent frame and those of its future: with LTX at 256 px and 9 future frames
3 x 128 x 8 x 8 numbers, twice, for every camera (196 KB in float32); with a tokeniser of 16 x 16 codes 512 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wamkit.data.windows import WindowConfig
from wamkit.spec import Preprocess
from wamkit.types import EncodedWindows
from wamkit.weight_files import read_json, read_weights

FORMAT: Final = 1
MANIFEST: Final = "cache.json"
TEXT: Final = "text.safetensors"
MAPPED_FILES: Final = 16_384  # a process may have 65 530 mappings; they need no open file
TOKEN_DTYPE: Final = torch.int16

CacheDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class CachePurpose:
    """What a cache was made of, and which windows and models it serves; `None` in a cache's own: any.

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
    num_future: int | None
    stride: int | None
    first_row: int | None
    codec: Mapping[str, Any]
    dtype: CacheDtype | None = "float32"

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

    def served_by(self, *, has_clips: bool, has_floats: bool) -> CachePurpose:
        """What a cache for this purpose records: of frames alone it serves any future, of token ids any dtype.

        Args:
            has_clips: whether futures are kept as one video each.
            has_floats: whether numbers are latents, not token ids.
        """
        future: dict[str, Any] = {} if has_clips else {"num_future": None, "stride": None, "first_row": None}
        return replace(self, **future, dtype=self.dtype if has_floats else None)

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
            if key not in found or found[key] not in (None, wanted[key])
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
        self._has_clips = manifest["purpose"]["num_future"] is not None
        self._sentences: dict[str, int] | None = None
        if manifest["sentences"] is not None:
            self._sentences = {sentence: row for row, sentence in enumerate(manifest["sentences"])}
            text = read_weights(self.folder / TEXT)
            self._text, self._text_mask = text["tokens"], text["mask"].bool()
        self._mapped = lru_cache(maxsize=MAPPED_FILES)(self._opened)

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
        future: np.ndarray | None,
        task: Sequence[str],
    ) -> EncodedWindows:
        """Latents and sentences of some windows.

        Args:
            episodes: of each window.
            context: int64 `[b, P]`, memory rows.
            current: int64 `[b]`, rows that the windows look ahead from.
            future: int64 `[b, f]`, rows of their future frames; `None` when those are not wanted.
            task: a sentence each.

        Raises:
            ValueError: a sentence or row that the cache does not hold, or a damaged file.
        """
        text = self._text_of(task)
        memory, ahead = [], []
        first = -1 if self.purpose.first_row else 0
        for number, (episode, now) in enumerate(zip(episodes, current.tolist(), strict=True)):
            memory.append(rearrange(self._rows(episode, "frames", context[number]), "t v q k y x -> v t q k y x"))
            if future is None:
                continue
            if self._has_clips:
                ahead.append(self._rows(episode, "clips", [now - first])[0])
            else:
                frames = self._rows(episode, "frames", future[number])
                ahead.append(rearrange(frames, "f v q k y x -> v q k f y x"))
        return EncodedWindows(
            context=torch.stack(memory), future=None if future is None else torch.stack(ahead), **text
        )

    def _text_of(self, task: Sequence[str]) -> dict[str, Tensor]:
        """Fields of `EncodedWindows`; none where no text is kept."""
        if self._sentences is None:
            return {}
        unknown = [sentence for sentence in task if sentence not in self._sentences]
        if unknown:
            raise ValueError(f"the cache {self.folder} has no sentence {unknown[0]!r}; make it again")
        chosen = [self._sentences[sentence] for sentence in task]
        return {
            "text": self._text[chosen],
            "text_mask": self._text_mask[chosen],
            "empty_text": self._text[:1],
            "empty_mask": self._text_mask[:1],
        }

    def _rows(self, episode: int, name: str, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Copies of rows of an episode's `frames` or `clips`."""
        values = self._mapped(episode)[name]
        if max(rows) >= len(values):
            raise ValueError(
                f"{episode_path(self.folder, episode)}: expected a row {max(rows)} of {name}, it is shorter"
            )
        return values[torch.as_tensor(rows)]

    def _opened(self, episode: int) -> dict[str, Tensor]:
        path = episode_path(self.folder, episode)
        if not path.is_file():
            raise FileNotFoundError(
                f"expected latents of episode {episode} at {path}, found none; make the cache again"
            )
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in ("frames", "clips")[: 1 + self._has_clips]}
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
    """Identifies the codecs saved in a folder, each in a folder of its own, by what their files hold.

    Hidden files, which downloaders and file managers add, do not count.
    """
    total = hashlib.sha256()
    # Backwards, because the first caches were made of "video" and "text", in this order. What lies beside the codecs
    # only notes what they were made for.
    for part in sorted((item for item in folder.glob("*") if item.is_dir()), reverse=True):
        for file in sorted(item for item in part.rglob("*") if item.is_file()):
            if any(name.startswith(".") for name in file.relative_to(folder).parts):
                continue
            total.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
