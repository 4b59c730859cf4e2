"""The two ways in which an open-loop validation can ask a policy; importing this module loads no torch.

`policy` asks as the control loop does: every `execution_horizon` rows, with the observation memory that those calls
would have left, and compares with the rows that the policy was trained to predict. `reference` is what the public code
of WAV does: chunks side by side from row 0, memory spread over everything seen so far, and fixed offsets whatever the
policy was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wamkit.spec import PolicySpec

Name = Literal["policy", "reference"]


@dataclass(frozen=True, kw_only=True)
class OpenLoopProtocol:
    """What an open-loop validation fixes.

    Args:
        name: `policy` or `reference`, see the module.
        execution_horizon: `policy`: rows between two calls. `reference`: the chunk's length.
        memory_threshold: `policy`: executed actions per shift of the observation memory. `reference`: 0, it has none.
        action_offset: `policy`: rows from the present one to the first action, as in training. `reference`: 1, except
            in the first chunk, whose present row is its own first row.
        context_stride: rows between two remembered frames; `None`: see `memory_threshold`.
    """

    name: Name
    execution_horizon: int
    memory_threshold: int
    action_offset: int
    context_stride: int | None = None

    @property
    def description(self) -> str:
        """One sentence for people."""
        if self.name == "reference":
            return f"chunks of {self.execution_horizon} rows side by side, memory spread over all rows before"
        first = "that of the observation's row" if self.action_offset == 0 else "that of the row after the observation"
        memory = (
            f"memory as in closed loop with threshold {self.memory_threshold}"
            if self.context_stride is None
            else f"memory of frames {self.context_stride} rows apart"
        )
        return f"a call every {self.execution_horizon} rows, {memory}, first action {first}"


def make_protocol(
    name: str,
    spec: PolicySpec,
    training: Mapping[str, Any],
    *,
    execution_horizon: int | None = None,
    memory_threshold: int | None = None,
    action_offset: int | None = None,
) -> OpenLoopProtocol:
    """A protocol for a policy.

    Args:
        name: `policy` or `reference`.
        spec: the policy's.
        training: the policy's training record; the alignment of its actions is read there.
        execution_horizon: rows between calls; by default the policy's own.
        memory_threshold: by default 1.
        action_offset: by default the recorded one.

    Raises:
        ValueError: an unknown name, a number out of range, a setting without effect, or a policy that does not say how
            its actions are aligned.
    """
    given = {
        "execution_horizon": execution_horizon,
        "memory_threshold": memory_threshold,
        "action_offset": action_offset,
    }
    if name == "reference":
        unused = [key for key, value in given.items() if value is not None]
        if unused:
            raise ValueError(f"{', '.join(unused)}: without effect on protocol 'reference'; leave it out")
        if spec.context_reach:
            raise ValueError(
                "protocol 'reference' spreads the memory over all rows before a chunk, but this policy's frames are "
                f"{spec.context_stride} rows apart; use protocol 'policy'"
            )
        return OpenLoopProtocol(
            name="reference", execution_horizon=spec.action_horizon, memory_threshold=0, action_offset=1
        )
    if name != "policy":
        raise ValueError(f"expected the protocol 'policy' or 'reference', got {name!r}")
    horizon = spec.execution_horizon if execution_horizon is None else execution_horizon
    if not 1 <= horizon <= spec.action_horizon:
        raise ValueError(
            f"expected an execution_horizon between 1 and the policy's action horizon {spec.action_horizon}, "
            f"got {horizon}"
        )
    if memory_threshold is not None and spec.context_stride is not None:
        raise ValueError(
            "memory_threshold: without effect on a policy that remembers frames "
            f"{spec.context_stride} rows apart; leave it out"
        )
    threshold = 1 if memory_threshold is None else memory_threshold
    if threshold < 1:
        raise ValueError(f"expected memory_threshold >= 1, got {threshold}")
    offset = _recorded_offset(training) if action_offset is None else action_offset
    if offset not in (0, 1):
        raise ValueError(f"expected an action_offset of 0 or 1, got {offset}")
    return OpenLoopProtocol(
        name="policy",
        execution_horizon=horizon,
        memory_threshold=threshold,
        action_offset=offset,
        context_stride=spec.context_stride,
    )


def _recorded_offset(training: Mapping[str, Any]) -> int:
    recipe = training.get("recipe")
    data = recipe.get("data") if isinstance(recipe, Mapping) else None
    offset = data.get("action_offset") if isinstance(data, Mapping) else None
    if not isinstance(offset, int):
        raise ValueError(
            "the policy's training.json does not say which row its first action belongs to "
            "(recipe.data.action_offset); tell it: --action-offset 0 for the row of the observation, 1 for the next one"
        )
    return offset
