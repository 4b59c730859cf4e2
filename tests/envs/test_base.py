from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from wamkit.envs.base import (
    CameraMatrices,
    DemonstrationOptions,
    EpisodeRequest,
    Simulator,
    demonstrate,
    reset,
    run_chunk,
)

REQUEST = EpisodeRequest(task="line", layout=1, layout_seed=0, seed=3)
FORWARD = np.array([[1.0, 0.0]], dtype=np.float32)


def test_a_chunk_stops_at_success_and_renders_its_last_moment(line_world: ModuleType) -> None:
    simulator = line_world.LineSimulator()
    assert isinstance(simulator, Simulator)
    first = reset(simulator, REQUEST)
    assert first.state == pytest.approx([0.0]) and first.sentence == "go to the goal"
    outcome = run_chunk(simulator, FORWARD.repeat(20, axis=0))
    assert outcome.executed == 10 and outcome.terminated and not outcome.truncated
    assert outcome.success.tolist() == [False] * 9 + [True]
    assert outcome.rewards.shape == (10,) and outcome.recorded is None
    assert outcome.frame.state == pytest.approx([0.2])
    np.testing.assert_array_equal(outcome.frame.video["front"], simulator.render()["front"])


def test_a_recorded_chunk_holds_the_moment_after_each_action(line_world: ModuleType) -> None:
    simulator = line_world.LineSimulator()
    reset(simulator, REQUEST)
    outcome = run_chunk(simulator, FORWARD.repeat(4, axis=0), record=True)
    assert outcome.recorded is not None and not outcome.terminated
    np.testing.assert_allclose(outcome.recorded.state[:, 0], [0.02, 0.04, 0.06, 0.08], rtol=1e-6)
    assert outcome.recorded.video["front"].shape == (4, 4, 6, 3)
    np.testing.assert_array_equal(outcome.recorded.video["front"][-1], outcome.frame.video["front"])


@pytest.mark.parametrize("record", [False, True])
def test_a_chunk_tells_of_moments_before_its_last(line_world: ModuleType, record: bool) -> None:
    simulator = line_world.LineSimulator()
    reset(simulator, REQUEST)
    outcome = run_chunk(simulator, FORWARD.repeat(6, axis=0), record, (2, 5))
    assert [executed for _, executed in outcome.before] == [2, 3] and outcome.executed_after == 1
    assert [frame.state for frame, _ in outcome.before] == [pytest.approx([0.04]), pytest.approx([0.1])]
    assert outcome.frame.state == pytest.approx([0.12])
    assert all(frame.video["front"].shape == (4, 6, 3) for frame, _ in outcome.before)
    assert run_chunk(simulator, FORWARD, record).before == ()
    over = run_chunk(simulator, FORWARD.repeat(6, axis=0), record, (2, 5))
    assert over.terminated and over.executed == over.executed_after == 3 and over.before == ()


@pytest.mark.parametrize("tell", [(0,), (6,), (3, 2), (2, 2)])
def test_moments_that_are_not_in_a_chunk_are_refused(line_world: ModuleType, tell: tuple[int, ...]) -> None:
    simulator = line_world.LineSimulator()
    reset(simulator, REQUEST)
    with pytest.raises(ValueError, match="after 1 to 5 of the 6 actions, ascending, got"):
        run_chunk(simulator, FORWARD.repeat(6, axis=0), False, tell)
    assert simulator.steps == 0


def test_a_chunk_renders_only_what_is_asked_for(line_world: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator, rendered = line_world.LineSimulator(), []
    reset(simulator, REQUEST)
    plain = line_world.LineSimulator.render
    monkeypatch.setattr(line_world.LineSimulator, "render", lambda self: rendered.append(self.steps) or plain(self))
    run_chunk(simulator, FORWARD.repeat(5, axis=0))
    run_chunk(simulator, -FORWARD.repeat(5, axis=0), False, (4,))
    assert rendered == [5, 9, 10]


def test_a_chunk_stops_at_the_step_limit(line_world: ModuleType) -> None:
    simulator = line_world.LineSimulator()
    reset(simulator, REQUEST)
    outcome = run_chunk(simulator, -FORWARD.repeat(50, axis=0))
    assert outcome.executed == line_world.STEP_LIMIT and outcome.truncated and not outcome.terminated


@pytest.mark.parametrize("shape", [(0, 2), (2,)])
def test_a_chunk_without_actions_is_refused(line_world: ModuleType, shape: tuple[int, ...]) -> None:
    simulator = line_world.LineSimulator()
    reset(simulator, REQUEST)
    with pytest.raises((ValueError, TypeError)):
        run_chunk(simulator, np.zeros(shape, dtype=np.float32))


def test_a_demonstration_pairs_each_observation_with_the_action_taken_there(line_world: ModuleType) -> None:
    episode = demonstrate(line_world.LineSimulator(), REQUEST, DemonstrationOptions(settle_steps=3))
    assert len(episode) == 13 and episode.success.tolist() == [False] * 9 + [True] * 4
    np.testing.assert_allclose(episode.state[:10, 0], 0.02 * np.arange(10), rtol=1e-5)
    np.testing.assert_allclose(episode.actions[:10], np.ones((10, 2)), rtol=1e-4)
    assert episode.metadata["task_id"] == "line" and episode.metadata["record_actions"] == "clean"
    assert episode.video["front"].shape == (13, 4, 6, 3)


def test_noise_comes_from_the_seed_and_leaves_the_gripper_alone(line_world: ModuleType) -> None:
    def run(seed: int, record_actions: str) -> np.ndarray:
        request = EpisodeRequest(task="line", layout=1, layout_seed=0, seed=seed)
        options = DemonstrationOptions(noise_std=0.2, record_actions=record_actions, record_video=False)
        return demonstrate(line_world.LineSimulator(), request, options).actions

    noisy = run(3, "executed")
    np.testing.assert_array_equal(noisy, run(3, "executed"))
    assert not np.array_equal(noisy[:5], run(4, "executed")[:5])
    assert (noisy[:, 1] == 1.0).all() and noisy[:5, 0].std() > 0.02 and np.abs(noisy).max() <= 1.0


@pytest.mark.parametrize("reach", [0.9, 3.0])
def test_noise_stays_within_the_simulators_bounds(line_world: ModuleType, reach: float) -> None:
    options = DemonstrationOptions(noise_std=0.5, record_actions="executed", record_video=False)
    actions = demonstrate(line_world.LineSimulator(reach=reach), REQUEST, options).actions[:, 0]
    assert np.abs(actions).max() <= np.float32(reach) and (np.abs(actions) > 1).any() == (reach > 1)


def test_clean_labels_belong_to_the_disturbed_states(line_world: ModuleType) -> None:
    options = DemonstrationOptions(noise_std=0.4, record_actions="clean")
    episode = demonstrate(line_world.LineSimulator(), REQUEST, options)
    wanted = np.clip((0.2 - episode.state[:, 0]) / 0.02, -1.0, 1.0)
    np.testing.assert_allclose(episode.actions[:, 0], wanted, atol=1e-4)
    moved = np.diff(episode.state[:, 0]) / 0.02
    assert np.abs(moved - episode.actions[:-1, 0]).max() > 0.1, "the executed actions were not disturbed"


def test_an_unsolved_demonstration_gives_up_and_says_so(line_world: ModuleType) -> None:
    episode = demonstrate(line_world.LineSimulator(), REQUEST, DemonstrationOptions(max_steps=5))
    assert len(episode) == 5 and not episode.is_success


@pytest.mark.parametrize(
    "options", [{"noise_std": -0.1}, {"max_steps": 0}, {"settle_steps": -1}, {"record_actions": "dirty"}]
)
def test_bad_demonstration_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"expected|DemonstrationOptions"):
        DemonstrationOptions(**options)


def test_a_request_is_not_negative() -> None:
    with pytest.raises(ValueError, match="layout >= 0, got -1"):
        EpisodeRequest(task="line", layout=-1, layout_seed=0, seed=0)


def test_projection_of_a_camera_one_metre_above_the_origin_looking_down() -> None:
    pose = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 1], [0, 0, 0, 1]])
    camera = CameraMatrices(intrinsics=np.array([[50.0, 0, 31.5], [0, 50, 31.5], [0, 0, 1]]), pose=pose)
    pixels = camera.project(np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.5]]))
    np.testing.assert_allclose(pixels, [[31.5, 31.5, 1], [36.5, 31.5, 1], [31.5, 26.5, 1], [31.5, 31.5, 0.5]])
