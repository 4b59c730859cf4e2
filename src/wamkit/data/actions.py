"""How a policy represents the robot's actions: as they are, as differences, or relative to the current state.

This is the *network's* representation. What the numbers mean to the robot is `RobotSpec.action_kind`, and a chunk that
leaves a policy is always in the robot's own units and kind.

Source: WAV (arXiv 2604.14732), public dataset classes: section 3.6 of the specification.
Differs: representation, normalisation and the channels kept absolute are independent of each other; differences never
cross episodes; the inverse uses the raw state of the matching channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wamkit.data.transforms import ChannelStatistics, Kind, Normalizer
from wamkit.spec import RobotSpec
from wamkit.typed import check_fields, read_value

ActionType = Literal["absolute", "delta", "relative"]

FORMULAS: Final[dict[str, str]] = {
    "absolute": "norm(a_t)",
    "delta": "norm(a_t - a_(t-1)), with the statistics of differences",
    "relative": "norm(a_t) - norm(s_current), each with its own statistics",
}


@dataclass(frozen=True, kw_only=True)
class ActionTransform:
    """Actions into the network's representation and range, and back.

    Args:
        type: representation of the channels in `moving`.
        normalizer: of the represented vector; with `delta` its moving channels hold the statistics of differences.
        moving: channels that are represented as `type`; the others (grippers) stay absolute. Empty for `absolute`.
        state_channels: for each of `moving`, the state channel that it is the target of.
        state: the state's normaliser; `relative` needs it.
    """

    type: ActionType = "absolute"
    normalizer: Normalizer
    moving: tuple[int, ...] = ()
    state_channels: tuple[int, ...] = ()
    state: Normalizer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_fields(self, "action transform")
        if self.type == "absolute" and self.moving:
            raise ValueError(f"expected no moving channels of absolute actions, got {list(self.moving)}")
        if len(self.moving) != len(self.state_channels):
            raise ValueError(
                f"expected a state channel for each of the {len(self.moving)} moving channels, "
                f"got {self.state_channels}"
            )
        if self.type == "relative" and self.state is None:
            raise ValueError("relative actions need the state's normaliser, got none")
        if len(set(self.moving)) != len(self.moving) or not set(self.moving) <= set(range(self.width)):
            raise ValueError(f"expected distinct moving channels among {self.width}, got {list(self.moving)}")
        states = math.inf if self.state is None else self.state.width
        if any(not 0 <= index < states for index in self.state_channels):
            raise ValueError(f"expected state_channels among {states}, got {list(self.state_channels)}")

    @classmethod
    def from_statistics(
        cls,
        type: ActionType,
        kind: Kind,
        statistics: Mapping[str, ChannelStatistics],
        robot: RobotSpec,
        *,
        targets: Sequence[str] = (),
    ) -> ActionTransform:
        """The transform for a robot's actions.

        Args:
            type: how the network represents them.
            kind: normalisation.
            statistics: of `action` and `state`, and of `action_delta` for differences.
            robot: names the channels, and which of them are grippers.
            targets: names of the state channels that the action channels, grippers apart, are targets of, in order; by
                default those of the same name.

        Raises:
            ValueError: an action channel has no state channel, or statistics are missing.
        """
        normalizer = Normalizer.from_statistics(kind, statistics["action"])
        if type == "absolute":
            return cls(normalizer=normalizer)
        moving = tuple(index for index in range(len(robot.action)) if index not in robot.gripper_channels)
        names = list(targets) or [robot.action[index].name for index in moving]
        known = [channel.name for channel in robot.state]
        unknown = [name for name in names if name not in known]
        if unknown or len(names) != len(moving):
            raise ValueError(
                f"{type} actions need a state channel for each of the {len(moving)} action channels "
                f"{[robot.action[index].name for index in moving]}, got {names}; the state has {known}. Name them with "
                "data.action_targets, or use absolute actions"
            )
        if type == "delta":
            if "action_delta" not in statistics:
                raise ValueError(
                    "delta actions need the statistics of differences (action_delta), which are missing; compute the "
                    "statistics again with `wamkit data stats`"
                )
            differences = Normalizer.from_statistics(kind, statistics["action_delta"])
            normalizer = _channels_of(normalizer, differences, moving)
        return cls(
            type=type,
            normalizer=normalizer,
            moving=moving,
            state_channels=tuple(known.index(name) for name in names),
            state=Normalizer.from_statistics(kind, statistics["state"]),
        )

    @property
    def width(self) -> int:
        """Number of action channels."""
        return self.normalizer.width

    def normalize_episode(self, actions: Float[Tensor, "t a"]) -> Float[Tensor, "t a"]:
        """Every row of one episode; what `normalize_window` needs no state for is done.

        The first row has no action before it: its difference is 0.
        """
        if self.type == "delta":
            moving = list(self.moving)
            represented = actions.clone()
            represented[:, moving] = actions.diff(dim=0, prepend=actions[:1])[:, moving]
            actions = represented
        return self.normalizer.normalize(actions)

    def normalize_window(
        self,
        rows: Float[Tensor, "b p a"],
        state: Float[Tensor, "b s"],
        is_padded: Bool[Tensor, "b p"],
    ) -> Float[Tensor, "b p a"]:
        """Rows of `normalize_episode`, cut into windows, as the network learns them.

        Args:
            rows: of each window.
            state: normalised current state.
            is_padded: rows past the end of the episode; a difference there is 0.
        """
        if self.type == "absolute":
            return rows
        moving = list(self.moving)
        rows = rows.clone()
        if self.type == "relative":
            rows[..., moving] -= state[:, None, list(self.state_channels)]
        else:
            still = self.normalizer.normalize(rows.new_zeros(self.width))
            rows[..., moving] = torch.where(is_padded[..., None], still[moving], rows[..., moving])
        return rows

    def normalize_chunk(self, actions: Float[Tensor, "b p a"], state: Float[Tensor, "b s"]) -> Float[Tensor, "b p a"]:
        """Inverse of `denormalize`: a chunk in physical units as the network would have to predict it.

        Args:
            actions: physical units.
            state: current state in physical units; differences start from it.
        """
        if self.type == "absolute":
            return self.normalizer.normalize(actions)
        moving, current = list(self.moving), state[:, None, list(self.state_channels)].to(actions.dtype)
        if self.type == "delta":
            actions = actions.clone()
            actions[..., moving] = torch.cat((current, actions[..., moving]), dim=1).diff(dim=1)
            return self.normalizer.normalize(actions)
        assert self.state is not None
        x = self.normalizer.normalize(actions)
        x[..., moving] -= self.state.normalize(state)[:, None, list(self.state_channels)].to(x.dtype)
        return x

    def denormalize(self, x: Float[Tensor, "b p a"], state: Float[Tensor, "b s"]) -> Float[Tensor, "b p a"]:
        """The network's chunk as the robot runs it.

        Args:
            x: in the network's representation and range.
            state: current state in physical units.
        """
        if self.type == "absolute":
            return self.normalizer.denormalize(x)
        moving, channels = list(self.moving), list(self.state_channels)
        if self.type == "relative":
            assert self.state is not None
            x = x.clone()
            x[..., moving] += self.state.normalize(state)[:, None, channels].to(x.dtype)
            return self.normalizer.denormalize(x)
        actions = self.normalizer.denormalize(x)
        actions[..., moving] = actions[..., moving].cumsum(1) + state[:, None, channels].to(x.dtype)
        return actions

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the formula named; `from_dict` inverts it."""
        data = {**self.normalizer.to_dict(), "representation": self.type, "represented_as": FORMULAS[self.type]}
        if self.type != "absolute":
            data |= {"moving": list(self.moving), "state_channels": list(self.state_channels)}
        return data

    @classmethod
    def from_dict(cls, data: object, *, state: Normalizer) -> ActionTransform:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing, the formula is another one, or a value is of another type or not finite; the
                message names it.
        """
        normalizer = Normalizer.from_dict(data)
        assert isinstance(data, dict)
        type = data.get("representation", "absolute")
        if type not in list(FORMULAS) or data.get("represented_as", FORMULAS[type]) != FORMULAS[type]:
            raise ValueError(
                f"action statistics: expected a representation among {FORMULAS}, got {type!r} as "
                f"{data.get('represented_as')!r}; the file was written by another program or version"
            )
        return cls(
            type=type,
            normalizer=normalizer,
            moving=read_value(tuple[int, ...], data.get("moving", ()), "moving"),
            state_channels=read_value(tuple[int, ...], data.get("state_channels", ()), "state_channels"),
            state=None if type == "absolute" else state,
        )


def _channels_of(base: Normalizer, other: Normalizer, channels: Sequence[int]) -> Normalizer:
    """`base` with some channels' statistics from `other`."""

    def merged(name: str) -> tuple[float, ...]:
        columns = list(getattr(base, name))
        for channel in channels:
            columns[channel] = getattr(other, name)[channel]
        return tuple(columns)

    def indices(name: str) -> tuple[int, ...]:
        kept = [index for index in getattr(base, name) if index not in channels]
        return tuple(sorted(kept + [index for index in getattr(other, name) if index in channels]))

    return Normalizer(
        kind=base.kind,
        epsilon=base.epsilon,
        q01=merged("q01"),
        q99=merged("q99"),
        mean=merged("mean"),
        std=merged("std"),
        constant=indices("constant"),
        widened=indices("widened"),
    )
