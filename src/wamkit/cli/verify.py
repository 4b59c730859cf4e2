"""Compare this library with recorded numbers: wamkit verify golden FILE.safetensors.

Evaluates every case of a golden file (weights, inputs, recorded draws) and prints the largest absolute error of every
recorded output. Exit status 0 only when all are within the tolerance that the file's JSON names.
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit verify`."""

    what: Annotated[Literal["golden"], tyro.conf.Positional, tyro.conf.arg(metavar="golden")]
    """What to compare with."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.safetensors")]
    """Golden tensors."""
    spec: Path | None = None
    """Settings of the cases; by default the JSON of the same name beside the file."""
    json: bool = False
    """Print the comparisons as JSON."""


def run(options: Options) -> int:
    """Evaluate; 1 when a tensor is out of tolerance."""
    from wamkit.verify import evaluate, read_cases

    comparisons = [item for case in read_cases(options.file, options.spec) for item in evaluate(case)]
    if options.json:
        print(jsonlib.dumps([dataclasses.asdict(item) for item in comparisons], indent=2))
    else:
        width = max(len(item.name) for item in comparisons)
        for item in comparisons:
            verdict = "ok" if item.passed else "OUT OF TOLERANCE"
            what = f"{item.error:.0f} elements differ" if item.is_index_set else f"{item.error:.2e}"
            print(f"{item.name:<{width}}  {what:>22}  {verdict}")
    failed = [item.name for item in comparisons if not item.passed]
    if not options.json:
        print(f"{len(comparisons) - len(failed)} of {len(comparisons)} tensors within tolerance")
    return 1 if failed else 0
