"""What a family says of weights that it looked at: what they are, and whether one of its models can start from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Report(Protocol):
    """What a load would do, in a family's own terms."""

    def told(self, done: str) -> str:
        """The report in words; `done` is what was done with the tensors, for instance `loaded`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What weights are.

    Args:
        path: where they lie.
        files: how many files.
        layout: whose names they use.
        groups: number of tensors by group.
        recognized: number of tensors whose names the model has too.
        parameters: number of values.
        dtypes: number of tensors by type.
        model: name of the model they were held against.
        wanted: tensors and parameters of that model.
        profile: under which they were held against it.
        holds: what sources of this profile are, in words.
        report: what a load would do, or `None` when they do not fit.
        is_read: whether the tensors' contents were read, and not their headers alone.
        problem: why they do not fit, or that values are not finite.
    """

    path: str
    files: int
    layout: str
    groups: dict[str, int]
    recognized: int
    parameters: int
    dtypes: dict[str, int]
    model: str
    wanted: tuple[int, int]
    profile: str
    holds: str
    report: Report | None
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
            f"{self.profile} ({self.holds})",
        ]
        done = "found and read" if self.is_read else "found by their headers; their contents are read with --read"
        lines += [self.report.told(done)] if self.report is not None else []
        return "\n".join([*lines, self.problem or "fits"])


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; each is read."""
    return [name for name in tensors if not torch.isfinite(tensors[name].float()).all()]


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")
