"""WAV's targets: check 8 of the specification, and what each stage tells the network."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from wamkit import flow
from wamkit.draws import TrainingDraws
from wamkit.flow import euler, interpolate, sigma_schedule, training_sigma, velocity
from wamkit.models.wav import objective as wav
from wamkit.models.wav.losses import losses, perturb_memory, video_loss
from wamkit.models.wav.model import WAVTransformer
from wamkit.models.wav.objective import FlowWeighting, WAVObjective

from .wav_cases import CONFIG, NETWORK, draws, encoded_batch, generator, network


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10])
def test_check_8_a_perfect_oracle_returns_the_data(num_steps: int) -> None:
    data, noise = torch.randn(2, 4, 3, generator=generator(1)), torch.randn(2, 4, 3, generator=generator(2))
    got = euler(noise, lambda x, sigma: velocity(data, noise), sigma_schedule(num_steps))
    torch.testing.assert_close(got, data, atol=1e-6, rtol=0)


def test_check_8_video_loss_ignores_memory_predictions() -> None:
    target, predicted = torch.randn(2, 2, 12, 3), torch.randn(2, 2, 12, 3)
    changed = predicted.clone()
    changed[:, :, :8] = 1e3
    loss = video_loss(predicted, target, 8)
    assert torch.equal(loss, video_loss(changed, target, 8))
    # averaged over all tokens: a third of them are future tokens here
    torch.testing.assert_close(loss, (predicted - target)[:, :, 8:].square().mean() / 3)


def test_check_8_memory_mixture() -> None:
    memory, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    sigma, share = torch.tensor([0.0, 0.4, 1.0]), 0.07
    mixed = (1 - sigma)[:, None, None] * memory + sigma[:, None, None] * ((1 - share) * memory + share * noise)
    torch.testing.assert_close(perturb_memory(memory, noise, sigma, share), mixed, atol=1e-6, rtol=1e-6)


def test_training_sigmas_are_the_thousand_of_the_schedule() -> None:
    sigma, timestep = training_sigma(torch.rand(50_000, generator=generator()))
    assert timestep.min() >= 1 and timestep.max() == 1000
    assert torch.equal(timestep, timestep.round())
    torch.testing.assert_close(sigma * 1000, timestep)
    assert abs(sigma.mean().item() - 0.5005) < 0.01
    every = training_sigma(torch.arange(1000) / 1000 + 5e-4)[1]
    assert torch.equal(every, torch.arange(1000, 0, -1).float())


def test_bf16_sigmas_are_the_public_trainers() -> None:
    """500 levels are left of 1000; 999 is told as 1000 and 997 as 996."""
    sigma, told = training_sigma(torch.arange(1000) / 1000 + 5e-4, bf16=True)
    assert told[1] == 1000 and told[3] == 996
    coarse = told[told > 512].unique()
    assert torch.equal(coarse.diff(), torch.full((len(coarse) - 1,), 4.0))
    assert abs(told.unique().numel() - 500) <= 10
    assert (sigma - torch.arange(1000, 0, -1) / 1000).abs().max() < 2e-3


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        # by hand: u, then logit-normal(0, 1) = sigmoid(quantile of u), and mode = 1 - u - 1.29 (cos²(πu/2) - 1 + u)
        (0.5, (0.5, 0.5)),
        (0.8413447, (0.7310586, 0.28373)),
        (0.25, (0.33750, 0.62785)),
    ],
)
def test_weightings_warp_uniform_numbers(u: float, expected: tuple[float, float]) -> None:
    import math

    given = torch.tensor([u])
    assert flow.logit_normal(given, 0.0, 1.0).item() == pytest.approx(expected[0], abs=1e-4)
    by_hand = 1 - u - 1.29 * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
    assert flow.mode(given, 1.29).item() == pytest.approx(by_hand, abs=1e-6)
    assert flow.mode(given, 0.0).item() == pytest.approx(1 - u, abs=1e-6)


def test_loss_weights() -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0])
    torch.testing.assert_close(flow.sigma_sqrt(sigma), torch.tensor([100.0, 4.0, 1.0]))
    torch.testing.assert_close(flow.cosmap(sigma), torch.tensor([0.776363, 1.273240, 0.636620]), atol=1e-5, rtol=0)


def test_interpolate_then_velocity_recovers_the_data() -> None:
    data, noise = torch.randn(5, 4), torch.randn(5, 4)
    sigma = torch.linspace(0, 1, 5)
    x = interpolate(data, noise, sigma)
    torch.testing.assert_close(x - sigma[:, None] * velocity(data, noise), data, atol=1e-5, rtol=0)


class _Spy(WAVTransformer):
    """A network that remembers what it was told."""

    def forward(self, video, timesteps, text, grid, value=None, action=None):  # type: ignore[no-untyped-def,override]
        self.timesteps, self.given_value, self.given_action = timesteps, value, action
        return super().forward(video, timesteps, text, grid, value=value, action=action)


def _told(objective: WAVObjective) -> _Spy:
    spy = _Spy(NETWORK)
    losses(spy, CONFIG, encoded_batch(), objective, draws())
    return spy


def test_pure_noise_streams_are_told_the_truth() -> None:
    stage = _told(wav.value_only())
    assert torch.equal(stage.timesteps.levels[:, 1], torch.full((3,), 1000.0))
    stage = _told(wav.action_full())
    assert torch.equal(stage.timesteps.levels[:, 1], torch.full((3,), 1000.0))
    assert torch.equal(stage.given_value.timestep, torch.full((3,), 1000.0))
    assert stage.given_action.timestep.unique().numel() > 1
    assert torch.equal(stage.given_action.state_token[:, 0, : CONFIG.action_dim], torch.zeros(3, CONFIG.action_dim))


def test_reference_timesteps_tell_what_the_public_trainer_tells() -> None:
    stage = _told(dataclasses.replace(wav.value_only(), reference_timesteps=True))
    assert stage.timesteps.levels[:, 1].unique().numel() > 1
    stage = _told(dataclasses.replace(wav.action_full(), reference_timesteps=True))
    assert torch.equal(stage.timesteps.levels[:, 1], torch.full((3,), 1000.0))
    assert stage.given_value.timestep.unique().numel() > 1


def test_value_loss_in_the_action_stage_keeps_the_pure_row_apart() -> None:
    stage = _told(WAVObjective(action_weight=1.0, value_weight=1.0, noisy_video=True, pure_value=True, num_draws=2))
    told = stage.given_value.timestep.unflatten(0, (3, -1))
    assert told.shape == (3, 3) and torch.equal(told[:, 0], torch.full((3,), 1000.0))
    assert stage.given_action.tokens.shape[0] == 6


def test_some_rows_may_go_on_imagining_while_the_others_act() -> None:
    objective = dataclasses.replace(wav.action_full(), video_weight=1.0, video_share=1 / 3)
    assert objective.needs_future
    stage = _told(objective)
    assert stage.timesteps.levels[0, 1] < 1000 and torch.equal(stage.timesteps.levels[1:, 1], torch.full((2,), 1000.0))

    def parts(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = dataclasses.replace(encoded_batch(), **changes)
        return losses(network(), CONFIG, batch, objective, draws())[1]

    batch, plain = encoded_batch(), parts()
    assert set(plain) == {"video_loss", "action_loss"}
    for name, rows in (("actions", slice(1)), ("future", slice(1, None))):
        moved = getattr(batch, name).clone()
        moved[rows] += 5
        changed = parts(**{name: moved})
        # row 0 carries only the video loss, rows 1 and 2 only the action loss
        unmoved = "action_loss" if name == "actions" else "video_loss"
        torch.testing.assert_close(changed[unmoved], plain[unmoved])
    for wrong in ({"video_weight": 1.0}, {"video_share": 0.5}, {"video_share": 1.0, "video_weight": 1.0}):
        with pytest.raises(ValueError, match="video_share"):
            dataclasses.replace(wav.action_full(), **wrong)


@pytest.mark.parametrize("rows", [2, 3])
def test_small_batches_keep_rows_of_both_kinds(rows: int) -> None:
    objective = dataclasses.replace(wav.action_full(), video_weight=1.0, video_share=0.25)
    total, parts = losses(network(), CONFIG, encoded_batch(rows), objective, draws(rows=rows))
    assert torch.isfinite(total) and set(parts) == {"video_loss", "action_loss"}
    with pytest.raises(ValueError, match="batches of 2 or more"):
        losses(network(), CONFIG, encoded_batch(1), objective, draws(rows=1))


def test_a_loss_without_its_expert_is_refused() -> None:
    bare = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, value=None))
    with pytest.raises(ValueError, match="no value expert"):
        losses(network(value=None), bare, encoded_batch(), wav.value_only(), draws())


def test_padding_can_be_left_out_of_the_loss() -> None:
    batch, objective = encoded_batch(), dataclasses.replace(wav.action_full(), mask_padding=True)
    padded = batch.is_padded.clone()
    padded[:, 5:] = True
    wild = batch.actions.clone()
    wild[:, 5:] += 100
    masked = dataclasses.replace(batch, is_padded=padded)
    # the padded tokens still enter the network, so only their own targets may be left out
    model = network()
    with torch.no_grad():
        kept = losses(model, CONFIG, masked, objective, draws())[0]
        blown = losses(model, CONFIG, dataclasses.replace(masked, actions=wild), objective, draws())[0]
        counted = losses(model, CONFIG, dataclasses.replace(batch, actions=wild), objective, draws())[0]
    assert kept < 100 and blown < 200 and counted > 1000


def test_caption_dropout_replaces_sentence_and_mask() -> None:
    from wamkit.models.wav.losses import _drop_captions

    batch = encoded_batch()
    always = dataclasses.replace(wav.video_only(), caption_dropout=1.0)
    text, mask = _drop_captions(batch, always, draws())
    assert torch.equal(text, batch.empty_text.expand_as(text)) and torch.equal(mask, batch.empty_mask.expand_as(mask))
    text, mask = _drop_captions(batch, dataclasses.replace(always, reference_caption_mask=True), draws())
    assert torch.equal(text, batch.empty_text.expand_as(text)) and torch.equal(mask, batch.text_mask)
    text, mask = _drop_captions(batch, dataclasses.replace(always, caption_dropout=0.0), draws())
    assert torch.equal(text, batch.text) and torch.equal(mask, batch.text_mask)
    many = TrainingDraws(key=(0,), rows=range(400), num_rows=400)
    share = (many.uniform("caption") < 0.06).float().mean()
    assert 0.02 < share < 0.12


def test_missing_targets_are_named() -> None:
    batch = encoded_batch()
    with pytest.raises(ValueError, match="wamkit data values"):
        losses(network(), CONFIG, dataclasses.replace(batch, value_targets=None), wav.value_only(), draws())
    with pytest.raises(ValueError, match="needs_future"):
        losses(network(), CONFIG, dataclasses.replace(batch, future=None), wav.video_only(), draws())
    # the action stage needs neither
    bare = dataclasses.replace(batch, value_targets=None, future=None)
    assert torch.isfinite(losses(network(), CONFIG, bare, wav.action_full(), draws())[0])


# Section 3.2 of the specification: which noise level each stream has, and which timestep it is told, stage by stage.
# "1" is pure noise, "u" follows a random level.
LEVELS = {
    # stage: (objective, video sigma, video told, value sigma, value told)
    "video_only": (wav.video_only(), "u", "u", None, None),
    "value_only": (wav.value_only(), "1", "1", "u", "u"),
    "action_full": (wav.action_full(), "1", "1", "1", "1"),
    "value_only, reference": (dataclasses.replace(wav.value_only(), reference_timesteps=True), "1", "u", "u", "u"),
    "action_full, reference": (dataclasses.replace(wav.action_full(), reference_timesteps=True), "1", "1", "1", "u"),
    "value_only, partly noisy": (dataclasses.replace(wav.value_only(), noisy_video=False), "u", "u", "u", "u"),
    "action_full, partly noisy": (dataclasses.replace(wav.action_full(), noisy_video=False), "u", "u", "1", "1"),
    "everything": (wav.everything(), "u", "u", "u", "u"),
}


@pytest.mark.parametrize("stage", LEVELS)
def test_every_stage_has_the_levels_of_the_table(stage: str) -> None:
    objective, video_sigma, video_told, value_sigma, value_told = LEVELS[stage]
    objective = dataclasses.replace(objective, memory_noise=0.0)
    rows = 4
    # the data is 0, so that a noisy token's spread is its noise level
    batch = encoded_batch(rows)
    assert batch.future is not None and batch.value_targets is not None
    batch = dataclasses.replace(
        batch,
        future=torch.zeros_like(batch.future),
        value_targets=torch.zeros_like(batch.value_targets),
        actions=torch.zeros_like(batch.actions),
    )
    spy = _Spy(NETWORK)
    seen: dict[str, torch.Tensor] = {}
    spy.register_forward_pre_hook(lambda _, given: seen.update(video=given[0]))
    losses(spy, CONFIG, batch, objective, draws(rows=rows))
    num_memory = CONFIG.num_context * CONFIG.grid[1] * CONFIG.grid[2]
    assert torch.equal(seen["video"][:, :, :num_memory].flatten(0, 1).unflatten(0, (rows, -1)), _memory(batch))
    level = spy.timesteps.levels
    assert torch.equal(level[:, 0], torch.zeros(rows))
    u1 = draws(rows=rows).uniform("level")
    told = {"1": torch.full((rows,), 1000.0), "u": training_sigma(u1)[1]}
    torch.testing.assert_close(level[:, 1], told[video_told])
    noise = draws(rows=rows)("video", (CONFIG.num_views, 6, CONFIG.num_future_latents, *CONFIG.grid[1:]))
    spread = seen["video"][:, :, num_memory:].square().mean((1, 2, 3)).sqrt() / noise.square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(spread, told[video_sigma] / 1000, atol=1e-4, rtol=1e-4)
    if value_sigma is None:
        assert spy.given_value is None and spy.given_action is None
        return
    count = len(spy.given_value.timestep) // rows
    u2 = training_sigma(draws(rows=rows).uniform("value level", (count,)))[1].flatten()
    told = {"1": torch.full((rows,), 1000.0), "u": u2}
    torch.testing.assert_close(spy.given_value.timestep, told[value_told])
    noise = draws(rows=rows)("value", (count, CONFIG.action_horizon, 5)).flatten(0, 1)
    torch.testing.assert_close(
        spy.given_value.tokens, noise * told[value_sigma][:, None, None] / 1000, atol=1e-5, rtol=1e-5
    )
    if spy.given_action is not None:
        torch.testing.assert_close(spy.given_action.timestep, training_sigma(u1)[1])


def _memory(batch):  # type: ignore[no-untyped-def]
    from wamkit.models.wav.control import to_tokens

    return to_tokens(batch.memory)


def test_memory_noise_is_one_share_for_the_whole_batch() -> None:
    objective = dataclasses.replace(wav.action_full(), memory_noise=0.1)
    spy, seen = _Spy(NETWORK), {}
    spy.register_forward_pre_hook(lambda _, given: seen.update(video=given[0]))
    batch = encoded_batch()
    losses(spy, CONFIG, batch, objective, draws())
    clean = _memory(batch)
    noise = draws()("memory", batch.memory.shape[1:])
    share = draws().shared("memory share") * 0.1  # and sigma is 1 in this stage
    expected = clean + share * (_memory(dataclasses.replace(batch, memory=noise)) - clean)
    torch.testing.assert_close(seen["video"][:, :, : clean.shape[2]], expected)


@pytest.mark.parametrize("scheme", ["logit_normal", "mode", "sigma_sqrt", "cosmap"])
def test_every_weighting_reaches_levels_or_losses(scheme: str) -> None:
    plain_objective = WAVObjective(video_weight=1.0)
    weighted = dataclasses.replace(plain_objective, weighting=FlowWeighting(scheme=scheme))  # type: ignore[arg-type]
    told, loss = {}, {}
    for name, objective in (("none", plain_objective), (scheme, weighted)):
        spy = _Spy(NETWORK)
        spy.load_state_dict(network().state_dict())
        loss[name] = losses(spy, CONFIG, encoded_batch(1), objective, draws(rows=1))[0]
        told[name] = spy.timesteps.levels[:, 1]
    if scheme in ("logit_normal", "mode"):
        assert not torch.equal(told[scheme], told["none"])
    else:
        sigma = told["none"] / 1000
        assert torch.equal(told[scheme], told["none"])
        torch.testing.assert_close(loss[scheme], loss["none"] * getattr(flow, scheme)(sigma)[0])


def test_unknown_weightings_are_refused() -> None:
    # the command line hands over what was typed, unchecked by types
    with pytest.raises((ValueError, TypeError), match="logit_normal"):
        FlowWeighting(scheme="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="caption_dropout in"):
        WAVObjective(video_weight=1.0, caption_dropout=1.5)


def test_sparse_value_tokens_stand_for_the_future_frames() -> None:
    sparse = dataclasses.replace(CONFIG, value_dense=False, action_horizon=18)
    assert sparse.value_steps == tuple(range(2, 19, 2))
    batch = encoded_batch()
    assert batch.value_targets is not None
    twice = dataclasses.replace(
        batch,
        actions=batch.actions.repeat(1, 2, 1),
        is_padded=batch.is_padded.repeat(1, 2),
        value_targets=torch.arange(18.0)[None, :, None].expand(3, 18, 5) + 0,
    )
    spy = _Spy(NETWORK)
    losses(spy, sparse, twice, wav.value_only(), draws())
    assert spy.given_value.tokens.shape == (3, 9, 5)
    noise = draws()("value", (1, 9, 5)).flatten(0, 1)
    sigma = spy.given_value.timestep[:, None, None] / 1000
    data = (spy.given_value.tokens - sigma * noise) / (1 - sigma).clamp(min=1e-3)
    torch.testing.assert_close(data[:, :, 0], torch.arange(1.0, 18, 2).expand(3, 9), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_two_halves_of_a_batch_draw_what_the_whole_draws(share: float) -> None:
    """Losses of the halves, each over its own rows, average to the loss of the whole batch when no rows are masked."""
    objective = dataclasses.replace(wav.action_full(), value_weight=1.0, num_draws=2)
    if share:
        objective = dataclasses.replace(objective, video_weight=1.0, video_share=share)
    batch, model = encoded_batch(4), network()

    def loss(rows: list[int]) -> torch.Tensor:
        own = {
            key: item[rows]
            for key, item in vars(batch).items()
            if isinstance(item, torch.Tensor) and not key.startswith("empty")
        }
        some = dataclasses.replace(batch, **own)
        return losses(model, CONFIG, some, objective, TrainingDraws(key=(0,), rows=rows, num_rows=4))[0]

    whole = loss([0, 1, 2, 3])
    torch.testing.assert_close((loss([0, 2]) + loss([1, 3])) / 2, whole, atol=1e-6, rtol=1e-5)
