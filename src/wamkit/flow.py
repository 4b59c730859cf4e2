"""Flow matching in the one convention of this library: sigma = 1 is noise, sigma = 0 is data, velocity = noise - data.

Source: rectified flow as LTX-Video and WAV train it (1000 sigmas, no shift). The WAV paper writes the opposite time
direction; with t = 1 - sigma both are the same up to sign, and weights follow the sign used here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

NUM_TRAIN_SIGMAS = 1000


def expand(sigma: Float[Tensor, " b"], like: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Add trailing axes so that one sigma per batch row broadcasts over `like`."""
    return sigma.reshape(-1, *([1] * (like.ndim - 1)))


def interpolate(
    data: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b ..."]:
    """x_sigma = (1 - sigma) data + sigma noise."""
    return torch.lerp(data, noise, expand(sigma, data).to(data.dtype))


def velocity(data: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """The regression target, noise - data."""
    return noise - data


def draw_sigma(count: int, generator: torch.Generator) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Draw training noise levels from the 1000-step grid.

    Returns:
        sigma_k = (1000 - k)/1000 with k = floor(1000 u), u uniform, and the timestep told to the network, 1000 sigma_k.
    """
    u = torch.rand(count, generator=generator, device=generator.device)
    timestep = NUM_TRAIN_SIGMAS - (u * NUM_TRAIN_SIGMAS).floor().clamp(max=NUM_TRAIN_SIGMAS - 1)
    return timestep / NUM_TRAIN_SIGMAS, timestep


def sigma_schedule(num_steps: int) -> tuple[float, ...]:
    """linspace(1, 1/S, S) followed by 0."""
    if num_steps < 1:
        raise ValueError(f"expected at least 1 denoising step, got {num_steps}")
    return (*torch.linspace(1, 1 / num_steps, num_steps).tolist(), 0.0)


def euler(
    noise: Float[Tensor, "..."],
    predict: Callable[[Float[Tensor, "..."], float], Float[Tensor, "..."]],
    sigmas: tuple[float, ...],
) -> Float[Tensor, "..."]:
    """Integrate from noise to data in fp32: x <- x + (sigma_next - sigma) · predict(x, sigma).

    Args:
        noise: the state at `sigmas[0]`.
        predict: velocity at (x, sigma).
        sigmas: decreasing noise levels, the last one included.
    """
    x = noise.float()
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * predict(x, sigma).float()
    return x
