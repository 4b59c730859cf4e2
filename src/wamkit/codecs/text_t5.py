"""The T5 v1.1 encoder as LTX-Video uses it: frozen, pretrained, each sentence encoded once."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.codecs.base import TextTokens, require_finite
from wamkit.codecs.reference import WeightsReference, read_dtype, read_settings, write_settings
from wamkit.typed import COPY_AGAIN, blame, read_fields, read_value

FORMAT_VERSION = 1
"""Version of the folder that `T5TextEncoder.save` writes."""

_PROBE = "open the drawer and put the red block on the table"


class T5TextEncoder:
    """Sentences as LTX-Video reads them.

    Sentences are padded or cut to `length` tokens, end token included. The encoder runs without an attention mask, so
    padding takes part in its self-attention, as in the weights' own pipeline; the mask only says which tokens a
    cross-attention may read.

    Args:
        encoder: a transformers `T5EncoderModel`; it is set to evaluation and its gradients are switched off.
        tokenizer: its tokenizer.
        length: tokens per sentence.
        batch_size: sentences per forward pass.
        cache_size: sentences remembered; the oldest go first.
        source: what `save` refers to; without one the encoder cannot be saved.

    Raises:
        ValueError: a tokenizer that knows no words or has more tokens than the encoder, or a size below 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        *,
        length: int = 128,
        batch_size: int = 8,
        cache_size: int = 1024,
        source: WeightsReference | None = None,
    ) -> None:
        if min(length, batch_size, cache_size) < 1:
            raise ValueError(
                f"T5: expected length, batch_size and cache_size of 1 or more, got {length}, {batch_size}, {cache_size}"
            )
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.length = length
        self.batch_size = batch_size
        self.cache_size = cache_size
        self.source = source
        config: Any = encoder.config  # set by transformers, unknown to nn.Module
        self._config = config
        self._cache: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        _require_words(tokenizer, int(config.vocab_size))

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self._config.d_model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, of the computation and of the tokens."""
        return next(self.encoder.parameters()).dtype

    def encode(self, sentences: list[str]) -> TextTokens:
        """One row per sentence; a sentence seen before is not computed again.

        Every row has at least one valid token, its end token.
        """
        if not sentences:
            empty = torch.zeros(0, self.length, self.width, dtype=self.dtype, device=self.device)
            return TextTokens(tokens=empty, mask=torch.zeros(0, self.length, dtype=torch.bool, device=self.device))
        rows: dict[str, tuple[Tensor, Tensor]] = {}
        new = []
        for sentence in dict.fromkeys(sentences):
            if sentence in self._cache:
                self._cache.move_to_end(sentence)
                rows[sentence] = self._cache[sentence]
            else:
                new.append(sentence)
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            tokens, mask = self._forward(batch)
            rows |= {sentence: (tokens[i].clone(), mask[i].clone()) for i, sentence in enumerate(batch)}
        self._cache |= {sentence: rows[sentence] for sentence in new}
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return TextTokens(
            tokens=torch.stack([rows[sentence][0] for sentence in sentences]),
            mask=torch.stack([rows[sentence][1] for sentence in sentences]),
        )

    def to(self, device: torch.device | str) -> T5TextEncoder:
        """This encoder, its weights moved to `device`."""
        self.encoder.to(device)
        self._cache = OrderedDict((key, (row.to(device), mask.to(device))) for key, (row, mask) in self._cache.items())
        return self

    def save(self, folder: Path) -> None:
        """Writes `config.json` with a reference to the weights.

        Raises:
            ValueError: the encoder was not loaded from files.
        """
        if self.source is None:
            raise ValueError(
                "T5: this encoder was built in memory, so there is nothing to refer to; write it with save_pretrained "
                "into text_encoder/ and tokenizer/ and load it with T5TextEncoder.from_pretrained"
            )
        settings = {
            "type": "text_t5",
            "version": FORMAT_VERSION,
            "length": self.length,
            "dtype": str(self.dtype).removeprefix("torch."),
            "source": dataclasses.asdict(self.source),
        }
        write_settings(folder, settings)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu", *, pretrained: Path | None = None) -> T5TextEncoder:
        """Inverse of `save`.

        Args:
            folder: what `save` wrote.
            device: where the weights go.
            pretrained: where the referenced folder lies now, when it has moved.

        Raises:
            FileNotFoundError: the settings or the referenced weights are missing.
            ValueError: another type or version, or other weights than those referred to.
        """
        settings = read_settings(folder, kind="text_t5", version=FORMAT_VERSION)
        with blame(folder / "config.json", COPY_AGAIN):
            source = read_fields(WeightsReference, settings.get("source"), "source")
            length, dtype = read_value(int, settings.get("length"), "length"), read_dtype(settings)
        return cls.from_pretrained(source.locate(pretrained), length=length, dtype=dtype, device=device)

    @classmethod
    def from_pretrained(
        cls,
        path: Path,
        *,
        length: int = 128,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
    ) -> T5TextEncoder:
        """The published weights.

        Args:
            path: an LTX-Video folder, which holds `tokenizer/` and `text_encoder/` (safetensors, whole or in shards).
            length: tokens per sentence.
            dtype: type of the weights and of the tokens; bfloat16 on accelerators. T5 overflows in float16.
            device: where the weights go.
            batch_size: sentences per forward pass.

        Raises:
            FileNotFoundError: one of the two folders is missing or incomplete.
            ValueError: missing tensors, a tokenizer that knows no words, or `dtype` float16.
        """
        path = Path(path)
        if dtype == torch.float16:
            raise ValueError("T5: float16 overflows in its feed-forward layers; use bfloat16 or float32")
        _require_files(path)
        source = WeightsReference.of(path, _files(path))
        encoder, tokenizer = _load_encoder(path / "text_encoder", dtype), _load_tokenizer(path / "tokenizer")
        return cls(encoder, tokenizer, length=length, batch_size=batch_size, source=source).to(device)

    @torch.no_grad()
    def _forward(self, sentences: list[str]) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        batch = self.tokenizer(
            sentences,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        # No attention mask here: it would change the embeddings that the published weights were trained on.
        tokens = self.encoder(batch.input_ids.to(self.device)).last_hidden_state
        return tokens, batch.attention_mask.to(self.device).bool()


def _files(path: Path) -> list[Path]:
    names = ("*.safetensors", "*.json", "spiece.model")
    return sorted(
        {file for part in ("text_encoder", "tokenizer") for name in names for file in (path / part).glob(name)}
    )


def _require_files(path: Path) -> None:
    missing = [
        f"{part}/ with {what}"
        for part, what, patterns in (
            ("tokenizer", "spiece.model or tokenizer.json", ("spiece.model", "tokenizer.json")),
            ("text_encoder", "config.json", ("config.json",)),
            ("text_encoder", "*.safetensors", ("*.safetensors",)),
        )
        if not any(file for pattern in patterns for file in (path / part).glob(pattern))
    ]
    if missing:
        raise FileNotFoundError(
            f"expected a T5 encoder in LTX-Video's layout at {path}; missing: {'; '.join(missing)}. Download the "
            "folders tokenizer and text_encoder there, or correct the path"
        )


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, T5Tokenizer

    # Not T5Tokenizer(vocab_file=…): that gives, without a warning, a tokenizer for which every piece is unknown. And
    # AutoTokenizer cannot read a folder that holds spiece.model alone.
    loader: Any = T5Tokenizer if (folder / "spiece.model").is_file() else AutoTokenizer
    return loader.from_pretrained(folder, local_files_only=True)


def _load_encoder(folder: Path, dtype: torch.dtype) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import T5EncoderModel

    loader: Any = T5EncoderModel.from_pretrained  # its annotation leaves out the report
    try:
        encoder, report = loader(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(f"{folder}: a weight file is truncated or damaged ({error}); download it again") from error
    except OSError as error:
        raise FileNotFoundError(f"{folder}: the T5 encoder cannot be read ({error}); download it again") from error
    problems = {key: sorted(map(str, report[key])) for key in ("missing_keys", "mismatched_keys") if report.get(key)}
    if problems:
        listed = "; ".join(f"{key}: {names[:5]} ({len(names)} in all)" for key, names in problems.items())
        raise ValueError(f"{folder}: the weights do not fill a T5 encoder ({listed}); download them again")
    require_finite(encoder.named_parameters(), source=folder)
    return encoder


def _require_words(tokenizer: Any, vocab_size: int) -> None:
    ids = tokenizer(_PROBE, add_special_tokens=False).input_ids
    unknown = sum(index == tokenizer.unk_token_id for index in ids)
    # A tokenizer without pieces still knows the space before each word, so not every id is unknown.
    if not ids or 2 * unknown >= len(_PROBE.split()):
        raise ValueError(
            f"T5: the tokenizer does not know the words of {_PROBE!r}; load it with T5Tokenizer.from_pretrained from a "
            "folder that holds spiece.model or tokenizer.json"
        )
    if not tokenizer("").input_ids:
        raise ValueError(
            "T5: the tokenizer adds no end token, so an empty sentence would have no token; it is not T5's"
        )
    if max(ids) >= vocab_size:
        raise ValueError(
            f"T5: the tokenizer gives id {max(ids)}, but the encoder has {vocab_size} embeddings; "
            "they do not belong together"
        )
