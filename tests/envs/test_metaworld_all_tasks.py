"""Every task of the suite once, in the real simulator: it resets, is drawn, moves, and its goal markers are ours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from wamkit.envs.base import EpisodeRequest
from wamkit.envs.metaworld import MetaWorldFactory, MetaWorldSimulator
from wamkit.envs.metaworld_tasks import GOAL_SITES, TASKS, task_info

pytestmark = [
    pytest.mark.sim,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Constant.s. may be too high"),  # the demonstrators saturate by design
]


@pytest.fixture(scope="module")
def simulator() -> Iterator[MetaWorldSimulator]:
    """One camera at 32 px."""
    simulator = MetaWorldFactory(cameras=("corner2",), height=32, width=32)()
    yield simulator
    simulator.close()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_and_shows_the_markers_of_the_table(simulator: MetaWorldSimulator, task: str) -> None:
    simulator.reset(EpisodeRequest(task=task, layout=7, layout_seed=42, seed=0))
    assert simulator.sentence == task_info(task).sentence
    first = simulator.render()["corner2"]
    assert first.shape == (32, 32, 3) and first.std() > 5, "a picture, not one colour"
    start = simulator.state()
    for _ in range(3):
        action = simulator.demonstrate_action()
        assert action.shape == (4,) and np.isfinite(action).all() and np.abs(action).max() <= 1.0
        outcome = simulator.step(action)
        assert np.isfinite(outcome.reward) and not outcome.truncated
    assert np.isfinite(simulator.state()).all() and not np.array_equal(simulator.state(), start)

    model = simulator._current().env.model
    opacity = {model.site(index).name: float(model.site_rgba[index, 3]) for index in range(model.nsite)}
    shown = set(task_info(task).shown)
    assert shown <= GOAL_SITES & opacity.keys(), "what the table shows must be in the scene"
    for name in GOAL_SITES & opacity.keys():
        assert (opacity[name] > 0.0) == (name in shown), f"site {name} has opacity {opacity[name]}"
