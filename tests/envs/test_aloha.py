from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from wamkit.envs import suite_tasks
from wamkit.envs.aloha import STEP_LIMIT, AlohaFactory, AlohaSimulator, package_seed
from wamkit.envs.aloha_arm import SIDES, Arm, Hand
from wamkit.envs.base import DemonstrationOptions, EpisodeRequest, Simulator, demonstrate, reset, run_chunk
from wamkit.spec import RobotSpec

pytestmark = pytest.mark.sim
CAMERAS = ("top", "left_wrist", "right_wrist")
LEFT, RIGHT = slice(0, 6), slice(7, 13)
LEFT_GRIPPER, RIGHT_GRIPPER = 6, 13


def request_for(task: str, layout: int = 0, layout_seed: int = 42, seed: int = 0) -> EpisodeRequest:
    return EpisodeRequest(task=task, layout=layout, layout_seed=layout_seed, seed=seed)


CUBE = request_for("transfer-cube", layout=3)


@pytest.fixture(scope="module")
def small() -> Iterator[AlohaSimulator]:
    """The default simulator: three cameras at 64 px."""
    simulator = AlohaFactory()()
    yield simulator
    simulator.close()


def demonstrate_for(simulator: AlohaSimulator, steps: int) -> None:
    for _ in range(steps):
        simulator.step(simulator.demonstrate_action())


def hold(simulator: AlohaSimulator, action: np.ndarray, steps: int) -> np.ndarray:
    return run_chunk(simulator, np.tile(action.astype(np.float32), (steps, 1))).frame.state


def test_a_frame_is_three_upright_images_fourteen_numbers_and_a_sentence(small: AlohaSimulator) -> None:
    frame = reset(small, CUBE)
    assert isinstance(small, Simulator) and tuple(frame.video) == CAMERAS == small.robot.camera_names
    assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in frame.video.values())
    assert frame.sentence == "pick up the cube with the right arm and transfer it to the left arm"
    start = [0, -0.96, 1.16, 0, -0.3, 0, 0.0998]
    np.testing.assert_allclose(frame.state, [*start, *start], atol=1e-4)
    assert frame.state.dtype == np.float32


def test_the_spec_says_what_numbers_and_pixels_mean(small: AlohaSimulator) -> None:
    robot = small.robot
    names = [channel.name for channel in robot.action]
    assert names[:7] == [
        "left_waist", "left_shoulder", "left_elbow", "left_forearm_roll", "left_wrist_angle", "left_wrist_rotate",
        "left_gripper",
    ]  # fmt: skip
    assert names[7:] == [name.replace("left", "right") for name in names[:7]] and robot.state == robot.action
    assert [channel.unit for channel in robot.action] == [*["rad"] * 6, "1"] * 2
    assert (robot.action_kind, robot.gripper_channels, robot.gripper_sign) == ("absolute", (6, 13), "open_positive")
    assert (robot.control_hz, robot.rendering) == (50.0, "mujoco-low-cost")
    assert RobotSpec.from_dict(robot.to_dict()) == robot
    assert pickle.loads(pickle.dumps(AlohaFactory())) == AlohaFactory()  # noqa: S301


def test_actions_are_joint_angles_left_arm_first_and_a_positive_gripper_opens(small: AlohaSimulator) -> None:
    start = reset(small, CUBE).state
    wanted = start.copy()
    wanted[0], wanted[RIGHT_GRIPPER] = 0.4, 0.9
    after = hold(small, wanted, 80)
    np.testing.assert_allclose(after, wanted, atol=0.02)
    model, data = small._current().model, small._current().data
    fingers = [data.body(f"vx300s_right/{side}_finger_link").xpos for side in SIDES]
    apart = np.linalg.norm(fingers[0] - fingers[1])
    assert data.qpos[model.joint("vx300s_left/waist").qposadr[0]] == pytest.approx(0.4, abs=0.02)
    wanted[RIGHT_GRIPPER] = 0.1
    assert hold(small, wanted, 80)[RIGHT_GRIPPER] < 0.15
    fingers = [data.body(f"vx300s_right/{side}_finger_link").xpos for side in SIDES]
    assert apart - np.linalg.norm(fingers[0] - fingers[1]) == pytest.approx(2 * 0.8 * (0.058 - 0.01844), abs=0.01)


def test_action_bounds_are_what_the_actuators_take(small: AlohaSimulator) -> None:
    reset(small, CUBE)
    model = small._current().model
    lowest, highest = small.action_bounds()
    arms = [*range(6), *range(8, 14)]
    channels = [*range(6), *range(7, 13)]
    np.testing.assert_allclose(np.stack([lowest, highest])[:, channels], model.actuator_ctrlrange[arms].T, atol=1e-6)
    assert lowest[[6, 13]].tolist() == [0, 0] and highest[[6, 13]].tolist() == [1, 1]


def test_equal_requests_give_equal_episodes(small: AlohaSimulator) -> None:
    options = DemonstrationOptions(noise_std=0.01, max_steps=60)
    first, episode = reset(small, CUBE), demonstrate(small, CUBE, options)
    other = reset(small, request_for("transfer-cube", layout=4))
    demonstrate(small, request_for("insertion"), DemonstrationOptions(record_video=False, max_steps=130))
    reset(small, CUBE)
    demonstrate_for(small, 120)
    again, repeated = reset(small, CUBE), demonstrate(small, CUBE, options)
    for camera in CAMERAS:
        np.testing.assert_array_equal(again.video[camera], first.video[camera])
        np.testing.assert_array_equal(repeated.video[camera], episode.video[camera])
    np.testing.assert_array_equal(again.state, first.state)
    for column in ("actions", "state", "reward", "success"):
        np.testing.assert_array_equal(getattr(repeated, column), getattr(episode, column))
    assert not np.array_equal(other.video["top"], first.video["top"]), "layout 4 must differ from layout 3"


@pytest.mark.parametrize("task", ["transfer-cube", "insertion"])
def test_objects_start_where_the_package_draws_them(small: AlohaSimulator, task: str) -> None:
    from gym_aloha.utils import sample_box_pose, sample_insertion_pose

    request = request_for(task, layout=7)
    sampled = {"transfer-cube": sample_box_pose, "insertion": sample_insertion_pose}[task](package_seed(request))
    small.reset(request)
    np.testing.assert_array_equal(small._current().data.qpos[16:], np.hstack(sampled))


def test_families_of_layouts_share_none() -> None:
    seeds = {
        package_seed(request_for("insertion", layout=layout, layout_seed=family))
        for family in (0, 1, 42, 43, 1042)
        for layout in range(200)
    }
    assert len(seeds) == 1000
    assert package_seed(CUBE) == package_seed(request_for("insertion", layout=3, seed=9))


@pytest.mark.parametrize("task", suite_tasks("aloha"))
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("noise_std", [0.0, 0.005])
def test_the_demonstrator_solves_the_task(small: AlohaSimulator, task: str, layout: int, noise_std: float) -> None:
    options = DemonstrationOptions(noise_std=noise_std, settle_steps=5, record_video=False)
    episode = demonstrate(small, request_for(task, layout), options)
    assert episode.is_success and episode.reward.max() == 4 and len(episode) <= 250
    assert int(episode.success.argmax()) == len(episode) - 6
    lowest, highest = small.action_bounds()
    assert (episode.actions >= lowest).all() and (episode.actions <= highest).all()


def test_noisy_actions_may_go_beyond_one(small: AlohaSimulator) -> None:
    """The elbows start at 1.16 rad; actions of arms are not confined to -1 to 1."""
    options = DemonstrationOptions(noise_std=0.01, record_actions="executed", record_video=False, max_steps=3)
    elbows = demonstrate(small, CUBE, options).actions[:, [2, 9]]
    assert (elbows > 1.1).all() and len(np.unique(elbows)) == 6


def test_the_cube_goes_from_the_right_hand_to_the_left(small: AlohaSimulator) -> None:
    reset(small, CUBE)
    assert not [contact for contact in small.contacts() if "box" in contact.bodies]  # nearly closed fingers touch
    touching = []
    for steps in (140, 70, 70):
        demonstrate_for(small, steps)
        contacts = [contact for contact in small.contacts() if "box" in contact.bodies]
        assert all(
            contact.is_pad and contact.normal_force >= 0 and abs(contact.distance) < 0.01 for contact in contacts
        )
        assert max(contact.normal_force for contact in contacts) > 0.5
        cube = small._current().data.body("box").xpos
        assert all(np.linalg.norm(np.array(contact.position) - cube) < 0.04 for contact in contacts)
        bodies = {body for contact in contacts for body in contact.bodies}
        touching.append({side for side in SIDES if any(f"vx300s_{side}/" in body for body in bodies)})
    assert touching == [{"right"}, {"left", "right"}, {"left"}]
    assert small._current().data.body("box").xpos[2] > 0.2, "the left hand holds the cube alone, in the air"


def test_a_hand_is_brought_exactly_where_it_is_asked_to_be(small: AlohaSimulator) -> None:
    import mujoco

    reset(small, CUBE)
    model = small._current().model
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for number, side in enumerate(SIDES):
        arm = Arm.from_model(model, data, side)
        for point, pitch, roll in (((0.0, 0.5, 0.25), 1.0, 0.3), ((0.1 - 0.2 * (side == "left"), 0.6, 0.02), 1.2, 0.0)):
            hand = Hand(point=point, pitch=pitch, roll=roll, opening=1.0)
            data.qpos[8 * number : 8 * number + 6] = arm.joints(hand)
            mujoco.mj_kinematics(model, data)
            link = data.body(f"vx300s_{side}/gripper_link")
            axes = link.xmat.reshape(3, 3)
            np.testing.assert_allclose(link.xpos + 0.135 * axes[:, 0], point, atol=1e-9)
            assert np.arcsin(-axes[2, 0]) == pytest.approx(pitch)
            assert np.arcsin(axes[2, 1] / np.cos(pitch)) == pytest.approx(roll, abs=1e-6)
        for point in ((0.0, 0.5, 1.5), (0.9, 0.5, 0.2) if side == "left" else (-0.9, 0.5, 0.2)):
            with pytest.raises(ValueError, match="expected a place within the arm's reach"):
                arm.joints(Hand(point=point, pitch=0.0, opening=1.0))


def test_the_step_limit_ends_the_episode(small: AlohaSimulator) -> None:
    state = reset(small, CUBE).state
    outcome = run_chunk(small, np.tile(state, (STEP_LIMIT + 10, 1)))
    assert outcome.executed == STEP_LIMIT == 400 and outcome.truncated and not outcome.terminated
    with pytest.raises(ValueError, match="limit of 400 steps; reset"):
        small.step(state)
    assert reset(small, request_for("insertion")).sentence == "insert the peg into the socket"


@pytest.mark.parametrize("action", [np.zeros(13), np.full(14, np.nan)])
def test_a_malformed_action_is_refused(small: AlohaSimulator, action: np.ndarray) -> None:
    reset(small, CUBE)
    with pytest.raises(ValueError, match="expected 14 finite action numbers"):
        small.step(action.astype(np.float32))


def test_an_unknown_task_is_refused_and_the_episode_goes_on(small: AlohaSimulator) -> None:
    state = reset(small, CUBE).state
    with pytest.raises(ValueError, match="unknown ALOHA task 'transfer-cub'; did you mean 'transfer-cube'"):
        small.reset(request_for("transfer-cub"))
    small.step(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ("top", "left_wirst")}, "unknown ALOHA camera 'left_wirst'; did you mean 'left_wrist'"),
        ({"cameras": ("top", "top")}, "expected distinct cameras"),
        ({"cameras": ()}, "at least one"),
        ({"width": 0}, "positive image size, got 64x0"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlohaFactory(**options)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs dm_control, gym_aloha, not installed here: pip install"):
        AlohaFactory()()


@pytest.mark.parametrize("end", ["simulator.close(); simulator.close()", ""])
def test_python_ends_quietly(end: str) -> None:
    """Also when nobody closed the simulator, although dm_control ends EGL by itself."""
    script = (
        "from wamkit.envs.aloha import AlohaFactory\nfrom wamkit.envs.base import EpisodeRequest\n"
        "simulator = AlohaFactory()()\n"
        "simulator.reset(EpisodeRequest(task='insertion', layout=0, layout_seed=0, seed=0)); simulator.render()\n" + end
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0 and "Error" not in run.stderr, run.stderr


def test_a_closed_simulator_says_so(small: AlohaSimulator) -> None:
    """Runs last: it closes this module's simulator, since a process has one GL context."""
    small.close()
    with pytest.raises(ValueError, match="call reset first"):
        small.state()
    with pytest.raises(RuntimeError, match="make a new simulator"):
        small.reset(CUBE)
