"""Multi-head attention with query/key normalisation over the whole width, and keys and values that can be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.rope import Rotation


@dataclass(frozen=True, kw_only=True)
class KeyValue:
    """Projected keys and values of one attention layer, ready to be attended to many times.

    Args:
        key: normalised, rotated if the layer rotates.
        value: projected.
    """

    key: Float[Tensor, "b n l k"]
    value: Float[Tensor, "b n l k"]

    def rows(self, index: list[int]) -> KeyValue:
        """Those of some context rows, copied."""
        return KeyValue(key=self.key[index], value=self.value[index])

    @classmethod
    def joined(cls, parts: Sequence[KeyValue]) -> KeyValue:
        """Several, one after the other."""
        return cls(key=torch.cat([part.key for part in parts]), value=torch.cat([part.value for part in parts]))


class Attention(nn.Module):
    """Attention of the LTX-Video family: biased projections, RMS norm of q and k across heads, rotary before heads.

    Queries may come in more rows than the context: `m` consecutive query rows then share one context row, and are
    folded into its query axis instead of tiling keys and values.

    Args:
        dim: width of queries and output.
        num_heads: heads.
        head_dim: width per head.
        context_dim: width of the context; `dim` for self-attention.
        eps: of the query and key norms (1e-5 in LTX-Video, unlike the blocks' 1e-6).
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, context_dim: int | None = None, eps: float = 1e-5):
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(context_dim or dim, inner)
        self.to_v = nn.Linear(context_dim or dim, inner)
        self.norm_q = nn.RMSNorm(inner, eps=eps)
        self.norm_k = nn.RMSNorm(inner, eps=eps)
        self.to_out = nn.Sequential(nn.Linear(inner, dim))

    def keys_values(self, context: Float[Tensor, "b l d"], rotation: Rotation | None = None) -> KeyValue:
        """Project a context once, to be attended to by any number of queries."""
        key = self.norm_k(self.to_k(context))
        if rotation is not None:
            key = rotation.rotate(key)
        heads = "b l (n k) -> b n l k"
        return KeyValue(
            key=rearrange(key, heads, n=self.num_heads),
            value=rearrange(self.to_v(context), heads, n=self.num_heads),
        )

    def forward(
        self,
        x: Float[Tensor, "r l d"],
        context: Float[Tensor, "b c e"] | KeyValue | None = None,
        rotation: Rotation | None = None,
        bias: Float[Tensor, "b 1 1 c"] | None = None,
    ) -> Float[Tensor, "r l d"]:
        """Attend from `x` to `context` (to itself when `None`).

        Args:
            x: queries; `r` is a multiple of the context's rows.
            context: raw context or kept keys and values.
            rotation: applied to queries, and to keys projected here.
            bias: additive attention bias per context token.
        """
        if not isinstance(context, KeyValue):
            context = self.keys_values(x if context is None else context, rotation)
        query = self.norm_q(self.to_q(x))
        if rotation is not None:
            query = rotation.rotate(query)
        rows = context.key.shape[0]
        query = rearrange(query, "(b m) l (n k) -> b n (m l) k", b=rows, n=self.num_heads)
        out = F.scaled_dot_product_attention(query, context.key, context.value, attn_mask=bias)
        return self.to_out(rearrange(out, "b n (m l) k -> (b m) l (n k)", l=x.shape[1]))
