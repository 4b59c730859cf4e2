"""The weighted cross-entropy over predicted ids, and the continuous head's error.

    L = Σ w(y) CE / Σ w(y) + z mean(logsumexp²) + head_weight |head - action|

Source: WorldVLA (arXiv 2506.21539), section 3.4, as its released code has it; RynnVLA-002 (arXiv 2511.17502).
Differs: sums run over the global batch; the continuous head learns the actions themselves, not decoded bin centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wamkit.codecs.vocabulary import VocabSpec
from wamkit.draws import TrainingDraws, seeded
from wamkit.masks import action_mask
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.models.worldvla.network import WorldVLATransformer
from wamkit.models.worldvla.objective import WorldVLAObjective
from wamkit.models.worldvla.sequence import IGNORED, TokenBatch
from wamkit.parallel import global_mean


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The predicted ids of a batch, in the order of rows and positions.

    Args:
        target: id that should have come.
        row: of the batch.
        loss: cross-entropy.
        log_partition: logsumexp of the logits.
        likeliest: id with the largest logit.
        hidden: of every position of the batch.
    """

    target: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    loss: Float[Tensor, " n"]
    log_partition: Float[Tensor, " n"]
    likeliest: Int[Tensor, " n"]
    hidden: Float[Tensor, "b l d"]


def id_weights(vocabulary: VocabSpec, size: int, objective: WorldVLAObjective) -> Float[Tensor, " v"]:
    """Weight of every id in `token_weighted`.

    Args:
        vocabulary: knows the image codes.
        size: ids of the model.
        objective: knows their weight.
    """
    weights = torch.ones(size)
    if objective.reference_weights:
        weights[3:8195] = objective.image_weight
    else:
        weights[vocabulary.id_of_code] = objective.image_weight
    return weights


def weighted_mean(loss: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Σ w l / Σ w over the ids of all processes; 0 when there are none."""
    return global_mean((loss * weight).sum(), weight.sum().detach().clamp(min=1e-12))


def predict(network: WorldVLATransformer, batch: TokenBatch, *, dropout_seed: int | None = None) -> Predicted:
    """What the network thinks of every predicted id of a batch, given the true ids before it."""
    hidden = network(batch.ids, action_mask(batch.block), dropout_seed=dropout_seed)
    target = batch.labels[:, 1:]
    row, place = (target != IGNORED).nonzero(as_tuple=True)
    logits = network.logits(hidden[row, place])
    log_partition = logits.logsumexp(dim=-1)
    chosen = target[row, place]
    return Predicted(
        target=chosen,
        row=row,
        loss=log_partition - logits.gather(-1, chosen[:, None])[:, 0],
        log_partition=log_partition,
        likeliest=logits.detach().argmax(dim=-1),
        hidden=hidden,
    )


def prompt_positions(ids: Int[Tensor, "b l"], begin_action: int) -> Bool[Tensor, "b l"]:
    """The positions before the first action of each row; what the continuous head reads."""
    return (ids == begin_action).cumsum(dim=1) == 0


def losses(
    network: WorldVLATransformer,
    config: WorldVLAConfig,
    vocabulary: VocabSpec,
    batch: TokenBatch,
    actions: Float[Tensor, "b p a"],
    objective: WorldVLAObjective,
    draws: TrainingDraws,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The stage's loss and its parts.

    Several processes may hold some rows of a batch each: the mean of their results over processes (and so of their
    gradients) is the result of one process with all rows, residual dropout apart.

    Args:
        network: in training mode.
        config: layout of the sequences.
        vocabulary: ids.
        batch: sequences.
        actions: of every row, in normalised units.
        objective: what the stage asks for.
        draws: of the batch.
    """
    seed = seeded(*draws.key, draws.rows[0], "dropout").initial_seed() if network.training else None
    seen = predict(network, batch, dropout_seed=seed)
    is_world = batch.is_world[seen.row]
    if objective.loss_mode == "token_weighted":
        weights = id_weights(vocabulary, config.network.vocab_size, objective).to(seen.target.device)
        total = weighted_mean(seen.loss, weights[seen.target])
    else:
        total = weighted_mean(seen.loss, (~is_world).float())
        total = total + objective.alpha * weighted_mean(seen.loss, is_world.float())
    ones = torch.ones_like(seen.loss)
    total = total + objective.z_loss * weighted_mean(seen.log_partition.square(), ones)
    is_bin = vocabulary.bin_of_id.to(seen.target.device)[seen.target] >= 0
    is_code = vocabulary.code_of_id.to(seen.target.device)[seen.target] >= 0
    is_right = (seen.likeliest == seen.target).float()
    parts: dict[str, Tensor] = {}
    if objective.world_share < 1:
        parts["action_loss"] = weighted_mean(seen.loss.detach(), (~is_world).float())
        parts["action_accuracy"] = weighted_mean(is_right, is_bin.float())
    if objective.world_share > 0:
        parts["world_loss"] = weighted_mean(seen.loss.detach(), is_world.float())
        parts["code_accuracy"] = weighted_mean(is_right, is_code.float())
    if network.action_head is not None and objective.head_weight and objective.world_share < 1:
        # Every row passes the head, so that all processes of a group do; world samples weigh nothing.
        is_prompt = prompt_positions(batch.ids, vocabulary.begin_action)
        error = (network.action_head(seen.hidden, is_prompt, seed) - actions).float().abs().mean(dim=(1, 2))
        head = weighted_mean(error, (~batch.is_world).float())
        parts["head_loss"] = head.detach()
        total = total + objective.head_weight * head
    return total, parts


def loss_shares(config: WorldVLAConfig, objective: WorldVLAObjective) -> dict[str, float]:
    """Shares of the summed weights in `token_weighted` of an action sample and a world sample together.

    Structure ids of images (grid, row ends, begin, end, turn marks) weigh 1 each, as in the released code, and so take
    a large part.
    """
    codes = config.num_views * config.grid * config.grid
    weights = {
        "action": float(config.action_horizon * config.block_length + 1),
        "image codes": codes * objective.image_weight,
        "image structure": float(config.frame_length - codes + 1),
    }
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
