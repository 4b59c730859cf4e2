"""Weights into a WAV network, under an explicit policy of what may be missing.

Source: state-dict layout of the public checkpoints (LTX-Video, GE-base, GE-act, WAV); see README.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

GROUPS: dict[str, str] = {
    "view": "view embedding (LTX-Video has none)",
    "value": "value expert",
    "action": "action expert",
    "action.attn3": "the action expert's attention to the value expert (GE-act has none)",
}
RESIZABLE = ("value_proj_in", "value_proj_out", "action_proj_in", "action_proj_out")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a load did.

    Args:
        source: where the tensors came from.
        loaded: number of tensors copied.
        missing: groups kept at their initial values, with their number of tensors.
        reinitialized: tensors kept at their initial values because their shape differs.
    """

    source: str
    loaded: int
    missing: dict[str, int]
    reinitialized: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.loaded} tensors loaded"]
        lines += [f"  new: {GROUPS[group]} ({count} tensors)" for group, count in self.missing.items()]
        lines += [f"  re-initialised (shape differs): {name}" for name in self.reinitialized]
        return "\n".join(lines)


def group_of(name: str) -> str:
    """The group a tensor belongs to; `video` for the stream itself."""
    if name.startswith("view_"):
        return "view"
    if name.startswith("action_blocks.") and ".attn3." in name:
        return "action.attn3"
    return next((part for part in ("value", "action") if name.startswith(f"{part}_")), "video")


def load_weights(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    may_miss: Sequence[str] = (),
    may_resize: Sequence[str] = (),
) -> LoadReport:
    """Copy tensors into a network, all or nothing.

    Args:
        network: the network.
        tensors: by official name.
        source: name for messages.
        may_miss: groups (`GROUPS`) that may be absent as a whole and keep their initial values.
        may_resize: modules (`RESIZABLE`) whose tensors may differ in shape and then keep their initial values.

    Raises:
        ValueError: unknown policy names, or any other missing, foreign or mis-shaped tensor; nothing is copied.
    """
    for name, known in ((may_miss, GROUPS), (may_resize, RESIZABLE)):
        unknown = sorted(set(name) - set(known))
        if unknown:
            raise ValueError(f"unknown load policy {unknown}; choose among {list(known)}")
    state = network.state_dict()
    absent: dict[str, list[str]] = {}
    for key in state:
        if key not in tensors:
            absent.setdefault(group_of(key), []).append(key)
    complete: dict[str, int] = {}
    for key in state:
        complete[group_of(key)] = complete.get(group_of(key), 0) + 1
    allowed = set(may_miss) | ({"action.attn3"} if "action" in may_miss else set())
    problems = []
    for group, keys in absent.items():
        if group not in allowed:
            problems.append(f"missing {len(keys)} of {complete[group]} tensors of {group}: {_few(keys)}")
        elif len(keys) != complete[group]:
            problems.append(f"group {group} is there only in part, {len(keys)} tensors missing: {_few(keys)}")
    foreign = [key for key in tensors if key not in state]
    if foreign:
        problems.append(f"{len(foreign)} foreign tensors: {_few(foreign)}")
    resized: list[str] = []
    wrong: list[str] = []
    for key in state.keys() & tensors.keys():
        if state[key].shape != tensors[key].shape:
            (resized if key.rsplit(".", 1)[0] in may_resize else wrong).append(key)
    problems += [
        f"{key}: expected shape {tuple(state[key].shape)}, got {tuple(tensors[key].shape)}" for key in sorted(wrong)[:8]
    ]
    not_float = [key for key in tensors if key in state and not tensors[key].is_floating_point()]
    if not_float:
        problems.append(f"expected floating-point weights, got {tensors[not_float[0]].dtype}: {_few(not_float)}")
    if problems:
        listed = "\n  - ".join(problems)
        raise ValueError(
            f"{source} does not fit this network:\n  - {listed}\n"
            "Use the configuration the weights were made with, or allow groups with may_miss / may_resize."
        )
    with torch.no_grad():
        for key, target in state.items():
            if key in tensors and key not in resized:
                target.copy_(tensors[key])
    report = LoadReport(
        source=source,
        loaded=len(state.keys() & tensors.keys()) - len(resized),
        missing={group: len(keys) for group, keys in absent.items()},
        reinitialized=tuple(sorted(resized)),
    )
    logger.info("%s", report)
    return report


def _few(keys: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(sorted(keys)[:limit])
    return shown if len(keys) <= limit else f"{shown}, … ({len(keys)} in all)"
