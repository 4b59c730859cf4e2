"""What weights are, and whether a WAV can start from them, without building either."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.initial import empty_network
from wamkit.models.wav.layouts import open_weights
from wamkit.models.wav.load_policy import chosen_policy, group_of, recognize
from wamkit.models.wav.weights import LoadReport, check_fit
from wamkit.weight_findings import Findings, not_finite

_LISTED = 6


def check_initial(config: WAVConfig, path: Path, *, profile: str, may_resize: Sequence[str]) -> LoadReport:
    """What a load of initial weights would do; headers alone are read.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: an unknown profile or module, a damaged file, or weights that do not fit.
    """
    policy = chosen_policy(profile, may_resize)
    return check_fit(empty_network(config.network), open_weights(path), source=str(path), policy=policy)


def inspect_weights(
    config: WAVConfig, path: Path, *, profile: str | None = None, may_resize: Sequence[str] = (), read: bool = False
) -> Findings:
    """Hold weights against a configuration.

    Args:
        config: of the model.
        path: see `layouts.open_weights`.
        profile: what kind of weights they should be; `None` takes what their names look like.
        may_resize: modules whose tensors may differ in shape, beside those of the profile.
        read: also read every tensor and look for values that are not finite.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: a file is damaged or not weights, or an unknown profile or module.
    """
    tensors = open_weights(path)
    state = empty_network(config.network).state_dict()
    profile = profile or recognize(tensors) or "exact"
    holds = chosen_policy(profile, may_resize).holds
    report, problem = None, ""
    try:
        report = check_initial(config, path, profile=profile, may_resize=may_resize)
    except ValueError as error:
        problem = str(error)
    spoilt = not_finite(tensors) if read else []
    if spoilt:
        problem = "\n".join(filter(None, (problem, f"NaN or infinity in {len(spoilt)} tensors: {spoilt[:_LISTED]}")))
    return Findings(
        path=str(path),
        files=len(tensors.stored.files),
        layout="LTX-Video's original single file" if tensors.is_original else "the published checkpoints",
        groups=dict(Counter(map(group_of, tensors))),
        recognized=sum(name in state for name in tensors),
        parameters=sum(math.prod(tensors.shape(name)) for name in tensors),
        dtypes=dict(Counter(tensors.dtype(name) for name in tensors)),
        model=config.name,
        wanted=(len(state), sum(tensor.numel() for tensor in state.values())),
        profile=profile,
        holds=holds,
        report=report,
        is_read=read,
        problem=problem,
    )
