"""The latent planner: check 9 of the specification and what users would expect of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from wamkit.data.transforms import ValueTransform
from wamkit.draws import SeededDraws
from wamkit.planning.cem import Plan, Watch, plan
from wamkit.planning.config import PRESETS, REFERENCE, SHRINK_ONLY, WAV, PlannerConfig
from wamkit.planning.objective import score_values
from wamkit.typed import read_fields

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

    def values(self, video: Tensor, noise: Tensor, num_steps: int | None, watch: Watch | None = None) -> Tensor:
        self.seen.append(video)
        values = self.value_of(video, noise)
        if watch is not None:
            for part in (slice(0, 3), slice(3, None)):
                watch(part, values[:, part], None)
        return values


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
    for distribution in (result.distributions.video, result.distributions.value):
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
    torch.testing.assert_close(result.distributions.video.mean, noise.mean(1))
    torch.testing.assert_close(result.distributions.video.std, noise.std(1, correction=int(unbiased)))
    noise = draws()("iteration0.value", (config.num_videos * config.num_values, *Toy.value_shape))
    torch.testing.assert_close(result.distributions.value.mean, noise.mean(1))
    torch.testing.assert_close(result.distributions.value.std, noise.std(1, correction=int(unbiased)))


def test_check_9b_pooled_views_give_the_moments_of_all_views() -> None:
    config = dataclasses.replace(
        REFERENCE,
        iterations=1,
        num_videos=6,
        num_values=2,
        video_elites=1.0,
        value_elites=1.0,
        keep_mean=0.0,
        keep_std=0.0,
        std_decay=1.0,
    )
    toy = Toy(flat_value)
    result, noise = plan(toy, config, draws()), draws()("iteration0.video", (6, *Toy.video_shape))
    noise[..., :MEMORY, :, :] = toy.memory[:, None]  # the public planner fits what it overwrites, too
    video = result.distributions.video
    assert video.mean.shape == (1, *Toy.video_shape[1:]), "one distribution for all views"
    torch.testing.assert_close(video.mean, noise.flatten(1, 2).mean(1))
    torch.testing.assert_close(video.std, noise.flatten(1, 2).std(1))
    per_view = plan(Toy(flat_value), dataclasses.replace(config, pool_views=False), draws()).distributions.video
    torch.testing.assert_close(per_view.mean, noise.mean(1))


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
    for kind in ("video", "value"):
        for moment in ("mean", "std"):
            ours, theirs = (
                getattr(getattr(plain.distributions, kind), moment),
                getattr(getattr(other.distributions, kind), moment),
            )
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
    moved = torch.equal(result.distributions.video.mean, (1 - config.keep_mean) * noise[:, star])
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
    for distribution in (result.distributions.video, result.distributions.value):
        # elites of standard noise keep about their spread, so each round multiplies by 0.9 + 0.1 * 0.5
        assert distribution.std.mean().item() == pytest.approx(0.95**iterations, rel=0.02)
        assert distribution.mean.abs().max() < 0.2


@pytest.mark.parametrize("iterations", [1, 5])
def test_check_9e_values_without_information_shrink_alike(iterations: int) -> None:
    """The published settings, scored by values that follow from nothing: spreads contract, means only jitter."""
    rng = torch.Generator().manual_seed(0)
    config = dataclasses.replace(WAV, iterations=iterations)
    result = plan(Toy(lambda video, noise: torch.randn(noise.shape, generator=rng), batch=8), config, draws(8))
    for distribution, elites in ((result.distributions.video, 27), (result.distributions.value, 15)):
        assert distribution.std.mean().item() == pytest.approx(0.95**iterations, rel=0.02)
        # each round moves the mean by a tenth of the elites' mean, whose spread is std/sqrt(elites)
        walked = 0.1 * sum(0.95 ** (2 * k) / elites for k in range(iterations)) ** 0.5
        assert distribution.mean.square().mean().sqrt().item() == pytest.approx(walked, rel=0.1)


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


def test_final_sample_is_drawn_from_the_last_distributions() -> None:
    toy = Toy(flat_value, batch=2)
    result = plan(toy, SMALL, draws(2))
    assert SMALL.final == "sample"
    noise = draws(2)("video", (VIEWS, CHANNELS, FRAMES - MEMORY, SIDE, SIDE))
    video, value = result.distributions.video, result.distributions.value
    assert video.mean.abs().max() > 0.01 and video.std.max() < 1, "three rounds must have moved it"
    torch.testing.assert_close(result.video[..., MEMORY:, :, :], video.mean + video.std * noise)
    torch.testing.assert_close(result.value, value.mean + value.std * draws(2)("value", Toy.value_shape))


def test_final_mean_is_the_middle_of_the_last_distributions() -> None:
    result = plan(Toy(flat_value), dataclasses.replace(SMALL, final="mean"), draws())
    assert torch.equal(result.value, result.distributions.value.mean)
    assert torch.equal(result.video[..., MEMORY:, :, :], result.distributions.video.mean)


@pytest.mark.parametrize("pairing", ["matched", "reference"])
def test_final_best_is_the_best_scored_of_all_rounds(pairing: str) -> None:
    """The candidate and the value noise on which the highest score of all rounds was booked, row by row."""
    noises: list[Tensor] = []

    def value_of(video: Tensor, noise: Tensor) -> Tensor:
        rows = "b g n y z -> b (n g) y z" if pairing == "reference" else "b g n y z -> b (g n) y z"
        noises.append(rearrange(noise, rows))
        return flat_value(video, noise)

    config, toy = dataclasses.replace(SMALL, final="best", pairing=pairing), Toy(value_of, batch=3)
    result = plan(toy, config, draws(3))
    rounds = []
    for row in range(3):
        scores = torch.stack([seen.scores[row].flatten() for seen in result.rounds])
        k, flat = divmod(int(scores.argmax()), scores.shape[1])
        assert torch.equal(result.video[row], toy.seen[k][row, flat // SMALL.num_values])
        assert torch.equal(result.value[row], noises[k][row, flat])
        rounds.append(k)
    assert min(rounds) < SMALL.iterations - 1, "if the last round won everywhere, nothing would have to be kept"


def test_final_best_of_random_scores_is_a_candidate_too() -> None:
    config = dataclasses.replace(SHRINK_ONLY, iterations=1, num_videos=8, final="best")
    result, source = plan(Toy(flat_value), config, draws()), draws()
    best = int(source("iteration0.score", (8, 5)).argmax())
    candidate = source("iteration0.video", (8, VIEWS, CHANNELS, FRAMES - MEMORY, SIDE, SIDE))[:, best // 5]
    assert torch.equal(result.video[..., MEMORY:, :, :], candidate)
    assert torch.equal(result.value, source("iteration0.value", (40, *Toy.value_shape))[:, best])


def test_scores_in_physical_units() -> None:
    """A steady future below average: in the network's space its mean is negative, so spread seems good to `snr`."""
    transform = ValueTransform(mean=(0.0,) * VALUE_CHANNELS, std=(1.0,) * (VALUE_CHANNELS - 1) + (2.0,))
    transform = dataclasses.replace(transform, mean=(0.0,) * (VALUE_CHANNELS - 1) + (10.0,))
    steady, wild = torch.linspace(5.9, 6.1, VALUE_TOKENS), torch.linspace(2.0, 9.0, VALUE_TOKENS)
    curves = torch.stack([wild, steady])[:, None, :, None].expand(2, 1, VALUE_TOKENS, VALUE_CHANNELS)

    def value_of(video: Tensor, noise: Tensor) -> Tensor:
        return transform.normalize(curves)[None]

    config = dataclasses.replace(
        WAV, iterations=1, num_videos=2, num_values=1, video_elites=0.5, value_elites=0.5, score="snr"
    )
    network_space = plan(Toy(value_of), config, draws(), denormalize=transform.denormalize)
    physical = plan(
        Toy(value_of), dataclasses.replace(config, denormalize_scores=True), draws(), denormalize=transform.denormalize
    )
    assert network_space.rounds[0].video_elites.item() == 0 and physical.rounds[0].video_elites.item() == 1
    expected = curves[..., -1].mean(-1) / (curves[..., -1].std(-1) + 1e-6)
    torch.testing.assert_close(physical.rounds[0].scores[0], expected, atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="denormalize_scores needs the transform of the values"):
        plan(Toy(value_of), dataclasses.replace(config, denormalize_scores=True), draws())


def test_a_search_goes_on_where_an_earlier_one_ended() -> None:
    config = dataclasses.replace(SMALL, iterations=2, warm_start=True, warm_start_std=0.6, std_decay=0.2, keep_std=0.3)
    first = plan(Toy(flat_value, batch=2), config, draws(2))
    ended = first.distributions
    assert ended.value.std.min() < 0.6 < ended.video.std.max() + 0.5
    never_moves = dataclasses.replace(config, keep_mean=1.0, keep_std=1.0)
    second = plan(Toy(flat_value, batch=2), never_moves, draws(2, seed=1), previous=[ended.row(0), None])
    for kind in ("video", "value"):
        before, after = getattr(ended, kind), getattr(second.distributions, kind)
        assert torch.equal(after.mean[0], before.mean[0]) and torch.equal(after.std[0], before.std[0].clamp(min=0.6))
        assert torch.equal(after.mean[1], torch.zeros_like(after.mean[1]))
        assert torch.equal(after.std[1], torch.ones_like(after.std[1]))
    warm = plan(Toy(flat_value, batch=2), config, draws(2, seed=1), previous=[ended.row(0), None])
    cold = plan(Toy(flat_value, batch=2), config, draws(2, seed=1))
    assert torch.equal(warm.video[1], cold.video[1]) and not torch.equal(warm.video[0], cold.video[0])


def test_the_spread_has_a_floor() -> None:
    config = dataclasses.replace(SMALL, iterations=4, keep_std=0.0, std_decay=0.01, min_std=0.05)
    result = run(config)
    assert result.distributions.value.std.min() == pytest.approx(0.05)


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
        {"warm_start_std": -0.1},
        {"std_decay": float("nan")},
        {"min_std": float("nan")},
        {"penalty": float("inf")},
        {"warm_start_std": float("nan")},
        {"video_elites": float("nan")},
        {"num_videos": True},
        {"unbiased_std": True, "num_videos": 2, "num_values": 2, "value_elites": 0.1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"planner: .*{next(iter(wrong))}"):
        dataclasses.replace(WAV, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"keep_mean": "0.5"}, {"iterations": 2.0}, {"unbiased_std": "no"}, {"value_steps": True}, {"score": "best"}],
)
def test_settings_of_another_type_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"expected {next(iter(wrong))} "):
        read_fields(PlannerConfig, wrong, "planner")
