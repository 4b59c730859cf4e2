from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from wamkit.envs.base import DemonstrationOptions, EpisodeRequest, Simulator, demonstrate, reset, run_chunk
from wamkit.envs.metaworld import STEP_LIMIT, MetaWorldFactory, MetaWorldSimulator, draw_layouts
from wamkit.spec import RobotSpec

pytestmark = pytest.mark.sim
CAMERAS = ("corner2", "gripperPOV")


def request_for(task: str, layout: int = 0, layout_seed: int = 42, seed: int = 0) -> EpisodeRequest:
    return EpisodeRequest(task=task, layout=layout, layout_seed=layout_seed, seed=seed)


DRAWER = request_for("drawer-open-v3", layout=3)


@pytest.fixture(scope="module")
def small() -> Iterator[MetaWorldSimulator]:
    """The default simulator: two cameras at 64 px."""
    simulator = MetaWorldFactory()()
    yield simulator
    simulator.close()


def demonstrate_for(simulator: MetaWorldSimulator, steps: int) -> None:
    for _ in range(steps):
        simulator.step(simulator.demonstrate_action())


def test_a_frame_is_two_upright_images_four_numbers_and_a_sentence(small: MetaWorldSimulator) -> None:
    frame = reset(small, DRAWER)
    assert isinstance(small, Simulator) and tuple(frame.video) == CAMERAS == small.robot.camera_names
    assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in frame.video.values())
    assert frame.sentence == "open the drawer"
    data = small._current().env.data
    np.testing.assert_allclose(frame.state[:3], data.body("hand").xpos, atol=2e-3)
    fingers = np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos) / 0.1
    assert frame.state.shape == (4,) and frame.state[3] == pytest.approx(min(1.0, fingers), abs=0.05)
    down = small.camera_matrices()["corner2"].pose[:3, 1]
    assert down[2] < -0.8, "the picture's downward direction must point down in the world"


def test_the_spec_says_what_numbers_and_pixels_mean(small: MetaWorldSimulator) -> None:
    robot = small.robot
    assert [channel.name for channel in robot.state] == ["hand_x", "hand_y", "hand_z", "gripper_opening"]
    assert [channel.unit for channel in robot.state] == ["m", "m", "m", "1"]
    assert [channel.name for channel in robot.action] == ["hand_dx", "hand_dy", "hand_dz", "gripper"]
    assert (robot.action_kind, robot.gripper_channels, robot.gripper_sign) == ("delta", (3,), "close_positive")
    assert (robot.control_hz, robot.rendering) == (80.0, "mujoco-low-cost")
    assert RobotSpec.from_dict(robot.to_dict()) == robot
    assert pickle.loads(pickle.dumps(MetaWorldFactory())) == MetaWorldFactory()  # noqa: S301


def test_actions_move_the_hand_by_centimetres_and_a_positive_gripper_closes(small: MetaWorldSimulator) -> None:
    before = reset(small, DRAWER).state
    run_chunk(small, np.tile(np.array([1.0, 0.0, 0.0, 1.0], dtype=np.float32), (10, 1)))
    after = small.state()
    assert 0.04 < after[0] - before[0] < 0.12 and abs(after[1] - before[1]) < 0.02
    assert before[3] > 0.9 and after[3] < 0.7


def test_equal_requests_give_equal_episodes(small: MetaWorldSimulator) -> None:
    options = DemonstrationOptions(noise_std=0.1, max_steps=30)
    first, episode = reset(small, DRAWER), demonstrate(small, DRAWER, options)
    other = reset(small, request_for("drawer-open-v3", layout=4))
    demonstrate(small, request_for("coffee-button-v3"), DemonstrationOptions(record_video=False))
    again, repeated = reset(small, DRAWER), demonstrate(small, DRAWER, options)
    for camera in CAMERAS:
        np.testing.assert_array_equal(again.video[camera], first.video[camera])
        np.testing.assert_array_equal(repeated.video[camera], episode.video[camera])
    np.testing.assert_array_equal(again.state, first.state)
    for column in ("actions", "state", "reward", "success"):
        np.testing.assert_array_equal(getattr(repeated, column), getattr(episode, column))
    assert not np.array_equal(other.video["corner2"], first.video["corner2"]), "layout 4 must differ from layout 3"


def test_a_layout_beyond_fifty_belongs_to_the_next_seed(small: MetaWorldSimulator) -> None:
    beyond = reset(small, request_for("drawer-open-v3", layout=51))
    following = reset(small, request_for("drawer-open-v3", layout=1, layout_seed=43))
    np.testing.assert_array_equal(beyond.video["corner2"], following.video["corner2"])
    same_number = reset(small, request_for("drawer-open-v3", layout=1))
    assert not np.array_equal(beyond.video["corner2"], same_number.video["corner2"])


def test_layouts_are_those_of_the_packages_benchmark(small: MetaWorldSimulator) -> None:
    import metaworld

    def positions(tasks: list[object]) -> np.ndarray:
        return np.array([pickle.loads(task.data)["rand_vec"] for task in tasks])  # noqa: S301 (the package's own)

    ours = positions(draw_layouts("lever-pull-v3", 7))
    np.testing.assert_array_equal(ours, positions(metaworld.MT1("lever-pull-v3", seed=7).train_tasks))
    assert len(np.unique(ours, axis=0)) == 50


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_the_demonstrator_opens_the_drawer(small: MetaWorldSimulator, noise_std: float) -> None:
    options = DemonstrationOptions(noise_std=noise_std, settle_steps=5, record_video=False)
    episode = demonstrate(small, DRAWER, options)
    assert (
        episode.is_success and int(episode.success.argmax()) == len(episode) - 6 and episode.task == "open the drawer"
    )
    assert np.abs(episode.actions).max() <= 1.0


def test_the_pads_feel_the_handle(small: MetaWorldSimulator) -> None:
    reset(small, DRAWER)
    assert small.contacts() == []
    demonstrate_for(small, 90)
    contacts = small.contacts()
    assert contacts and all(contact.is_pad and "drawer_link" in contact.bodies for contact in contacts)
    for contact in contacts:
        assert contact.normal_force > 1.0 and abs(contact.distance) < 0.01
        assert np.linalg.norm(np.array(contact.position) - small.state()[:3]) < 0.15


def test_the_step_limit_is_the_packages(small: MetaWorldSimulator) -> None:
    reset(small, DRAWER)
    outcome = run_chunk(small, np.zeros((STEP_LIMIT + 10, 4), dtype=np.float32))
    assert outcome.executed == STEP_LIMIT and outcome.truncated and not outcome.terminated
    with pytest.raises(ValueError, match="limit of 500 steps; reset"):
        small.step(np.zeros(4, dtype=np.float32))
    assert reset(small, DRAWER).sentence == "open the drawer"


@pytest.mark.parametrize("action", [[0.0, 0.0, 0.0], [0.0, np.nan, 0.0, 0.0]])
def test_a_malformed_action_is_refused(small: MetaWorldSimulator, action: list[float]) -> None:
    reset(small, DRAWER)
    with pytest.raises(ValueError, match="expected 4 finite action numbers"):
        small.step(np.array(action, dtype=np.float32))


def test_leaving_out_what_no_camera_sees_changes_no_pixel(small: MetaWorldSimulator) -> None:
    reset(small, DRAWER)
    demonstrate_for(small, 40)
    culled = small.render()
    loaded = small._current().loaded
    assert loaded._is_culling
    loaded._is_culling = False
    try:
        for camera, image in small.render().items():
            np.testing.assert_array_equal(image, culled[camera])
    finally:
        loaded._is_culling = True


def test_a_scene_that_was_put_away_comes_back_the_same(
    small: MetaWorldSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MetaWorldSimulator, "scenes_kept", 1)
    first = reset(small, DRAWER)
    reset(small, request_for("button-press-v3"))
    assert list(small._scenes) == ["button-press-v3"]
    again = reset(small, DRAWER)
    for camera in CAMERAS:
        np.testing.assert_array_equal(again.video[camera], first.video[camera])


def test_an_unknown_task_is_refused_and_the_episode_goes_on(small: MetaWorldSimulator) -> None:
    reset(small, DRAWER)
    with pytest.raises(ValueError, match="unknown Meta-World task 'drawer-opn-v3'; did you mean 'drawer-open-v3'"):
        small.reset(request_for("drawer-opn-v3"))
    small.step(np.zeros(4, dtype=np.float32))


def test_a_second_gl_context_is_refused(small: MetaWorldSimulator) -> None:
    with pytest.raises(RuntimeError, match="close the first, or run simulators in a WorkerPool"):
        MetaWorldFactory()()
    assert reset(small, DRAWER).video["corner2"].std() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ("corner2", "griperPOV")}, "unknown Meta-World camera 'griperPOV'; did you mean 'gripperPOV'"),
        ({"cameras": ("corner2", "corner2")}, "expected distinct cameras"),
        ({"cameras": ()}, "at least one"),
        ({"height": 0}, "positive image size, got 0x64"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaWorldFactory(**options)


def test_a_closed_simulator_says_so() -> None:
    script = (
        "from wamkit.envs.metaworld import MetaWorldFactory\n"
        "simulator = MetaWorldFactory()()\nsimulator.close()\nsimulator.close()\n"
        "second = MetaWorldFactory()()\nsecond.close()\n"
        "try:\n    simulator.state()\nexcept ValueError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert "call reset first" in run.stdout and "Error" not in run.stderr
