"""A policy with random weights acts like any other, for whatever robot it is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.data.synthetic import synthetic_robot
from wamkit.models.wav import config as wav
from wamkit.policy import Policy, load_policy
from wamkit.untrained import untrained_policy

CONFIG = wav.tiny(action_dim=3, state_dim=3)


def chunk(policy: Policy) -> np.ndarray:
    robot = policy.spec.robot
    camera = robot.cameras[0]
    video = torch.full((1, len(robot.cameras), camera.height, camera.width, 3), 90, dtype=torch.uint8)
    policy.reset([0], seeds=[3])
    state = torch.zeros(1, len(robot.state))
    return policy.act([0], video=video, state=state, task=["push"], executed=[0]).actions.numpy()


def make(side: int = 32, seed: int = 0) -> Policy:
    robot = synthetic_robot(height=side, width=side)
    return untrained_policy(CONFIG, robot, execution_horizon=4, num_steps=2, seed=seed)


def test_it_acts_by_its_seed() -> None:
    actions = chunk(make())
    assert actions.shape == (1, CONFIG.action_horizon, 3) and np.isfinite(actions).all()
    assert np.array_equal(actions, chunk(make())) and not np.allclose(actions, chunk(make(seed=1)))


def test_cameras_of_another_size_are_resized() -> None:
    assert make(64).spec.image_size == (32, 32) and make().spec.image_size is None
    assert np.isfinite(chunk(make(64))).all()


def test_its_folder_is_a_policys(tmp_path: Path) -> None:
    policy = make()
    folder = policy.save(tmp_path / "policy", config=CONFIG.to_dict(), training={})
    assert np.array_equal(chunk(load_policy(folder, num_steps=2)), chunk(policy))


def test_a_robot_that_does_not_fit_is_refused() -> None:
    config = wav.tiny(action_dim=4, state_dim=3)
    with pytest.raises(ValueError, match="action"):
        untrained_policy(config, synthetic_robot(), execution_horizon=4)
