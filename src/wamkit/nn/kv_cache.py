"""Keys and values of what an autoregressive transformer has read so far."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class KeyValueCache:
    """Room for the keys and values of every layer, filled from the front; keys are kept as they are attended to.

    A slot's number says nothing of its position: keys are rotated before they come here, and masks say who sees whom.

    Args:
        num_layers: layers.
        batch: rows.
        num_heads: heads.
        capacity: slots.
        head_dim: width per head.
        dtype: of keys and values.
        device: where they are kept.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch: int,
        num_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, 2, batch, num_heads, capacity, head_dim)
        self._kept = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Slots."""
        return self._kept.shape[-2]

    def extend(
        self, layer: int, key: Float[Tensor, "b n l k"], value: Float[Tensor, "b n l k"]
    ) -> tuple[Float[Tensor, "b n c k"], Float[Tensor, "b n c k"]]:
        """Put one layer's new keys and values behind those it has, and give all of them, without a copy.

        The new slots are taken for good by `advance`, once every layer has put its own there.

        Raises:
            ValueError: more than there is room for.
        """
        end = self.length + key.shape[-2]
        if end > self.capacity:
            raise ValueError(f"expected at most {self.capacity} ids in this cache, got {end}; make a larger one")
        self._kept[layer, 0, ..., self.length : end, :] = key
        self._kept[layer, 1, ..., self.length : end, :] = value
        return self._kept[layer, 0, ..., :end, :], self._kept[layer, 1, ..., :end, :]

    def advance(self, count: int) -> None:
        """Take `count` slots for good."""
        self.length += count

    def row(self, row: int) -> KeyValueCache:
        """A copy of one row, with as much room."""
        own = object.__new__(KeyValueCache)
        own._kept = self._kept[:, :, row : row + 1].clone()
        own.length = self.length
        return own

    def cut(self, length: int) -> None:
        """Forget what lies behind the first `length` slots."""
        self.length = min(self.length, length)
