"""Where a planner's and a sampler's Gaussian numbers come from.

One generator per (episode, control step, stream): the streams of one step are independent, steps differ, and a batch of
observations gives the same numbers as each observation alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SeededDraws:
    """Draws that follow from seeds alone.

    Args:
        keys: one tuple per observation, for instance (episode seed, control step).
        device: where the numbers are wanted; they are drawn on the CPU, so that they do not depend on it.
    """

    keys: Sequence[tuple[int, ...]]
    device: torch.device | str = "cpu"

    def __call__(self, stream: str, shape: Sequence[int]) -> Tensor:
        """`[b, *shape]` numbers, one generator per row."""
        return torch.stack([torch.randn(*shape, generator=seeded(*key, stream)) for key in self.keys]).to(self.device)


def seeded(*key: int | str) -> torch.Generator:
    """A CPU generator whose seed follows from a key of numbers and names."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
