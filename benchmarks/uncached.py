"""One control step of WAV as the public implementation runs it: the other side of `benchmarks/planner.py`.

Every call encodes the sentence and all memory frames; timesteps are embedded token by token; a video forward keeps its
hidden states, which are tiled for the value samples of a candidate; and every denoising step projects keys and values
of those hidden states anew. Blocks, weights and arithmetic are the library's own, so both sides give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from torch import Tensor

from wamkit.flow import euler, sigma_schedule
from wamkit.models.wav.control import to_tokens
from wamkit.models.wav.experts import ExpertStream
from wamkit.models.wav.family import WAV
from wamkit.nn.modulation import Timesteps


@dataclass(kw_only=True)
class UncachedControl:
    """A `LatentProblem` that computes everything anew.

    Args:
        model: the policy's model.
        video: memory frames, uint8 `b v t h w c`.
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
        config, network = self.model.config, self.model.network
        self.memory = self.model.encode_frames(self.video)
        text = self.model.text_encoder.encode(self.task)
        self.text = network.read_text(text.tokens, text.mask)
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
        network, area = self.model.network, self.grid[1] * self.grid[2]
        told = torch.full((len(video), self.grid[0] * area), 1000.0)
        told[:, : self.num_memory * area] = 0.0
        modulation = network.video_modulation(Timesteps.per_token(told), video.shape[1])
        layers = network.video_layers(
            to_tokens(video), modulation, self.text, network.rotation(self.grid, video.device)
        )
        return [rearrange(x, "r v l d -> r (v l) d") for x in layers]

    def values(self, video: Tensor, noise: Tensor, num_steps: int | None = None) -> Tensor:
        """Denoised value tokens of every candidate and sample."""
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
            x, told = torch.cat((state, x), dim=1), torch.nn.functional.pad(told, (1, 0))
        modulation, rotation = expert.modulation(Timesteps.per_token(told)), expert.rotation(x.shape[1], x.device)
        x, seen = expert.proj_in(x), []
        for i, block in enumerate(expert.layers):
            x = block(x, modulation, rotation, video[i], None if value is None else value[i])
            seen.append(x)
        # one timestep per token: the head does not know which of them is the state
        velocity = _head(expert, x, modulation)
        return velocity if state is None else velocity[:, 1:], seen

    def decode(self, video: Tensor, value_noise: Tensor, action_noise: Tensor) -> Tensor:
        """Actions from chosen noise: the first step runs all streams, later ones the action expert."""
        network, config = self.model.network, self.model.config
        hidden = self.hidden(video)
        _, value = self.expert_step(network.value, value_noise, 1.0, hidden)
        state = torch.nn.functional.pad(self.state, (config.action_dim, 0))[:, None]
        actions = euler(
            action_noise,
            lambda x, sigma: self.expert_step(network.action, x, sigma, hidden, value, state)[0],
            sigma_schedule(self.num_steps),
        )
        return actions[..., : config.action_dim]


def _head(expert: ExpertStream, x: Tensor, modulation: object) -> Tensor:
    shift, scale = modulation.of_head(expert.scale_shift_table)  # type: ignore[attr-defined]
    return expert.proj_out(torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
