"""Say what weights are, and whether a model of a family can start from them, without building either."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wamkit.checkpoint import read_policy
from wamkit.model_config import ModelConfig
from wamkit.models import FAMILIES, family_module
from wamkit.typed import COPY_AGAIN, blame
from wamkit.weight_findings import Findings


def inspect_weights(
    path: Path,
    model: str | Path | None = None,
    *,
    family: str | None = None,
    profile: str | None = None,
    may_resize: Sequence[str] = (),
    read: bool = False,
) -> Findings:
    """Hold weights against a model.

    Args:
        path: in any layout that the families read.
        model: a size of the family, or a policy folder, whose own family it is then; `None` is the model of the policy
            that the weights are of or, where they are none's, the family's first size, the published one.
        family: whose sizes are meant; `None` is the one that has most of the weights' names.
        profile: what kind of weights they should be; `None` takes what their names look like.
        may_resize: modules whose tensors may differ in shape, beside those of the profile.
        read: also read every tensor and look for values that are not finite.

    Raises:
        FileNotFoundError: nothing at `path`, or no whole policy folder at `model`.
        ValueError: an unknown family, size, profile or module, a file that is damaged or not weights, or names that no
            family has.
    """
    if model is None and family is None and (path / "spec.json").is_file():
        model = path
    asked: dict[str, Any] = {"profile": profile, "may_resize": may_resize, "read": read}
    config: ModelConfig
    if model is not None and not _sizes_named(str(model), family):
        if not Path(model).exists():
            known = "; ".join(f"{name}: {', '.join(_sizes(name))}" for name in _among(family))
            raise ValueError(
                f"expected a size ({known}) or a policy folder, got {str(model)!r}; choose one of these sizes, or "
                "correct the path"
            )
        files = read_policy(model)
        with blame(files.folder / "config.json", COPY_AGAIN):
            config = family_module(files.family).FAMILY.read_config(files.config)
        found: Findings = family_module(config.family).FAMILY.inspect(config, path, **asked)
        return dataclasses.replace(found, model=str(model))
    configs = _sizes_named(None if model is None else str(model), family)
    chosen = next(iter(configs))
    if len(configs) > 1:
        seen = {name: family_module(name).FAMILY.inspect(config, path).recognized for name, config in configs.items()}
        chosen = max(seen, key=seen.__getitem__)
        if not seen[chosen]:
            raise ValueError(
                f"{path}: expected weights of a family ({', '.join(seen)}), none of its tensors has a name that one of "
                "them knows; name the family (--family) to see what is missing"
            )
    found = family_module(chosen).FAMILY.inspect(configs[chosen], path, **asked)
    return found


def _among(family: str | None) -> list[str]:
    return list(FAMILIES) if family is None else [family]


def _sizes(family: str) -> Mapping[str, Callable[[], ModelConfig]]:
    sizes: Mapping[str, Callable[[], ModelConfig]] = family_module(family).FAMILY.SIZES
    return sizes


def _sizes_named(name: str | None, family: str | None) -> dict[str, ModelConfig]:
    """By family, the configuration of the size; of the first one for `None`."""
    return {
        each: _sizes(each)[name or next(iter(_sizes(each)))]()
        for each in _among(family)
        if name is None or name in _sizes(each)
    }
