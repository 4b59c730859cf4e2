"""Fixtures that several rooms share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence

import jaxtyping
import pytest
import torch
from torch import Tensor

from wamkit.spec import PolicySpec, RobotSpec
from wamkit.types import ActionChunk, Imagined

os.environ.setdefault("OMP_NUM_THREADS", "1")

SLOW_TIMEOUT_S = 900


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="run the tests marked slow too, as continuous integration does"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, unless they are asked for by the option or named by a marker of their own.

    Those that hang are ended too, but later: on a busy machine a minute becomes five.
    """
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    if config.getoption("--slow") or "slow" in config.getoption("-m"):
        return
    left_out = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=left_out)


# Where the button of the coffee machine is on average, and a height to press it at (metres).
BUTTON = (0.0, 0.80, 0.20)


class BlindPresser:
    """A policy without a network: it drives the hand towards where buttons usually are, with noise of its own.

    Like a trained policy it remembers each slot, draws everything from the slot's seed and imagines along, so it solves
    some layouts of `coffee-button-v3` and fails on others. It never sees where the button really is.
    """

    def __init__(self, robot: RobotSpec, *, execution_horizon: int = 4, action_horizon: int = 8, noise: float = 0.3):
        self.spec = PolicySpec(
            family="blind",
            robot=robot,
            num_context=1,
            action_horizon=action_horizon,
            execution_horizon=execution_horizon,
            normalization="none",
        )
        self.noise = noise
        self.generators: dict[int, torch.Generator] = {}
        self.executed: dict[int, int] = {}
        self.batches: list[tuple[int, ...]] = []

    def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self.generators[slot] = torch.Generator().manual_seed(seed)
            self.executed[slot] = 0

    def act(
        self,
        slots: Sequence[int],
        *,
        video: Tensor,
        state: Tensor,
        task: list[str],
        executed: Sequence[int],
        record: bool = False,
    ) -> ActionChunk:
        self.batches.append(tuple(slots))
        horizon = self.spec.action_horizon
        actions = torch.empty(len(slots), horizon, 4)
        for row, (slot, count) in enumerate(zip(slots, executed, strict=True)):
            self.executed[slot] += count
            draws = torch.randn(horizon, 3, generator=self.generators[slot])
            hand = state[row, :3].clone()
            for step in range(horizon):
                # One action unit moves the hand by a centimetre.
                move = ((torch.tensor(BUTTON) - hand) / 0.01).clamp(-1, 1) + self.noise * draws[step]
                actions[row, step] = torch.cat([move.clamp(-1, 1), torch.ones(1)])
                hand += 0.01 * move
        imagined = self.imagine(slots, video, state) if record else None
        return ActionChunk(actions=actions, imagined=imagined, timing={"act": 0.0})

    def imagine(self, slots: Sequence[int], video: Tensor, state: Tensor) -> Imagined:
        """Fading copies of the present frame, a value that rises towards the button, and two rounds of scores."""
        steps = tuple(range(2, self.spec.action_horizon + 1, 2))
        fade = torch.linspace(1.0, 0.8, len(steps))[:, None, None, None]
        frames = (video[:, :, None].float() * fade).to(torch.uint8)
        distance = (torch.tensor(BUTTON) - state[:, :3]).norm(dim=-1)
        ahead = torch.arange(1, self.spec.action_horizon + 1)
        value = -(distance[:, None] - 0.01 * ahead).abs()
        scores = [torch.randn(2, 40, generator=torch.Generator().manual_seed(self.executed[slot])) for slot in slots]
        spread = torch.tensor([[1.0], [0.6]])
        return Imagined(video=frames, video_steps=steps, value=value, scores=torch.stack(scores) * spread + 1 - spread)


@pytest.fixture(scope="session")
def blind_presser() -> type[BlindPresser]:
    """The class of a simple acting policy for closed-loop tests."""
    return BlindPresser


@pytest.fixture(autouse=True)
def log_level_kept() -> Iterator[None]:
    """A command run in this process makes the library's log speak up: for its own test alone."""
    log = logging.getLogger("wamkit")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture
def exact_products() -> Iterator[None]:
    """TF32 would round to ten bits what a CPU keeps."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def types_unchecked() -> Iterator[None]:
    """Without the run-time check of annotations, which takes most of a long run's time; the short tests have it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
