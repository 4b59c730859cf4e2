"""Imagining several chunks ahead: what a policy predicts becomes what it sees and feels next. Nothing is executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.chunking import ObservationMemory
from wamkit.policy import Policy
from wamkit.spec import PolicySpec
from wamkit.types import Observation, Prediction


@dataclass(frozen=True, kw_only=True)
class Imagination:
    """Chunks that follow each other in a model's mind alone.

    Every `…_steps` counts control steps after the observation, one number per entry of the time axis beside it.

    Args:
        starts: step of the frame from which each chunk was imagined, the first being 0.
        video: imagined frames.
        actions: physical units.
        states: physical units, or `None` when the policy predicts none.
        value: units of the value targets, or `None` for a policy without values.
    """

    starts: tuple[int, ...]
    video: UInt8[Tensor, "b v t h w c"]
    video_steps: tuple[int, ...]
    actions: Float[Tensor, "b p a"]
    states: Float[Tensor, "b p s"] | None
    action_steps: tuple[int, ...]
    value: Float[Tensor, "b y"] | None
    value_steps: tuple[int, ...]


def imagine(
    policy: Policy,
    observation: Observation,
    *,
    num_chunks: int,
    keys: Sequence[tuple[int, ...]],
    action_offset: int = 0,
) -> Imagination:
    """Imagine chunk after chunk, as if each were run to its end and the last imagined frame were then observed.

    That frame is decoded to pixels and encoded again on its own, as every remembered frame is; it is appended to the
    memory, whose oldest frame is dropped. A policy that remembers frames some control steps apart (`context_stride`)
    remembers those that were imagined for these steps; where one was not, its memory begins anew. The state that was
    predicted for it (or, with `action_offset` 0, for the step before it, the last one predicted) becomes the current
    state. The planner searches each chunk anew.

    Args:
        policy: what imagines.
        observation: `spec.num_context` real frames of every camera, the newest last, and which of them were seen; the
            newest one's state, and a sentence each.
        num_chunks: chunks to imagine, at least 1.
        keys: what each row's draws follow from; the number of the chunk is added.
        action_offset: control steps from the observation to the row of the first predicted action, as in training.

    Raises:
        ValueError: no chunks, an observation that does not fit, a policy that imagines no frames or, for more than one
            chunk, predicts no states.
    """
    if num_chunks < 1:
        raise ValueError(f"expected 1 or more chunks to imagine, got {num_chunks}")
    observation = dataclasses.replace(observation, video=policy.seen(observation.video))  # as imagined frames are
    chunks: list[Prediction] = []
    starts: list[int] = []
    memories: list[ObservationMemory] = []
    reached = 0
    while len(chunks) < num_chunks:
        prediction = policy.predict(observation, keys=[(*key, len(chunks)) for key in keys])
        future, steps = prediction.sampled.future, prediction.sampled.future_steps
        if future is None or not steps:
            raise ValueError(f"family {policy.spec.family!r} imagines no frames, so there is nothing to go on from")
        chunks.append(prediction)
        starts.append(reached)
        reached += steps[-1]
        if len(chunks) < num_chunks:
            memories = memories or _remembered(observation, policy.spec)
            memories = [_extended(memory, frames, steps) for memory, frames in zip(memories, future.cpu(), strict=True)]
            row, reads_state = steps[-1] - action_offset, policy.model.reads_state
            observation = _observed(observation, prediction, memories, row, reads_state=reads_state)
    ahead = chunks[0].sampled.future_steps or ()
    horizon = chunks[0].actions.shape[1]
    rows = range(action_offset, action_offset + horizon)
    value = chunks[0].value
    every = 0 if value is None else horizon // value.shape[1]
    judged = () if value is None else rows[every - 1 :: every]
    return Imagination(
        starts=tuple(starts),
        video=torch.cat([chunk.sampled.future.cpu() for chunk in chunks if chunk.sampled.future is not None], dim=2),
        video_steps=tuple(start + step for start in starts for step in ahead),
        actions=torch.cat([chunk.actions for chunk in chunks], dim=1),
        states=_joined([chunk.states for chunk in chunks]),
        action_steps=tuple(start + step for start in starts for step in rows),
        value=_joined([chunk.value for chunk in chunks]),
        value_steps=tuple(start + step for start in starts for step in judged),
    )


def _remembered(observation: Observation, spec: PolicySpec) -> list[ObservationMemory]:
    """The memory of each row, of pictures."""
    video = rearrange(observation.video, "b v t h w c -> b t v h w c")
    known = torch.ones(video.shape[:2], dtype=torch.bool) if observation.known is None else observation.known
    memories = []
    for frames, seen in zip(video, known.cpu(), strict=True):
        memory = ObservationMemory(spec.num_context, stride=spec.context_stride)
        for frame in frames[seen]:
            memory = memory.added(frame, spec.context_stride or 1)
        memories.append(memory)
    return memories


def _extended(memory: ObservationMemory, frames: UInt8[Tensor, "v t h w c"], steps: Sequence[int]) -> ObservationMemory:
    """A row's memory at the end of a chunk whose imagined frames lie at some steps."""
    if memory.stride is None:
        return memory.added(frames[:, -1], steps[-1])
    for frame, before, step in zip(frames.unbind(dim=1), (0, *steps), steps, strict=False):
        memory = memory.added(frame, step - before)
    return memory


def _observed(
    observation: Observation,
    prediction: Prediction,
    memories: Sequence[ObservationMemory],
    row: int,
    *,
    reads_state: bool,
) -> Observation:
    """What would be observed at the end of a chunk: what is remembered then, and the state predicted for `row`."""
    states = prediction.states
    if states is None and reads_state:
        raise ValueError(
            "this policy reads the robot's state and predicts none, so it cannot imagine a second chunk of its own "
            "actions; use num_chunks=1 (--chunks 1), or let it imagine along recorded ones (`wamkit quality`)"
        )
    # a state that nothing reads stays what it was
    state = observation.state if states is None else states[:, min(row, states.shape[1] - 1)]
    return Observation(
        video=torch.stack([memory.stack(dim=1) for memory in memories]),
        state=state,
        task=observation.task,
        known=torch.tensor([memory.known for memory in memories]),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given, dim=1) if given else None
