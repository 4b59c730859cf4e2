"""How far a WAV is from windows that it was not trained on: video, value and actions, in the network's range.

Source: WAV 6.4 of the specification (the numbers that the public trainer logs).
Differs: rows past the end of an episode are left out; noise levels of the video loss are spread evenly over the
windows, and all noise follows from their numbers, so that two validations differ by the weights alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from wamkit.draws import SeededDraws
from wamkit.flow import interpolate, velocity
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.control import ControlStep, to_tokens
from wamkit.models.wav.losses import EncodedBatch
from wamkit.models.wav.model import WAVTransformer
from wamkit.nn.modulation import Timesteps

BOUNDS: Final = (0, 1, 9, 25)
"""Where the published stretches of a chunk begin."""


@dataclass(frozen=True, kw_only=True)
class WindowErrors:
    """Squared errors of some windows; a stream that was not asked for is `None`.

    Args:
        video: mean over all tokens, as in the video loss.
        value: of each value token.
        action: of each action token, states included.
        value_counts: value tokens inside the episode.
        action_counts: action tokens inside the episode.
    """

    video: Float[Tensor, " b"] | None
    value: Float[Tensor, "b y z"] | None
    action: Float[Tensor, "b p a"] | None
    value_counts: Bool[Tensor, "b y"]
    action_counts: Bool[Tensor, "b p"]

    @classmethod
    def joined(cls, parts: Sequence[WindowErrors]) -> WindowErrors:
        """Those of several batches."""

        def cat(name: str) -> Any:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else torch.cat(columns)

        return cls(**{name: cat(name) for name in ("video", "value", "action", "value_counts", "action_counts")})

    def summary(self, config: WAVConfig) -> dict[str, Any]:
        """Means, JSON-ready: `STREAM_mse` by stretch `first:last` of the chunk, in actions, and over `all` of it.

        `action_mse` is over control channels, `action_mse_per_channel` lists states too; `value_mse` is over all
        channels, `total_value_mse` of the last one, which planners score by.
        """
        found: dict[str, Any] = {}
        horizon = config.action_horizon
        if self.video is not None:
            found["video_loss"] = float(self.video.mean())
        if self.value is not None:
            steps = [step - 1 for step in config.value_steps]
            found["value_mse"] = _by_stretch(self.value, self.value_counts, steps, horizon)
            found["total_value_mse"] = _by_stretch(self.value[..., -1:], self.value_counts, steps, horizon)
        if self.action is not None:
            steps = list(range(horizon))
            control = self.action[..., : config.action_dim]
            found["action_mse"] = _by_stretch(control, self.action_counts, steps, horizon)
            channels = self.action.unbind(-1)
            each = [_by_stretch(channel[..., None], self.action_counts, steps, horizon) for channel in channels]
            found["action_mse_per_channel"] = {key: [one[key] for one in each] for key in each[0]}
        return found


@torch.no_grad()
def window_errors(
    network: WAVTransformer,
    config: WAVConfig,
    batch: EncodedBatch,
    *,
    streams: Collection[str],
    rows: Sequence[int],
    num_rows: int,
    num_steps: int,
) -> WindowErrors:
    """Errors on a batch of windows.

    Args:
        network: in evaluation mode.
        config: geometry of the windows.
        batch: encoded windows; `future` when `video` is asked for, value targets when `value` is.
        streams: of `video`, `value` and `action`; the latter two need both experts that the model has.
        rows: numbers of the windows among all that are validated; draws follow from them.
        num_rows: how many those are.
        num_steps: Euler steps.
    """
    draws = SeededDraws(keys=[(row,) for row in rows], device=batch.memory.device)
    text = network.read_text(batch.text, batch.text_mask, keep=True)
    video = None
    if "video" in streams:
        sigma = (torch.tensor(rows, dtype=torch.float32) + 0.5) / num_rows
        video = _video_errors(network, config, batch, sigma.to(batch.memory.device), draws)
    first, every = config.value_steps[0] - 1, config.value_steps[0]
    inside = ~batch.is_padded
    value = action = None
    if "value" in streams or "action" in streams:
        token = None
        if config.has_state_token:
            token = torch.nn.functional.pad(batch.state, (config.num_zeros_before_state, 0))[:, None]
        control = ControlStep(
            network,
            memory=batch.memory,
            num_future_latents=config.num_future_latents,
            value_length=len(config.value_steps),
            text=text,
            state_token=token,
            num_steps=num_steps,
        )
        views, channels, _, height, width = control.video_shape
        noise = draws("video", (1, views, channels, config.num_future_latents, height, width))
        decoded = control.decode(
            control.with_memory(noise)[:, 0],
            action_noise=draws("action", tuple(batch.actions.shape[1:])),
            value_noise=draws("value", control.value_shape) if config.network.value else None,
            with_value="value" in streams,
        )
        if "action" in streams:
            action = (decoded.actions - batch.actions).float().square().cpu()
        if decoded.value is not None and batch.value_targets is not None:
            value = (decoded.value - batch.value_targets[:, first::every]).float().square().cpu()
    return WindowErrors(
        video=video, value=value, action=action, value_counts=inside[:, first::every].cpu(), action_counts=inside.cpu()
    )


def _video_errors(
    network: WAVTransformer, config: WAVConfig, batch: EncodedBatch, sigma: Float[Tensor, " b"], draws: SeededDraws
) -> Float[Tensor, " b"]:
    """Each window's video loss at its noise level, with clean memory."""
    assert batch.future is not None, "windows are validated with their future"
    noise = draws("future", tuple(batch.future.shape[1:])).to(batch.future.dtype)
    tokens = torch.cat((to_tokens(batch.memory), to_tokens(interpolate(batch.future, noise, sigma))), dim=-2)
    num_memory = config.num_context * config.grid[1] * config.grid[2]
    timesteps = Timesteps.clean_then(num_memory, 1000 * sigma, tokens.shape[2] - num_memory)
    output = network(tokens, timesteps, network.read_text(batch.text, batch.text_mask), config.grid)
    error = (output.video[:, :, num_memory:] - to_tokens(velocity(batch.future, noise))).float().square()
    return rearrange(error, "b v l c -> b (v l c)").sum(dim=1).cpu() / output.video[0].numel()


def _by_stretch(
    errors: Float[Tensor, "b p c"], counts: Bool[Tensor, "b p"], steps: Sequence[int], horizon: int
) -> dict[str, float | None]:
    """Mean over windows, tokens and channels; `None` where no token lies."""
    where = torch.tensor(steps)
    bounds = [(first, min(last, horizon)) for first, last in zip(BOUNDS, (*BOUNDS[1:], horizon), strict=True)]
    stretches = {f"{first}:{last}": (first, last) for first, last in bounds if first < last}
    found: dict[str, float | None] = {}
    for name, (first, last) in {**stretches, "all": (0, horizon)}.items():
        kept = errors[counts & (where >= first) & (where < last)]
        found[name] = float(kept.mean()) if kept.numel() else None
    return found
