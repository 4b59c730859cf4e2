import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wamkit.data.actions import ActionTransform
from wamkit.data.features import camera_key
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.loader import WindowLoader
from wamkit.data.ssim import likeness_to_target, resize, structural_similarity
from wamkit.data.stats import compute_statistics, current_statistics
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.data.value_labels import episode_values, label_values, stored_settings
from wamkit.data.value_rewards import (
    ArmChannels,
    DenseValueSettings,
    SparseValueSettings,
    dense_rewards,
    dense_values,
    return_to_go,
    settings_from_dict,
    sparse_values,
)
from wamkit.data.windows import WindowConfig
from wamkit.data.writer import LeRobotWriter
from wamkit.spec import CameraSpec

ONE_ARM = DenseValueSettings.from_robot(synthetic_robot())


@pytest.fixture
def root(tmp_path):
    robot = synthetic_robot(height=16, width=24)
    with LeRobotWriter(tmp_path / "square", robot) as writer:
        for length in (12, 7, 15):
            for episode in synthetic_episodes(1, length=length, height=16, width=24, seed=length):
                writer.add(episode)
    return tmp_path / "square"


def _ssim_by_definition(x, y, window, sigma):
    """Every window position on its own, straight from the definition."""
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(x.shape[0] - window + 1):
        for j in range(x.shape[1] - window + 1):
            a, b = x[i : i + window, j : j + window], y[i : i + window, j : j + window]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            cov = (weights * (a - mean_a) * (b - mean_b)).sum()
            value = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
            values.append(value / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return np.mean(values)


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (7, 2.0)])
def test_structural_similarity_against_its_definition(window, sigma):
    rng = np.random.default_rng(0)
    target = np.clip(rng.normal(120, 40, size=(19, 23)), 0, 255)
    images = np.stack(
        [
            target,
            np.clip(target + rng.normal(0, 30, size=target.shape), 0, 255),
            255 - target,
            np.full_like(target, 200.0),
            np.clip(0.5 * target + 100, 0, 255),
        ]
    )
    got = structural_similarity(
        torch.from_numpy(images).float(), torch.from_numpy(target).float(), window=window, sigma=sigma
    )
    expected = [_ssim_by_definition(image, target, window, sigma) for image in images]
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-5)
    assert got[0] == pytest.approx(1.0, abs=1e-6)
    assert got[2] < -0.2
    flat = torch.full((1, 19, 23), 250.0)
    assert structural_similarity(flat, flat[0], window=window)[0] == pytest.approx(1.0, abs=1e-6)


def test_structural_similarity_refuses_windows_that_do_not_fit():
    with pytest.raises(ValueError, match="at most 8 px"):
        structural_similarity(torch.zeros(1, 8, 9), torch.zeros(8, 9))
    with pytest.raises(ValueError, match="odd window"):
        structural_similarity(torch.zeros(1, 18, 19), torch.zeros(18, 19), window=10)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (12, 9), (17, 50)])
def test_resizing_is_bilinear_with_antialiasing(height, width):
    images = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 255
    expected = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resize(images, height, width), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("image_size", [None, 40])
def test_likeness_against_enlarged_images(image_size):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, size=(11, 20, 24, 3), dtype=np.uint8)
    error, similarity = likeness_to_target(frames, frames[-1], image_size=image_size)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).double()
    if image_size is not None:
        images = F.interpolate(images, size=(40, 40), mode="bilinear", antialias=True, align_corners=False)
    expected = ((images - images[-1]) ** 2).mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(error, expected, rtol=1e-5)
    gray = (images * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1).numpy()
    np.testing.assert_allclose(similarity[4], _ssim_by_definition(gray[4], gray[-1], 11, 1.5), atol=2e-5)
    assert (error[-1], similarity[-1]) == (0.0, pytest.approx(1.0, abs=1e-6))


@pytest.mark.parametrize("horizon", [None, 0, 1, 5, 200])
@pytest.mark.parametrize("length", [1, 2, 3, 16, 37])
def test_return_to_go_against_a_naive_loop(length, horizon):
    rewards = np.random.default_rng(length).normal(size=(length, 3))
    expected = np.zeros_like(rewards)
    for t in range(length):
        for i in range(length - t):
            if horizon is None or i <= horizon:
                expected[t] += 0.9**i * rewards[t + i]
    np.testing.assert_allclose(return_to_go(rewards, 0.9, horizon), expected, atol=1e-12)


def test_one_arm_by_hand():
    """Three rows, images of one gray level each, so that every term can be worked out on paper."""
    levels = np.array([100, 108, 110], dtype=np.uint8)
    gray = np.broadcast_to(levels[:, None, None, None], (3, 16, 16, 3)).copy()
    state = np.array([[0.0, 0.0, 1.0], [3.0, 4.0, 1.0], [3.0, 0.0, 1.0]])
    action = np.array([[0.0, 0.0, 0.0], [1.0, -2.0, 0.0], [1.0, 1.0, 0.5]])
    frames = {"front": gray[[2, 2, 2]], "wrist": gray}
    rewards = dense_rewards(state=state, action=action, frames=frames, settings=ONE_ARM)
    c1 = 2.55**2  # flat images: only the luminance factor differs from 1
    ssim = (2 * levels.astype(float) * 110 + c1) / (levels.astype(float) ** 2 + 110**2 + c1)
    expected = np.array(
        [
            [np.exp(-0.01 * 100), np.exp(-0.01 * 4), 1],
            np.exp(ssim - 1),
            [1, 1, 1],
            [1, 1, 1],
            [np.exp(-3), np.exp(-4), 1],
            [0, 7, 4],
            [0, 0, 3 + 8],
            [0, 3, 3.5],
            [0, 0, 1 + 5 + 0.5],
        ]
    ).T
    np.testing.assert_allclose(rewards, expected, atol=2e-5)
    values = dense_values(state=state, action=action, frames=frames, settings=ONE_ARM)
    assert values.shape == (3, 10)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[1, 4], np.exp(-4) + 0.99, atol=1e-5)
    np.testing.assert_allclose(values[0, 6], 0.99**2 * 11, atol=1e-5)
    weights = np.array([1, 1, 1, 1, 1, -1, -1, -0.1, -0.1]) / 9
    np.testing.assert_allclose(ONE_ARM.weights, weights)
    np.testing.assert_allclose(values[:, -1], values[:, :-1] @ weights, atol=1e-5)
    kept = replace(ONE_ARM, components="rewards", horizon=0)
    values = dense_values(state=state, action=action, frames=frames, settings=kept)
    np.testing.assert_allclose(values, np.column_stack([expected, expected @ weights]), atol=2e-5)


def test_two_arms_have_seventeen_channels_left_before_right():
    robot = synthetic_robot()
    cameras = tuple(CameraSpec(name=name, height=32, width=32) for name in ("hand_right", "top_head", "hand_left"))
    robot = replace(robot, cameras=cameras, state=robot.state * 2, action=robot.action * 2)
    settings = DenseValueSettings.from_robot(robot)
    assert settings.third_person == "top_head"
    assert settings.arms == (
        ArmChannels(name="left", wrist_camera="hand_left", state=(0, 1, 2), action=(0, 1, 2)),
        ArmChannels(name="right", wrist_camera="hand_right", state=(3, 4, 5), action=(3, 4, 5)),
    )
    assert settings.channel_names == (
        *("wrist_mse_left", "wrist_mse_right", "wrist_ssim_left", "wrist_ssim_right"),
        *("third_person_mse", "third_person_ssim", "state_proximity_left", "state_proximity_right"),
        *("state_velocity_left", "state_velocity_right", "state_acceleration_left", "state_acceleration_right"),
        *("action_velocity_left", "action_velocity_right", "action_acceleration_left", "action_acceleration_right"),
        "total",
    )
    np.testing.assert_allclose(np.array(settings.weights) * 16, [1] * 8 + [-1] * 4 + [-0.1] * 4)
    left, right = synthetic_episodes(2, length=9)
    frames = {"hand_left": left.video["wrist"], "hand_right": right.video["wrist"], "top_head": left.video["front"]}
    both = dense_rewards(
        state=np.concatenate([left.state, right.state], axis=1),
        action=np.concatenate([left.actions, right.actions], axis=1),
        frames=frames,
        settings=settings,
    )
    assert both.shape == (9, 16)
    arms = [
        dense_rewards(
            state=arm.state,
            action=arm.actions,
            frames={"front": left.video["front"], "wrist": arm.video["wrist"]},
            settings=ONE_ARM,
        )
        for arm in (left, right)
    ]
    order = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3)]
    order += [(arm, term) for term in range(4, 9) for arm in (0, 1)]
    for channel, (arm, term) in enumerate(order):
        np.testing.assert_allclose(both[:, channel], arms[arm][:, term], atol=1e-6)


def test_roles_are_read_off_the_robot_or_asked_for():
    assert ONE_ARM.third_person == "front"
    assert ONE_ARM.arms[0].wrist_camera == "wrist"
    metaworld = DenseValueSettings.from_robot(synthetic_robot(cameras=("corner2", "gripperPOV")), gamma=0.9)
    assert (metaworld.third_person, metaworld.arms[0].wrist_camera, metaworld.gamma) == ("corner2", "gripperPOV", 0.9)
    unnamed = DenseValueSettings.from_robot(synthetic_robot(cameras=("a", "b")))
    assert (unnamed.third_person, unnamed.arms[0].wrist_camera) == ("a", "b")
    with pytest.raises(ValueError, match="choose sparse values"):
        DenseValueSettings.from_robot(synthetic_robot(cameras=("front",)))


@pytest.mark.parametrize(
    "settings", [ONE_ARM, replace(ONE_ARM, image_size=None, horizon=50), SparseValueSettings(failure="ends")]
)
def test_settings_round_trip(settings):
    import json

    assert settings_from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(ValueError, match="colour"):
        settings_from_dict({**settings.to_dict(), "colour": "red"})


def test_sparse_values_by_hand():
    success = np.array([False, False, True, False])
    values = sparse_values(success, SparseValueSettings(gamma=0.5))
    np.testing.assert_allclose(values[:, 0], [-1.5, -1, 0, 0])
    failure = np.zeros(4, dtype=bool)
    np.testing.assert_allclose(sparse_values(failure, SparseValueSettings(gamma=0.5))[:, 0], [-2] * 4)
    np.testing.assert_allclose(sparse_values(failure, SparseValueSettings(gamma=0.5, horizon=1))[:, 0], [-1.5] * 4)
    ends = SparseValueSettings(gamma=0.5, failure="ends")
    np.testing.assert_allclose(sparse_values(failure, ends)[:, 0], [-1.875, -1.75, -1.5, -1])
    with pytest.raises(ValueError, match=r"expected image_size of 1 pixel or more, .* got -5"):
        replace(ONE_ARM, image_size=-5)
    with pytest.raises(ValueError, match="gamma below 1"):
        SparseValueSettings(gamma=1.0)


def test_labels_in_a_dataset(root):
    settings = replace(ONE_ARM, image_size=None)
    before, seen = LeRobotDataset(root), []
    assert stored_settings(before) is None
    labelled = label_values(before, settings, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert labelled.features["value"]["names"] == list(settings.channel_names)
    assert stored_settings(LeRobotDataset(root)) == settings
    for entry in labelled.episodes:
        columns, old = labelled.columns(entry.index), before.columns(entry.index)
        np.testing.assert_array_equal(columns["value"], episode_values(before, entry, settings))
        for key, column in old.items():
            np.testing.assert_array_equal(columns[key], column)
    sparse = label_values(labelled, SparseValueSettings())
    assert stored_settings(sparse) == SparseValueSettings()
    last = sparse.columns(0)["value"]
    assert last.shape == (12,)
    assert last[-1] == 0
    assert (last[:5] < 0).all()
    assert sparse.fingerprint() != labelled.fingerprint()


def test_labelled_dataset_feeds_the_loader(root):
    labelled = label_values(LeRobotDataset(root), replace(ONE_ARM, image_size=None))
    statistics = compute_statistics(labelled)
    loader = WindowLoader(
        labelled,
        WindowConfig(context=2, chunk=3, action_horizon=6),
        action=ActionTransform(normalizer=Normalizer.from_statistics("minmax", statistics["action"])),
        state=Normalizer.from_statistics("minmax", statistics["state"]),
        value=ValueTransform.from_statistics(statistics["value"]),
        batch_size=4,
        seed=0,
        robot=labelled.robot,
    )
    batch = loader.batch(0)
    assert batch.value_targets.shape == (4, 6, 10)
    assert torch.isfinite(batch.value_targets).all()
    assert batch.value_targets.abs().max() < 20
    assert batch.context.shape == (4, 2, 2, 16, 24, 3)


def test_dense_values_refuse_failures_and_unknown_cameras(root):
    labelled = LeRobotDataset(root)
    with pytest.raises(ValueError, match=r"got \['top'\]"):
        label_values(labelled, replace(ONE_ARM, third_person="top"))
    arm = replace(ONE_ARM.arms[0], state=(0, 7))
    with pytest.raises(ValueError, match="correct the settings' roles"):
        label_values(labelled, replace(ONE_ARM, arms=(arm,)))
    with LeRobotWriter(root, synthetic_robot(height=16, width=24)) as writer:
        (episode,) = synthetic_episodes(1, length=5, height=16, width=24)
        writer.add(replace(episode, success=np.zeros(5, dtype=bool)))
    with pytest.raises(ValueError, match="episode 3: expected a successful demonstration"):
        label_values(LeRobotDataset(root), ONE_ARM)
    values = label_values(LeRobotDataset(root), SparseValueSettings())
    np.testing.assert_allclose(values.columns(3)["value"], [-100.0] * 5, rtol=1e-5)


def test_statistics_follow_the_labels(root):
    computed = []
    note = lambda done, total: computed.append(done)  # noqa: E731
    first = current_statistics(LeRobotDataset(root), progress=note)
    assert current_statistics(LeRobotDataset(root), progress=note) == first
    assert computed == [1, 2, 3]
    labelled = label_values(LeRobotDataset(root), SparseValueSettings())
    assert current_statistics(labelled) == compute_statistics(labelled)
    assert current_statistics(labelled)["value"].width == 1


KILLED = """
import os, signal, sys
import numpy as np
from wamkit.data import added_columns
write, files = added_columns.write_atomically, []
def stop(path, data):
    files.append(path)
    if len(files) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
added_columns.write_atomically = stop
lengths = (12, 7, 15)
added_columns.write_column(sys.argv[1], "value", lambda e: np.ones(lengths[e]), channels=("total",), settings={})
"""


def test_killed_while_relabelling(root):
    labelled = label_values(LeRobotDataset(root), replace(ONE_ARM, image_size=None))
    actions = [labelled.columns(entry.index)["action"] for entry in labelled.episodes]
    ended = subprocess.run([sys.executable, "-c", KILLED, str(root)], env=dict(os.environ), check=False)
    assert ended.returncode == -signal.SIGKILL
    left = LeRobotDataset(root)
    assert stored_settings(left) is None
    for entry, action in zip(left.episodes, actions, strict=True):
        columns = left.columns(entry.index)
        assert "value" not in columns
        np.testing.assert_array_equal(columns["action"], action)
        assert left.frames(entry.index, "front", [0]).shape == (1, 16, 24, 3)
    again = label_values(left, SparseValueSettings())
    assert all("value" in again.columns(entry.index) for entry in again.episodes)
    assert camera_key("front") in again.features
