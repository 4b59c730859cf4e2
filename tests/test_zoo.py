"""The policies in this repository: small enough for it, and whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wamkit.policy import load_policy
from wamkit.types import ActionConditioned, Observation

POLICIES = sorted((Path(__file__).parent.parent / "zoo").iterdir())
MOST_BYTES = 16e6


@pytest.mark.parametrize("folder", POLICIES, ids=lambda folder: folder.name)
def test_they_load_from_their_folder_alone_and_act(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    policy = load_policy(folder)
    robot, task = policy.spec.robot, policy.spec.tasks[0]
    camera = robot.cameras[0]
    draws = torch.Generator().manual_seed(0)
    size = (len(robot.cameras), policy.spec.num_context, camera.height, camera.width, 3)
    video = torch.randint(256, (1, *size), dtype=torch.uint8, generator=draws)
    state = torch.zeros(1, len(robot.state))
    policy.reset([0], seeds=[0])
    chunk = policy.act([0], video=video[:, :, -1], state=state, task=[task], executed=[0])
    assert chunk.actions.shape == (1, policy.spec.action_horizon, len(robot.action))
    assert torch.isfinite(chunk.actions).all()
    if isinstance(policy.model, ActionConditioned):
        seen = Observation(video=video, state=state, task=[task])
        assert policy.imagine_along(seen, chunk.actions[:, :2], keys=[(0,)]).shape == (1, size[0], 2, *size[2:])
