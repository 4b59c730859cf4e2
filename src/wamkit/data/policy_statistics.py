"""A policy's own normalisation, its `statistics.json`, as statistics: for training that goes on from the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wamkit.data.actions import ActionType
from wamkit.data.stats import Statistics
from wamkit.data.transforms import Kind, Normalizer, ValueTransform
from wamkit.data.vectors import Transforms
from wamkit.typed import blame

READ_METHOD = "read from a policy's statistics.json, which holds neither min nor max: q01 and q99 stand for them"
_EPSILON = 1e-6  # what statistics are always made into transforms with


def is_policy_statistics(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like the statistics of a policy folder."""
    return all(isinstance(document.get(name), Mapping) and "formula" in document[name] for name in ("state", "action"))


def parse_policy_statistics(
    document: Mapping[str, Any], path: Path | str, *, kind: Kind | None = None, action_type: ActionType | None = None
) -> dict[str, Statistics]:
    """What makes the policy's transforms again.

    Args:
        document: content of the file.
        path: where it was read from, for messages.
        kind: how the run normalises; `None` when that is not told.
        action_type: how the actions of the run are represented. Differences have statistics of their own, and a policy
            of differences keeps no others.

    Returns:
        `action` and `state`; `action_delta` of a policy of differences, `value` of one with values.

    Raises:
        ValueError: a value is missing, of another type or not finite, the policy normalises in another way, or it is
            one of differences and the run is not.
    """
    with blame(path):
        transforms = Transforms.from_dict(document)
        kept = (transforms.state, transforms.action.normalizer, transforms.value)
        strange = {each.epsilon for each in kept if each is not None} - {_EPSILON}
        if strange:
            raise ValueError(f"expected an epsilon of {_EPSILON:g}, got {sorted(strange)}; use the data's statistics")
    kinds = {transforms.state.kind, transforms.action.normalizer.kind}
    if kind is not None and kinds != {kind}:
        raise ValueError(
            f"{path} belongs to a policy that normalises by {' and '.join(sorted(kinds))}, not by {kind}; train with "
            "its data.normalization, or with the data's statistics"
        )
    action = _of_vector(transforms.action.normalizer)
    statistics = {"state": _of_vector(transforms.state), "action": action}
    if transforms.action.type == "delta":
        if action_type != "delta":
            raise ValueError(
                f"{path} belongs to a policy that learned differences of actions, and holds statistics of nothing "
                "else; train with data.action_type delta, or name the policy's folder where one is asked for"
            )
        statistics["action_delta"] = action  # each channel's own: differences, and grippers as they are
    if transforms.value is not None:
        statistics["value"] = _of_values(transforms.value)
    return statistics


def _of_vector(normalizer: Normalizer) -> Statistics:
    low, high = list(normalizer.q01), list(normalizer.q99)
    for channel in normalizer.constant:
        low[channel] = high[channel] = normalizer.mean[channel]
    return _statistics(normalizer.mean, normalizer.std, tuple(low), tuple(high))


def _of_values(value: ValueTransform) -> Statistics:
    low, high = (
        tuple(mean + sign * std for mean, std in zip(value.mean, value.std, strict=True)) for sign in (-1.0, 1.0)
    )
    return _statistics(value.mean, value.std, low, high)


def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], low: tuple[float, ...], high: tuple[float, ...]
) -> Statistics:
    return Statistics(mean=mean, std=std, q01=low, q99=high, min=low, max=high, count=0, num_kept=0, method=READ_METHOD)
