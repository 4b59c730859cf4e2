"""Who may attend to whom: boolean masks, True where a query (second last axis) may see a key (last axis)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def causal_mask(length: int, device: torch.device | str | None = None) -> Bool[Tensor, "l l"]:
    """Every position sees itself and what comes before."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def action_mask(block: Int[Tensor, "b l"]) -> Bool[Tensor, "b 1 l l"]:
    """Causal, except that actions of a chunk do not see each other, so that a wrong one cannot mislead the next.

    Args:
        block: number of the action that each position belongs to, begin and end ids included; -1 for everything else,
            and throughout a sequence whose actions may see each other.

    Source: WorldVLA (arXiv 2506.21539), section 3.3, figure 3b.
    """
    is_action = block >= 0
    others = (block[:, :, None] != block[:, None, :]) & is_action[:, :, None] & is_action[:, None, :]
    return (causal_mask(block.shape[1], block.device) & ~others)[:, None]


def action_blocks(
    ids: Int[Tensor, "b l"], *, begin: int, end: int, end_image: int, is_world: Bool[Tensor, " b"]
) -> Int[Tensor, "b l"]:
    """The block that each position of some sequences belongs to, as `action_mask` wants it.

    Block k reaches from the k-th begin id behind the last image to its end id, both included. In a world sample (an
    image follows the actions) there is none, also while the image is still being predicted.

    Args:
        ids: token ids, right-padded.
        begin: id that opens an action.
        end: id that closes it.
        end_image: id that closes an image.
        is_world: which sequences predict an image.
    """
    place = torch.arange(ids.shape[1], device=ids.device)
    last_image = torch.where(ids == end_image, place, -1).amax(dim=1, keepdim=True)
    behind = (place > last_image) & ~is_world[:, None]
    opens, closes = (ids == begin) & behind, (ids == end) & behind
    number = opens.cumsum(dim=1) - 1
    closed_before = closes.cumsum(dim=1) - closes.long()
    return torch.where(behind & (number >= closed_before) & (number >= 0), number, -1)
