"""What a policy remembers between calls: a first-in-first-out memory of observations.

Source: WAV's public evaluation and server code (observation memory with a threshold).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class ObservationMemory:
    """The last observations of one robot, encoded, the newest last.

    The first observation fills every place. Later ones replace the newest place, until `threshold` actions have been
    executed since the last shift; then the oldest is dropped and the new one is appended. With threshold 1 the memory
    is the observations of the last policy calls.

    Args:
        num_context: places.
        threshold: executed actions per shift.
    """

    num_context: int
    threshold: int = 1
    _frames: deque[Tensor] = field(default_factory=deque)
    _executed: int = 0

    def add(self, frame: Tensor, executed: int) -> None:
        """Take the newest observation.

        Args:
            frame: the encoded frame, without a time axis.
            executed: actions executed since the previous observation.

        Raises:
            ValueError: a negative count.
        """
        if executed < 0:
            raise ValueError(f"expected a count of executed actions of 0 or more, got {executed}")
        if not self._frames:
            self._frames.extend([frame] * self.num_context)
            self._executed = self.threshold - 1
            return
        self._executed += executed
        if self._executed >= self.threshold:
            self._executed = 0
            self._frames.popleft()
        else:
            self._frames.pop()
        self._frames.append(frame)

    def stack(self, dim: int) -> Tensor:
        """The remembered frames along a new time axis."""
        return torch.stack(tuple(self._frames), dim=dim)
