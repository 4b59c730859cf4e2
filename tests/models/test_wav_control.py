"""WAV's control step: check 6 of the specification against an uncached computation written as the reference
describes."""

from __future__ import annotations

import weakref
from itertools import pairwise

import pytest
import torch
from einops import rearrange
from torch import Tensor

from wamkit.draws import SeededDraws
from wamkit.flow import sigma_schedule
from wamkit.models.wav.control import ControlStep, KeptFeatures, to_latents, to_tokens
from wamkit.models.wav.experts import ExpertTokens
from wamkit.models.wav.model import TextContext, WAVTransformer
from wamkit.nn.modulation import Timesteps
from wamkit.planning.cem import Watch, plan
from wamkit.planning.config import PlannerConfig

from .wav_cases import CONFIG, GRID, NETWORK, VIEWS, generator, network, text

STEPS = 4
MEMORY = CONFIG.num_context * GRID[1] * GRID[2]
HORIZON = CONFIG.action_horizon


def control_step(
    model: WAVTransformer, batch: int = 2, cls: type[ControlStep] = ControlStep, **changes: object
) -> ControlStep:
    shape = (batch, VIEWS, NETWORK.latent_channels, CONFIG.num_context, GRID[1], GRID[2])
    settings = {
        "memory": torch.randn(shape, generator=generator(11)),
        "num_future_latents": CONFIG.num_future_latents,
        "value_length": HORIZON,
        "text": text(model, rows=batch, keep=True),
        "state_token": torch.randn(batch, 1, 7, generator=generator(12)),
        "num_steps": STEPS,
    }
    return cls(model, **(settings | changes))  # type: ignore[arg-type]


def hidden_states(model: WAVTransformer, video: Tensor, sentence: TextContext) -> list[Tensor]:
    """Every layer's video hidden states at pure noise, one full forward pass."""
    told = Timesteps.clean_then(MEMORY, torch.full((len(video),), 1000.0), GRID[0] * GRID[1] * GRID[2] - MEMORY)
    layers = model.video_layers(to_tokens(video), model.video_modulation(told, VIEWS), sentence, model.rotation(GRID))
    return [rearrange(x, "b v l d -> b (v l) d") for x in layers]


def uncached(model: WAVTransformer, step: ControlStep, video: Tensor, value: Tensor, action: Tensor) -> Tensor:
    """Actions as the reference computes them: hidden states kept, every projection done again at every step."""
    sigmas, raw = sigma_schedule(STEPS), text(model, rows=len(video))
    hidden = hidden_states(model, video, raw)
    given = ExpertTokens(tokens=value, timestep=torch.full((len(value),), 1000.0))
    x, modulation, rotation = model.value.begin(given)
    values = []
    for block, features in zip(model.value.layers, hidden, strict=True):
        x = block(x, modulation, rotation, features)
        values.append(x)
    for sigma, following in pairwise(sigmas):
        told = torch.full((len(action),), 1000.0 * sigma)
        given = ExpertTokens(tokens=action, timestep=told, state_token=step.state_token)
        x, modulation, rotation = model.action.begin(given)
        for block, features, value_features in zip(model.action.layers, hidden, values, strict=True):
            x = block(x, modulation, rotation, features, value_features)
        action = action + (following - sigma) * model.action.head(x, modulation)
    return action


def noises(batch: int = 2, *lead: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = generator(13)
    shape = (batch, *lead, VIEWS, NETWORK.latent_channels, CONFIG.num_future_latents, GRID[1], GRID[2])
    return (
        torch.randn(shape, generator=rng),
        torch.randn(batch, HORIZON, 5, generator=rng),
        torch.randn(batch, HORIZON, 7, generator=rng),
    )


def draws(batch: int = 2) -> SeededDraws:
    return SeededDraws(keys=[(row,) for row in range(batch)])


def test_check_6b_cached_sampler_equals_the_uncached_one() -> None:
    model = network()
    step, (video, value, action) = control_step(model), noises()
    with torch.no_grad():
        latents = step.with_memory(video[:, None])[:, 0]
        got = step.decode(latents, action_noise=action, value_noise=value).actions
        expected = uncached(model, step, latents, value, action)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_check_6c_actions_read_the_value_features_of_the_first_step() -> None:
    """Denoising the value further must not change the actions: they read what the first step left."""
    model = network()
    step, (video, value, action) = control_step(model), noises()
    with torch.no_grad():
        latents = step.with_memory(video[:, None])[:, 0]
        alone = step.decode(latents, action_noise=action, value_noise=value)
        both = step.decode(latents, action_noise=action, value_noise=value, with_value=True)
        other = step.decode(latents, action_noise=action, value_noise=value + 1)
    assert alone.value is None and both.value is not None
    assert torch.equal(alone.actions, both.actions)
    assert (alone.actions - other.actions).abs().max() > 1e-4


def test_value_asked_for_is_denoised_properly() -> None:
    model = network()
    step, (video, value, action) = control_step(model), noises()
    with torch.no_grad():
        latents = step.with_memory(video[:, None])[:, 0]
        decoded = step.decode(latents, action_noise=action, value_noise=value, with_value=True).value
        searched = step.values(latents[:, None], value[:, None, None])[:, 0, 0]
    assert decoded is not None
    torch.testing.assert_close(decoded, searched, atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_rows", [1, 4, 6, 64])
def test_candidates_are_the_same_in_micro_batches_and_tiled(max_rows: int) -> None:
    """Samples folded over a candidate's kept features equal each sample on its own."""
    model, groups, samples = network(), 3, 2
    step = control_step(model, max_rows=max_rows)
    video = step.with_memory(noises(2, groups)[0])
    noise = torch.randn(2, groups, samples, HORIZON, 5, generator=generator(14))
    with torch.no_grad():
        curves = step.values(video, noise)
        for group in range(groups):
            for sample in range(samples):
                one = step.values(video[:, group : group + 1], noise[:, group : group + 1, sample : sample + 1])
                torch.testing.assert_close(curves[:, group, sample], one[:, 0, 0], atol=1e-5, rtol=0)


def test_planning_a_batch_equals_planning_each_observation() -> None:
    model = network()
    config = PlannerConfig(iterations=2, num_videos=4, num_values=2, video_elites=0.5, value_elites=0.25)
    whole = control_step(model)
    with torch.no_grad():
        both = plan(whole, config, SeededDraws(keys=[(0,), (1,)]))
        for row in range(2):
            one = slice(row, row + 1)
            sentence = whole.text
            kept = [type(kv)(key=kv.key[one], value=kv.value[one]) for kv in sentence.layers]
            alone = control_step(
                model,
                memory=whole.memory[one],
                text=TextContext(layers=kept, bias=sentence.bias[one]),
                state_token=whole.state_token[one],
            )
            result = plan(alone, config, SeededDraws(keys=[(row,)]))
            torch.testing.assert_close(result.video, both.video[one], atol=1e-5, rtol=0)
            torch.testing.assert_close(result.value, both.value[one], atol=1e-5, rtol=0)


def test_imagining_holds_memory_clean_and_denoises_the_future() -> None:
    model = network()
    step, (video, _, _) = control_step(model), noises()
    with torch.no_grad():
        latents = step.with_memory(video[:, None])[:, 0]
        future = step.imagine(latents)
        one = step.imagine(latents, num_steps=1)
    assert future.shape == video.shape and torch.isfinite(future).all()
    told = Timesteps.clean_then(MEMORY, torch.full((2,), 1000.0), GRID[0] * GRID[1] * GRID[2] - MEMORY)
    with torch.no_grad():
        velocity = model(to_tokens(latents), told, text(model), GRID).video
    expected = video - to_latents(velocity, GRID[1], GRID[2])[..., CONFIG.num_context :, :, :]
    torch.testing.assert_close(one, expected, atol=1e-4, rtol=0)


def test_what_follows_from_the_weights_is_computed_once() -> None:
    """A second control step embeds no timestep, and gives what a first one would."""
    model, known, counted = network(), {}, []
    for expert in (model.value, model.action, model):
        expert.time_embed.register_forward_hook(lambda *_: counted.append(1))
    video, value, action = noises()
    results = []
    for shared in (known, known, None):
        step = control_step(model, known=shared)
        latents = step.with_memory(video[:, None])[:, 0]
        before = len(counted)
        decoded = step.decode(latents, action_noise=action, value_noise=value, with_value=True)
        results.append((len(counted) - before, decoded.actions, decoded.value))
    assert [count for count, _, _ in results] == [1 + 2 * STEPS, 0, 1 + 2 * STEPS]
    for _, actions, curve in results[1:]:
        assert torch.equal(actions, results[0][1]) and torch.equal(curve, results[0][2])


def test_guidance_of_one_is_off() -> None:
    model = network()
    step, empty = control_step(model), text(model, rows=1, keep=True, seed=3)
    latents = step.with_memory(noises()[0][:, None])[:, 0]
    assert torch.equal(step.imagine(latents), step.imagine(latents, guidance=1.0, empty=empty))
    with pytest.raises(ValueError, match=r"guidance of 2\.0 needs the empty sentence"):
        step.imagine(latents, guidance=2.0)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_goes_from_the_empty_sentence_past_the_real_one(guidance: float) -> None:
    """One Euler step by hand: v = v(empty) + s (v(sentence) - v(empty)), the empty sentence being the same for all."""
    model = network()
    step, (video, _, _) = control_step(model), noises()
    latents = step.with_memory(video[:, None])[:, 0]
    got = step.imagine(latents, num_steps=1, guidance=guidance, empty=text(model, rows=1, keep=True, seed=3))
    told = Timesteps.clean_then(MEMORY, torch.full((2,), 1000.0), GRID[0] * GRID[1] * GRID[2] - MEMORY)
    empty = text(model, rows=1, seed=3)
    empty = TextContext(layers=[x.expand(2, -1, -1) for x in empty.layers], bias=empty.bias.expand(2, -1, -1, -1))
    with torch.no_grad():
        sentence, nothing = (model(to_tokens(latents), told, each, GRID).video for each in (text(model), empty))
    velocity = to_latents(nothing + guidance * (sentence - nothing), GRID[1], GRID[2])[..., CONFIG.num_context :, :, :]
    torch.testing.assert_close(got, video - velocity, atol=1e-4, rtol=0)
    assert (sentence - nothing).abs().max() > 1e-3


def test_check_9f_candidates_hold_the_memory_bit_by_bit() -> None:
    class Spy(ControlStep):
        """A control step that remembers the candidates it was asked about."""

        def values(
            self, video: Tensor, noise: Tensor, num_steps: int | None = None, watch: Watch | None = None
        ) -> Tensor:
            self.candidates = video
            return super().values(video, noise, num_steps, watch)

    step = control_step(network(), cls=Spy)
    result = plan(step, PlannerConfig(iterations=2, num_videos=4, num_values=2, value_elites=0.25), draws())
    memory = step.memory[:, None].expand_as(step.candidates[..., : CONFIG.num_context, :, :])
    assert torch.equal(step.candidates[..., : CONFIG.num_context, :, :], memory)
    assert torch.equal(result.video[..., : CONFIG.num_context, :, :], step.memory)


def test_only_one_micro_batch_of_features_is_held() -> None:
    """Whatever the number of candidates, keys and values of one micro-batch live at a time."""
    held: list[weakref.ref[Tensor]] = []

    class Spy(ControlStep):
        """A control step that checks, before each pass of the video stream, that the last one's features are gone."""

        def features(self, video: Tensor, *, value: bool, action: bool, hidden: bool = False) -> KeptFeatures:
            assert all(reference() is None for reference in held), "features of an earlier micro-batch are still held"
            kept = super().features(video, value=value, action=action, hidden=hidden)
            held.extend(weakref.ref(each.key) for each in kept.value)
            held.extend(weakref.ref(each) for each in kept.hidden)
            return kept

    step = control_step(network(), cls=Spy, max_rows=4)
    values = step.values(step.with_memory(noises(2, 6)[0]), torch.randn(2, 6, 2, HORIZON, 5))
    assert len(held) == 3 * NETWORK.num_layers and not values.requires_grad
    held.clear()
    config = PlannerConfig(iterations=2, num_videos=6, num_values=2, value_elites=0.25, final="best")
    plan(step, config, draws())
    assert len(held) == 2 * 3 * 2 * NETWORK.num_layers, "keys and hidden states of every layer, three parts a round"


@pytest.mark.parametrize(("final", "passes"), [("sample", 2 * 3 + 1), ("best", 2 * 3)])
def test_the_best_candidate_is_decoded_from_what_was_read_of_it(final: str, passes: int) -> None:
    """Its actions and values equal those of a control step that reads its video once more."""
    rows_read: list[int] = []

    class Spy(ControlStep):
        """A control step that counts passes of the video stream."""

        def features(self, video: Tensor, *, value: bool, action: bool, hidden: bool = False) -> KeptFeatures:
            rows_read.append(len(video))
            return super().features(video, value=value, action=action, hidden=hidden)

    step, action = control_step(network(), cls=Spy, max_rows=4), noises()[2]
    config = PlannerConfig(iterations=2, num_videos=6, num_values=2, value_elites=0.25, final=final)
    with torch.no_grad():
        chosen = plan(step, config, draws())
        noise = {"action_noise": action, "value_noise": chosen.value, "with_value": True}
        decoded = step.decode(chosen.video, **noise, features=chosen.features)
        assert len(rows_read) == passes
        again = step.decode(chosen.video, **noise)
    torch.testing.assert_close(decoded.actions, again.actions, atol=1e-5, rtol=0)
    assert decoded.value is not None and again.value is not None
    torch.testing.assert_close(decoded.value, again.value, atol=1e-5, rtol=0)
    best = torch.stack([seen.scores.flatten(1) for seen in chosen.rounds], dim=1).flatten(1).argmax(1)
    assert len(set((best // 12).tolist())) == 2, "the two observations must differ in the round that found their best"
