"""Flow matching in the one convention of this library: sigma = 1 is noise, sigma = 0 is data, velocity = noise - data.

Source: rectified flow as LTX-Video and WAV train it (1000 sigmas, no shift). The WAV paper writes the opposite time
direction; with t = 1 - sigma both are the same up to sign, and weights follow the sign used here.
"""

from __future__ import annotations

import math
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


def training_sigma(u: Float[Tensor, "..."], *, bf16: bool = False) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Training noise levels from the 1000-step grid.

    Args:
        u: in [0, 1]; uniform, or warped by `logit_normal` or `mode`.
        bf16: round both results to bf16, as a trainer does that keeps its table so; 500 different levels are left.

    Returns:
        sigma_k = (1000 - k)/1000 with k = floor(1000 u), and the timestep told to the network, 1000 sigma_k.
    """
    timestep = NUM_TRAIN_SIGMAS - (u * NUM_TRAIN_SIGMAS).floor().clamp(0, NUM_TRAIN_SIGMAS - 1)
    if not bf16:
        return timestep / NUM_TRAIN_SIGMAS, timestep
    sigma = (timestep / NUM_TRAIN_SIGMAS).bfloat16()
    return sigma.float(), (sigma * NUM_TRAIN_SIGMAS).float()


def logit_normal(u: Float[Tensor, "..."], mean: float, std: float) -> Float[Tensor, "..."]:
    """Uniform numbers to logit-normal ones, sigmoid(mean + std n) with n the normal quantile of u.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", equation 19.
    """
    return torch.sigmoid(mean + std * torch.special.ndtri(u.double())).to(u.dtype)


def mode(u: Float[Tensor, "..."], scale: float) -> Float[Tensor, "..."]:
    """Uniform numbers to ones with more (scale > 0) or less mass in the middle.

    Source: Esser et al., equation 20.
    """
    return 1 - u - scale * (torch.cos(math.pi * u / 2).square() - 1 + u)


def sigma_sqrt(sigma: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Loss weight 1/σ²."""
    return sigma.square().reciprocal()


def cosmap(sigma: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Loss weight 2/(π (1 - 2σ + 2σ²)).

    Source: Esser et al., equation 21.
    """
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))


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
