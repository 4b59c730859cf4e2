"""Two arms and three cameras, from episodes to a policy: 17 value channels, labelled, trained on and predicted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.cli.main import main
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.value_labels import DenseValueSettings, episode_values, settings_from_dict, stored_settings
from wamkit.data.writer import LeRobotWriter
from wamkit.episode import Episode
from wamkit.models.wav import config as wav
from wamkit.policy import load_policy
from wamkit.recipes import RECIPES
from wamkit.recipes.execute import execute
from wamkit.recipes.run import DataConfig, Run
from wamkit.spec import ChannelSpec, RobotSpec

CAMERAS = ("top_head", "hand_left", "hand_right")


def two_arms() -> RobotSpec:
    """Six joints and a gripper per arm, left first, as the published robot has them."""
    joints = [
        ChannelSpec(name=f"{arm}_{name}", unit="rad" if name != "gripper" else "1")
        for arm in ("left", "right")
        for name in (*(f"joint{number}" for number in range(6)), "gripper")
    ]
    robot = synthetic_robot(cameras=CAMERAS)
    return dataclasses.replace(
        robot,
        name="two arms/synthetic",
        state=tuple(joints),
        action=tuple(joints),
        action_kind="absolute",
        gripper_channels=(6, 13),
    )


def demonstrations(num: int) -> list[Episode]:
    """The pictures of a pushed square beside the joints of two arms that move to rest."""
    episodes = []
    for number, episode in enumerate(synthetic_episodes(num, length=16, cameras=CAMERAS)):
        rng = np.random.default_rng(number)
        path = np.linspace(rng.normal(size=14), np.zeros(14), 17) + 0.01 * rng.normal(size=(17, 14))
        success = np.arange(16) == 15
        episodes.append(
            dataclasses.replace(
                episode,
                state=path[:-1].astype(np.float32),
                actions=path[1:].astype(np.float32),
                success=success,
                reward=success.astype(np.float32),
            )
        )
    return episodes


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "dataset"
    with LeRobotWriter(root, two_arms()) as writer:
        for episode in demonstrations(3):
            writer.add(episode)
    return root


def dualarm(dataset: Path, output: Path) -> Run:
    """The debug recipe at the published shape of two arms: three views, 14 + 14 channels, 17 values."""
    base = RECIPES["debug"]()
    model = wav.tiny(num_views=3, action_dim=14, state_dim=14, value_channels=17)
    published = wav.dualarm()
    assert (model.num_views, model.token_dim, model.value_channels) == (
        *(published.num_views, published.token_dim, published.value_channels),
    )
    stages = tuple(dataclasses.replace(stage, steps=1, batch_size=2) for stage in base.stages)
    return dataclasses.replace(
        base, model=model, data=DataConfig(root=dataset), output=output, stages=stages, device="cpu"
    )


def test_from_episodes_to_a_policy(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no value column"):
        execute(dualarm(dataset, tmp_path / "run"))
    assert main(["data", "values", str(dataset), "--image-size", "0"]) == 0
    assert "of 3 episodes (wrist_mse_left, wrist_mse_right, " in capsys.readouterr().out
    labelled = LeRobotDataset(dataset)
    settings = stored_settings(labelled)
    assert isinstance(settings, DenseValueSettings) and settings.third_person == "top_head"
    assert [arm.wrist_camera for arm in settings.arms] == ["hand_left", "hand_right"]
    values = labelled.columns(0)[VALUE]
    assert values.shape == (16, 17) and labelled.features[VALUE]["names"] == list(settings.channel_names)
    np.testing.assert_allclose(values[:, -1], values[:, :-1] @ np.array(settings.weights), rtol=1e-4)

    run = dualarm(dataset, tmp_path / "run")
    report = execute(run)
    assert list(report.losses) == ["video_only", "value_only", "action_full"]
    assert np.isfinite(list(report.losses.values())).all()
    policy = load_policy(run.output / "policy", num_steps=2)
    policy.reset([0], seeds=[1])
    video = torch.zeros(1, 3, 32, 32, 3, dtype=torch.uint8)
    chunk = policy.act([0], video=video, state=torch.zeros(1, 14), task=["push"], executed=[0], record=True)
    assert chunk.actions.shape == (1, 9, 14) and chunk.imagined.value.shape == (1, 9)
    assert chunk.imagined.video.shape[1] == 3


@pytest.mark.parametrize("width", [16, 18])
def test_a_value_column_of_another_width_is_refused(dataset: Path, tmp_path: Path, width: int) -> None:
    assert main(["data", "values", str(dataset), "--image-size", "0"]) == 0
    run = dualarm(dataset, tmp_path / "run")
    model = wav.tiny(num_views=3, action_dim=14, state_dim=14, value_channels=width)
    with pytest.raises(ValueError, match=rf"value column of {width} channels, the model's, got 17"):
        execute(dataclasses.replace(run, model=model))
    assert not run.output.exists()


@pytest.mark.slow
def test_every_unknown_of_the_reward_is_an_option_and_recorded(dataset: Path) -> None:
    """What the paper does not say is chosen on the command line, changes the values, and stands in the dataset."""
    options = {
        "gamma": 0.9,
        "horizon": 5,
        "components": "rewards",
        "image_size": 24,
        "pixel_range": 1.0,
        "mse_rate": 0.5,
        "ssim_window": 7,
        "ssim_sigma": 1.0,
        "likeness_weight": 2.0,
        "state_weight": -0.5,
        "action_weight": -0.3,
        "order": "arms",
        "third_person": "hand_left",
    }
    source = LeRobotDataset(dataset)
    base = DenseValueSettings.from_robot(source.robot)
    before = episode_values(source, source.episodes[0], base)
    for name, value in options.items():
        changed = episode_values(source, source.episodes[0], dataclasses.replace(base, **{name: value}))
        assert not np.allclose(changed, before, rtol=1e-5), f"{name} has no effect"
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["data", "values", str(dataset), *flags]) == 0
    stored = LeRobotDataset(dataset).wamkit[VALUE]
    assert {name: stored[name] for name in options} == options
    assert stored["method"] == "dense" and len(stored["channels"]) == 17 and len(stored["weights"]) == 16
    assert settings_from_dict(json.loads(json.dumps(stored))) == dataclasses.replace(base, **options)
    weights = [str(number) for number in range(16)]
    assert main(["data", "values", str(dataset), "--component-weights", *weights]) == 0
    assert LeRobotDataset(dataset).wamkit[VALUE]["weights"] == list(map(float, weights))
    assert main(["data", "values", str(dataset), "--kind", "sparse", "--order", "arms"]) == 2
    assert main(["data", "values", str(dataset), "--kind", "sparse", "--gamma", "0.9", "--failure", "ends"]) == 0
    stored = LeRobotDataset(dataset).wamkit[VALUE]
    assert (stored["method"], stored["gamma"], stored["failure"], stored["channels"]) == (
        *("sparse", 0.9, "ends", ["total"]),
    )


def test_arm_by_arm_is_another_order_of_the_same_numbers(dataset: Path) -> None:
    source = LeRobotDataset(dataset)
    table = DenseValueSettings.from_robot(source.robot, image_size=None)
    arms = dataclasses.replace(table, order="arms")
    names = arms.component_names
    assert all(name.endswith("_left") for name in names[:7]) and all(name.endswith("_right") for name in names[7:14])
    assert names[14:] == ("third_person_mse", "third_person_ssim")
    first, second = (episode_values(source, source.episodes[1], settings) for settings in (table, arms))
    for channel, name in enumerate(arms.channel_names):
        np.testing.assert_allclose(second[:, channel], first[:, table.channel_names.index(name)], rtol=1e-5, atol=1e-6)
    weighted = dataclasses.replace(table, component_weights=tuple(float(number) for number in range(16)))
    values = episode_values(source, source.episodes[1], weighted)
    np.testing.assert_allclose(values[:, -1], values[:, :-1] @ np.arange(16.0), rtol=1e-4)
    with pytest.raises(ValueError, match=r"a weight for each of the 16 components .*, got 2"):
        dataclasses.replace(table, component_weights=(1.0, 2.0))
