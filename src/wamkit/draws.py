"""Where random numbers come from: named streams whose numbers follow from keys alone.

One generator per (row, stream): the streams of one step are independent, steps differ, and a row's numbers depend
neither on the rows beside it nor on the process that computes it. Planning and sampling key a row by (episode seed,
control step); training by (seed, stage, step, row of the global batch).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SeededDraws:
    """Standard normal numbers that follow from seeds alone (`types.Draws`).

    Args:
        keys: one tuple per observation, for instance (episode seed, control step).
        device: where the numbers are wanted; they are drawn on the CPU, so that they do not depend on it.
    """

    keys: Sequence[tuple[int, ...]]
    device: torch.device | str = "cpu"

    def __call__(self, stream: str, shape: Sequence[int]) -> Tensor:
        """`[b, *shape]` numbers, one generator per row."""
        return _normal([seeded(*key, stream) for key in self.keys], shape).to(self.device)


@dataclass(frozen=True, kw_only=True)
class TrainingDraws:
    """The random numbers of one training batch.

    Processes that share a batch hold some of its rows each, and draw for them what one process would draw.

    Args:
        key: which batch, for instance (seed, stage, step, accumulation).
        rows: the rows at hand, as numbered in the global batch.
        num_rows: rows of the global batch.
        device: where the numbers are wanted; they are drawn on the CPU, so that they do not depend on it.
    """

    key: tuple[int, ...]
    rows: Sequence[int]
    num_rows: int
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if not self.rows or min(self.rows) < 0 or max(self.rows) >= self.num_rows:
            raise ValueError(f"expected rows of a batch of {self.num_rows}, got {list(self.rows)}")

    def __call__(self, stream: str, shape: Sequence[int]) -> Tensor:
        """`[b, *shape]` independent N(0, 1) numbers."""
        return _normal(self._generators(stream), shape).to(self.device)

    def uniform(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """`[b, *shape]` independent numbers of [0, 1)."""
        rows = [torch.rand(tuple(shape), generator=rng) for rng in self._generators(stream)]
        return torch.stack(rows).to(self.device)

    def shared(self, stream: str) -> float:
        """One number of [0, 1) for the whole global batch."""
        return float(torch.rand((), generator=seeded(*self.key, stream)))

    def _generators(self, stream: str) -> list[torch.Generator]:
        return [seeded(*self.key, row, stream) for row in self.rows]


def seeded(*key: int | str) -> torch.Generator:
    """A CPU generator whose seed follows from a key of numbers and names."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _normal(generators: list[torch.Generator], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=rng) for rng in generators])
