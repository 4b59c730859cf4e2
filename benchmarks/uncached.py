"""One control step of WAV as the public implementation runs it: the other side of `benchmarks/planner.py`.

Written from the procedure's description in plain PyTorch, on the library's weights. Every call encodes the sentence and
all memory frames; timesteps are embedded token by token; the sentence is projected for every candidate; a video forward
keeps its hidden states, which are tiled for the value samples of a candidate; and every denoising step projects keys
and values of those hidden states anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from wamkit.backbones.ltx_dit import LTXBlock
from wamkit.flow import euler, sigma_schedule
from wamkit.models.wav.control import to_tokens
from wamkit.models.wav.experts import ExpertBlock, ExpertStream
from wamkit.models.wav.family import WAV
from wamkit.nn.attention import Attention
from wamkit.nn.mlp import FeedForward
from wamkit.nn.modulation import Timesteps
from wamkit.nn.rope import Rotation


def rotate(x: Tensor, table: Rotation) -> Tensor:
    """Channel pairs (u, w) become (u cos - w sin, w cos + u sin)."""
    u, w = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * table.cos + torch.stack((-w, u), dim=-1).flatten(-2) * table.sin


def attend(
    layer: Attention, x: Tensor, context: Tensor, table: Rotation | None = None, bias: Tensor | None = None
) -> Tensor:
    """Attention with everything projected here."""
    query, key, value = layer.norm_q(layer.to_q(x)), layer.norm_k(layer.to_k(context)), layer.to_v(context)
    if table is not None:
        query, key = rotate(query, table), rotate(key, table)
    heads = (rearrange(each, "b l (n k) -> b n l k", n=layer.num_heads) for each in (query, key, value))
    out = F.scaled_dot_product_attention(*heads, attn_mask=bias)
    return layer.to_out(rearrange(out, "b n l k -> b l (n k)"))


def feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    """Linear, GELU, linear."""
    expand, _, contract = layer.net
    return contract(F.gelu(expand.proj(x), approximate="tanh"))


def transform(
    block: LTXBlock | ExpertBlock,
    x: Tensor,
    modulation: Tensor,
    attention: Callable[[Tensor], Tensor],
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    """A block of any stream; `modulation` is `… tokens 6 d`."""
    table = (block.scale_shift_table + modulation).unbind(-2)
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = table
    x = x + gate_a * attention(F.rms_norm(x, x.shape[-1:], eps=block.eps) * (1 + scale_a) + shift_a)
    x = x + read(x)
    return x + gate_f * feed_forward(block.ff, F.rms_norm(x, x.shape[-1:], eps=block.eps) * (1 + scale_f) + shift_f)


@dataclass(kw_only=True)
class UncachedControl:
    """A `LatentProblem` that computes everything anew.

    Args:
        model: the policy's model.
        video: memory frames, uint8 `b v t h w c`; one robot.
        state: normalised `b s`.
        task: one sentence per row.
        num_steps: Euler steps.
    """

    model: WAV
    video: Tensor
    state: Tensor
    task: list[str]
    num_steps: int
    memory: Tensor = field(init=False)

    def __post_init__(self) -> None:
        config = self.model.config
        self.memory = self.model.encode_frames(self.video)
        text = self.model.text_encoder.encode(self.task)
        self.text = self.model.network.read_text(text.tokens, text.mask)
        self.num_memory = self.memory.shape[3]
        self.grid = (self.num_memory + config.num_future_latents, *self.memory.shape[4:])
        self.video_shape = (*self.memory.shape[1:3], *self.grid)
        self.value_shape = (len(config.value_steps), config.value_channels)

    def with_memory(self, video: Tensor) -> Tensor:
        future = video[..., -(self.grid[0] - self.num_memory) :, :, :]
        memory = repeat(self.memory, "b v c f h w -> b g v c f h w", g=video.shape[1])
        return torch.cat((memory, future), dim=-3)

    def hidden(self, video: Tensor) -> list[Tensor]:
        """Hidden states of every layer at pure noise, `rows (v l) d`."""
        network, area, (rows, views) = self.model.network, self.grid[1] * self.grid[2], video.shape[:2]
        told = torch.full((rows, self.grid[0] * area), 1000.0)
        told[:, : self.num_memory * area] = 0.0
        modulation = network.video_modulation(Timesteps.per_token(told), views).blocks
        table = network.rotation(self.grid, video.device)
        joined = Rotation(cos=table.cos.repeat(views, 1), sin=table.sin.repeat(views, 1))
        text = [each.expand(rows, -1, -1) for each in self.text.layers]
        x, seen = network.proj_in(to_tokens(video)), []
        for block, sentence in zip(network.transformer_blocks, text, strict=True):
            x = self._video_block(block, x, modulation, joined if block.across_views else table, sentence)
            seen.append(rearrange(x, "r v l d -> r (v l) d"))
        return seen

    def _video_block(self, block: LTXBlock, x: Tensor, modulation: Tensor, table: Rotation, sentence: Tensor) -> Tensor:
        rows, views = x.shape[:2]

        def attention(x: Tensor) -> Tensor:
            x = rearrange(x, "r v l d -> r (v l) d" if block.across_views else "r v l d -> (r v) l d")
            return attend(block.attn1, x, x, table).reshape(rows, views, -1, x.shape[-1])

        def read(x: Tensor) -> Tensor:
            out = attend(block.attn2, rearrange(x, "r v l d -> r (v l) d"), sentence, bias=self.text.bias)
            return rearrange(out, "r (v l) d -> r v l d", v=views)

        return transform(block, x, modulation, attention, read)

    def values(self, video: Tensor, noise: Tensor, num_steps: int | None = None, watch: object = None) -> Tensor:
        """Denoised value tokens of every candidate and sample."""
        assert watch is None, "the public planner keeps nothing of its candidates"
        batch, _, samples = noise.shape[:3]
        hidden = self.hidden(rearrange(video, "b g v c f h w -> (b g) v c f h w"))
        tiled = [repeat(x, "r l d -> (r n) l d", n=samples) for x in hidden]
        rows = rearrange(noise, "b g n y z -> (b g n) y z")
        rows = euler(
            rows,
            lambda x, sigma: self.expert_step(self.model.network.value, x, sigma, tiled)[0],
            sigma_schedule(num_steps or self.num_steps),
        )
        return rearrange(rows, "(b g n) y z -> b g n y z", b=batch, n=samples)

    def expert_step(
        self,
        expert: ExpertStream,
        x: Tensor,
        sigma: float,
        video: list[Tensor],
        value: list[Tensor] | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Velocity and hidden states of one full pass of an expert, from raw hidden states of the streams it reads."""
        told = torch.full(x.shape[:2], 1000.0 * sigma)
        if state is not None:
            x, told = torch.cat((state, x), dim=1), F.pad(told, (1, 0))
        modulation, table = expert.modulation(Timesteps.per_token(told)), expert.rotation(x.shape[1], x.device)
        x, seen = expert.proj_in(x), []
        for i, block in enumerate(expert.layers):
            x = self._expert_block(block, x, modulation.blocks, table, video[i], None if value is None else value[i])
            seen.append(x)
        shift, scale = modulation.of_head(expert.scale_shift_table)
        velocity = expert.proj_out(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        return velocity if state is None else velocity[:, 1:], seen

    def _expert_block(
        self, block: ExpertBlock, x: Tensor, modulation: Tensor, table: Rotation, video: Tensor, value: Tensor | None
    ) -> Tensor:
        def attention(x: Tensor) -> Tensor:
            return attend(block.attn1, x, x, table)

        def read(x: Tensor) -> Tensor:
            out = attend(block.attn2, x, video)
            return out if value is None else out + attend(block.attn3, x, value)

        return transform(block, x, modulation, attention, read)

    def decode(self, video: Tensor, value_noise: Tensor, action_noise: Tensor) -> Tensor:
        """Actions from chosen noise: the first step runs all streams, later ones the action expert."""
        network, config = self.model.network, self.model.config
        hidden = self.hidden(video)
        _, value = self.expert_step(network.value, value_noise, 1.0, hidden)
        state = F.pad(self.state, (config.action_dim, 0))[:, None]
        actions = euler(
            action_noise,
            lambda x, sigma: self.expert_step(network.action, x, sigma, hidden, value, state)[0],
            sigma_schedule(self.num_steps),
        )
        return actions[..., : config.action_dim]
