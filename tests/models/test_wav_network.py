"""The WAV network against the acceptance checks of its specification (2 to 7), named after their numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from einops import rearrange

from wamkit.models.wav import config
from wamkit.models.wav import objective as wav
from wamkit.models.wav.load_policy import PROFILES
from wamkit.models.wav.losses import losses
from wamkit.models.wav.model import WAVTransformer, part_of
from wamkit.models.wav.objective import WAVObjective
from wamkit.models.wav.weights import load_weights
from wamkit.nn.modulation import Timesteps

from .wav_cases import (
    BATCH,
    CONFIG,
    GRID,
    NETWORK,
    TOKENS,
    VIEWS,
    action_tokens,
    draws,
    encoded_batch,
    generator,
    network,
    text,
    value_tokens,
    video,
)

LEVELS = torch.tensor([300.0, 800.0])
MEMORY = CONFIG.num_context * GRID[1] * GRID[2]


def timesteps(rows: int = BATCH) -> Timesteps:
    return Timesteps.clean_then(MEMORY, LEVELS[:rows], TOKENS - MEMORY)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [(config.libero(), 2_305_605_785), (config.dualarm(), 2_305_626_285)],
    ids=["libero", "dualarm"],
)
def test_check_2_published_parameter_counts(size: config.WAVConfig, parameters: int) -> None:
    with torch.device("meta"):
        model = WAVTransformer(size.network)
    assert len(model.state_dict()) == 2420
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    video_only = [name for name in model.state_dict() if part_of(name) == "video"]
    assert len(video_only) == 718


@pytest.mark.slow
def test_check_2_equals_diffusers_ltx_transformer() -> None:
    from diffusers import LTXVideoTransformer3DModel

    torch.manual_seed(0)
    theirs = LTXVideoTransformer3DModel(
        in_channels=6,
        out_channels=6,
        num_attention_heads=2,
        attention_head_dim=13,
        cross_attention_dim=26,
        num_layers=3,
        caption_channels=10,
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    bare = dataclasses.replace(NETWORK, num_layers=3, value=None, action=None)
    ours = WAVTransformer(dataclasses.replace(bare, max_view=0)).eval()
    load_weights(ours, theirs.state_dict(), source="diffusers")

    frames, height, width = GRID
    tokens, told = video(views=1), torch.rand(BATCH, TOKENS, generator=generator()) * 1000
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    sentence = torch.randn(BATCH, 5, 10, generator=generator(8))
    with torch.no_grad():
        expected = theirs(
            hidden_states=tokens[:, 0],
            encoder_hidden_states=sentence,
            timestep=told,
            encoder_attention_mask=mask.long(),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(8 / 30, 32, 32),
            return_dict=False,
        )[0]
        got = ours(tokens, Timesteps.per_token(told), ours.read_text(sentence, mask), GRID).video[:, 0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    report = load_weights(WAVTransformer(bare), theirs.state_dict(), source="diffusers", policy=PROFILES["ltx"])
    assert report.missing == {"view": 3}
    assert report.loaded == len(theirs.state_dict())


def test_check_3_view_equivariance() -> None:
    model, tokens, order = network(), video(), [1, 0]
    value, action = value_tokens(), action_tokens()
    with torch.no_grad():
        plain = model(tokens, timesteps(), text(model), GRID, value, action)
        only_views = model(tokens[:, order], timesteps(), text(model), GRID, value, action)
        model.view_embed[:VIEWS] = model.view_embed[order]
        both = model(tokens[:, order], timesteps(), text(model), GRID, value, action)
    torch.testing.assert_close(both.video, plain.video[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(both.value, plain.value, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.action, plain.action, atol=1e-5, rtol=0)
    assert (only_views.video - plain.video[:, order]).abs().max() > 1e-3


@pytest.mark.parametrize("every", [0, 3])
def test_check_4_cross_view_reach(every: int) -> None:
    model, tokens = network(cross_view_every=every), video()
    moved = tokens.clone()
    moved[:, 1] += 1

    def first_view(given: torch.Tensor) -> list[torch.Tensor]:
        modulation = model.video_modulation(timesteps(), VIEWS)
        layers = model.video_layers(given, modulation, text(model), model.rotation(GRID))
        return [x[:, 0] for x in layers]

    with torch.no_grad():
        changes = [(a - b).abs().max().item() for a, b in zip(first_view(tokens), first_view(moved), strict=True)]
    if every == 0:
        assert max(changes) == 0
    else:
        assert min(changes) > 1e-4  # layer 0 already attends across views


def test_check_5_batch_independence() -> None:
    model, tokens, value, action = network(), video(), value_tokens(), action_tokens()
    whole = text(model)
    with torch.no_grad():
        both = model(tokens, timesteps(), whole, GRID, value, action)
        for row in range(BATCH):
            one = slice(row, row + 1)
            alone = model(
                tokens[one],
                Timesteps.clean_then(MEMORY, LEVELS[one], TOKENS - MEMORY),
                dataclasses.replace(whole, layers=[x[one] for x in whole.layers], bias=whole.bias[one]),
                GRID,
                _rows(value, one),
                _rows(action, one),
            )
            for name in ("video", "value", "action"):
                torch.testing.assert_close(getattr(alone, name), getattr(both, name)[one], atol=1e-5, rtol=0)


def test_check_6a_joint_call_equals_streams_over_kept_features() -> None:
    model, tokens, value, action = network(), video(), value_tokens(), action_tokens()
    with torch.no_grad():
        joint = model(tokens, timesteps(), text(model), GRID, value, action)
        modulation = model.video_modulation(timesteps(), VIEWS)
        layers = model.video_layers(tokens, modulation, text(model, keep=True), model.rotation(GRID))
        hidden = [rearrange(x, "b v l d -> b (v l) d") for x in layers]
        kept = [model.value.keep_video(i, x) for i, x in enumerate(hidden)]
        got_value, value_hidden = model.value.run(value, kept, keep=True)
        kept = [model.action.keep_video(i, x) for i, x in enumerate(hidden)]
        got_action = model.action.run(action, kept, model.action.keep_value(value_hidden))[0]
    torch.testing.assert_close(got_value, joint.value, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got_action, joint.action, atol=1e-6, rtol=1e-6)


def test_action_rows_share_one_observation_as_if_repeated() -> None:
    """Several noise draws folded over one pass of the video stream equal the observation repeated."""
    model, tokens = network(), video(rows=1)
    value, action = value_tokens(rows=1), action_tokens(rows=3)
    step = Timesteps.clean_then(MEMORY, LEVELS[:1], TOKENS - MEMORY)
    with torch.no_grad():
        folded = model(tokens, step, text(model, rows=1), GRID, value, action).action
        whole = text(model, rows=1)
        for row in range(3):
            one = model(tokens, step, whole, GRID, value, _rows(action, slice(row, row + 1))).action
            torch.testing.assert_close(folded[row : row + 1], one, atol=1e-5, rtol=0)


VIDEO_HEAD = {"proj_out.weight", "proj_out.bias", "scale_shift_table"}
VALUE_HEAD = {"value_proj_out.weight", "value_proj_out.bias", "value_scale_shift_table"}


def test_check_7_gradients_reach_exactly_the_table() -> None:
    objectives = {
        "video": WAVObjective(video_weight=1.0),
        "value": WAVObjective(value_weight=1.0, noisy_video=True),
        "action": WAVObjective(action_weight=1.0, noisy_video=True, pure_value=True),
    }
    for stream, objective in objectives.items():
        model = network()
        names = {part: {name for name, _ in model.named_parameters() if part_of(name) == part} for part in objectives}
        unused_view = _unused_view_rows(model)
        expected = {
            "video": names["video"],
            "value": names["value"] | (names["video"] - VIDEO_HEAD),
            "action": names["action"] | (names["value"] - VALUE_HEAD) | (names["video"] - VIDEO_HEAD),
        }[stream]
        total, parts = losses(model, CONFIG, encoded_batch(), objective, draws())
        total.backward()
        assert set(parts) == {f"{stream}_loss"}
        reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert reached == expected, (stream, reached ^ expected)
        assert model.view_embed.grad is not None and model.view_embed.grad[unused_view].abs().max() == 0


def test_check_7_a_step_changes_only_the_stage_parts() -> None:
    """All parameters are handed to the optimiser; only those the stage does not freeze may move, and all of them do."""
    stages = {
        ("video",): wav.video_only(),
        ("value",): wav.value_only(),
        ("video", "value", "action"): wav.action_full(),
    }
    for trained, objective in stages.items():
        model = network()
        before = {name: value.clone() for name, value in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name) in trained)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses(model, CONFIG, encoded_batch(), objective, draws())[0].backward()
        expected = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        optimizer.step()
        changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert changed == expected and {part_of(name) for name in changed} == set(trained)


def _unused_view_rows(model: WAVTransformer) -> slice:
    return slice(VIEWS, model.config.max_view)


def _rows(given, rows):  # type: ignore[no-untyped-def]
    state = None if given.state_token is None else given.state_token[rows]
    return dataclasses.replace(given, tokens=given.tokens[rows], timestep=given.timestep[rows], state_token=state)
