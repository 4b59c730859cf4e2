"""Say what weights are, and whether a model of a family can start from them, without building either."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from wamkit.checkpoint import read_policy
from wamkit.model_config import ModelConfig
from wamkit.models import family_module
from wamkit.typed import COPY_AGAIN, blame
from wamkit.weight_findings import Findings


def inspect_weights(
    path: Path,
    model: str | Path | None = None,
    *,
    family: str = "wav",
    profile: str | None = None,
    may_resize: Sequence[str] = (),
    read: bool = False,
) -> Findings:
    """Hold weights against a model.

    Args:
        path: in any layout that the family reads.
        model: a size of the family, or a policy folder, whose own family it is then; `None` is the family's first size,
            the published one.
        family: whose sizes are meant.
        profile: what kind of weights they should be; `None` takes what their names look like.
        may_resize: modules whose tensors may differ in shape, beside those of the profile.
        read: also read every tensor and look for values that are not finite.

    Raises:
        FileNotFoundError: nothing at `path`, or no whole policy folder at `model`.
        ValueError: an unknown family, size, profile or module, or a file that is damaged or not weights.
    """
    sizes = family_module(family).FAMILY.SIZES
    name = next(iter(sizes)) if model is None else str(model)
    config: ModelConfig
    if name in sizes:
        config = sizes[name]()
    elif not Path(name).exists():
        raise ValueError(
            f"expected a size of family {family!r} ({', '.join(sizes)}) or a policy folder, got {name!r}; choose one "
            "of these sizes, or correct the path"
        )
    else:
        files = read_policy(name)
        with blame(files.folder / "config.json", COPY_AGAIN):
            config = family_module(files.family).FAMILY.read_config(files.config)
    found: Findings = family_module(config.family).FAMILY.inspect(
        config, path, profile=profile, may_resize=may_resize, read=read
    )
    return found if name in sizes else dataclasses.replace(found, model=name)
