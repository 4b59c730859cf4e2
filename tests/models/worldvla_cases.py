"""Small WorldVLAs with random weights, and what they read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from wamkit.codecs.text_tokens import ByteTokenizer, WordTokenizer
from wamkit.codecs.vocabulary import VocabSpec
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.config import NetworkConfig, WorldVLAConfig
from wamkit.models.worldvla.network import WorldVLATransformer, empty_network, initialized
from wamkit.models.worldvla.sequence import SequenceBuilder

TASK = "put the bowl on the plate"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network with its layout."""

    config: WorldVLAConfig
    builder: SequenceBuilder
    network: WorldVLATransformer

    @property
    def vocabulary(self) -> VocabSpec:
        return self.builder.vocabulary

    def codes(self, *shape: int, seed: int = 0) -> Tensor:
        """Random codes `[*shape, y, x]`."""
        draws = torch.Generator().manual_seed(seed)
        side = self.config.grid
        return torch.randint(self.config.codec.num_codes, (*shape, side, side), generator=draws)

    def actions(self, *shape: int, seed: int = 0) -> Tensor:
        """Random normalised actions `[*shape, a]`."""
        draws = torch.Generator().manual_seed(seed)
        return torch.rand(*shape, self.config.action_dim, generator=draws) * 2 - 1

    def state(self, seed: int = 0) -> Tensor:
        """A random normalised state."""
        return torch.rand(self.config.state_dim, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make_builder(config: WorldVLAConfig) -> SequenceBuilder:
    make = WordTokenizer if config.codec.text == "words" else ByteTokenizer
    tokenizer = make(num_codes=config.codec.num_codes)
    vocabulary = VocabSpec.from_vocabulary(tokenizer.vocabulary, num_codes=config.codec.num_codes)
    return SequenceBuilder(config, vocabulary, tokenizer)


def make_case(config: WorldVLAConfig | None = None, *, seed: int = 0, loud: bool = True, **changes: object) -> Case:
    """A case around `tiny`.

    Args:
        config: another configuration.
        seed: of the weights.
        loud: make weights so large that ids differ from place to place, which initial ones hardly do.
        changes: to the configuration.
    """
    config = dataclasses.replace(config or sizes.tiny(), **changes)  # type: ignore[arg-type]
    network = initialized(empty_network(config), seed)
    if loud:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "norm" not in name:
                    parameter.mul_(6)
    network.eval().requires_grad_(False)
    return Case(config=config, builder=make_builder(config), network=network)


def published_layout(image_size: int = 256, action_horizon: int = 5, num_views: int = 1) -> WorldVLAConfig:
    """The published layout of sequences around a network that is small."""
    tiny = sizes.tiny()
    network = dataclasses.replace(tiny.network, max_length=8192)
    return dataclasses.replace(
        tiny,
        network=NetworkConfig(**{**dataclasses.asdict(network), "head": None}),
        image_size=image_size,
        action_horizon=action_horizon,
        num_views=num_views,
    )
