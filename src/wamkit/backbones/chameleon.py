"""Chameleon's decoder-only transformer; it knows ids, positions and masks, and nothing of images or actions.

Names of weights are those of the standard library's Chameleon classes.

Source: Chameleon (arXiv 2405.09818); residual dropout as in the released code of WorldVLA; the standard classes
have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wamkit.draws import seeded
from wamkit.nn.kv_cache import KeyValueCache


@dataclass(frozen=True)
class RotaryTable:
    """Cosine and sine of each position's angles, fp32; channel j of a head is paired with channel j + k/2.

    Args:
        cos: of every position and channel pair.
        sin: the same.
    """

    cos: Float[Tensor, "b 1 l h"]
    sin: Float[Tensor, "b 1 l h"]

    @classmethod
    def of(cls, positions: Int[Tensor, "b l"], head_dim: int, base: float) -> RotaryTable:
        """The table of absolute positions."""
        exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
        angles = positions[:, None, :, None].float() / base**exponents
        return cls(angles.cos(), angles.sin())

    def rotate(self, x: Float[Tensor, "b n l k"]) -> Float[Tensor, "b n l k"]:
        """Turn each channel pair, in fp32, and cast back."""
        u, w = x.float().chunk(2, dim=-1)
        return torch.cat((u * self.cos - w * self.sin, w * self.cos + u * self.sin), dim=-1).to(x.dtype)


class HeadNorm(nn.Module):
    """Layer norm over each head's channels, with a gain and a bias of each head's own.

    Args:
        num_heads: heads.
        head_dim: width per head.
        eps: of the norm.
    """

    def __init__(self, num_heads: int, head_dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "b l n k"]) -> Float[Tensor, "b l n k"]:
        """Normalise every head."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight + self.bias


class CausalAttention(nn.Module):
    """Multi-head attention with normalised, rotated queries and keys.

    Args:
        dim: width.
        num_heads: heads.
        eps: of the query and key norms.
    """

    def __init__(self, dim: int, num_heads: int, eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = HeadNorm(num_heads, dim // num_heads, eps)
        self.k_norm = HeadNorm(num_heads, dim // num_heads, eps)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        table: RotaryTable,
        mask: Bool[Tensor, "b 1 l c"],
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "b l d"]:
        """Attend to the sequence, or to all that a cache holds with the sequence behind it."""
        heads = "b l (n k) -> b l n k"
        query = self.q_norm(rearrange(self.q_proj(x), heads, n=self.num_heads)).transpose(1, 2)
        key = self.k_norm(rearrange(self.k_proj(x), heads, n=self.num_heads)).transpose(1, 2)
        value = rearrange(self.v_proj(x), heads, n=self.num_heads).transpose(1, 2)
        query, key = table.rotate(query), table.rotate(key)
        if cache is not None:
            key, value = cache.extend(layer, key, value)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(rearrange(out, "b n l k -> b l (n k)"))


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)).

    Args:
        dim: width.
        inner: width of the gate.
    """

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Apply the network to the last axis."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ChameleonBlock(nn.Module):
    """One layer: x + drop(attention(norm x)), then x + drop(mlp(norm x)).

    Args:
        dim: width.
        num_heads: heads.
        mlp_dim: width of the feed-forward network.
        eps: of every norm.
        dropout: rate of the residual dropout.
        layer: number of the layer, from 0.
    """

    def __init__(self, *, dim: int, num_heads: int, mlp_dim: int, eps: float, dropout: float, layer: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(dim, eps=eps)
        self.self_attn = CausalAttention(dim, num_heads, eps)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps=eps)
        self.mlp = GatedMLP(dim, mlp_dim)
        self.dropout, self.layer = dropout, layer

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        table: RotaryTable,
        mask: Bool[Tensor, "b 1 l c"],
        cache: KeyValueCache | None = None,
        dropout_seed: int | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Apply the layer; without a seed nothing is dropped."""
        added = self.self_attn(self.input_layernorm(x), table, mask, cache, self.layer)
        x = x + self._dropped(added, "attention", dropout_seed)
        return x + self._dropped(self.mlp(self.post_attention_layernorm(x)), "mlp", dropout_seed)

    def _dropped(self, x: Tensor, which: str, seed: int | None) -> Tensor:
        if seed is None or not self.dropout:
            return x
        # Its own generator, so that a block computed again for the backward pass drops the same.
        number = seeded(seed, self.layer, which).initial_seed()
        draws = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(number), device=x.device)
        return x * (draws >= self.dropout) / (1 - self.dropout)


class ChameleonModel(nn.Module):
    """Embedding, layers and final norm.

    Args:
        vocab_size: ids.
        dim: width.
        num_layers: layers.
        num_heads: heads.
        mlp_dim: width of the feed-forward networks.
        eps: of every norm.
        rope_base: of the rotary table.
        dropout: rate of the residual dropout.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        eps: float = 1e-5,
        rope_base: float = 10000.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(
            ChameleonBlock(dim=dim, num_heads=num_heads, mlp_dim=mlp_dim, eps=eps, dropout=dropout, layer=layer)
            for layer in range(num_layers)
        )
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.head_dim, self.rope_base = dim // num_heads, rope_base

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        mask: Bool[Tensor, "b 1 l c"],
        *,
        positions: Int[Tensor, "b l"] | None = None,
        cache: KeyValueCache | None = None,
        dropout_seed: int | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Normalised hidden states.

        Args:
            ids: token ids.
            mask: which of the sequence's positions (behind those of the cache, when there is one) each may attend to.
            positions: of each id; 0, 1, … when `None`.
            cache: what was read before; these ids are put behind it.
            dropout_seed: drops parts of what layers add, as its numbers say; `None` drops nothing.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        table = RotaryTable.of(positions, self.head_dim, self.rope_base)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, table, mask, cache, dropout_seed)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)
