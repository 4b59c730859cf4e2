"""Batches that change nothing: a robot's actions must not depend on which robots share its policy call.

Rows of a batch are independent in mathematics, but not always in arithmetic: a matrix product may add in another order
when it has more rows. Whether it does depends on the processor, its libraries, the sizes, and nothing else. So nothing
is assumed: before a size of call is used for the first time, a few robots are asked alone and together, and only sizes
whose rows come out alike, bit for bit, in every position are used. Otherwise each robot gets a call of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.types import ActingPolicy, RememberingPolicy

logger = logging.getLogger(__name__)

Batching = Literal["exact", "free"]
"""`exact`: what a robot would get in a call of its own; `free`: whatever the batch gives, equal up to rounding."""


@dataclass
class ExactBatches:
    """Finds out which calls of a policy give each robot what it would get alone.

    Args:
        policy: what acts.
        first_slot: slots from here on are nobody's; trial calls use them.
        executed: actions told as executed between two trial calls.
    """

    policy: ActingPolicy
    first_slot: int
    executed: int
    _inputs: list[tuple[Tensor, Tensor, str]] = field(default_factory=list)  # video, state and task of one robot
    _alone: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # its actions, with so many frames known
    _tried: dict[tuple[int, bool, tuple[int, ...]], bool] = field(default_factory=dict)

    def allows(
        self,
        video: UInt8[Tensor, "b v h w c"],
        state: Float[Tensor, "b s"],
        task: Sequence[str],
        record: bool,
        known: Sequence[int] = (),
    ) -> bool:
        """Whether a call of this many robots gives every one of them what it would get alone.

        Args:
            video: what the robots see now; the trial is made with it when such a call was not tried before.
            state: what they feel.
            task: their sentences.
            record: whether the call also returns what was imagined.
            known: frames that the memory of each holds in the call. Told for a policy whose spec has a `context_reach`,
                which may compute in another way for a robot that has seen less; calls of others are all alike.

        Raises:
            ValueError: recording alone changes a single robot's actions.
        """
        size, known = len(task), tuple(known)
        if size == 1 and not record:
            return True
        if (size, record, known) not in self._tried:
            is_new = all((size, record) != key[:2] or is_exact for key, is_exact in self._tried.items())
            self._tried[size, record, known] = is_exact = self._try(video, state, task, record, known)
            if size == 1 and not is_exact:
                raise ValueError(
                    "expected a policy that acts alike whether or not it is asked for what it imagines, but its "
                    "actions differ; evaluate without recordings (--record-episodes 0) or with --batching free"
                )
            if not is_exact and is_new:
                logger.warning(
                    "a policy call for %d robots rounds differently here than calls for one; each robot gets a call of "
                    "its own (--batching free shares calls, and lets outcomes depend on the number of workers)",
                    size,
                )
        return self._tried[size, record, known]

    def _try(self, video: Tensor, state: Tensor, task: Sequence[str], record: bool, known: tuple[int, ...]) -> bool:
        for row in range(len(self._inputs), len(task)):
            self._inputs.append((video[row].clone(), state[row].clone(), task[row]))
        # Last row first: every position has another neighbour than it had in the robots' own order.
        rows = list(reversed(range(len(task))))
        counts = known or (1,) * len(rows)
        for key in zip(rows, counts, strict=True):
            if key not in self._alone:
                self._alone[key] = self._act([key[0]], [key[1]], record=False)[0]
        alone = [self._alone[key] for key in zip(rows, counts, strict=True)]
        return torch.equal(self._act(rows, counts, record=record), torch.stack(alone))

    def _act(self, rows: Sequence[int], known: Sequence[int], *, record: bool) -> Tensor:
        """Actions `b call p a` of two calls, with so many frames known in the first."""
        slots = [self.first_slot + row for row in rows]
        video, state, task = zip(*(self._inputs[row] for row in rows), strict=True)
        self.policy.reset(slots, seeds=list(rows))
        first, next_ones = [0] * len(rows), [self.executed] * len(rows)
        stride = self.policy.spec.context_stride
        if stride is not None:
            # The second call is one of the same moment, which leaves the memory as full as it is.
            first, next_ones = [stride if count > 1 else 0 for count in known], first
            self._fill(slots, video, known, stride)
        calls = []
        for executed in (first, next_ones):
            chunk = self.policy.act(
                slots,
                video=torch.stack(video),
                state=torch.stack(state),
                task=list(task),
                executed=executed,
                record=record,
            )
            calls.append(chunk.actions.detach().cpu())
        return torch.stack(calls, dim=1)

    def _fill(self, slots: Sequence[int], video: Sequence[Tensor], known: Sequence[int], stride: int) -> None:
        """Tell the policy of all frames that it is to know but the newest."""
        for left in range(max(known) - 1, 0, -1):
            rows = [row for row, count in enumerate(known) if count > left]
            assert isinstance(self.policy, RememberingPolicy), "its spec has a context_reach"
            self.policy.remember(
                [slots[row] for row in rows],
                video=torch.stack([video[row] for row in rows]),
                executed=[0 if known[row] == left + 1 else stride for row in rows],
            )
