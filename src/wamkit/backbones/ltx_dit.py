"""The blocks of the LTX-Video diffusion transformer, under its published weight names.

Source: LTX-Video (arXiv 2501.00103), diffusers layout. Activations are `b v l d`: views of one observation stay
together, so that a block can attend within each view (LTX-Video) or across all of them (Genie-Envisioner, WAV).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.attention import Attention, KeyValue
from wamkit.nn.mlp import FeedForward
from wamkit.nn.modulation import Modulation, gated_add, rms_norm, shift_scale
from wamkit.nn.rope import Rotation

TEXT_PADDING_BIAS = -10000.0


class CaptionProjection(nn.Module):
    """Text embeddings into the model's width: linear, tanh-GELU, linear."""

    def __init__(self, text_width: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(text_width, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, text: Float[Tensor, "b l t"]) -> Float[Tensor, "b l d"]:
        """Project every text token."""
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


def text_bias(mask: Tensor, dtype: torch.dtype) -> Float[Tensor, "b 1 1 l"]:
    """Additive attention bias of a tokenizer mask: 0 on text, -10000 on padding."""
    return ((1 - mask.to(dtype)) * TEXT_PADDING_BIAS)[:, None, None, :]


def table(rows: int, dim: int) -> nn.Parameter:
    """A modulation table, N(0, 1/dim)."""
    return nn.Parameter(torch.randn(rows, dim) / dim**0.5)


class LTXBlock(nn.Module):
    """Self-attention, text cross-attention and feed-forward with per-token modulation.

    x = x + gate_a · SelfAttn(rms(x)(1 + scale_a) + shift_a)
    x = x + CrossAttn(x, text)                                  no norm, no modulation, no gate
    x = x + gate_f · FFN(rms(x)(1 + scale_f) + shift_f)
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, eps: float, across_views: bool = False):
        super().__init__()
        self.eps = eps
        self.across_views = across_views
        self.scale_shift_table = table(6, dim)
        self.attn1 = Attention(dim, num_heads, head_dim)
        self.attn2 = Attention(dim, num_heads, head_dim)
        self.ff = FeedForward(dim)

    def forward(
        self,
        x: Float[Tensor, "r v l d"],
        modulation: Modulation,
        rotation: Rotation,
        text: Float[Tensor, "b t d"] | KeyValue,
        bias: Float[Tensor, "b 1 1 t"] | None,
    ) -> Float[Tensor, "r v l d"]:
        """One layer.

        Args:
            x: tokens; `r` is a multiple of the text's rows (several candidates may share one observation's text).
            modulation: `b|1 v k 6 d`, `k` runs of tokens.
            rotation: one view's table; every view has the same positions.
            text: projected text, or its kept keys and values.
            bias: padding bias of the text.
        """
        views = x.shape[1]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.of_block(self.scale_shift_table)
        lengths = modulation.lengths

        attended = shift_scale(rms_norm(x, self.eps), shift_a, scale_a, lengths)
        if self.across_views:
            repeated = Rotation(cos=rotation.cos.repeat(views, 1), sin=rotation.sin.repeat(views, 1))
            attended = self.attn1(rearrange(attended, "r v l d -> r (v l) d"), rotation=repeated)
            attended = rearrange(attended, "r (v l) d -> r v l d", v=views)
        else:
            attended = self.attn1(rearrange(attended, "r v l d -> (r v) l d"), rotation=rotation)
            attended = rearrange(attended, "(r v) l d -> r v l d", v=views)
        x = gated_add(x, attended, gate_a, lengths)

        read = self.attn2(rearrange(x, "r v l d -> r (v l) d"), text, bias=bias)
        x = x + rearrange(read, "r (v l) d -> r v l d", v=views)

        update = self.ff(shift_scale(rms_norm(x, self.eps), shift_f, scale_f, lengths))
        return gated_add(x, update, gate_f, lengths)
