"""The latent planner: check 9 of the specification and what users would expect of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wamkit.draws import SeededDraws
from wamkit.planning.cem import Plan, plan
from wamkit.planning.config import PRESETS, REFERENCE, SHRINK_ONLY, WAV, PlannerConfig
from wamkit.planning.objective import score_values

VIEWS, CHANNELS, FRAMES, MEMORY, SIDE = 2, 3, 3, 1, 2
VALUE_TOKENS, VALUE_CHANNELS = 6, 4


@dataclasses.dataclass
class Toy:
    """A problem whose value is a known function of the noise."""

    value_of: Callable[[Tensor, Tensor], Tensor]
    batch: int = 1
    seen: list[Tensor] = dataclasses.field(default_factory=list)

    video_shape = (VIEWS, CHANNELS, FRAMES, SIDE, SIDE)
    value_shape = (VALUE_TOKENS, VALUE_CHANNELS)
    num_memory = MEMORY

    @property
    def memory(self) -> Tensor:
        shape = (self.batch, VIEWS, CHANNELS, MEMORY, SIDE, SIDE)
        return torch.randn(shape, generator=torch.Generator().manual_seed(99))

    def with_memory(self, video: Tensor) -> Tensor:
        memory = self.memory[:, None].expand(-1, video.shape[1], -1, -1, -1, -1, -1)
        return torch.cat((memory, video[..., -(FRAMES - MEMORY) :, :, :]), dim=-3)

    def values(self, video: Tensor, noise: Tensor, num_steps: int | None) -> Tensor:
        self.seen.append(video)
        return self.value_of(video, noise)


def draws(batch: int = 1, seed: int = 0) -> SeededDraws:
    return SeededDraws(keys=[(seed, row) for row in range(batch)])


def flat_value(video: Tensor, noise: Tensor) -> Tensor:
    """Some smooth function of both noises, different per token."""
    level = video[..., MEMORY:, :, :].mean((2, 3, 4, 5, 6))[:, :, None, None, None] + noise.mean((-1, -2), keepdim=True)
    return level + noise * 0.1


def run(config: PlannerConfig, value_of: Callable[[Tensor, Tensor], Tensor] = flat_value, batch: int = 1) -> Plan:
    return plan(Toy(value_of, batch), config, draws(batch))


SMALL = dataclasses.replace(WAV, iterations=3, num_videos=8, num_values=3, video_elites=0.5, value_elites=0.25)


@pytest.mark.parametrize("changes", [{"keep_mean": 1.0, "keep_std": 1.0}, {"iterations": 0}])
def test_check_9a_keeping_all_is_the_plain_sampler(changes: dict[str, float]) -> None:
    config = dataclasses.replace(SMALL, **changes)
    result, toy, source = run(config), Toy(flat_value), draws()
    for distribution in (result.video_distribution, result.value_distribution):
        assert torch.equal(distribution.mean, torch.zeros_like(distribution.mean))
        assert torch.equal(distribution.std, torch.ones_like(distribution.std))
    noise = source("video", (VIEWS, CHANNELS, FRAMES - MEMORY, SIDE, SIDE))
    assert torch.equal(result.video, toy.with_memory(noise[:, None])[:, 0])
    assert torch.equal(result.value, source("value", Toy.value_shape))


@pytest.mark.parametrize("unbiased", [False, True])
def test_check_9b_all_elite_gives_the_empirical_moments(unbiased: bool) -> None:
    config = dataclasses.replace(
        SMALL, iterations=1, video_elites=1.0, value_elites=1.0, keep_mean=0.0, keep_std=0.0, std_decay=1.0, min_std=0.0
    )
    result = run(dataclasses.replace(config, unbiased_std=unbiased))
    shape = (config.num_videos, VIEWS, CHANNELS, FRAMES - MEMORY, SIDE, SIDE)
    noise = draws()("iteration0.video", shape)
    torch.testing.assert_close(result.video_distribution.mean, noise.mean(1))
    torch.testing.assert_close(result.video_distribution.std, noise.std(1, correction=int(unbiased)))
    noise = draws()("iteration0.value", (config.num_videos * config.num_values, *Toy.value_shape))
    torch.testing.assert_close(result.value_distribution.mean, noise.mean(1))
    torch.testing.assert_close(result.value_distribution.std, noise.std(1, correction=int(unbiased)))


@dataclasses.dataclass
class Relabelled:
    """The same draws with candidates (and their value rows) in another order."""

    order: list[int]
    num_values: int

    def __call__(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        noise = draws()(stream, shape)
        if stream == "iteration0.video":
            return noise[:, self.order]
        if stream == "iteration0.value":
            return noise.unflatten(1, (-1, self.num_values))[:, self.order].flatten(1, 2)
        return noise


def test_check_9c_relabelling_candidates_changes_nothing() -> None:
    config = dataclasses.replace(SMALL, iterations=1)
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    plain = plan(Toy(flat_value), config, draws())
    other = plan(Toy(flat_value), config, Relabelled(order, config.num_values))
    for kind in ("video_distribution", "value_distribution"):
        for moment in ("mean", "std"):
            ours, theirs = getattr(getattr(plain, kind), moment), getattr(getattr(other, kind), moment)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("pairing", ["matched", "reference"])
def test_check_9d_a_rewarded_candidate_is_found(pairing: str) -> None:
    """With 8 videos of 3 values, flat rows 15 to 17 are booked on video 5; the reference evaluates them elsewhere."""
    star, config = (
        5,
        dataclasses.replace(
            SMALL, iterations=1, video_elites=1 / 8, value_elites=1 / 24, keep_mean=0.3, score="mean", pairing=pairing
        ),
    )
    noise = draws()("iteration0.video", (8, VIEWS, CHANNELS, FRAMES - MEMORY, SIDE, SIDE))

    def reward(video: Tensor, value: Tensor) -> Tensor:
        is_star = (video[:, :, :, :, MEMORY:] == noise[:, star : star + 1]).flatten(2).all(-1)
        return is_star[:, :, None, None, None].float().expand(*value.shape)

    result = plan(Toy(reward), config, draws())
    elites = set(result.rounds[0].video_elites.flatten().tolist())
    moved = torch.equal(result.video_distribution.mean, (1 - config.keep_mean) * noise[:, star])
    if pairing == "matched":
        assert elites == {star} and moved
    else:
        assert elites != {star} and not moved


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_check_9e_random_scores_only_shrink(iterations: int) -> None:
    config = dataclasses.replace(SHRINK_ONLY, iterations=iterations)
    toy = Toy(flat_value)
    result = plan(toy, config, draws())
    assert not toy.seen, "the control must not look at values"
    for distribution in (result.video_distribution, result.value_distribution):
        # elites of standard noise keep about their spread, so each round multiplies by 0.9 + 0.1 * 0.5
        assert distribution.std.mean().item() == pytest.approx(0.95**iterations, rel=0.02)
        assert distribution.mean.abs().max() < 0.2


def test_check_9f_memory_frames_are_the_memory() -> None:
    toy = Toy(flat_value)
    result = plan(toy, SMALL, draws())
    for video in toy.seen:
        assert torch.equal(video[..., :MEMORY, :, :], toy.memory[:, None].expand_as(video[..., :MEMORY, :, :]))
    assert torch.equal(result.video[..., :MEMORY, :, :], toy.memory)


def test_a_batch_plans_as_each_observation_alone() -> None:
    whole = plan(Toy(flat_value, batch=3), SMALL, draws(3))
    for row in range(3):
        toy = Toy(flat_value, batch=3)
        memory = toy.memory[row : row + 1]
        alone = plan(_Fixed(flat_value, memory), SMALL, SeededDraws(keys=[(0, row)]))
        torch.testing.assert_close(alone.video, whole.video[row : row + 1])
        torch.testing.assert_close(alone.value, whole.value[row : row + 1])


@dataclasses.dataclass
class _Fixed(Toy):
    fixed: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1))

    def __init__(self, value_of: Callable[[Tensor, Tensor], Tensor], fixed: Tensor) -> None:
        super().__init__(value_of)
        self.fixed = fixed

    @property
    def memory(self) -> Tensor:
        return self.fixed


def test_planning_finds_the_best_of_a_toy_model() -> None:
    """The value peaks at a known noise; the distribution must travel towards it."""
    goal = 1.5

    def value_of(video: Tensor, noise: Tensor) -> Tensor:
        miss = (video[..., MEMORY:, :, :] - goal).square().mean((2, 3, 4, 5, 6)) - 0 * noise.mean()
        return -miss[:, :, None, None, None].expand(*noise.shape)

    config = dataclasses.replace(
        WAV, iterations=12, num_videos=64, num_values=1, video_elites=0.1, keep_mean=0.2, keep_std=0.6, score="mean"
    )
    start = dataclasses.replace(config, iterations=0)
    before, after = (run(each, value_of).video[..., MEMORY:, :, :] for each in (start, config))
    assert (after - goal).square().mean() < 0.5 * (before - goal).square().mean()


@pytest.mark.parametrize("final", ["sample", "mean", "best"])
def test_final_modes(final: str) -> None:
    toy = Toy(flat_value)
    result = plan(toy, dataclasses.replace(SMALL, final=final), draws())
    if final == "mean":
        assert torch.equal(result.value, result.value_distribution.mean)
    if final == "best":
        candidates = torch.cat(toy.seen, dim=1)
        assert any(torch.equal(result.video[0], candidate) for candidate in candidates[0])
        best = max(float(seen.scores.max()) for seen in result.rounds)
        score = score_values(flat_value(result.video[:, None], result.value[:, None, None])[..., -1], "snr")
        assert float(score) == pytest.approx(best, rel=1e-4)


def test_the_spread_has_a_floor() -> None:
    config = dataclasses.replace(SMALL, iterations=4, keep_std=0.0, std_decay=0.01, min_std=0.05)
    result = run(config)
    assert result.value_distribution.std.min() == pytest.approx(0.05)


def test_scores() -> None:
    curve = torch.tensor([[1.0, 2.0, 3.0]])
    assert score_values(curve, "mean").item() == 2
    assert score_values(curve, "last").item() == 3
    assert score_values(curve, "lcb", penalty=2.0).item() == 0
    assert score_values(curve, "snr").item() == pytest.approx(2 / (1 + 1e-6))


def test_presets_are_the_published_numbers() -> None:
    assert set(PRESETS) == {"wav", "reference", "shrink_only"}
    for preset in PRESETS.values():
        assert (preset.num_videos, preset.num_values) == (30, 5)
        assert (preset.num_elite_videos, preset.num_elite_values) == (27, 15)
        assert (preset.std_decay, preset.keep_mean, preset.keep_std) == (0.5, 0.9, 0.9)
    assert (WAV.iterations, WAV.pairing, WAV.min_std) == (3, "matched", 0.05)
    assert (REFERENCE.iterations, REFERENCE.pairing, REFERENCE.min_std) == (5, "reference", 0.0)
    assert REFERENCE.pool_views and REFERENCE.unbiased_std and REFERENCE.fit_memory_frames


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": -1},
        {"num_videos": 0},
        {"value_elites": 0.0},
        {"video_elites": 1.5},
        {"keep_mean": 1.1},
        {"value_steps": 0},
        {"std_decay": -0.1},
        {"unbiased_std": True, "num_videos": 2, "num_values": 2, "value_elites": 0.1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="planner: "):
        dataclasses.replace(WAV, **wrong)
