"""The table of model families; a family's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

FAMILIES: dict[str, str] = {
    "wav": "wamkit.models.wav.family",
}


def family_module(name: str) -> ModuleType:
    """The module of a family; its `FAMILY` is the family's class, with verbs `create`, `fit_codecs`,
    `read_config` and `load`.

    Raises:
        ValueError: unknown family.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown model family {name!r}; known families are {sorted(FAMILIES)}")
    return import_module(FAMILIES[name])
