"""Which software made a result."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

import wamkit

SIMULATORS = ("metaworld", "mujoco", "robosuite", "hf-libero", "gym-aloha", "dm-control")
"""Packages that decide what a simulated robot sees and feels."""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of the named packages that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def software_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, wamkit and those of the named packages that are installed."""
    return {"python": platform.python_version(), "wamkit": wamkit.__version__, **installed_versions(packages)}
