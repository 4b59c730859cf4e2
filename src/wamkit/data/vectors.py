"""A policy's numbers together: its state, its actions and its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wamkit.data.actions import ActionTransform
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.typed import blame


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """Numbers in and out of the network's range; they travel with the weights as `statistics.json`.

    Args:
        state: of the proprioceptive state.
        action: representation and normalisation of the control channels.
        value: of the value vector, or `None` for a policy without values.
    """

    state: Normalizer
    action: ActionTransform
    value: ValueTransform | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` inverts it."""
        value = None if self.value is None else self.value.to_dict()
        return {"state": self.state.to_dict(), "action": self.action.to_dict(), "value": value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transforms:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing, or a value is of another type or not finite; the message names it.
        """
        missing = sorted({"state", "action", "value"} - set(data))
        if missing:
            raise ValueError(f"expected the keys state, action and value, {missing} not found")
        with blame("state"):
            state = Normalizer.from_dict(data["state"])
        with blame("action"):
            action = ActionTransform.from_dict(data["action"], state=state)
        with blame("value"):
            value = None if data["value"] is None else ValueTransform.from_dict(data["value"])
        return cls(state=state, action=action, value=value)

    def check_widths(self, *, state: int, action: int, value: int) -> None:
        """Refuse statistics of other vectors than the policy's.

        Args:
            state: channels of the robot's state.
            action: channels of its actions.
            value: channels of the model's values; 0 without values.

        Raises:
            ValueError: naming each vector that differs.
        """
        widths = {
            "state": (state, self.state.width),
            "action": (action, self.action.width),
            "value": (value, value if self.value is None else self.value.width),
        }
        differ = [f"{name} of {wanted} channels, got {got}" for name, (wanted, got) in widths.items() if wanted != got]
        if differ:
            raise ValueError(f"expected the statistics of {'; '.join(differ)}")
