from __future__ import annotations

from typing import Any

import pytest

from wamkit.envs.aloha import AlohaFactory
from wamkit.envs.libero import LiberoFactory
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.metaworld_tasks import GOAL_SITES, TASKS, task_info, task_sentences
from wamkit.envs.mujoco_simulator import MujocoFactory


def test_there_are_fifty_tasks_with_sentences_of_their_own() -> None:
    sentences = [info.sentence for info in TASKS.values()]
    assert len(TASKS) == 50 == len(set(sentences)) and list(task_sentences()) == list(TASKS)
    assert task_info("drawer-open-v3").sentence == "open the drawer"
    for sentence in sentences:
        assert sentence == sentence.strip().lower() and len(sentence.split()) >= 3 and sentence[-1].isalpha()


def test_a_marker_is_shown_where_the_sentence_speaks_of_it_and_nowhere_else() -> None:
    for task, info in TASKS.items():
        assert bool(info.shown) == ("marker" in info.sentence), task
        assert set(info.shown) <= GOAL_SITES, task


@pytest.mark.sim
def test_tasks_and_cameras_are_the_packages() -> None:
    from wamkit.envs.gl import choose_backend

    choose_backend()
    import metaworld
    from metaworld.policies import ENV_POLICY_MAP

    assert set(TASKS) == set(metaworld.ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    model = metaworld.ALL_V3_ENVIRONMENTS["reach-v3"]().model
    assert tuple(model.camera(index).name for index in range(model.ncam)) == MetaWorldFactory.known_cameras


def test_a_misspelt_task_is_guessed_and_all_are_listed() -> None:
    with pytest.raises(ValueError, match="did you mean 'drawer-open-v3'") as error:
        task_info("draw-open-v3")
    assert all(task in str(error.value) for task in TASKS)
    with pytest.raises(ValueError, match="unknown Meta-World task 'xyzzy'; choose among"):
        task_info("xyzzy")


@pytest.mark.parametrize("factory", [MetaWorldFactory, AlohaFactory, LiberoFactory])
def test_cameras_and_sizes_are_checked_before_anything_starts(factory: type[MujocoFactory]) -> None:
    known = factory.known_cameras
    assert factory(cameras=known).robot.camera_names == known
    misspelt = known[0][:-1] + known[0][-1].swapcase()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cameras": (misspelt,)}, f"{factory.suite} camera .*did you mean {known[0]!r}"),
        ({"cameras": (known[0], known[0])}, "distinct cameras"),
        ({"cameras": ()}, "at least one"),
        ({"height": 0}, "positive image size, got 0x"),
        ({"rendering": "pretty"}, "expected rendering to be one of .*got 'pretty'"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            factory(**settings)
