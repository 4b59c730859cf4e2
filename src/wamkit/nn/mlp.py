"""The feed-forward network of diffusion transformers."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class _Expand(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... i"]:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """dim -> 4 dim -> dim with tanh-approximate GELU; weight names as in diffusers (`net.0.proj`, `net.2`)."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(_Expand(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Apply the network to the last axis."""
        return self.net(x)
