"""A running server of WAV `tiny` with random weights, and the robot that asks it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from wamkit.evaluation.results import PolicyIdentity
from wamkit.planning.config import PlannerConfig
from wamkit.policy import Policy
from wamkit.serving.config import ServerConfig
from wamkit.serving.inference import Batching
from wamkit.serving.server import Server, bind, build

from ..policies import EPISODE, VIDEO, make_policy

TASK = EPISODE.task


def observation(row: int = 0, **more: Any) -> dict[str, Any]:
    """What the robot sees in a row of its episode, under WAV's names."""
    return {"obs": VIDEO[row].numpy(), "state": EPISODE.state[row], "prompt": TASK, **more}


def named(row: int = 0, **more: Any) -> dict[str, Any]:
    """The same, images by camera."""
    front, wrist = VIDEO[row].numpy()
    return {"images": {"wrist": wrist, "front": front}, "state": EPISODE.state[row], "prompt": TASK, **more}


@contextlib.contextmanager
def serving(policy: Policy | None = None, batching: Batching | None = None, **settings: Any) -> Iterator[Server]:
    """A server at a free port."""
    config = {key: settings.pop(key) for key in list(settings) if key in ServerConfig.__dataclass_fields__}
    config = ServerConfig(**{"port": 0, "grace_s": 5.0, **config})
    policy = policy or make_policy()
    identity = PolicyIdentity(name="tiny", fingerprint="0123", details={"family": "wav"})
    app = build(policy, config, identity=dataclasses.asdict(identity), batching=batching, **settings)
    with bind(config) as listening, Server(app, listening).running() as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One that many tests share."""
    with serving() as running:
        yield running


def alone(rows: list[int], *, seed: int, executed: int, planner: PlannerConfig | None = None) -> list[np.ndarray]:
    """Chunks that the policy gives one robot in this process."""
    import torch

    policy = make_policy(planner)
    policy.reset([0], seeds=[seed])
    return [
        policy.act(
            [0],
            video=VIDEO[row][None],
            state=torch.from_numpy(EPISODE.state[row][None]),
            task=[TASK],
            executed=[executed],
        )
        .actions[0]
        .numpy()
        for row in rows
    ]
