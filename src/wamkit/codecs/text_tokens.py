"""Sentences as token ids of one vocabulary that also holds image codes and action bins.

`words` and `bytes` need no files and serve small models; `published` is Chameleon's tokenizer.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from wamkit.codecs.reference import read_settings, read_type, write_settings
from wamkit.codecs.vocabulary import compact_names, published_names
from wamkit.typed import COPY_AGAIN, blame, read_value

FORMAT_VERSION: Final = 1
TOKENIZER_FILE: Final = "text_tokenizer.json"


@runtime_checkable
class TextTokenizer(Protocol):
    """Sentences to token ids; `vocabulary` names every id, also those that no sentence gives."""

    @property
    def vocabulary(self) -> Mapping[str, int]: ...

    def encode(self, sentence: str) -> list[int]: ...

    def save(self, folder: Path) -> None:
        """Writes what `load_text_tokenizer` needs."""
        ...


class WordTokenizer:
    """One id per word, from a hash of its letters, in a vocabulary of the fewest ids.

    Case, spacing and punctuation do not matter. Two words may share an id: of 20 different words, with 512 ids, with
    probability 0.3.

    Args:
        num_codes: image codes in the vocabulary.
        num_words: ids for words.

    Raises:
        ValueError: a number below 1.
    """

    kind = "text_words"

    def __init__(self, *, num_codes: int, num_words: int = 512) -> None:
        if num_codes < 1 or num_words < 1:
            raise ValueError(f"expected 1 or more image codes and words, got {num_codes} and {num_words}")
        self.num_codes, self.num_words = num_codes, num_words
        names = compact_names(num_codes=num_codes)
        self._first = len(names)
        self.vocabulary: Mapping[str, int] = names | {
            f"<word{place:05d}>": self._first + place for place in range(num_words)
        }

    def encode(self, sentence: str) -> list[int]:
        """One id for each word."""
        plain = unicodedata.normalize("NFKC", sentence).casefold()
        return [self._first + _hashed(word) % self.num_words for word in re.findall(r"\w+", plain)]

    def save(self, folder: Path) -> None:
        """Writes its settings."""
        _write(folder, self.kind, num_codes=self.num_codes, num_words=self.num_words)


class ByteTokenizer:
    """One id per byte of UTF-8, behind the named ids of the published vocabulary.

    Args:
        num_codes: image codes in the vocabulary.
    """

    kind = "text_bytes"

    def __init__(self, *, num_codes: int = 8192) -> None:
        self.num_codes = num_codes
        names = published_names(num_codes=num_codes)
        self._first = len(names)
        self.vocabulary: Mapping[str, int] = names | {f"<0x{byte:02X}>": self._first + byte for byte in range(256)}

    def encode(self, sentence: str) -> list[int]:
        """One id for each byte."""
        return [self._first + byte for byte in sentence.encode()]

    def save(self, folder: Path) -> None:
        """Writes its settings."""
        _write(folder, self.kind, num_codes=self.num_codes)


class PublishedTokenizer:
    """Chameleon's text tokenizer, from its `text_tokenizer.json`.

    Args:
        file: the file; its content is kept, so that `save` can write it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no tokenizer.
    """

    kind = "text_chameleon"

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        if not file.is_file():
            raise FileNotFoundError(f"expected Chameleon's tokenizer at {file}, found no such file")
        self._content = file.read_bytes()
        try:
            self._tokenizer = Tokenizer.from_buffer(self._content)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{file} is not a tokenizer ({error}); {COPY_AGAIN}") from error
        self.vocabulary: Mapping[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, sentence: str) -> list[int]:
        """The ids of its pieces, without any special token around them."""
        ids: list[int] = self._tokenizer.encode(sentence, add_special_tokens=False).ids
        return ids

    def save(self, folder: Path) -> None:
        """Writes the file again, a few megabytes, so that the folder needs nothing else."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER_FILE).write_bytes(self._content)
        _write(folder, self.kind)


def load_text_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer that was saved in a folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown type or version, or damaged files.
    """
    kind = read_type(folder)
    if kind == PublishedTokenizer.kind:
        read_settings(folder, kind=kind, version=FORMAT_VERSION)
        return PublishedTokenizer(folder / TOKENIZER_FILE)
    counts: dict[str, tuple[Any, tuple[str, ...]]] = {
        WordTokenizer.kind: (WordTokenizer, ("num_codes", "num_words")),
        ByteTokenizer.kind: (ByteTokenizer, ("num_codes",)),
    }
    if kind not in counts:
        known = ", ".join([*counts, PublishedTokenizer.kind])
        raise ValueError(f"{folder / 'config.json'}: unknown tokenizer {kind!r}; known are {known}")
    settings = read_settings(folder, kind=kind, version=FORMAT_VERSION)
    make, names = counts[kind]
    with blame(folder / "config.json", COPY_AGAIN):
        tokenizer: TextTokenizer = make(**{name: read_value(int, settings.get(name), name) for name in names})
        return tokenizer


def find_tokenizer(folder: Path) -> Path:
    """`text_tokenizer.json` below a folder of published weights.

    Raises:
        FileNotFoundError: it is in none of the usual places.
    """
    places = [folder / part / TOKENIZER_FILE for part in ("", "tokenizer", "chameleon/tokenizer")]
    found = [place for place in places if place.is_file()]
    if not found:
        raise FileNotFoundError(
            f"expected Chameleon's {TOKENIZER_FILE} in {folder}, tokenizer/ or chameleon/tokenizer/"
        )
    return found[0]


def _write(folder: Path, kind: str, **settings: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder, {"type": kind, "version": FORMAT_VERSION, **settings})


def _hashed(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
