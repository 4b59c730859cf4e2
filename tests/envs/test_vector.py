from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from wamkit.envs.base import EpisodeRequest
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.vector import SimulatorVectorEnv
from wamkit.envs.workers import WorkerPool


@pytest.fixture(scope="module")
def pool(line_world: ModuleType) -> Iterator[WorkerPool]:
    with WorkerPool(line_world.LineFactory(), 2) as pool:
        yield pool


@pytest.fixture
def line(pool: WorkerPool) -> SimulatorVectorEnv:
    """Two hands on lines; never closed, since the tests share the pool."""
    return SimulatorVectorEnv(pool, ["line"])


FORWARD = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)


def test_an_ended_episode_waits_for_its_masked_reset(line: SimulatorVectorEnv) -> None:
    """Sub-environment 0 needs 5 steps and 1 needs 10; success is counted once."""
    assert isinstance(line, VectorEnv) and line.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    with pytest.raises(ValueError, match=r"\[0, 1\] ended or were never reset"):
        line.step(FORWARD)
    line.reset(seed=0)
    for step in range(5):
        observation, reward, terminated, truncated, info = line.step(FORWARD)
        assert terminated.tolist() == info["is_success"].tolist() == [step == 4, False] and not truncated.any()
    assert reward == pytest.approx([0.0, -0.1], abs=1e-6)
    with pytest.raises(ValueError, match=r"\[0\] ended"):
        line.step(FORWARD)
    observation, info = line.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_allclose(observation["agent_pos"][:, 0], [0.0, 0.1], atol=1e-6)
    assert not info["is_success"].any()
    successes = [line.step(FORWARD)[4]["is_success"].tolist() for _ in range(5)]
    assert successes == [[False, False]] * 4 + [[False, True]]


def test_the_action_space_has_the_simulators_bounds(line: SimulatorVectorEnv) -> None:
    assert line.single_action_space.low.tolist() == [-1.0, 0.0]
    assert line.action_space.high.tolist() == [[1.0, 1.0]] * 2


def test_the_default_episodes_follow_from_the_seed(line: SimulatorVectorEnv) -> None:
    line.reset(seed=5)
    assert [(request.layout, request.seed) for request in line._requests if request] == [(0, 5), (1, 6)]
    line.reset()
    assert [(request.layout, request.seed) for request in line._requests if request] == [(2, 5), (3, 6)]
    line.reset(seed=[8, 9])
    assert [(request.layout, request.seed) for request in line._requests if request] == [(0, 8), (1, 9)]


def test_the_step_limit_truncates(line: SimulatorVectorEnv, line_world: ModuleType) -> None:
    line.reset(seed=0)
    for _ in range(line_world.STEP_LIMIT):
        _, _, terminated, truncated, _ = line.step(-FORWARD)
    assert truncated.all() and not terminated.any()


def test_a_dead_worker_truncates_its_sub_environment(line: SimulatorVectorEnv) -> None:
    line.reset(seed=0)
    line.step(FORWARD)
    os.kill(line.pool.process_ids[0], signal.SIGKILL)
    observation, _, terminated, truncated, info = line.step(FORWARD)
    assert truncated.tolist() == [True, False] and not terminated.any()
    assert "SIGKILL" in info["error"][0] and info["error"][1] is None and info["_error"].tolist() == [True, False]
    np.testing.assert_allclose(observation["agent_pos"][:, 0], [0.02, 0.04], atol=1e-6)
    line.reset(options={"reset_mask": np.array([True, False])})
    assert "error" not in line.step(FORWARD)[4]


def line_request(task: str = "line", layout: int = 0) -> EpisodeRequest:
    return EpisodeRequest(task=task, layout=layout, layout_seed=0, seed=0)


def test_a_failed_reset_leaves_the_others_ready(line: SimulatorVectorEnv) -> None:
    line.reset(seed=0)
    line.step(FORWARD)
    with pytest.raises(RuntimeError, match=r"1 of 2 simulators failed.*sub-environment 1 .task circle.*unknown task"):
        line.reset(options={"requests": [line_request(layout=3), line_request("circle")]})
    assert line.needs_reset.tolist() == [False, True]
    assert [request.layout for request in line._requests if request] == [3, 1]
    with pytest.raises(ValueError, match=r"\[1\] ended or were never reset"):
        line.step(FORWARD)
    observation, _ = line.reset(options={"reset_mask": line.needs_reset})
    assert observation["agent_pos"].tolist() == [[0.0], [0.0]] and not line.needs_reset.any()
    line.step(FORWARD)


def test_a_failed_reset_does_not_use_up_a_layout(pool: WorkerPool) -> None:
    environment = SimulatorVectorEnv(pool, ["line", "circle"])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="unknown task 'circle'"):
            environment.reset()
    assert environment._rounds == [2, 0]


def test_an_unknown_task_is_refused_before_anything_is_reset(pool: WorkerPool) -> None:
    with pytest.raises(ValueError, match="unknown task 'lime'; did you mean 'line'"):
        SimulatorVectorEnv(pool, ["lime"], known_tasks=["line"])
    environment = SimulatorVectorEnv(pool, ["line"], known_tasks=["line"])
    environment.reset(seed=0)
    environment.step(FORWARD)
    with pytest.raises(ValueError, match="unknown task 'circle'"):
        environment.reset(options={"requests": [line_request(), line_request("circle")]})
    observation = environment.step(FORWARD)[0]
    np.testing.assert_allclose(observation["agent_pos"][:, 0], [0.04, 0.04], atol=1e-6)


def test_simulators_that_were_given_up_leave_no_other_busy(line_world: ModuleType, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with WorkerPool(line_world.LineFactory(fail_if_exists=str(broken)), 2) as pool:
        environment = SimulatorVectorEnv(pool, ["line"])
        broken.touch()
        os.kill(pool.process_ids[0], signal.SIGKILL)
        for _ in range(5):
            with pytest.raises(RuntimeError, match="1 of 2 simulators failed"):
                environment.reset(seed=0)
        assert pool.process_ids[0] == 0, "given up"
        assert environment.needs_reset.tolist() == [True, False]
        assert not pool.is_busy(1) and pool.call(1, "reset", line_request()).state.tolist() == [0.0]


def test_bad_arguments_are_refused(line: SimulatorVectorEnv) -> None:
    with pytest.raises(ValueError, match=r"unknown reset options \['mask'\]"):
        line.reset(options={"mask": [True, True]})
    with pytest.raises(ValueError, match="reset_mask of 2 entries"):
        line.reset(options={"reset_mask": np.array([True])})
    with pytest.raises(ValueError, match="expected 2 requests"):
        line.reset(options={"requests": []})
    with pytest.raises(RuntimeError, match="unknown task 'circle'"):
        line.reset(options={"requests": [EpisodeRequest(task="circle", layout=0, layout_seed=0, seed=0)] * 2})
    line.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), got shape \(2, 3\)"):
        line.step(np.zeros((2, 3), dtype=np.float32))


@pytest.mark.sim
def test_meta_world_as_a_gymnasium_vector_environment() -> None:
    """Driven by the package's demonstrator until the first of two robots has pressed its button."""
    environment = SimulatorVectorEnv(WorkerPool(MetaWorldFactory(), 2), ["coffee-button-v3", "drawer-open-v3"])
    try:
        observation, _ = environment.reset(seed=0)
        assert observation in environment.observation_space and observation["pixels"].keys() == {
            "corner2",
            "gripperPOV",
        }
        assert environment.robot == MetaWorldFactory().robot and environment.action_space.shape == (2, 4)
        assert environment.call("task") == ("coffee-button-v3", "drawer-open-v3")
        assert environment.call("task_description") == ("press the button on the coffee machine", "open the drawer")
        assert environment.get_attr("_max_episode_steps") == (500, 500)
        for _ in range(80):
            actions = np.stack(environment.call("demonstrate_action"))
            observation, reward, terminated, truncated, info = environment.step(actions)
            if terminated.any():
                break
        assert info["is_success"].tolist() == terminated.tolist() == [True, False] and not truncated.any()
        assert observation in environment.observation_space and (reward > 0).all()
        images = environment.render()
        np.testing.assert_array_equal(images[0], observation["pixels"]["corner2"][0])
    finally:
        environment.close()
    assert len(environment.pool) == 0
