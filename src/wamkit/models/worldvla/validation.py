"""How far a WorldVLA is from windows that it was not trained on, given the true ids before each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wamkit.models.worldvla.losses import Predicted, predict, prompt_positions
from wamkit.models.worldvla.network import WorldVLATransformer
from wamkit.models.worldvla.samples import EncodedBatch, action_sample, world_sample
from wamkit.models.worldvla.sequence import SequenceBuilder


@dataclass(frozen=True, kw_only=True)
class TokenErrors:
    """What came of the predicted ids of some windows; each array has one entry per id.

    Args:
        action_loss: cross-entropy of action samples' ids.
        action_right: whether the likeliest id of each action bin was the true one.
        action_error: absolute error of the number that it stands for, normalised units.
        world_loss: cross-entropy of world samples' ids; empty without future frames.
        code_right: whether the likeliest id of each image code was the true one.
        head_error: absolute error of the continuous head, normalised units; empty without one.
    """

    action_loss: Float[Tensor, " n"]
    action_right: Bool[Tensor, " m"]
    action_error: Float[Tensor, " m"]
    world_loss: Float[Tensor, " k"]
    code_right: Bool[Tensor, " j"]
    head_error: Float[Tensor, " i"]

    @classmethod
    def joined(cls, parts: Sequence[TokenErrors]) -> TokenErrors:
        """Those of several batches."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in cls.__annotations__})

    def summary(self) -> dict[str, Any]:
        """Means, JSON-ready; what was not measured is left out."""
        names = {
            "action_loss": self.action_loss,
            "action_accuracy": self.action_right,
            "action_mae": self.action_error,
            "world_loss": self.world_loss,
            "code_accuracy": self.code_right,
            "head_mae": self.head_error,
        }
        return {name: float(numbers.float().mean()) for name, numbers in names.items() if len(numbers)}


@torch.no_grad()
def token_errors(network: WorldVLATransformer, builder: SequenceBuilder, batch: EncodedBatch) -> TokenErrors:
    """Errors on a batch of windows, each as an action sample and, where the next frame is there, as a world sample.

    Args:
        network: in evaluation mode.
        builder: knows the layout.
        batch: windows.
    """
    rows = range(len(batch.task))
    vocab, device = builder.vocabulary, batch.actions.device
    tokens = builder.batch(
        [action_sample(builder, batch, row) for row in rows], torch.zeros(len(rows), dtype=torch.bool, device=device)
    )
    acted = predict(network, tokens)
    is_bin = vocab.bin_of_id.to(device)[acted.target] >= 0
    true, guessed = (vocab.bin_of_id.to(device)[ids[is_bin]] for ids in (acted.target, acted.likeliest))
    # an id that is no bin is as wrong as can be
    error = torch.where(guessed >= 0, (builder.bins.decode(guessed) - builder.bins.decode(true)).abs(), 2.0)
    head = torch.zeros(0, device=device)
    if network.action_head is not None:
        is_prompt = prompt_positions(tokens.ids, vocab.begin_action)
        head = (network.action_head(acted.hidden, is_prompt) - batch.actions).abs().flatten()
    imagined: Predicted | None = None
    if batch.future is not None:
        ones = torch.ones(len(rows), dtype=torch.bool, device=device)
        imagined = predict(network, builder.batch([world_sample(builder, batch, row) for row in rows], ones))
    world_loss, code_right = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    if imagined is not None:
        is_code = vocab.code_of_id.to(device)[imagined.target] >= 0
        world_loss, code_right = imagined.loss.cpu(), (imagined.likeliest == imagined.target)[is_code].cpu()
    return TokenErrors(
        action_loss=acted.loss.cpu(),
        action_right=(guessed == true).cpu(),
        action_error=error.cpu(),
        world_loss=world_loss,
        code_right=code_right,
        head_error=head.cpu(),
    )
