"""Training windows made into samples: which rows predict actions and which the next frame, and their sequences.

Source: WorldVLA (arXiv 2506.21539), section 3.4 and its released data.
Differs: samples are made from windows as they are drawn, in place of two shuffled lists; each batch holds the share of
world samples that its objective names, so that the weights' sum is the same in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wamkit.draws import TrainingDraws
from wamkit.models.worldvla.objective import WorldVLAObjective
from wamkit.models.worldvla.sequence import SequenceBuilder, TokenBatch


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """Windows with their frames as codes.

    Args:
        context: remembered frames, the newest last.
        future: the frames of the next control steps, or `None` when they are not read.
        known: which of the remembered frames lie inside the episode.
        state: normalised.
        actions: normalised.
        task: sentences.
    """

    context: Int[Tensor, "b t v y x"]
    future: Int[Tensor, "b f v y x"] | None
    known: Bool[Tensor, "b t"]
    state: Float[Tensor, "b s"]
    actions: Float[Tensor, "b p a"]
    task: list[str]

    def shares_outside(self, builder: SequenceBuilder) -> dict[str, Float[Tensor, ""]]:
        """Shares of the numbers that lie outside the bins, and so are clipped."""
        numbers = {"actions": self.actions, "states": self.state if builder.config.reads_state else self.state[:, :0]}
        return {
            f"clipped_{name}": builder.bins.count_outside(number) / number.numel()
            for name, number in numbers.items()
            if number.numel()
        }


def token_batch(
    builder: SequenceBuilder, batch: EncodedBatch, objective: WorldVLAObjective, draws: TrainingDraws
) -> TokenBatch:
    """The sequences of a batch.

    The first rows of the global batch are world samples. With `num_future` of N above 1 a world sample has 1 to N
    pairs, as many as its draw says, and predicts the frame behind them.

    Raises:
        ValueError: world samples without future frames.
    """
    num_world = round(objective.world_share * draws.num_rows)
    is_world = torch.tensor([row < num_world for row in draws.rows], device=batch.actions.device)
    if bool(is_world.any()) and batch.future is None:
        raise ValueError("the objective asks for world samples, but the batch has no future frames; set needs_future")
    pairs = (draws.uniform("pairs") * builder.config.num_future).long().add(1).tolist()
    alone = draws.uniform("history") < objective.history_dropout
    samples = []
    for row, imagines in enumerate(is_world.tolist()):
        if imagines:
            samples.append(world_sample(builder, batch, row, pairs[row]))
        else:
            samples.append(action_sample(builder, batch, row, alone=bool(alone[row])))
    return builder.batch(samples, is_world)


def action_sample(
    builder: SequenceBuilder, batch: EncodedBatch, row: int, *, alone: bool = False
) -> tuple[Tensor, Tensor]:
    """Question and answer of an action sample.

    Args:
        builder: knows the layout.
        batch: windows.
        row: which of them.
        alone: show the newest frame alone.
    """
    frames = batch.context[row, -1:] if alone else batch.context[row, batch.known[row]]
    question = builder.action_prompt(batch.task[row], frames, batch.state[row])
    return question, builder.action_answer(batch.actions[row])


def world_sample(builder: SequenceBuilder, batch: EncodedBatch, row: int, pairs: int = 1) -> tuple[Tensor, Tensor]:
    """Question and answer of a world sample: `pairs` frames from the current one on, each with its action."""
    assert batch.future is not None, "world samples need the next frame"
    frames = torch.cat((batch.context[row, -1:], batch.future[row, : pairs - 1]))
    return builder.world_prompt(frames, batch.actions[row, :pairs]), builder.world_answer(batch.future[row, pairs - 1])
