"""Operations counted from the sizes equal those that an operation counter sees, and those of the specification."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wamkit.models.wav import config as sizes
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.control import ControlStep
from wamkit.models.wav.cost import control_cost, forward_cost, num_video_tokens, training_cost, value_phase_cost
from wamkit.models.wav.experts import ExpertTokens
from wamkit.models.wav.losses import losses
from wamkit.models.wav.model import WAVTransformer, part_of
from wamkit.models.wav.objective import WAVObjective, action_full, value_only, video_only
from wamkit.nn.modulation import Timesteps

from .wav_cases import CONFIG, draws, encoded_batch, network, text


def counted(config: WAVConfig, value_rows: int, action_rows: int) -> int:
    """What an operation counter sees of a forward pass on the meta device."""
    frames, height, width = config.grid
    clean = config.num_context * height * width
    length = frames * height * width
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = WAVTransformer(config.network)
        network(
            torch.zeros(1, config.num_views, length, config.network.latent_channels),
            Timesteps.clean_then(clean, torch.zeros(1), length - clean),
            network.read_text(
                torch.zeros(1, config.codec.text_length, config.network.text_width),
                torch.ones(1, config.codec.text_length),
            ),
            config.grid,
            value=ExpertTokens(
                tokens=torch.zeros(value_rows, config.action_horizon, config.value_channels),
                timestep=torch.zeros(value_rows),
            ),
            action=ExpertTokens(
                tokens=torch.zeros(action_rows, config.action_horizon, config.token_dim),
                timestep=torch.zeros(action_rows),
                state_token=torch.zeros(action_rows, 1, config.token_dim),
            ),
        )
    return counter.get_total_flops()


@pytest.mark.parametrize(("size", "rows"), [(sizes.tiny, (1, 1)), (sizes.tiny, (3, 2)), (sizes.libero, (3, 2))])
def test_counts_equal_those_of_an_operation_counter(size: object, rows: tuple[int, int]) -> None:
    config = size()
    assert forward_cost(config, value_rows=rows[0], action_rows=rows[1]).total == counted(config, *rows)


@pytest.mark.parametrize(
    ("size", "tokens", "video", "value", "action"),
    # 10¹² operations; of the video stream's 2.75 and 4.13 go 0.046 and 0.069, for timesteps of every token
    [(sizes.libero, 768, 2.75 - 0.046, 0.0994, 0.1019), (sizes.dualarm, 1152, 4.13 - 0.069, 0.1503, 0.1540)],
)
def test_full_sizes_cost_what_is_published(
    size: object, tokens: int, video: float, value: float, action: float
) -> None:
    config = size()
    cost = forward_cost(config)
    assert num_video_tokens(config) == tokens
    got = (cost.video / 1e12, cost.value / 1e12, cost.action / 1e12)
    assert got == pytest.approx((video, value, action), rel=0.004)


def test_a_stage_pays_for_what_it_trains() -> None:
    config = sizes.tiny()
    one = forward_cost(config)
    assert training_cost(config, video_only(), ("video",)) == 3 * one.video
    without = forward_cost(config, action_rows=0)
    assert training_cost(config, value_only(), ("value",)) == one.video + 3 * one.value - without.reading
    everything = training_cost(config, action_full(), ("video", "value", "action"))
    assert everything == 3 * one.total


@pytest.mark.parametrize(
    ("objective", "train"),
    [(video_only(), ("video",)), (value_only(), ("value",)), (action_full(), ("video", "value", "action"))],
)
def test_training_costs_what_an_operation_counter_sees(objective: WAVObjective, train: tuple[str, ...]) -> None:
    """Up to the gradients of the first layers' inputs, which nobody needs."""
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in train)
    # The counter knows the products of plain attention, not those of the fused kernel on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses(model, CONFIG, encoded_batch(), objective, draws())[0].backward()
    assert counter.get_total_flops() / 3 == pytest.approx(training_cost(CONFIG, objective, train), rel=0.03)


@pytest.mark.parametrize(
    ("size", "published"), [(sizes.libero, (3.0, 99, 290, 482)), (sizes.dualarm, (4.5, 151, 444, 737))]
)
def test_a_control_step_costs_what_is_published(size: object, published: tuple[float, ...]) -> None:
    """10¹² operations without planning and after 1, 3 and 5 rounds of 30 candidates with 5 values each.

    The published counts compute text keys and the timesteps of every token for each candidate: 0.1 of 2.75.
    """
    config = size()
    got = [control_cost(config, iterations=k, num_videos=30, num_values=5) / 1e12 for k in (0, 1, 3, 5)]
    assert all(0.95 * wanted < cost < wanted for cost, wanted in zip(got, published, strict=True))


def test_a_control_step_costs_what_an_operation_counter_sees() -> None:
    model = network()
    control = ControlStep(
        model,
        memory=encoded_batch(1).memory,
        num_future_latents=CONFIG.num_future_latents,
        value_length=CONFIG.action_horizon,
        text=text(model, rows=1, keep=True),
        state_token=torch.zeros(1, 1, CONFIG.token_dim),
        num_steps=4,
    )
    noise = torch.randn(1, 3, *control.video_shape)
    values = torch.randn(1, 3, 2, *control.value_shape)
    action = torch.randn(1, CONFIG.action_horizon, CONFIG.token_dim)

    def step() -> None:
        control.values(noise, values, None)
        control.decode(noise[:, 0], action_noise=action, value_noise=values[:, 0, 0])

    step()  # what follows from weights alone is known from here on
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == control_cost(CONFIG, iterations=1, num_videos=3, num_values=2, num_steps=4)


def test_a_control_step_needs_both_experts() -> None:
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, value=None))
    assert forward_cost(config).value == 0
    with pytest.raises(ValueError, match="a value and an action expert"):
        control_cost(config)


def test_the_value_phase_costs_what_was_published() -> None:
    """LIBERO: 99.4 G a row and step, 90.2 G of them for video features; timesteps, 0.1 G, are not counted here."""
    count = {"num_videos": 30, "num_values": 5, "num_steps": 10}
    uncached = value_phase_cost(sizes.libero(), **count, is_cached=False)
    assert uncached == pytest.approx(149e12, rel=0.01)
    assert value_phase_cost(sizes.libero(), **count) == pytest.approx(16.5e12, rel=0.02)
    no_values = dataclasses.replace(sizes.libero(), network=dataclasses.replace(sizes.libero().network, value=None))
    with pytest.raises(ValueError, match="no value phase"):
        value_phase_cost(no_values, **count)
