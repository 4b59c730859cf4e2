"""The value and the action expert: narrow transformers that read the video stream layer by layer.

Source: WAV (arXiv 2604.14732), section 3.
Differs: the paper's text lets the action expert read video and value features one after the other; the released model
reads both in parallel and adds them, and so do we, because checkpoints are trained that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.models.wav.config import ExpertConfig
from wamkit.nn.attention import Attention, KeyValue
from wamkit.nn.mlp import FeedForward
from wamkit.nn.modulation import Modulation, TimestepEmbedding, Timesteps, gated_add, rms_norm, shift_scale
from wamkit.nn.rope import Rotation, sequence_rotation


class ExpertBlock(nn.Module):
    """One layer of an expert.

    q = q + gate_a · SelfAttn_rope(rms(q)(1 + scale_a) + shift_a)
    q = q + CrossAttn(q, video) [+ CrossAttn(q, value)]          un-normalised, ungated, both read the same q
    q = q + gate_f · FFN(rms(q)(1 + scale_f) + shift_f)
    """

    def __init__(self, expert: ExpertConfig, video_dim: int, value_dim: int | None, eps: float):
        super().__init__()
        dim = expert.dim
        self.eps = eps
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn1 = Attention(dim, expert.num_heads, expert.head_dim)
        self.attn2 = Attention(dim, expert.num_heads, expert.head_dim, context_dim=video_dim)
        if value_dim is not None:
            self.attn3 = Attention(dim, expert.num_heads, expert.head_dim, context_dim=value_dim)
        self.ff = FeedForward(dim)

    def forward(
        self,
        x: Float[Tensor, "r l d"],
        modulation: Modulation,
        rotation: Rotation,
        video: Float[Tensor, "b w e"] | KeyValue,
        value: Float[Tensor, "u y z"] | KeyValue | None = None,
    ) -> Float[Tensor, "r l d"]:
        """One layer; `video` and `value` are hidden states of the same depth, or their kept keys and values."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.of_block(self.scale_shift_table)
        lengths = modulation.lengths
        attended = self.attn1(shift_scale(rms_norm(x, self.eps), shift_a, scale_a, lengths), rotation=rotation)
        x = gated_add(x, attended, gate_a, lengths)
        read = self.attn2(x, video)
        if value is not None:
            read = read + self.attn3(x, value)
        x = x + read
        return gated_add(x, self.ff(shift_scale(rms_norm(x, self.eps), shift_f, scale_f, lengths)), gate_f, lengths)


@dataclass(frozen=True, kw_only=True)
class ExpertTokens:
    """Noisy input of one expert.

    Args:
        tokens: `r` is a multiple of the observations: rows of one observation are consecutive and share its features.
        timestep: 1000 sigma of each row, or one for all.
        state_token: clean token put in front (action expert), one per row.
    """

    tokens: Float[Tensor, "r l c"]
    timestep: Float[Tensor, " k"]
    state_token: Float[Tensor, "r 1 c"] | None = None


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What an expert is told beside its tokens; it follows from weights, timesteps and lengths alone.

    Args:
        modulation: of the timesteps.
        rotation: rotary table.
    """

    modulation: Modulation
    rotation: Rotation


@dataclass(frozen=True, kw_only=True)
class ExpertStream:
    """One expert's modules, which hang off the network's root under the names of the published checkpoints."""

    config: ExpertConfig
    proj_in: nn.Linear
    time_embed: TimestepEmbedding
    blocks: nn.ModuleList
    scale_shift_table: nn.Parameter
    proj_out: nn.Linear

    @property
    def layers(self) -> list[ExpertBlock]:
        """The blocks, typed."""
        return cast(list[ExpertBlock], list(self.blocks))

    def modulation(self, timesteps: Timesteps) -> Modulation:
        """Timestep conditioning of the whole stream."""
        blocks, head = self.time_embed(timesteps.levels)
        return Modulation(blocks=blocks, head=head, lengths=timesteps.lengths)

    def condition(self, timestep: Float[Tensor, " k"], length: int, num_clean: int = 0) -> Condition:
        """Timesteps and positions of `length` noisy tokens behind `num_clean` clean ones."""
        return Condition(
            modulation=self.modulation(Timesteps.clean_then(num_clean, timestep, length)),
            rotation=self.rotation(num_clean + length, timestep.device),
        )

    def embed(self, given: ExpertTokens) -> Float[Tensor, "r l d"]:
        """Embedded tokens, state token first."""
        tokens = given.tokens.to(self.proj_in.weight.dtype)
        if given.state_token is not None:
            tokens = torch.cat((given.state_token.to(tokens.dtype), tokens), dim=1)
        return self.proj_in(tokens)

    def begin(self, given: ExpertTokens) -> tuple[Float[Tensor, "r l d"], Modulation, Rotation]:
        """Embedded tokens (state token first), their modulation and rotary table."""
        condition = self.condition(given.timestep, given.tokens.shape[1], int(given.state_token is not None))
        return self.embed(given), condition.modulation, condition.rotation

    def rotation(self, length: int, device: torch.device | str) -> Rotation:
        """The expert's rotary table."""
        return sequence_rotation(length, self.config.dim, self.config.rope_base, device)

    def head(self, x: Float[Tensor, "r l d"], modulation: Modulation) -> Float[Tensor, "r p c"]:
        """Velocity of the noisy tokens; the row of a clean state token is dropped."""
        shift, scale = modulation.of_head(self.scale_shift_table)
        x = shift_scale(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale, modulation.lengths)
        if len(modulation.lengths) > 1:
            x = x[:, modulation.lengths[0] :]
        return self.proj_out(x)

    def keep_video(self, layer: int, hidden: Float[Tensor, "b l d"]) -> KeyValue:
        """Project video hidden states of one depth for this expert."""
        return self.layers[layer].attn2.keys_values(hidden)

    def keep_value(self, hidden: Sequence[Float[Tensor, "b l d"]]) -> list[KeyValue]:
        """Project the value hidden states of every depth for this (action) expert."""
        return [block.attn3.keys_values(x) for block, x in zip(self.layers, hidden, strict=True)]

    def run(
        self,
        given: ExpertTokens,
        video: Sequence[KeyValue],
        value: Sequence[KeyValue] | None = None,
        keep: bool = False,
        condition: Condition | None = None,
    ) -> tuple[Float[Tensor, "r p c"], list[Float[Tensor, "r l d"]]]:
        """The whole stream over kept features.

        Args:
            given: noisy tokens.
            video: kept keys and values of the video stream, one per layer.
            value: kept keys and values of the value stream; skipped when `None`.
            keep: return the hidden states of every layer.
            condition: that of `given`, when it was computed before.

        Returns:
            Velocity, and the hidden states after each block (empty unless `keep`).
        """
        if condition is None:
            condition = self.condition(given.timestep, given.tokens.shape[1], int(given.state_token is not None))
        x, hidden = self.embed(given), []
        for i, block in enumerate(self.layers):
            x = block(x, condition.modulation, condition.rotation, video[i], None if value is None else value[i])
            if keep:
                hidden.append(x)
        return self.head(x, condition.modulation), hidden
