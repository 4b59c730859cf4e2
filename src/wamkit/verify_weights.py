"""Say what weights are, and whether a model can start from them, without building either."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from wamkit.checkpoint import read_policy
from wamkit.models.wav import config as sizes
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.initial import empty_network
from wamkit.models.wav.layouts import OfficialNames, open_weights
from wamkit.models.wav.load_policy import PROFILES, Profile, group_of, recognize
from wamkit.models.wav.weights import LoadReport, check_fit
from wamkit.typed import COPY_AGAIN, blame

SIZES = {"libero": sizes.libero, "dualarm": sizes.dualarm, "small": sizes.small, "tiny": sizes.tiny}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What weights are.

    Args:
        path: where they lie.
        files: how many files.
        layout: whose names they use.
        groups: number of tensors by group.
        parameters: number of values.
        dtypes: number of tensors by type.
        model: name of the model they were held against.
        wanted: tensors and parameters of that model.
        profile: under which they were held against it.
        report: what a load would do, or `None` when they do not fit.
        is_read: whether the tensors' contents were read, and not their headers alone.
        problem: why they do not fit, or that values are not finite.
    """

    path: str
    files: int
    layout: str
    groups: dict[str, int]
    parameters: int
    dtypes: dict[str, int]
    model: str
    wanted: tuple[int, int]
    profile: Profile
    report: LoadReport | None
    is_read: bool
    problem: str = ""

    @property
    def fits(self) -> bool:
        """Whether the model can start from them."""
        return not self.problem

    def __str__(self) -> str:
        held = ", ".join(f"{group} {count}" for group, count in self.groups.items())
        types = ", ".join(f"{dtype} {count}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.path}: {sum(self.groups.values())} tensors, {_grouped(self.parameters)} parameters in {self.files} "
            f"{'file' if self.files == 1 else 'files'}",
            f"  names of {self.layout}; {held}; {types}",
            f"held against {self.model} ({self.wanted[0]} tensors, {_grouped(self.wanted[1])} parameters) as "
            f"{self.profile} ({PROFILES[self.profile].holds})",
        ]
        done = "found and read" if self.is_read else "found by their headers; their contents are read with --read"
        lines += [self.report.told(done)] if self.report is not None else []
        return "\n".join([*lines, self.problem or "fits"])


def inspect_weights(
    path: Path,
    model: str | Path,
    *,
    profile: Profile | None = None,
    may_resize: Sequence[str] = (),
    read: bool = False,
) -> Findings:
    """Hold weights against a model.

    Args:
        path: see `layouts.open_weights`.
        model: a name in `SIZES`, or a policy folder.
        profile: what kind of weights they should be; `None` takes what their names look like.
        may_resize: modules whose tensors may differ in shape, beside those of the profile.
        read: also read every tensor and look for values that are not finite.

    Raises:
        FileNotFoundError: nothing at `path`, or no policy folder at `model`.
        ValueError: a file is damaged, or not weights.
    """
    tensors = open_weights(path)
    config = _config(model)
    network = empty_network(config.network)
    profile = profile or recognize(tensors) or "exact"
    state = network.state_dict()
    report, problem = None, ""
    try:
        policy = PROFILES[profile].allowing(may_resize)
        report = check_fit(network, tensors, source=str(path), policy=policy)
    except ValueError as error:
        problem = str(error)
    spoilt = _not_finite(tensors) if read else []
    if spoilt:
        problem = "\n".join(filter(None, (problem, f"NaN or infinity in {len(spoilt)} tensors: {spoilt[:6]}")))
    return Findings(
        path=str(path),
        files=len(tensors.stored.files),
        layout="LTX-Video's original single file" if tensors.is_original else "the published checkpoints",
        groups=dict(Counter(map(group_of, tensors))),
        parameters=sum(math.prod(tensors.shape(name)) for name in tensors),
        dtypes=dict(Counter(tensors.dtype(name) for name in tensors)),
        model=config.name if isinstance(model, str) else str(model),
        wanted=(len(state), sum(tensor.numel() for tensor in state.values())),
        profile=profile,
        report=report,
        is_read=read,
        problem=problem,
    )


def _config(model: str | Path) -> WAVConfig:
    if str(model) in SIZES:
        return SIZES[str(model)]()
    files = read_policy(model)
    if files.family != "wav":
        raise ValueError(f"{model}: expected a policy of the family 'wav', got {files.family!r}")
    with blame(files.folder / "config.json", COPY_AGAIN):
        return WAVConfig.from_dict(files.config)


def _not_finite(tensors: OfficialNames) -> list[str]:
    return [name for name in tensors if not torch.isfinite(tensors[name].float()).all()]


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")
