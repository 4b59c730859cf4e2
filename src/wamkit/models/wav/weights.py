"""Weights into a WAV network, strictly: a load policy names what a source may lack, and everything else has to fit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wamkit.models.wav.initial import initial_values
from wamkit.models.wav.layouts import OfficialNames
from wamkit.models.wav.load_policy import EXACT, GROUPS, PROFILES, LoadPolicy, group_of, recognize
from wamkit.models.wav.model import WAVTransformer
from wamkit.weight_files import StoredWeights

logger = logging.getLogger(__name__)

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ON_DISK = (OfficialNames, StoredWeights)
_LISTED = 6


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a load does.

    Args:
        source: where the tensors come from.
        loaded: number of tensors copied.
        missing: groups that get initial values, with their number of tensors.
        reinitialized: tensors that get initial values because their shape differs.
        left_out: tensors of other networks in the same file.
    """

    source: str
    loaded: int
    missing: dict[str, int]
    reinitialized: tuple[str, ...]
    left_out: int = 0

    def __str__(self) -> str:
        return self.told("loaded")

    def told(self, done: str) -> str:
        """The report in words.

        Args:
            done: what was done with the tensors, for instance `loaded`.
        """
        lines = [f"{self.source}: {self.loaded} tensors {done}"]
        if self.left_out:
            lines.append(f"  left out: {self.left_out} tensors of other networks")
        lines += [f"  new: {GROUPS[group]} ({count} tensors)" for group, count in self.missing.items()]
        lines += [f"  new (shape differs): {name}" for name in self.reinitialized]
        return "\n".join(lines)


def check_fit(
    network: WAVTransformer, tensors: Mapping[str, Tensor], *, source: str, policy: LoadPolicy = EXACT
) -> LoadReport:
    """What `load_weights` would do; of stored weights only the headers are read.

    Args:
        network: may be empty (on the meta device).
        tensors: by official name; see `layouts.open_weights`.
        source: name for messages.
        policy: what may be missing or of another shape.

    Raises:
        ValueError: any other missing, foreign or misshapen tensor, or one that is no float.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: _shape(tensors, name) for name in tensors}
    problems, missing = _missing(wanted, shapes, policy)
    foreign = [name for name in shapes if name not in wanted]
    if foreign:
        problems.append(f"{len(foreign)} foreign tensors: {_few(foreign)}")
    differ = [name for name in wanted if name in shapes and wanted[name] != shapes[name]]
    resized = [name for name in differ if name.rsplit(".", 1)[0] in policy.may_resize]
    wrong = [f"{name}: expected shape {wanted[name]}, got {shapes[name]}" for name in differ if name not in resized]
    problems += wrong[:_LISTED]
    if len(wrong) > _LISTED:
        problems.append(f"… and {len(wrong) - _LISTED} other tensors of another shape")
    types = {name: _dtype(tensors, name) for name in shapes if name in wanted}
    strange = [name for name, dtype in types.items() if dtype not in FLOATS]
    if strange:
        problems.append(f"expected weights of type {', '.join(FLOATS)}, got {types[strange[0]]}: {_few(strange)}")
    if problems:
        listed = "\n  - ".join(problems)
        raise ValueError(f"{source} does not fit this network:\n  - {listed}\n{_advice(shapes, policy)}")
    return LoadReport(
        source=source,
        loaded=len(types) - len(resized),
        missing=missing,
        reinitialized=tuple(sorted(resized)),
        left_out=tensors.left_out if isinstance(tensors, OfficialNames) else 0,
    )


def load_weights(
    network: WAVTransformer,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    policy: LoadPolicy = EXACT,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> LoadReport:
    """Fill a network, all or nothing; torch's global generator is left alone.

    Args:
        network: empty (on the meta device; it comes to the CPU) or with values, which are replaced.
        tensors: by official name; see `layouts.open_weights`.
        source: name for messages.
        policy: what may be missing or of another shape and then gets initial values.
        seed: of those.
        dtype: type of the network's values; `None` keeps the network's.

    Raises:
        ValueError: as `check_fit`, or a tensor that is not finite; the network is as it was.
    """
    report = check_fit(network, tensors, source=source, policy=policy)
    state = network.state_dict()
    loaded = [name for name in state if name in tensors and name not in report.reinitialized]
    values = initial_values(network, [name for name in state if name not in set(loaded)], seed)
    spoilt = []
    for name in loaded:
        tensor = tensors[name]
        if not torch.isfinite(tensor).all():
            spoilt.append(name)
        values[name] = tensor.to(dtype or state[name].dtype, copy=True)
    if spoilt:
        raise ValueError(
            f"{source}: expected finite weights, got NaN or infinity in {len(spoilt)} tensors: {_few(spoilt)}; the "
            "run that wrote them had diverged, take an earlier checkpoint"
        )
    values = {name: values[name].to(dtype or state[name].dtype) for name in state}
    # An empty network takes the tensors themselves; one with values, to which others may refer, takes copies.
    is_empty = any(tensor.is_meta for tensor in state.values())
    network.load_state_dict(values, strict=True, assign=is_empty or dtype is not None)
    logger.info("%s", report)
    return report


def _missing(
    wanted: Mapping[str, object], shapes: Mapping[str, object], policy: LoadPolicy
) -> tuple[list[str], dict[str, int]]:
    """Problems, and the groups that may be missing and are."""
    complete = Counter(group_of(name) for name in wanted)
    absent: dict[str, list[str]] = {}
    for name in wanted:
        if name not in shapes:
            absent.setdefault(group_of(name), []).append(name)
    allowed = set(policy.may_miss)
    if "action" in allowed and len(absent.get("action", ())) == complete["action"]:
        allowed.add("action.attn3")  # it belongs to an expert that is new as a whole
    problems = []
    for group, names in absent.items():
        if group not in allowed:
            problems.append(f"missing {len(names)} of {complete[group]} tensors of {group}: {_few(names)}")
        elif len(names) != complete[group]:
            problems.append(f"group {group} is there only in part, {len(names)} tensors missing: {_few(names)}")
    return problems, {group: len(names) for group, names in absent.items()}


def _advice(names: Mapping[str, object], policy: LoadPolicy) -> str:
    seen = recognize(names)
    if seen is not None and PROFILES[seen] != policy:
        return (
            f"It looks like {seen!r} ({PROFILES[seen].holds}): if that is what is wanted, say so (train: "
            f"--initial.profile {seen}; verify weights: --profile {seen})."
        )
    return (
        "Use the configuration the weights were made with, or name a profile that allows what differs (train: "
        f"--initial.profile NAME; verify weights: --profile NAME; NAME among {', '.join(PROFILES)})."
    )


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tensors.shape(name) if isinstance(tensors, _ON_DISK) else tuple(tensors[name].shape)


def _dtype(tensors: Mapping[str, Tensor], name: str) -> str:
    """A tensor's type in safetensors' words, or torch's for a type that is no float we know."""
    if isinstance(tensors, _ON_DISK):
        return tensors.dtype(name)
    dtype = tensors[name].dtype
    return next((known for known, type in FLOATS.items() if type == dtype), str(dtype))


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown}, … ({len(names)} in all)"
