"""WAV's targets: check 8 of the specification, and what each stage tells the network."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from wamkit.flow import draw_sigma, euler, interpolate, sigma_schedule, velocity
from wamkit.models.wav import config as wav
from wamkit.models.wav.config import WAVObjective
from wamkit.models.wav.losses import losses, perturb_memory, video_loss
from wamkit.models.wav.model import WAVTransformer

from .wav_cases import CONFIG, NETWORK, encoded_batch, generator, network


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
    sigma, timestep = draw_sigma(50_000, generator())
    assert timestep.min() >= 1 and timestep.max() == 1000
    assert torch.equal(timestep, timestep.round())
    torch.testing.assert_close(sigma * 1000, timestep)
    assert abs(sigma.mean().item() - 0.5005) < 0.01


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
    losses(spy, CONFIG, encoded_batch(), objective, generator())
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
        return losses(network(), CONFIG, batch, objective, generator())[1]

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
    total, parts = losses(network(), CONFIG, encoded_batch(rows), objective, generator())
    assert torch.isfinite(total) and set(parts) == {"video_loss", "action_loss"}
    with pytest.raises(ValueError, match="batches of 2 or more"):
        losses(network(), CONFIG, encoded_batch(1), objective, generator())


def test_a_loss_without_its_expert_is_refused() -> None:
    bare = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, value=None))
    with pytest.raises(ValueError, match="no value expert"):
        losses(network(value=None), bare, encoded_batch(), wav.value_only(), generator())


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
        kept = losses(model, CONFIG, masked, objective, generator())[0]
        blown = losses(model, CONFIG, dataclasses.replace(masked, actions=wild), objective, generator())[0]
        counted = losses(model, CONFIG, dataclasses.replace(batch, actions=wild), objective, generator())[0]
    assert kept < 100 and blown < 200 and counted > 1000


def test_caption_dropout_replaces_sentence_and_mask() -> None:
    from wamkit.models.wav.losses import _drop_captions

    batch = encoded_batch()
    text, mask = _drop_captions(batch, 1.0, generator())
    assert torch.equal(text, batch.empty_text.expand_as(text)) and torch.equal(mask, batch.empty_mask.expand_as(mask))
    text, mask = _drop_captions(batch, 0.0, generator())
    assert torch.equal(text, batch.text) and torch.equal(mask, batch.text_mask)


def test_missing_targets_are_named() -> None:
    batch = encoded_batch()
    with pytest.raises(ValueError, match="wamkit data values"):
        losses(network(), CONFIG, dataclasses.replace(batch, value_targets=None), wav.value_only(), generator())
    with pytest.raises(ValueError, match="needs_future"):
        losses(network(), CONFIG, dataclasses.replace(batch, future=None), wav.video_only(), generator())
    # the action stage needs neither
    bare = dataclasses.replace(batch, value_targets=None, future=None)
    assert torch.isfinite(losses(network(), CONFIG, bare, wav.action_full(), generator())[0])
