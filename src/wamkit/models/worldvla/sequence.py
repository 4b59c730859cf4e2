"""What WorldVLA reads: text, images, states and actions as one sequence of ids.

    action:  begin text [STATE] IMG(o_{t-1}) IMG(o_t) turn ACT(a_t) … ACT(a_{t+K-1}) turn
    world:   begin text (IMG(o) ACT(a)) … turn IMG(o_next) turn

A frame is one image of every camera, in view order. What lies behind the first turn mark is predicted, the rest given.

Source: WorldVLA (arXiv 2506.21539), section 3.2, and its released data; RynnVLA-002 (arXiv 2511.17502) for the state
and several cameras.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wamkit.codecs.action_bins import ActionBins
from wamkit.codecs.text_tokens import TextTokenizer
from wamkit.codecs.vocabulary import VocabSpec
from wamkit.masks import action_blocks
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.types import InputError

IGNORED: Final = -100
"""Label of an id that is not predicted."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Sequences of different lengths, padded on the right.

    Args:
        ids: token ids.
        labels: the same where they are predicted, `IGNORED` elsewhere.
        lengths: ids of each sequence.
        is_world: which sequences predict an image.
        block: see `masks.action_blocks`; -1 throughout for a model of the causal mask.
    """

    ids: Int[Tensor, "b l"]
    labels: Int[Tensor, "b l"]
    lengths: Int[Tensor, " b"]
    is_world: Bool[Tensor, " b"]
    block: Int[Tensor, "b l"]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Questions, padded on the right to one length.

    Args:
        ids: token ids.
        lengths: ids of each question.
    """

    ids: Int[Tensor, "b l"]
    lengths: Int[Tensor, " b"]

    def rows(self, index: slice) -> Prompts:
        """Some of them."""
        return Prompts(ids=self.ids[index], lengths=self.lengths[index])


SHOWN_LENGTH = 80
"""Characters of a sentence that an error shows."""


class SequenceBuilder:
    """Puts segments together; every id comes from the vocabulary.

    Args:
        config: layout.
        vocabulary: ids.
        tokenizer: of sentences.
    """

    def __init__(self, config: WorldVLAConfig, vocabulary: VocabSpec, tokenizer: TextTokenizer) -> None:
        self.config, self.vocabulary, self._tokenizer = config, vocabulary, tokenizer
        self.bins = ActionBins(config.binning)
        self.grid_id = vocabulary.grid_id(config.image_size)

    def image(self, codes: Int[Tensor, "*n y x"]) -> Int[Tensor, "*n l"]:
        """IMG: begin, height, width, rows of codes each with its end, end.

        Raises:
            ValueError: not the model's grid of codes.
        """
        vocab, side = self.vocabulary, self.config.grid
        if codes.shape[-2:] != (side, side):
            raise ValueError(
                f"expected images of {side}x{side} codes ({self.config.image_size} px), got "
                f"{codes.shape[-2]}x{codes.shape[-1]}; bring them to the model's size first"
            )
        rows = vocab.id_of_code.to(codes.device)[codes]
        rows = torch.cat((rows, rows.new_full((*rows.shape[:-1], 1), vocab.row_end)), dim=-1)
        head = rows.new_tensor([vocab.begin_image, self.grid_id, self.grid_id]).expand(*codes.shape[:-2], 3)
        end = rows.new_full((*codes.shape[:-2], 1), vocab.end_image)
        return torch.cat((head, rearrange(rows, "... y x -> ... (y x)"), end), dim=-1)

    def frame(self, codes: Int[Tensor, "*n v y x"]) -> Int[Tensor, "*n l"]:
        """One image of every camera, in view order."""
        return rearrange(self.image(codes), "... v l -> ... (v l)")

    def action(self, actions: Float[Tensor, "*n a"]) -> Int[Tensor, "*n l"]:
        """ACT: begin, a bin for each channel, end; numbers outside [-1, 1] are clipped."""
        vocab = self.vocabulary
        ids = vocab.id_of_bin.to(actions.device)[self.bins.encode(actions)]
        return _enclosed(ids, vocab.begin_action, vocab.end_action)

    def state(self, state: Float[Tensor, "*n s"]) -> Int[Tensor, "*n l"]:
        """STATE: begin, a bin for each channel, end; numbers outside [-1, 1] are clipped."""
        vocab = self.vocabulary
        ids = vocab.id_of_state_bin.to(state.device)[self.bins.encode(state)]
        return _enclosed(ids, vocab.begin_state, vocab.end_state)

    def text(self, sentence: str, device: torch.device) -> Int[Tensor, " t"]:
        """Ids of a sentence.

        Raises:
            InputError: more than `text_length`.
        """
        ids = self._tokenizer.encode(sentence)
        if len(ids) > self.config.text_length:
            shown = sentence if len(sentence) <= SHOWN_LENGTH else f"{sentence[:SHOWN_LENGTH]}…"
            raise InputError(
                f"expected sentences of at most text_length = {self.config.text_length} ids, got {len(ids)} for "
                f"{shown!r}; shorten it, or train with a larger text_length"
            )
        return torch.tensor(ids, dtype=torch.long, device=device)

    def check_sentences(self, tasks: Iterable[str]) -> None:
        """Refuse tasks whose question `text_length` does not hold, or the question before images.

        Raises:
            InputError: naming the first of them.
        """
        for sentence in (self.config.world_prompt, *map(self._question, tasks)):
            self.text(sentence, torch.device("cpu"))

    def action_prompt(
        self, task: str, codes: Int[Tensor, "t v y x"], state: Float[Tensor, " s"] | None = None
    ) -> Int[Tensor, " l"]:
        """The question before a chunk of actions.

        Args:
            task: sentence.
            codes: the frames, oldest first; fewer than M at the beginning of an episode.
            state: normalised; read by models that read states.

        Raises:
            ValueError: no state for a model that reads one.
        """
        parts = [self._begin(codes.device), self.text(self._question(task), codes.device)]
        if self.config.reads_state:
            if state is None:
                raise ValueError("expected a state, which this model reads (reads_state), got none")
            parts.append(self.state(state))
        return torch.cat((*parts, self.frame(codes).flatten(), self._turn(codes.device)))

    def world_prompt(self, codes: Int[Tensor, "n v y x"], actions: Float[Tensor, "n a"]) -> Int[Tensor, " l"]:
        """The question before a frame: pairs of a frame and the action taken in it, oldest first."""
        pairs = torch.cat((self.frame(codes), self.action(actions)), dim=-1)
        text = self.text(self.config.world_prompt, codes.device)
        return torch.cat((self._begin(codes.device), text, pairs.flatten(), self._turn(codes.device)))

    def _question(self, task: str) -> str:
        return self.config.action_prompt.replace("{task}", task)

    def action_answer(self, actions: Float[Tensor, "p a"]) -> Int[Tensor, " l"]:
        """The actions of a chunk, and the turn mark."""
        return torch.cat((self.action(actions).flatten(), self._turn(actions.device)))

    def world_answer(self, codes: Int[Tensor, "v y x"]) -> Int[Tensor, " l"]:
        """The next frame, and the turn mark."""
        return torch.cat((self.frame(codes), self._turn(codes.device)))

    def prompts(self, rows: Sequence[Int[Tensor, "_"]], length: int) -> Prompts:
        """Questions padded to `length`, so that a row's arithmetic does not depend on the rows beside it."""
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        padded = rows[0].new_full((len(rows), length), self.vocabulary.pad)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        return Prompts(ids=padded, lengths=lengths)

    def batch(
        self, samples: Sequence[tuple[Int[Tensor, "_"], Int[Tensor, "_"]]], is_world: Bool[Tensor, " b"]
    ) -> TokenBatch:
        """Questions with their answers, to be trained on.

        Args:
            samples: question and answer of each row.
            is_world: which rows predict an image.
        """
        vocab = self.vocabulary
        ids = pad_sequence([torch.cat(pair) for pair in samples], batch_first=True, padding_value=vocab.pad)
        labels = pad_sequence(
            [torch.cat((torch.full_like(question, IGNORED), answer)) for question, answer in samples],
            batch_first=True,
            padding_value=IGNORED,
        )
        block = torch.full_like(ids, -1)
        if self.config.mask == "action":
            block = action_blocks(
                ids, begin=vocab.begin_action, end=vocab.end_action, end_image=vocab.end_image, is_world=is_world
            )
        lengths = torch.tensor([len(question) + len(answer) for question, answer in samples], device=ids.device)
        return TokenBatch(ids=ids, labels=labels, lengths=lengths, is_world=is_world, block=block)

    def codes_of(self, ids: Int[Tensor, "*n l"]) -> Int[Tensor, "*n y x"]:
        """The codes of an image segment.

        Raises:
            ValueError: the ids do not form an image of the model's size; it says where they go wrong.
        """
        side, vocab = self.config.grid, self.vocabulary
        if ids.shape[-1] != self.config.image_length:
            raise ValueError(f"expected an image of {self.config.image_length} ids, got {ids.shape[-1]}")
        rows = rearrange(ids[..., 3:-1], "... (y x) -> ... y x", y=side)
        codes = vocab.code_of_id.to(ids.device)[rows[..., :-1]]
        template = self.image(torch.zeros_like(codes))
        is_code = template == vocab.image[0]
        wrong = torch.where(is_code, vocab.code_of_id.to(ids.device)[ids] < 0, ids != template)
        if wrong.any():
            place = int(wrong.nonzero()[0, -1])
            raise ValueError(
                f"expected an image segment of {side}x{side} codes, its id number {place} is "
                f"{int(ids.reshape(-1, ids.shape[-1])[wrong.reshape(-1, ids.shape[-1]).any(1)][0, place])}"
            )
        return codes

    def actions_of(self, ids: Int[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """The numbers that action ids stand for, in normalised units; `sign_channels` as -1 or 1.

        Raises:
            ValueError: an id that is no action bin.
        """
        places = self.vocabulary.bin_of_id.to(ids.device)[ids]
        if (places < 0).any():
            raise ValueError(f"expected ids of action bins, got {ids[places < 0][:4].tolist()}")
        return self.signed(self.bins.decode(places))

    def signed(self, actions: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """The same with `sign_channels` as -1 or 1."""
        if not self.config.sign_channels:
            return actions
        channels = list(self.config.sign_channels)
        signed = actions.clone()
        signed[..., channels] = torch.where(actions[..., channels] >= 0, 1.0, -1.0)
        return signed

    def _begin(self, device: torch.device) -> Tensor:
        return torch.tensor([self.vocabulary.begin], device=device)

    def _turn(self, device: torch.device) -> Tensor:
        return torch.tensor([self.vocabulary.end_turn], device=device)


def _enclosed(ids: Int[Tensor, "*n c"], begin: int, end: int) -> Int[Tensor, "*n l"]:
    shape = (*ids.shape[:-1], 1)
    return torch.cat((ids.new_full(shape, begin), ids, ids.new_full(shape, end)), dim=-1)
