"""What a policy remembers between calls: a first-in-first-out memory of observations.

Source: WAV's public evaluation and server code (observation memory with a threshold).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ObservationMemory:
    """The last observations of one robot, encoded, the newest last.

    The first observation fills every place. Later ones replace the newest place, until `threshold` actions have been
    executed since the last shift; then the oldest is dropped and the new one is appended. With threshold 1 the memory
    is the observations of the last policy calls. A memory never changes, so that a call that fails leaves none behind.

    Args:
        num_context: places.
        threshold: executed actions per shift.
        frames: encoded frames without a time axis; empty before the first.
        executed: actions executed since the last shift.
    """

    num_context: int
    threshold: int = 1
    frames: tuple[Tensor, ...] = ()
    executed: int = 0

    def added(self, frame: Tensor, executed: int) -> ObservationMemory:
        """The memory with the newest observation in it.

        Args:
            frame: the encoded frame, without a time axis.
            executed: actions executed since the previous observation.

        Raises:
            ValueError: a negative count.
        """
        if executed < 0:
            raise ValueError(f"expected a count of executed actions of 0 or more, got {executed}")
        if not self.frames:
            return self._with((frame,) * self.num_context, self.threshold - 1)
        if self.executed + executed >= self.threshold:
            return self._with((*self.frames[1:], frame), 0)
        return self._with((*self.frames[:-1], frame), self.executed + executed)

    def stack(self, dim: int) -> Tensor:
        """The remembered frames along a new time axis."""
        return torch.stack(self.frames, dim=dim)

    def _with(self, frames: tuple[Tensor, ...], executed: int) -> ObservationMemory:
        return ObservationMemory(self.num_context, self.threshold, frames, executed)
