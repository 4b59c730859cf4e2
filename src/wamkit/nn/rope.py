"""Rotary position tables of LTX-Video and of WAV's experts, applied to the full width before heads are split.

Source: LTX-Video (arXiv 2501.00103) for video, WAV (arXiv 2604.14732) and Genie-Envisioner for the experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Cosine and sine per token and channel, fp32; channels come in adjacent pairs.

    Args:
        cos: one row per token.
        sin: one row per token.
    """

    cos: Float[Tensor, "l d"]
    sin: Float[Tensor, "l d"]

    @cached_property
    def _turn(self) -> Tensor:
        """cos + i sin of each channel pair."""
        return torch.complex(self.cos[:, ::2].contiguous(), self.sin[:, ::2].contiguous())

    def rotate(self, x: Float[Tensor, "*b l d"]) -> Float[Tensor, "*b l d"]:
        """Turn each channel pair (u, w) into (u cos - w sin, w cos + u sin), in fp32, cast back."""
        if x.is_cpu and not torch.is_grad_enabled():
            # one multiplication of complex numbers: seven times as fast on a CPU, and the same
            turned = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2))) * self._turn
            return torch.view_as_real(turned).flatten(-2).to(x.dtype)
        pairs = x.float().unflatten(-1, (-1, 2))
        u, w = pairs.unbind(-1)
        turned = torch.stack((-w, u), dim=-1).flatten(-2)
        return (x.float() * self.cos + turned * self.sin).to(x.dtype)


def video_rotation(
    num_frames: int, height: int, width: int, dim: int, device: torch.device | str | None = None
) -> Rotation:
    """3-D rotary table over a latent grid; tokens are ordered frame, row, column.

    Positions are scaled as LTX-Video was trained: latent frames by 8/30 s out of 20, rows and columns by 32 px out of
    2048, whatever the data's rate and size. Pair number 3j + a (a = 0 frame, 1 row, 2 column) has frequency
    (π/2)·10000^(j/(dim//6 - 1)); the first `dim % 6` channels are not turned.

    Args:
        num_frames: latent frames.
        height: latent rows.
        width: latent columns.
        dim: model width.
        device: where the table lives.
    """
    frame = torch.arange(num_frames, dtype=torch.float32, device=device) * (8 / 30) / 20
    row = torch.arange(height, dtype=torch.float32, device=device) * 32 / 2048
    column = torch.arange(width, dtype=torch.float32, device=device) * 32 / 2048
    grid = torch.stack(torch.meshgrid(frame, row, column, indexing="ij"), dim=-1).reshape(-1, 3)
    angles = (grid * 2 - 1)[:, None, :] * _frequencies(dim // 6, device)[None, :, None]  # l, j, axis
    return _table(angles.flatten(1), num_still=dim % 6)


def sequence_rotation(length: int, dim: int, base: float, device: torch.device | str | None = None) -> Rotation:
    """1-D rotary table of an expert: angle ω_j (2n/base - 1), ω_j = (π/2)·10000^(j/(dim/2 - 1)).

    Args:
        length: tokens.
        dim: expert width.
        base: 57 for the value expert, 54 for the action expert.
        device: where the table lives.
    """
    position = torch.arange(length, dtype=torch.float32, device=device) / base
    angles = (position * 2 - 1)[:, None] * _frequencies(dim // 2, device)[None, :]
    return _table(angles, num_still=dim % 2)


def _frequencies(count: int, device: torch.device | str | None) -> Float[Tensor, " j"]:
    exponents = torch.linspace(0, 1, count, dtype=torch.float32, device=device)
    return (math.pi / 2) * 10000.0**exponents


def _table(angles: Float[Tensor, "l pairs"], num_still: int) -> Rotation:
    cos = angles.cos().repeat_interleave(2, dim=-1)
    sin = angles.sin().repeat_interleave(2, dim=-1)
    cos = torch.nn.functional.pad(cos, (num_still, 0), value=1.0)
    sin = torch.nn.functional.pad(sin, (num_still, 0), value=0.0)
    return Rotation(cos=cos, sin=sin)
