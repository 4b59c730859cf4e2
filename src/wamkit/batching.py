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

from wamkit.types import ActingPolicy

logger = logging.getLogger(__name__)

Batching = Literal["exact", "free"]
"""`exact`: what a robot would get in a call of its own; `free`: whatever the batch gives, equal up to rounding."""

_PROBED_CALLS = 2  # the first call of an episode, and one that goes on from it


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
    _alone: list[tuple[Tensor, Tensor, str, Tensor]] = field(default_factory=list)  # inputs and actions of one robot
    _known: dict[tuple[int, bool], bool] = field(default_factory=dict)

    def allows(
        self, video: UInt8[Tensor, "b v h w c"], state: Float[Tensor, "b s"], task: Sequence[str], record: bool
    ) -> bool:
        """Whether a call of this many robots gives every one of them what it would get alone.

        Args:
            video: what the robots see now; the trial is made with it when this size was not tried before.
            state: what they feel.
            task: their sentences.
            record: whether the call also returns what was imagined.

        Raises:
            ValueError: recording alone changes a single robot's actions.
        """
        size = len(task)
        if size == 1 and not record:
            return True
        if (size, record) not in self._known:
            self._known[size, record] = is_exact = self._try(video, state, task, record)
            if size == 1 and not is_exact:
                raise ValueError(
                    "expected a policy that acts alike whether or not it is asked for what it imagines, but its "
                    "actions differ; evaluate without recordings (--record-episodes 0) or with --batching free"
                )
            if not is_exact:
                logger.warning(
                    "a policy call for %d robots rounds differently here than calls for one; each robot gets a call of "
                    "its own (--batching free shares calls, and lets outcomes depend on the number of workers)",
                    size,
                )
        return self._known[size, record]

    def _try(self, video: Tensor, state: Tensor, task: Sequence[str], record: bool) -> bool:
        for row in range(len(self._alone), len(task)):
            part = slice(row, row + 1)
            actions = self._act([row], video[part], state[part], [task[row]], record=False)
            self._alone.append((video[row].clone(), state[row].clone(), task[row], actions[0]))
        # Last row first: every position has another neighbour than it had in the robots' own order.
        rows = list(reversed(range(len(task))))
        videos, states, tasks, alone = zip(*(self._alone[row] for row in rows), strict=True)
        actions = self._act(rows, torch.stack(videos), torch.stack(states), list(tasks), record=record)
        return torch.equal(actions, torch.stack(alone))

    def _act(self, rows: Sequence[int], video: Tensor, state: Tensor, task: list[str], *, record: bool) -> Tensor:
        """Actions `b call p a` of the first calls of an episode."""
        slots = [self.first_slot + row for row in rows]
        self.policy.reset(slots, seeds=list(rows))
        calls = []
        for number in range(_PROBED_CALLS):
            executed = [self.executed if number else 0] * len(slots)
            chunk = self.policy.act(slots, video=video, state=state, task=task, executed=executed, record=record)
            calls.append(chunk.actions.detach().cpu())
        return torch.stack(calls, dim=1)
