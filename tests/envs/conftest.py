"""The path on which worker processes find the simulator of these tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def line_world() -> Iterator[ModuleType]:
    """The module of the tests' own small simulator, importable in worker processes too (they inherit `sys.path`)."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    import line_world

    yield line_world
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def libero_pack() -> Iterator[ModuleType]:
    """The module that makes scene assets for LIBERO."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    import libero_pack

    yield libero_pack
    sys.path.remove(folder)
