"""A text encoder without weights: every word has a fixed random vector, derived from its letters alone.

It serves the small models, whose instructions are a handful of sentences. Vectors are sums of bits of a cryptographic
hash, so the numbers are the same on every machine and with every version of every library.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wamkit.codecs.base import TextTokens
from wamkit.codecs.reference import read_settings, write_settings
from wamkit.typed import COPY_AGAIN, blame, read_value

FORMAT_VERSION = 1
"""Version of the vectors; it changes if any vector would."""

_BITS = 16  # per number: a sum of 16 fair bits is close to Gaussian, and exact in floating point
_POSITION_SCALE = 0.5  # a word stays nearer to itself elsewhere than to another word in its place
_CACHED_SENTENCES = 4096


class HashedTextEncoder:
    """Sentences as hashed words plus hashed positions.

    A token is its word's vector plus half the vector of its position; both have independent entries of mean 0 and
    variance 1, so vectors of different words are nearly orthogonal. Case, punctuation and spacing do not matter. Words
    beyond `length` are cut. A sentence without words has one token of its own.

    Args:
        width: channels of a token.
        length: tokens per sentence.
        device: where tokens are placed.

    Raises:
        ValueError: `width` or `length` below 1.
    """

    def __init__(self, *, width: int = 64, length: int = 16, device: torch.device | str = "cpu") -> None:
        if width < 1 or length < 1:
            raise ValueError(f"expected width and length of 1 or more, got {width} and {length}")
        self.width = width
        self.length = length
        self.device = torch.device(device)
        self._vectors: dict[str, np.ndarray] = {}
        self._sentences: dict[str, tuple[Tensor, int]] = {}

    def encode(self, sentences: list[str]) -> TextTokens:
        """One row per sentence; tokens beyond a sentence's words are zero and masked."""
        if not sentences:
            return TextTokens(
                tokens=torch.zeros(0, self.length, self.width, device=self.device),
                mask=torch.zeros(0, self.length, dtype=torch.bool, device=self.device),
            )
        rows = [self._sentence(sentence) for sentence in sentences]
        counts = torch.tensor([count for _, count in rows], device=self.device)
        mask = torch.arange(self.length, device=self.device) < counts[:, None]
        return TextTokens(tokens=torch.stack([tokens for tokens, _ in rows]), mask=mask)

    def to(self, device: torch.device | str) -> HashedTextEncoder:
        """This encoder, giving its tokens on `device` from now on."""
        self.device = torch.device(device)
        self._sentences.clear()
        return self

    def save(self, folder: Path) -> None:
        """Writes `config.json`: two sizes and the version of the vectors are all there is."""
        settings = {"type": "text_hash", "version": FORMAT_VERSION, "width": self.width, "length": self.length}
        write_settings(folder, settings)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> HashedTextEncoder:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: there is no `config.json`.
            ValueError: another type or version, or sizes that are missing.
        """
        settings = read_settings(folder, kind="text_hash", version=FORMAT_VERSION)
        with blame(folder / "config.json", COPY_AGAIN):
            width, length = (read_value(int, settings.get(name), name) for name in ("width", "length"))
            return cls(width=width, length=length, device=device)

    def _sentence(self, sentence: str) -> tuple[Float[Tensor, "l d"], int]:
        cached = self._sentences.get(sentence)
        if cached is not None:
            return cached
        words = split_words(sentence)[: self.length]
        names = [f"word:{word}" for word in words] or ["empty"]
        tokens = np.zeros((self.length, self.width), dtype=np.float32)
        for position, name in enumerate(names):
            tokens[position] = self._vector(name) + _POSITION_SCALE * self._vector(f"position:{position}")
        if len(self._sentences) >= _CACHED_SENTENCES:
            self._sentences.clear()
        result = torch.from_numpy(tokens).to(self.device), len(names)
        self._sentences[sentence] = result
        return result

    def _vector(self, name: str) -> np.ndarray:
        vector = self._vectors.get(name)
        if vector is None:
            if len(self._vectors) >= 4 * _CACHED_SENTENCES:
                self._vectors.clear()
            vector = self._vectors[name] = hashed_vector(name, self.width)
        return vector


def split_words(sentence: str) -> list[str]:
    """Lower-case words of letters and digits; everything else separates."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", sentence).casefold())


def hashed_vector(name: str, width: int) -> np.ndarray:
    """A vector of `width` independent entries of mean 0 and variance 1, a function of `name` alone.

    Returns:
        float32 `[width]`; entries are multiples of 0.5 between -4 and 4.
    """
    digest = hashlib.shake_256(f"wamkit/{FORMAT_VERSION}/{name}".encode()).digest(width * _BITS // 8)
    ones = np.unpackbits(np.frombuffer(digest, dtype=np.uint8)).reshape(width, _BITS).sum(axis=1)
    # A sum of 16 bits has mean 8 and standard deviation 2.
    return ((ones.astype(np.float32) - _BITS / 2) / 2.0).astype(np.float32)
