"""LIBERO's real scenes, whose assets are a download that no test brings along."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from wamkit.envs.base import DemonstrationOptions, EpisodeRequest, demonstrate, reset, run_chunk
from wamkit.envs.libero import NO_OP, STORED, LiberoFactory, LiberoSimulator
from wamkit.envs.libero_assets import find_files
from wamkit.envs.libero_tasks import task_ids


@pytest.fixture(scope="module")
def simulator() -> Iterator[LiberoSimulator]:
    try:
        find_files()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        pytest.skip(f"needs LIBERO and its scene assets, a download of 200 MB: {error}")
    made = LiberoFactory(height=64, width=64)()
    yield made
    made.close()


pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_scenes_reset_step_and_render(simulator: LiberoSimulator, suite: str) -> None:
    task = task_ids(suite)[4]
    frame = reset(simulator, EpisodeRequest(task=task, layout=7, layout_seed=STORED, seed=0))
    outcome = run_chunk(simulator, np.array([[0, 0, -1, 0, 0, 0, -1]] * 3, dtype=np.float32))
    assert outcome.executed == 3 and not outcome.success.any()
    assert all(image.std() > 10 for image in frame.video.values())
    assert (outcome.frame.video["agentview"] != frame.video["agentview"]).any()


@pytest.mark.parametrize("task", ["libero_spatial/7", "libero_goal/7"])
def test_things_on_and_of_fixtures_are_where_the_fixture_is(simulator: LiberoSimulator, task: str) -> None:
    """A fixture moves at each draw; what stands on it must not be placed where it stood before."""
    for layout in (0, 1):
        simulator.reset(EpisodeRequest(task=task, layout=layout, layout_seed=42, seed=0))
        data = simulator._current().data
        bowl, cook = data.body("akita_black_bowl_1_main").xpos, data.site("flat_stove_1_cook_region").xpos
        assert bowl[2] > 0.85, "the bowl must not have fallen off the table"
        if task == "libero_spatial/7":
            assert np.linalg.norm(bowl[:2] - cook[:2]) < 0.08


def test_a_drawer_is_opened(simulator: LiberoSimulator) -> None:
    request = EpisodeRequest(task="libero_goal/0", layout=0, layout_seed=42, seed=0)
    assert demonstrate(simulator, request, DemonstrationOptions(max_steps=150, record_video=False)).is_success


def test_a_task_without_a_script_says_so(simulator: LiberoSimulator) -> None:
    simulator.reset(EpisodeRequest(task="libero_10/3", layout=0, layout_seed=42, seed=0))
    simulator.step(np.array(NO_OP, dtype=np.float32))
    with pytest.raises(ValueError, match=r"no scripted demonstrator for .*close white_cabinet_1_bottom_region"):
        simulator.demonstrate_action()
