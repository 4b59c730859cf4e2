"""The continuous action head: learned queries read the prompt's hidden states and become a whole chunk at once.

Source: RynnVLA-002 (arXiv 2511.17502) and its released code.
Differs: dropout draws from a seed of its own, so that a resumed run drops the same; mixed lengths are masked, so that a
sample's output does not depend on the samples beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.draws import seeded
from wamkit.models.worldvla.config import HeadConfig


class EncoderLayer(nn.Module):
    """Bidirectional attention and a ReLU network, each normalised behind the sum.

    Args:
        config: sizes.
        layer: number of the layer.
    """

    def __init__(self, config: HeadConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.in_proj = nn.Linear(config.dim, 3 * config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)
        self.linear1 = nn.Linear(config.dim, config.mlp_dim)
        self.linear2 = nn.Linear(config.mlp_dim, config.dim)
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(
        self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b 1 1 l"], dropout_seed: int | None
    ) -> Float[Tensor, "b l d"]:
        """Apply the layer."""

        def dropped(x: Tensor, which: str) -> Tensor:
            if dropout_seed is None or not self.config.dropout:
                return x
            number = seeded(dropout_seed, "head", self.layer, which).initial_seed()
            draws = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(number), device=x.device)
            return x * (draws >= self.config.dropout) / (1 - self.config.dropout)

        query, key, value = rearrange(
            self.in_proj(x), "b l (three n k) -> three b n l k", three=3, n=self.config.num_heads
        )
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        read = self.out_proj(rearrange(read, "b n l k -> b l (n k)"))
        x = self.norm1(x + dropped(read, "attention"))
        inner = dropped(F.relu(self.linear1(x)), "inner")
        return self.norm2(x + dropped(self.linear2(inner), "mlp"))


class ResidualMLP(nn.Module):
    """A chunk's features to actions: LayerNorm, Linear, ReLU, two residual blocks, LayerNorm, Linear.

    Args:
        in_dim: features of one action.
        dim: width.
        out_dim: action channels.
    """

    def __init__(self, in_dim: int, dim: int, out_dim: int):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(in_dim)
        self.fc1 = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU()) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(dim)
        self.fc2 = nn.Linear(dim, out_dim)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """Apply the network to the last axis."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.fc2(self.layer_norm2(x))


class ActionHead(nn.Module):
    """Hidden states of a prompt to a chunk of normalised actions, without generating an id.

    Args:
        config: sizes.
        in_dim: width of the transformer.
        action_horizon: actions.
        action_dim: their channels.
    """

    def __init__(self, config: HeadConfig, *, in_dim: int, action_horizon: int, action_dim: int):
        super().__init__()
        self.action_horizon = action_horizon
        self.input_proj = nn.Linear(in_dim, config.dim)
        self.queries = nn.Parameter(torch.empty(action_horizon * action_dim, in_dim))
        self.layers = nn.ModuleList(EncoderLayer(config, layer) for layer in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.output = ResidualMLP(action_dim * config.dim, config.dim, action_dim)

    def forward(
        self,
        hidden: Float[Tensor, "b l d"],
        is_prompt: Bool[Tensor, "b l"],
        dropout_seed: int | None = None,
    ) -> Float[Tensor, "b p a"]:
        """Actions in normalised units.

        Args:
            hidden: final hidden states.
            is_prompt: the positions before the first action, which alone are read.
            dropout_seed: see `ChameleonModel.forward`.
        """
        queries = repeat(self.queries, "q d -> b q d", b=len(hidden))
        x = self.input_proj(torch.cat((hidden, queries), dim=1))
        mask = F.pad(is_prompt, (0, queries.shape[1]), value=True)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask, dropout_seed)
        chosen = self.norm(x)[:, -queries.shape[1] :]
        return self.output(rearrange(chosen, "b (p a) d -> b p (a d)", p=self.action_horizon))
