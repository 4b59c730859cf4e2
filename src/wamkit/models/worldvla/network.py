"""The network of WorldVLA: Chameleon's transformer, its output head, and RynnVLA-002's continuous action head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wamkit.backbones.chameleon import ChameleonModel
from wamkit.draws import seeded
from wamkit.models.worldvla.action_head import ActionHead
from wamkit.models.worldvla.config import NetworkConfig, WorldVLAConfig
from wamkit.nn.kv_cache import KeyValueCache


class WorldVLATransformer(nn.Module):
    """Ids to hidden states, hidden states to logits over the whole vocabulary; image codes are never masked.

    Args:
        config: sizes.
        action_horizon: actions of the continuous head.
        action_dim: their channels.
    """

    def __init__(self, config: NetworkConfig, *, action_horizon: int, action_dim: int):
        super().__init__()
        self.config = config
        self.model = ChameleonModel(
            vocab_size=config.vocab_size,
            dim=config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            eps=config.norm_eps,
            rope_base=config.rope_base,
            dropout=config.dropout,
        )
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.action_head = (
            None
            if config.head is None
            else ActionHead(config.head, in_dim=config.dim, action_horizon=action_horizon, action_dim=action_dim)
        )

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        mask: Bool[Tensor, "b 1 l c"],
        *,
        positions: Int[Tensor, "b l"] | None = None,
        cache: KeyValueCache | None = None,
        dropout_seed: int | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Normalised hidden states, see `ChameleonModel.forward`.

        Raises:
            ValueError: more ids than `max_length`.
        """
        length = ids.shape[1] + (cache.length if cache is not None else 0)
        if length > self.config.max_length:
            raise ValueError(
                f"expected a sequence of at most {self.config.max_length} ids (network.max_length), got {length}; use "
                "fewer frames, smaller images or a shorter sentence"
            )
        return self.model(ids, mask, positions=positions, cache=cache, dropout_seed=dropout_seed)

    def logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Logits over the vocabulary, fp32."""
        return self.lm_head(hidden).float()

    def logits_of(self, ids: Int[Tensor, " c"]) -> Callable[[Float[Tensor, "*n d"]], Float[Tensor, "*n c"]]:
        """Gives logits over some ids alone; their rows of the output head are picked once."""
        rows = self.lm_head.weight[ids]
        return lambda hidden: F.linear(hidden, rows).float()

    def cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for this network."""
        weight = self.lm_head.weight
        return KeyValueCache(
            num_layers=self.config.num_layers,
            batch=batch,
            num_heads=self.config.num_heads,
            capacity=capacity,
            head_dim=self.config.dim // self.config.num_heads,
            dtype=weight.dtype,
            device=weight.device,
        )


def empty_network(config: WorldVLAConfig) -> WorldVLATransformer:
    """A network without values, on the meta device."""
    with torch.device("meta"):
        return WorldVLATransformer(config.network, action_horizon=config.action_horizon, action_dim=config.action_dim)


def initial_values(network: nn.Module, names: list[str], seed: int) -> dict[str, Tensor]:
    """Fresh values for some parameters; each follows from the seed and its own name alone.

    Norms start at the identity, biases at 0, matrices with a standard deviation of 0.02 (of its square root in the
    depth less for what is added to the residual stream, as in GPT-2).
    """
    state = network.state_dict()
    depth = sum(name.endswith("o_proj.weight") for name in state)

    def value(name: str) -> Tensor:
        shape = state[name].shape
        if name.endswith("bias"):
            return torch.zeros(shape)
        if "norm" in name:
            return torch.ones(shape)
        std = 0.02 / (2 * depth) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        return torch.randn(shape, generator=seeded(seed, "initial", name)) * std

    return {name: value(name) for name in names}


def initialized(network: WorldVLATransformer, seed: int) -> WorldVLATransformer:
    """The same network with fresh values, in place."""
    names = list(network.state_dict())
    network.load_state_dict(initial_values(network, names, seed), strict=True, assign=True)
    return network.requires_grad_(True)


def part_of(name: str) -> str:
    """The part that a parameter belongs to."""
    return "head" if name.startswith("action_head.") else "transformer"
