"""What a policy remembers between calls: a first-in-first-out memory of observations.

Source: WAV's public evaluation and server code (observation memory with a threshold); WorldVLA 4.1 of the
    specification (the frame of the control step just before the newest one).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ObservationMemory:
    """The last observations of one robot, encoded, the newest last.

    The first observation fills every place. Without a stride later ones replace the newest place, until `threshold`
    actions have been executed since the last shift; then the oldest is dropped and the new one is appended. With
    threshold 1 the memory is the observations of the last policy calls.

    With a stride the places before the newest one are for the observations of exactly `stride`, twice as many, …
    control steps before it, as in training. Where one of these was never told, that place and all before it repeat the
    oldest observation after it: the memory begins anew behind a gap.

    A memory never changes, so that a call that fails leaves none behind.

    Args:
        num_context: places.
        threshold: executed actions per shift; has no effect with a stride.
        frames: encoded frames without a time axis, one for each place; empty before the first.
        executed: actions executed since the last shift, without a stride.
        stride: control steps between two places; `None` is described above.
        num_known: places, counted from the newest, with an observation of their own.
        told: with a stride, the observations that a place may yet need: control steps before the newest, and frame.
    """

    num_context: int
    threshold: int = 1
    frames: tuple[Tensor, ...] = ()
    executed: int = 0
    stride: int | None = None
    num_known: int = 0
    told: tuple[tuple[int, Tensor], ...] = ()

    @property
    def known(self) -> tuple[bool, ...]:
        """For each place whether it holds an observation of its own, and repeats none."""
        return tuple(place >= self.num_context - self.num_known for place in range(self.num_context))

    def added(self, frame: Tensor, executed: int) -> ObservationMemory:
        """The memory with the newest observation in it.

        Args:
            frame: the encoded frame, without a time axis.
            executed: actions executed since the previous observation; with a stride an observation after 0 actions
                takes the place of the previous one.

        Raises:
            ValueError: a negative count.
        """
        if executed < 0:
            raise ValueError(f"expected a count of executed actions of 0 or more, got {executed}")
        if self.stride is not None:
            return self._spaced(frame, executed, self.stride)
        if not self.frames:
            return self._with((frame,) * self.num_context, executed=self.threshold - 1, num_known=1)
        if self.executed + executed >= self.threshold:
            num_known = min(self.num_known + 1, self.num_context)
            return self._with((*self.frames[1:], frame), executed=0, num_known=num_known)
        return self._with((*self.frames[:-1], frame), executed=self.executed + executed, num_known=self.num_known)

    def stack(self, dim: int) -> Tensor:
        """The remembered frames along a new time axis."""
        return torch.stack(self.frames, dim=dim)

    def _spaced(self, frame: Tensor, executed: int, stride: int) -> ObservationMemory:
        reach = (self.num_context - 1) * stride
        aged = [(steps + executed, older) for steps, older in self.told]
        told = (*((steps, older) for steps, older in aged if 0 < steps <= reach), (0, frame))
        by_steps = dict(told)
        own = [frame]
        while len(own) < self.num_context and len(own) * stride in by_steps:
            own.append(by_steps[len(own) * stride])
        frames = (own[-1],) * (self.num_context - len(own)) + tuple(reversed(own))
        return dataclasses.replace(self, frames=frames, num_known=len(own), told=told)

    def _with(self, frames: tuple[Tensor, ...], *, executed: int, num_known: int) -> ObservationMemory:
        return dataclasses.replace(self, frames=frames, executed=executed, num_known=num_known)


def steps_to_tell(num_actions: int, *, horizon: int, num_context: int, stride: int | None) -> tuple[int, ...]:
    """After which actions of a chunk, before its last, a memory with a stride needs an observation.

    Args:
        num_actions: of the chunk that will be run; an observation follows its last one anyway.
        horizon: actions of the chunks after it, whose memory may reach back into this one.
        num_context: places of the memory.
        stride: control steps between two places; `None` needs none.

    Returns:
        Numbers of executed actions, 1 to `num_actions - 1`, ascending.
    """
    if stride is None:
        return ()
    reach = (num_context - 1) * stride
    ends = range(num_actions, num_actions + reach, horizon)
    wanted = {end - back for end in ends for back in range(stride, reach + 1, stride)}
    return tuple(sorted(step for step in wanted if 0 < step < num_actions))
