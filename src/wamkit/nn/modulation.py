"""How a noise level reaches a transformer: timesteps in runs, their embedding, and shift / scale / gate.

Tokens of one sequence carry few distinct timesteps (clean memory, noisy future), always in contiguous runs. Everything
here is computed once per run, never once per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Timesteps:
    """Timesteps (1000 * sigma) of a sequence as runs of equal value.

    Args:
        levels: value of each run, per batch row.
        lengths: tokens in each run.
    """

    levels: Float[Tensor, "b k"]
    lengths: tuple[int, ...]

    @classmethod
    def uniform(cls, level: Float[Tensor, " b"], length: int) -> Timesteps:
        """One timestep for every token of a row."""
        return cls(levels=level[:, None], lengths=(length,))

    @classmethod
    def clean_then(cls, num_clean: int, level: Float[Tensor, " b"], length: int) -> Timesteps:
        """Timestep 0 on the first `num_clean` tokens, `level` on the remaining `length`."""
        if num_clean == 0:
            return cls.uniform(level, length)
        return cls(levels=torch.stack((torch.zeros_like(level), level), dim=1), lengths=(num_clean, length))

    @classmethod
    def per_token(cls, levels: Float[Tensor, "b l"]) -> Timesteps:
        """An arbitrary timestep on every token."""
        return cls(levels=levels, lengths=(1,) * levels.shape[1])


def sinusoid(timestep: Float[Tensor, "*b"], dim: int = 256) -> Float[Tensor, "*b {dim}"]:
    """`dim/2` cosines then `dim/2` sines of the raw timestep, frequencies exp(-ln 10000 · i/(dim/2)), in fp32."""
    steps = torch.arange(dim // 2, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[..., None] * torch.exp(-math.log(10000.0) * steps / (dim // 2))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class _TimestepEmbedder(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(256, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, timestep: Float[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        return self.linear_2(F.silu(self.linear_1(sinusoid(timestep).to(self.linear_1.weight.dtype))))


class TimestepEmbedding(nn.Module):
    """A timestep's embedding `e` and its six-fold modulation `W silu(e) + b` (PixArt's adaLN-single).

    Weight names as in diffusers: `emb.timestep_embedder.linear_1/2`, `linear`.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": _TimestepEmbedder(dim)})
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, timestep: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b 6 d"], Float[Tensor, "*b d"]]:
        """Returns the modulation and the embedding."""
        embedded = self.emb["timestep_embedder"](timestep)
        return self.linear(F.silu(embedded)).unflatten(-1, (6, -1)), embedded


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """Timestep conditioning of one stream, one entry per run.

    Args:
        blocks: added to each block's table to give its shifts, scales and gates.
        head: added to the head's table to give its shift and scale.
        lengths: tokens in each run.
    """

    blocks: Float[Tensor, "*b k 6 d"]
    head: Float[Tensor, "*b k d"]
    lengths: tuple[int, ...]

    def of_block(self, table: Float[Tensor, "6 d"]) -> tuple[Float[Tensor, "*b k d"], ...]:
        """(shift, scale, gate) of the attention, then of the feed-forward network."""
        return (self.blocks + table).unbind(-2)

    def of_head(self, table: Float[Tensor, "2 d"]) -> tuple[Float[Tensor, "*b k d"], Float[Tensor, "*b k d"]]:
        """(shift, scale) of the output head."""
        return table[0] + self.head, table[1] + self.head


def per_run(
    x: Float[Tensor, "*b l d"],
    parameters: tuple[Tensor, ...],
    lengths: tuple[int, ...],
    apply: Callable[..., Tensor],
) -> Float[Tensor, "*b l d"]:
    """`apply(x, *parameters)` with each run of tokens seeing its own parameters, by broadcasting instead of
    gathering.
    """
    if len(lengths) in (1, x.shape[-2]):  # one run, or one run per token: shapes already line up
        return apply(x, *parameters)
    pieces = x.split(lengths, dim=-2)
    return torch.cat(
        [apply(piece, *(p[..., i : i + 1, :] for p in parameters)) for i, piece in enumerate(pieces)], dim=-2
    )


def shift_scale(
    x: Float[Tensor, "*b l d"], shift: Float[Tensor, "*c k d"], scale: Float[Tensor, "*c k d"], lengths: tuple[int, ...]
) -> Float[Tensor, "*b l d"]:
    """x (1 + scale) + shift, run by run."""
    return per_run(x, (shift, scale), lengths, lambda piece, b, s: torch.addcmul(b, piece, 1 + s))


def gated_add(
    x: Float[Tensor, "*b l d"], update: Float[Tensor, "*b l d"], gate: Float[Tensor, "*c k d"], lengths: tuple[int, ...]
) -> Float[Tensor, "*b l d"]:
    """x + gate · update, run by run."""
    if len(lengths) in (1, x.shape[-2]):
        return torch.addcmul(x, update, gate)
    return x + per_run(update, (gate,), lengths, lambda piece, g: piece * g)


def rms_norm(x: Float[Tensor, "... d"], eps: float) -> Float[Tensor, "... d"]:
    """Root-mean-square norm without weights."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)
