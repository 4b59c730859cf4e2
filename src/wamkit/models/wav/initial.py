"""Initial values of a WAV network: what PyTorch's modules would draw, each tensor from a generator of its own.

A tensor's values follow from a seed and its name alone, whatever else is built, loaded or drawn, and torch's global
generator is left alone.

Source: the public trainer: PyTorch's defaults for linear layers, nothing set to zero, tables N(0, 1)/√width, view
embedding N(0, 1).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from wamkit.draws import seeded
from wamkit.models.wav.config import NetworkConfig
from wamkit.models.wav.model import WAVTransformer


def empty_network(config: NetworkConfig) -> WAVTransformer:
    """A network without values (on the meta device), to be filled by `load_weights` or `initialized`."""
    with torch.device("meta"):
        return WAVTransformer(config)


def initialized(network: WAVTransformer, seed: int) -> WAVTransformer:
    """Give every tensor of an empty network its initial value; returns it."""
    names = network.state_dict().keys()
    network.load_state_dict(initial_values(network, names, seed), strict=True, assign=True)
    return network


def initial_values(network: WAVTransformer, names: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Initial values of some tensors, float32 on the CPU.

    Args:
        network: knows their shapes.
        names: of the network's state dict.
        seed: with a tensor's name it gives the tensor's values.
    """
    state = network.state_dict()

    def value(name: str) -> Tensor:
        shape, rng = state[name].shape, seeded(seed, "initial", name)
        if name == "view_embed":
            return torch.randn(shape, generator=rng)
        if name.endswith("scale_shift_table"):
            return torch.randn(shape, generator=rng) / shape[-1] ** 0.5
        weight = state[f"{name.rsplit('.', 1)[0]}.weight"].shape
        if len(weight) == 1:  # the weight of a norm
            return torch.ones(shape)
        bound = weight[1] ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=rng)

    return {name: value(name) for name in names}
