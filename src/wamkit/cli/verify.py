"""Check this library against recorded numbers, and weights against a model."""

from __future__ import annotations

import dataclasses
import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Evaluate every case of a golden file (weights, inputs, recorded draws) and print each output's largest error.

    Exit status 0 only when all are within the tolerance that the file's JSON names.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.safetensors")]
    """Golden tensors."""
    spec: Path | None = None
    """Settings of the cases; by default the JSON of the same name beside the file."""
    json: bool = False
    """Print the comparisons as JSON."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Say what weights are, and whether a model can start from them; exit status 1 when it cannot.

    Nothing of the model is built; of the weights only headers are read, unless --read.
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A safetensors file, an index of shards, or a folder with either."""
    family: str | None = None
    """Family of models whose sizes are meant; by default the one that has most of the weights' names."""
    model: str | None = None
    """Size of the family, or a policy folder, which says its own family; by default the policy that the weights are of,
    or else the published size."""
    profile: str | None = None
    """What kind of weights they should be, by the family's names; by default what they look like."""
    may_resize: tuple[str, ...] = ()
    """Modules of other shapes that would start fresh, beside those of the profile."""
    read: bool = False
    """Also read every tensor and look for NaN and infinity."""
    json: bool = False
    """Print the findings as JSON."""


Options = Annotated[Golden, tyro.conf.subcommand("golden")] | Annotated[Weights, tyro.conf.subcommand("weights")]


def run(options: Golden | Weights) -> int:
    """Run the chosen sub-command."""
    return _golden(options) if isinstance(options, Golden) else _weights(options)


def _golden(options: Golden) -> int:
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


def _weights(options: Weights) -> int:
    from wamkit.verify_weights import inspect_weights

    found = inspect_weights(
        options.path,
        options.model,
        family=options.family,
        profile=options.profile,
        may_resize=options.may_resize,
        read=options.read,
    )
    if options.json:
        print(jsonlib.dumps(dataclasses.asdict(found), indent=2, default=str))
    else:
        print(found)
    return 0 if found.fits else 1
