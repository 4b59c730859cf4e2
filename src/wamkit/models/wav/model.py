"""The WAV network: a multi-view LTX-Video transformer, a value expert and an action expert.

Every module hangs directly off the root, so that the state dict has the names of the published checkpoints (LTX-Video
in diffusers layout, GE-base, GE-act, WAV).

Source: WAV (arXiv 2604.14732), section 3; LTX-Video (arXiv 2501.00103); Genie-Envisioner (arXiv 2508.05635).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.backbones.ltx_dit import CaptionProjection, LTXBlock, table, text_bias
from wamkit.models.wav.config import ExpertConfig, NetworkConfig
from wamkit.models.wav.experts import ExpertBlock, ExpertStream, ExpertTokens
from wamkit.nn.attention import KeyValue
from wamkit.nn.modulation import Modulation, TimestepEmbedding, Timesteps, shift_scale
from wamkit.nn.rope import Rotation, video_rotation


@dataclass(frozen=True, kw_only=True)
class TextContext:
    """A task sentence as the video stream reads it.

    Args:
        layers: projected text (the same for every layer), or kept keys and values, one per layer.
        bias: padding bias.
    """

    layers: list[Tensor] | list[KeyValue]
    bias: Float[Tensor, "b 1 1 t"]

    def rows(self, index: list[int]) -> TextContext:
        """Kept keys and values of some observations."""
        kept = cast(list[KeyValue], self.layers)
        return TextContext(layers=[layer.rows(index) for layer in kept], bias=self.bias[index])

    @classmethod
    def joined(cls, contexts: list[TextContext]) -> TextContext:
        """Kept keys and values of several observations, one after the other."""
        kept = zip(*(cast(list[KeyValue], context.layers) for context in contexts), strict=True)
        return cls(layers=list(map(KeyValue.joined, kept)), bias=torch.cat([context.bias for context in contexts]))


@dataclass(frozen=True, kw_only=True)
class WAVOutput:
    """Velocities (noise - data) of every stream that was run.

    Args:
        video: per view and token.
        value: per value row.
        action: per action row.
    """

    video: Float[Tensor, "b v l c"]
    value: Float[Tensor, "u y z"] | None
    action: Float[Tensor, "r p a"] | None


class WAVTransformer(nn.Module):
    """Video stream, value expert and action expert with a block of each per layer.

    Layer i of each expert reads the video hidden states after video block i; layer i of the action expert also reads
    the value hidden states after value block i. Nothing is detached.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        dim = config.dim
        self.proj_in = nn.Linear(config.latent_channels, dim)
        self.scale_shift_table = table(2, dim)
        self.time_embed = TimestepEmbedding(dim)
        self.caption_projection = CaptionProjection(config.text_width, dim)
        if config.max_view:
            self.view_embed = nn.Parameter(torch.randn(config.max_view, dim))
            self.view_ada = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        every = config.cross_view_every
        self.transformer_blocks = nn.ModuleList(
            LTXBlock(
                dim, config.num_heads, config.head_dim, config.norm_eps, across_views=bool(every) and i % every == 0
            )
            for i in range(config.num_layers)
        )
        self.proj_out = nn.Linear(dim, config.latent_channels)
        if config.value is not None:
            self._add_expert("value", config.value, value_dim=None)
        if config.action is not None:
            self._add_expert("action", config.action, value_dim=config.value.dim if config.value else None)

    def _add_expert(self, name: str, expert: ExpertConfig, value_dim: int | None) -> None:
        config = self.config
        blocks = nn.ModuleList(
            ExpertBlock(expert, config.dim, value_dim, config.norm_eps) for _ in range(config.num_layers)
        )
        self.add_module(f"{name}_proj_in", nn.Linear(expert.channels, expert.dim))
        self.add_module(f"{name}_time_embed", TimestepEmbedding(expert.dim))
        self.add_module(f"{name}_blocks", blocks)
        self.register_parameter(f"{name}_scale_shift_table", table(2, expert.dim))
        self.add_module(f"{name}_proj_out", nn.Linear(expert.dim, expert.channels))

    def _expert(self, name: str, config: ExpertConfig | None) -> ExpertStream:
        if config is None:
            raise ValueError(f"this network has no {name} expert; build it with NetworkConfig({name}=ExpertConfig(…))")
        names = ("proj_in", "time_embed", "blocks", "scale_shift_table", "proj_out")
        return ExpertStream(config=config, **{part: getattr(self, f"{name}_{part}") for part in names})

    @property
    def value(self) -> ExpertStream:
        """The value expert."""
        return self._expert("value", self.config.value)

    @property
    def action(self) -> ExpertStream:
        """The action expert."""
        return self._expert("action", self.config.action)

    @property
    def _video_blocks(self) -> list[LTXBlock]:
        return cast(list[LTXBlock], list(self.transformer_blocks))

    def read_text(self, text: Float[Tensor, "b t e"], mask: Tensor, keep: bool = False) -> TextContext:
        """Project text embeddings for the video stream.

        Args:
            text: embeddings of a frozen text encoder.
            mask: 1 on text, 0 on padding.
            keep: also project every layer's keys and values, to be used by many forward passes.
        """
        hidden = self.caption_projection(text.to(self.proj_in.weight.dtype))
        layers: list = [hidden] * len(self.transformer_blocks)
        if keep:
            layers = [block.attn2.keys_values(hidden) for block in self._video_blocks]
        return TextContext(layers=layers, bias=text_bias(mask, hidden.dtype))

    def video_modulation(self, timesteps: Timesteps, num_views: int) -> Modulation:
        """Timestep and view conditioning of the video stream, `b v k …`; the view embedding is all that tells views
        apart.
        """
        blocks, head = self.time_embed(timesteps.levels)
        blocks, head = blocks[:, None], head[:, None]
        if self.config.max_view and num_views > self.config.max_view:
            raise ValueError(f"expected at most max_view = {self.config.max_view} views, got {num_views}")
        if self.config.max_view:
            views = self.view_embed[:num_views]
            blocks = blocks + self.view_ada(views).unflatten(-1, (6, -1))[:, None]
            head = head + views[:, None]
        else:
            blocks, head = blocks.expand(-1, num_views, -1, -1, -1), head.expand(-1, num_views, -1, -1)
        return Modulation(blocks=blocks, head=head, lengths=timesteps.lengths)

    def video_layers(
        self,
        tokens: Float[Tensor, "r v l c"],
        modulation: Modulation,
        text: TextContext,
        rotation: Rotation,
    ) -> Iterator[Float[Tensor, "r v l d"]]:
        """The video stream's hidden states after each block, one layer at a time, so that a caller may drop them."""
        x = self.proj_in(tokens.to(self.proj_in.weight.dtype))
        for block, layer_text in zip(self._video_blocks, text.layers, strict=True):
            x = block(x, modulation, rotation, layer_text, text.bias)
            yield x

    def video_head(self, x: Float[Tensor, "r v l d"], modulation: Modulation) -> Float[Tensor, "r v l c"]:
        """Velocity of the video latents from the last hidden states."""
        shift, scale = modulation.of_head(self.scale_shift_table)
        return self.proj_out(shift_scale(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale, modulation.lengths))

    def rotation(self, grid: tuple[int, int, int], device: torch.device | str | None = None) -> Rotation:
        """Rotary table of one view's latent grid (frames, rows, columns)."""
        return video_rotation(*grid, self.config.dim, device)

    def forward(
        self,
        video: Float[Tensor, "b v l c"],
        timesteps: Timesteps,
        text: TextContext,
        grid: tuple[int, int, int],
        value: ExpertTokens | None = None,
        action: ExpertTokens | None = None,
    ) -> WAVOutput:
        """All streams together, layer by layer: video, then value, then action.

        When an observation has several value rows, the action expert reads the first of them.

        Args:
            video: latent tokens, memory frames first.
            timesteps: runs of timesteps over one view's tokens.
            text: from `read_text`.
            grid: latent frames, rows, columns.
            value: noisy value tokens; the value expert is skipped when `None`.
            action: noisy action tokens; the action expert is skipped when `None`.
        """
        modulation = self.video_modulation(timesteps, video.shape[1])
        value_state = None if value is None else self.value.begin(value)
        action_state = None if action is None else self.action.begin(action)
        value_x = None if value_state is None else value_state[0]
        action_x = None if action_state is None else action_state[0]
        x = video
        for i, x in enumerate(self.video_layers(video, modulation, text, self.rotation(grid, video.device))):
            features = rearrange(x, "b v l d -> b (v l) d")
            if value_state is not None:
                value_x = self.value.blocks[i](value_x, *value_state[1:], features)
            if action_state is not None:
                read = None if value_x is None else value_x.unflatten(0, (len(x), -1))[:, 0]
                action_x = self.action.blocks[i](action_x, *action_state[1:], features, read)
        return WAVOutput(
            video=self.video_head(x, modulation),
            value=None if value_state is None or value_x is None else self.value.head(value_x, value_state[1]),
            action=None if action_state is None or action_x is None else self.action.head(action_x, action_state[1]),
        )


def part_of(name: str) -> str:
    """The part a parameter belongs to: `video`, `value` or `action`."""
    return next((part for part in ("value", "action") if name.startswith(f"{part}_")), "video")
