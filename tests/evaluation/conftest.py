"""One small evaluation in the real simulator, shared by the tests of this room."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.evaluation.closed_loop import evaluate
from wamkit.evaluation.protocol import get_protocol
from wamkit.evaluation.results import PolicyIdentity, Results

FACTORY = MetaWorldFactory(height=32, width=32)
PLANNER = {"name": "wav", "iterations": 2, "num_videos": 8, "num_values": 5}

Evaluate = Callable[..., Results]


@pytest.fixture(scope="session")
def run_evaluation(blind_presser: Any) -> Evaluate:
    """Evaluates the blind presser on some layouts of one task, with whatever is changed."""

    def run(out: Path, *, policy: Any = None, max_steps: int = 30, planner: Any = PLANNER, **changes: Any) -> Results:
        identity = PolicyIdentity(name="blind presser", fingerprint="0123abcd", planner=planner)
        arguments: dict[str, Any] = {"episodes": 4, "workers": 2, "record_episodes": 3, "identity": identity}
        return evaluate(
            policy or blind_presser(FACTORY.robot),
            get_protocol("metaworld/v1", max_steps=max_steps),
            FACTORY,
            tasks=["coffee-button-v3"],
            out=out,
            progress=False,
            **{**arguments, **changes},
        )

    return run


@pytest.fixture(scope="session")
def finished(run_evaluation: Evaluate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation; read it, do not change it."""
    folder = tmp_path_factory.mktemp("evaluations") / "planned"
    run_evaluation(folder)
    return folder


@pytest.fixture
def evaluated(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished evaluation, to change."""
    return Path(shutil.copytree(finished, tmp_path / "planned"))


@pytest.fixture(scope="session")
def line_world() -> Iterator[ModuleType]:
    """The simulator without physics, and the policies of these tests for it, importable in other processes too."""
    folders = [str(Path(__file__).parents[1] / "envs"), str(Path(__file__).parent)]
    sys.path[:0] = folders
    import line_world

    yield line_world
    for folder in folders:
        sys.path.remove(folder)
