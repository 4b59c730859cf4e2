"""Simulators as Ray actors: the same answers, deadlines and replacements as processes of our own."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest

from wamkit.envs.base import EpisodeRequest
from wamkit.envs.pool import SimulatorPool, WorkerError
from wamkit.envs.ray_pool import RayPool, require_ray
from wamkit.envs.workers import WorkerPool

REQUEST = EpisodeRequest(task="line", layout=1, layout_seed=0, seed=0)
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (wamkit[ray])")


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install wamkit\[ray\]"):
        require_ray()


@pytest.mark.slow
@needs_ray
def test_actors_answer_as_processes_do_and_are_replaced(line_world: ModuleType) -> None:
    actions = np.ones((3, 2), np.float32)
    with RayPool(line_world.LineFactory(trouble="nan_state", trouble_at=2), 3) as pool:
        assert isinstance(pool, SimulatorPool) and len(pool) == 3 and pool.robot == line_world.ROBOT
        with WorkerPool(line_world.LineFactory(), 1) as processes:
            chunks = [("run_chunk", actions), ("run_chunk", actions, True), ("run_chunk", actions, False, (1, 2))]
            for request in (("reset", REQUEST), *chunks):
                ours, theirs = pool.call(0, *request), processes.call(0, *request)
                assert repr(ours) == repr(theirs)
        assert pool.call(1, "environment", "OMP_NUM_THREADS") == "1"
        outcomes = pool.gather({0: ("crash",), 1: ("reset", REQUEST), 2: ("no_such_method",)})
        assert isinstance(outcomes[0], WorkerError) and outcomes[0].kind == "died"
        assert "worker 0 died while working" in str(outcomes[0])
        assert outcomes[1].sentence == "go to the goal"
        assert outcomes[2].kind == "raised" and outcomes[2].error_type == "AttributeError"
        assert pool.restarts == 1 and pool.call(0, "reset", REQUEST).sentence == "go to the goal"
        pool.deadline_s = 1.0
        assert pool.gather({1: ("sleep", 30.0)})[1].kind == "hung"
        pool.deadline_s = 60.0
        pool.call(2, "reset", EpisodeRequest(task="line", layout=2, layout_seed=0, seed=0))
        assert pool.gather({2: ("run_chunk", actions)})[2].kind == "broken" and pool.restarts == 3
        assert len(set(pool.process_ids)) == 3
        pool.submit(0, "sleep", 0.5)
        assert pool.wait(timeout=0.0) == [] and pool.is_busy(0)
        with pytest.raises(ValueError, match="worker 0 is busy"):
            pool.submit(0, "state")
        assert pool.wait() == [(0, 0.5)] and pool.wait() == []


@pytest.mark.slow
@needs_ray
def test_a_simulator_that_cannot_start_says_why(line_world: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="no licence"):
        RayPool(line_world.LineFactory(fail_at_start="no licence"), 1)
    with pytest.raises(ValueError, match="at least one worker"):
        RayPool(line_world.LineFactory(), 0)
