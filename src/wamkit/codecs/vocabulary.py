"""Where everything has its place in one vocabulary of token ids: text, image codes, action bins, state bins, structure.

Every id comes from the names in a tokenizer's vocabulary, never from a literal.

Source: the published tokenizer of WorldVLA (arXiv 2506.21539), which is Chameleon's: 65536 ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

NUM_BINS: Final = 256
GRID_UNIT: Final = 32
"""Pixels that a grid count stands for."""
MAX_GRID: Final = 64
PLACEHOLDER_IDS: Final = 65536
"""From here on lie ids of placeholders, which mark positions in a text and never reach a model."""

BEGIN, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
BEGIN_IMAGE, END_IMAGE = "<racm3:break>", "<eoss>"
_DIGITS = "ABCDEFGHIJ"
_LISTED = 6


def image_name(code: int) -> str:
    """Name of an image code: its decimal digits spelled A to J."""
    return f"IMGIMG{''.join(_DIGITS[int(digit)] for digit in str(code))}Z"


def reserved_name(number: int) -> str:
    """Name of a reserved token."""
    return f"<reserved{number:05d}>"


END_TURN, ROW_END = reserved_name(8706), reserved_name(8799)
BEGIN_ACTION, END_ACTION = reserved_name(10000), reserved_name(15000)
BEGIN_STATE, END_STATE = reserved_name(15500), reserved_name(16000)


def grid_name(count: int) -> str:
    """Name of a grid count, 1 to `MAX_GRID`, in units of 32 px."""
    return reserved_name(8800 + count)


def bin_name(begin: str, number: int) -> str:
    """Name of bin `number` (1 to 256) of the segment that begins with `begin`; the first bin is two places behind."""
    return reserved_name(int(begin.removeprefix("<reserved").removesuffix(">")) + 1 + number)


@dataclass(frozen=True, kw_only=True)
class VocabSpec:
    """The ids of every role.

    Args:
        size: ids that the model knows: 0 to `size` - 1.
        begin: of a sequence.
        pad: fills up a batch.
        end_turn: ends the question and ends the answer.
        image: id of each image code.
        begin_image: opens an image.
        end_image: closes it.
        row_end: ends a row of codes.
        grid: id of the grid count n at n - 1; as many as the vocabulary has.
        begin_action: opens an action.
        end_action: closes it.
        action: ids of the 256 action bins.
        begin_state: opens a state.
        end_state: closes it.
        state: ids of the 256 state bins.
    """

    size: int
    begin: int
    pad: int
    end_turn: int
    image: tuple[int, ...]
    begin_image: int
    end_image: int
    row_end: int
    grid: tuple[int, ...]
    begin_action: int
    end_action: int
    action: tuple[int, ...]
    begin_state: int
    end_state: int
    state: tuple[int, ...]

    @classmethod
    def from_vocabulary(cls, vocabulary: Mapping[str, int], *, num_codes: int = 8192) -> VocabSpec:
        """From a tokenizer's names and ids; their order does not matter.

        Args:
            vocabulary: name -> id.
            num_codes: image codes of the tokeniser of images.

        Raises:
            ValueError: a name is missing, or two names share an id.
        """
        names = [BEGIN, PAD, END_TURN, BEGIN_IMAGE, END_IMAGE, ROW_END, grid_name(1)]
        names += [BEGIN_ACTION, END_ACTION, BEGIN_STATE, END_STATE]
        bins = [[bin_name(begin, number + 1) for number in range(NUM_BINS)] for begin in (BEGIN_ACTION, BEGIN_STATE)]
        codes = [image_name(code) for code in range(num_codes)]
        wanted = [*names, *codes, *bins[0], *bins[1]]
        missing = [name for name in wanted if name not in vocabulary]
        if missing:
            raise ValueError(
                f"expected a vocabulary with {num_codes} image codes and Chameleon's special tokens, {len(missing)} "
                f"names are missing: {_listed(missing)}; give the tokenizer that belongs to the weights"
            )
        grid = [vocabulary[grid_name(count + 1)] for count in range(MAX_GRID) if grid_name(count + 1) in vocabulary]
        ids = [vocabulary[name] for name in wanted]
        if len(set(ids)) != len(ids) or min(ids) < 0:
            raise ValueError("expected distinct ids of 0 or more in the vocabulary, got some twice or below 0")
        return cls(
            size=max(number for number in vocabulary.values() if number < PLACEHOLDER_IDS) + 1,
            begin=vocabulary[BEGIN],
            pad=vocabulary[PAD],
            end_turn=vocabulary[END_TURN],
            image=tuple(vocabulary[name] for name in codes),
            begin_image=vocabulary[BEGIN_IMAGE],
            end_image=vocabulary[END_IMAGE],
            row_end=vocabulary[ROW_END],
            grid=tuple(grid),
            begin_action=vocabulary[BEGIN_ACTION],
            end_action=vocabulary[END_ACTION],
            action=tuple(vocabulary[name] for name in bins[0]),
            begin_state=vocabulary[BEGIN_STATE],
            end_state=vocabulary[END_STATE],
            state=tuple(vocabulary[name] for name in bins[1]),
        )

    def check_fit(self, size: int, *, num_codes: int) -> None:
        """Refuse a vocabulary that is not the model's.

        Args:
            size: ids that the weights know.
            num_codes: image codes of the tokeniser of images.

        Raises:
            ValueError: ids beyond the weights' rows, or another number of image codes.
        """
        if self.size > size or len(self.image) != num_codes:
            raise ValueError(
                f"expected a vocabulary of at most {size} ids, the weights', with {num_codes} image codes, got "
                f"{self.size} ids and {len(self.image)} image codes; give the tokenizer that belongs to the weights, "
                "or for new ones set model.network.vocab_size and model.codec.num_codes"
            )

    @cached_property
    def id_of_code(self) -> Int[Tensor, " n"]:
        """Token id of each image code."""
        return torch.tensor(self.image)

    @cached_property
    def code_of_id(self) -> Int[Tensor, " ids"]:
        """Image code of each token id; -1 for ids that are none."""
        return _inverse(self.image, self.size)

    @cached_property
    def id_of_bin(self) -> Int[Tensor, "256"]:
        """Token id of each action bin, bin 1 first."""
        return torch.tensor(self.action)

    @cached_property
    def bin_of_id(self) -> Int[Tensor, " ids"]:
        """Place of each token id among the action bins, 0 to 255; -1 for ids that are none."""
        return _inverse(self.action, self.size)

    @cached_property
    def id_of_state_bin(self) -> Int[Tensor, "256"]:
        """Token id of each state bin, bin 1 first."""
        return torch.tensor(self.state)

    def grid_id(self, image_size: int) -> int:
        """Id of the grid count of a side of `image_size` px.

        Raises:
            ValueError: not a multiple of 32 px, or more than the vocabulary can say.
        """
        if image_size % GRID_UNIT or not 0 < image_size // GRID_UNIT <= len(self.grid):
            raise ValueError(
                f"expected images of {GRID_UNIT} to {GRID_UNIT * len(self.grid)} px in steps of {GRID_UNIT}, got "
                f"{image_size}"
            )
        return self.grid[image_size // GRID_UNIT - 1]


def published_names(*, num_codes: int = 8192) -> dict[str, int]:
    """The named ids of the published vocabulary, without its text pieces; image codes in the order of their names.

    That order is not the codes' (`IMGIMGBAZ`, ten, comes before `IMGIMGBZ`, one), as it need not be in a real one.
    """
    names = {BEGIN: 0, PAD: 1, END: 2, UNKNOWN: 3}
    names |= {name: 4 + place for place, name in enumerate(sorted(map(image_name, range(num_codes))))}
    after = 4 + num_codes
    names |= {END_IMAGE: after, BEGIN_IMAGE: after + 1}
    # <reservedN> has id N + 4 in the published vocabulary of 8192 codes
    first = after + 2
    return names | {reserved_name(number): first + number - 8194 for number in range(8194, 16001)}


def compact_names(*, num_codes: int) -> dict[str, int]:
    """The names that a sequence can hold, with the smallest ids: a small model spends no weights on others."""
    names = [BEGIN, PAD, END, UNKNOWN, *map(image_name, range(num_codes)), END_IMAGE, BEGIN_IMAGE, END_TURN, ROW_END]
    names += [grid_name(count + 1) for count in range(16)]
    for begin, end in ((BEGIN_ACTION, END_ACTION), (BEGIN_STATE, END_STATE)):
        names += [begin, *(bin_name(begin, number + 1) for number in range(NUM_BINS)), end]
    return {name: place for place, name in enumerate(names)}


def _inverse(ids: Sequence[int], size: int) -> Int[Tensor, " ids"]:
    table = torch.full((size,), -1)
    table[torch.tensor(ids)] = torch.arange(len(ids))
    return table


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_LISTED])}{' …' if len(names) > _LISTED else ''}"
