"""Which rows of a recorded episode an open-loop validation shows to a policy, and which it compares with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from wamkit.chunking import ObservationMemory, steps_to_tell
from wamkit.evaluation.open_loop_protocol import OpenLoopProtocol
from wamkit.spec import PolicySpec


@dataclass(frozen=True, kw_only=True)
class ChunkRows:
    """Rows of one policy call; only `context` is inside the episode for certain.

    Args:
        context: int64 `[P]`, remembered frames, the present row last.
        known: bool `[P]`, which of them were seen; the others only fill the memory.
        action: int64 `[A]`, rows that the predicted actions are compared with; may lie past the end.
        future_start: row that is `video_step` 0.
    """

    context: np.ndarray
    known: np.ndarray
    action: np.ndarray
    future_start: int

    @property
    def current(self) -> int:
        """The present row."""
        return int(self.context[-1])


def chunk_rows(length: int, spec: PolicySpec, protocol: OpenLoopProtocol) -> list[ChunkRows]:
    """The calls of one episode, in order; each has at least one action row inside the episode.

    Args:
        length: T, rows of the episode.
        spec: the policy's, for the lengths of memory and chunk.
        protocol: how rows are chosen.

    Raises:
        ValueError: fewer than 2 rows.

    Source: WAV 6.4 and 6.5 of the specification.
    Differs: with one memory frame `reference` shows the row before the chunk (a linspace of one point would show row
        0 for ever); rows past the end are left out of every number instead of repeating the last row.
    """
    if length < 2:
        raise ValueError(f"expected an episode of 2 or more rows, got {length}")
    horizon = np.arange(spec.action_horizon)
    if protocol.name == "reference":
        return [
            ChunkRows(
                context=_spread(start, spec.num_context),
                known=np.arange(spec.num_context) >= (0 if start else spec.num_context - 1),
                action=start + horizon,
                future_start=start,
            )
            for start in range(0, length, spec.action_horizon)
        ]
    executed, stride = protocol.execution_horizon, protocol.context_stride
    memory = ObservationMemory(spec.num_context, protocol.memory_threshold, stride=stride)
    between = steps_to_tell(executed, horizon=executed, num_context=spec.num_context, stride=stride)
    chunks: list[ChunkRows] = []
    for current in range(0, length - protocol.action_offset, executed):
        told = [current - executed + step for step in between if current]
        for row, before in zip((*told, current), (max(0, current - executed), *told), strict=True):
            memory = memory.added(torch.tensor(row), row - before)
        chunks.append(
            ChunkRows(
                context=memory.stack(dim=0).numpy(),
                known=np.array(memory.known),
                action=current + protocol.action_offset + horizon,
                future_start=current,
            )
        )
    return chunks


def future_rows(chunk: ChunkRows, steps: tuple[int, ...], protocol: OpenLoopProtocol) -> np.ndarray:
    """Rows of the real frames that imagined ones are set against, int64 `[k]`; they may lie past the end.

    Args:
        chunk: the call.
        steps: control steps after the observation at which the imagined frames lie.
        protocol: `reference` compares the first imagined frame with the chunk's first row, whatever `steps` says.
    """
    ahead = np.asarray(steps, dtype=np.int64)
    return chunk.future_start + (ahead - ahead[0] if protocol.name == "reference" else ahead)


def _spread(start: int, num_context: int) -> np.ndarray:
    if start == 0:
        return np.zeros(num_context, dtype=np.int64)
    rows = np.linspace(0, start - 1, num_context).round().astype(np.int64)
    rows[-1] = start - 1
    return rows
