"""Simulators behind one interface; importing this room loads no simulator.

`SUITES` is the table of suites; a suite's module is imported when its factory is asked for.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
from collections.abc import Sequence
from typing import Any

SUITES: dict[str, str] = {
    "aloha": "wamkit.envs.aloha:AlohaFactory",
    "libero": "wamkit.envs.libero:LiberoFactory",
    "metaworld": "wamkit.envs.metaworld:MetaWorldFactory",
}
_TASKS: dict[str, str] = {
    "aloha": "wamkit.envs.aloha_tasks:task_sentences",
    "libero": "wamkit.envs.libero_tasks:task_sentences",
    "metaworld": "wamkit.envs.metaworld_tasks:task_sentences",
}
_UNSCRIPTED: dict[str, str] = {"libero": "wamkit.envs.libero_demonstrator:unscripted_tasks"}


def suite_factory(name: str) -> Any:
    """The factory class of a suite; calling it with options gives a picklable factory of simulators.

    Raises:
        ValueError: no such suite.
    """
    return _load(SUITES, name)


def suite_tasks(name: str) -> tuple[str, ...]:
    """The task ids of a suite, without loading its simulator.

    Raises:
        ValueError: no such suite.
    """
    return tuple(suite_sentences(name))


def suite_sentences(name: str) -> dict[str, str]:
    """The sentence of each task id of a suite, without loading its simulator.

    Raises:
        ValueError: no such suite.
    """
    sentences: dict[str, str] = _load(_TASKS, name)()
    return sentences


def match_tasks(names: Sequence[str], known: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Tasks by id or by shell-style pattern such as `libero_object/*`, each once, and the names that fit none.

    Args:
        names: ids and patterns; the tasks that a pattern fits come in the order of `known`.
        known: all ids.
    """
    chosen = {name: [name] if name in known else fnmatch.filter(known, name) for name in names}
    unknown = [name for name, found in chosen.items() if not found]
    return tuple(dict.fromkeys(task for found in chosen.values() for task in found)), unknown


def require_demonstrator(suite: str, tasks: Sequence[str]) -> None:
    """Refuse tasks that no scripted demonstrator can do; most suites have one for every task.

    Raises:
        ValueError: naming the tasks and what is lacking.
        ModuleNotFoundError: the suite's package is not installed.
        FileNotFoundError: its files are missing.
    """
    if suite in _UNSCRIPTED:
        missing: dict[str, str] = _load(_UNSCRIPTED, suite)(tasks)
        if missing:
            listed = "; ".join(f"{task} (no script for: {lacking})" for task, lacking in missing.items())
            raise ValueError(f"expected tasks with a scripted demonstrator, got {listed}; leave them out")


def choices_error(what: str, got: str, choices: Sequence[str]) -> ValueError:
    """A `ValueError` for a name that does not exist, with a guess at what was meant and all choices."""
    close = difflib.get_close_matches(got, choices, n=1, cutoff=0.5)
    guess = f" did you mean {close[0]!r}?" if close else ""
    return ValueError(f"unknown {what} {got!r};{guess} choose among: {', '.join(choices)}")


def _load(table: dict[str, str], name: str) -> Any:
    if name not in table:
        raise choices_error("suite", name, tuple(table))
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
