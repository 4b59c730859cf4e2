"""Small random WAV networks and inputs for the model's tests."""

from __future__ import annotations

import dataclasses

import torch

from wamkit.draws import TrainingDraws
from wamkit.models.wav.config import CodecConfig, ExpertConfig, NetworkConfig, WAVConfig
from wamkit.models.wav.experts import ExpertTokens
from wamkit.models.wav.losses import EncodedBatch
from wamkit.models.wav.model import TextContext, WAVTransformer

NETWORK = NetworkConfig(
    latent_channels=6,
    num_layers=4,
    num_heads=2,
    head_dim=13,  # width 26: two channels stay unrotated
    text_width=10,
    value=ExpertConfig(channels=5, num_heads=2, head_dim=6, rope_base=57.0),
    action=ExpertConfig(channels=7, num_heads=2, head_dim=8, rope_base=54.0),
)
CONFIG = WAVConfig(
    network=NETWORK,
    codec=CodecConfig(video="patch", spatial=16, temporal=8, text="hash", text_length=5),
    image_size=32,
    num_context=2,
    action_horizon=9,
    action_dim=4,
    state_dim=3,
)
VIEWS, BATCH = CONFIG.num_views, 2
GRID = CONFIG.grid
TOKENS = GRID[0] * GRID[1] * GRID[2]


def network(seed: int = 0, **changes: object) -> WAVTransformer:
    """A network with random weights."""
    torch.manual_seed(seed)
    return WAVTransformer(dataclasses.replace(NETWORK, **changes)).eval()


def draws(seed: int = 0, rows: int = 3) -> TrainingDraws:
    return TrainingDraws(key=(seed,), rows=range(rows), num_rows=rows)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def video(rows: int = BATCH, views: int = VIEWS, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, views, TOKENS, NETWORK.latent_channels, generator=generator(seed))


def text(model: WAVTransformer, rows: int = BATCH, keep: bool = False, seed: int = 2) -> TextContext:
    """Sentences of different lengths."""
    mask = torch.ones(rows, 5, dtype=torch.bool)
    for row in range(rows):
        mask[row, 5 - row % 3 :] = False
    return model.read_text(torch.randn(rows, 5, 10, generator=generator(seed)), mask, keep=keep)


def value_tokens(rows: int = BATCH, seed: int = 3) -> ExpertTokens:
    noise = torch.randn(rows, CONFIG.action_horizon, 5, generator=generator(seed))
    return ExpertTokens(tokens=noise, timestep=torch.linspace(200, 900, rows))


def action_tokens(rows: int = BATCH, seed: int = 4, state: bool = True) -> ExpertTokens:
    noise = torch.randn(rows, CONFIG.action_horizon, 7, generator=generator(seed))
    token = torch.randn(rows, 1, 7, generator=generator(seed + 1)) if state else None
    return ExpertTokens(tokens=noise, timestep=torch.linspace(700, 100, rows), state_token=token)


def encoded_batch(rows: int = 3, seed: int = 5) -> EncodedBatch:
    """A batch as the codecs would give it."""
    rng = generator(seed)
    channels, (_, height, width) = NETWORK.latent_channels, GRID
    memory = torch.randn(rows, VIEWS, channels, CONFIG.num_context, height, width, generator=rng)
    future = torch.randn(rows, VIEWS, channels, CONFIG.num_future_latents, height, width, generator=rng)
    return EncodedBatch(
        memory=memory,
        future=future,
        text=torch.randn(rows, 5, 10, generator=rng),
        text_mask=torch.tensor([[True] * 4 + [False]] * rows),
        empty_text=torch.zeros(1, 5, 10),
        empty_mask=torch.tensor([[True] + [False] * 4]),
        state=torch.randn(rows, CONFIG.state_dim, generator=rng),
        actions=torch.randn(rows, CONFIG.action_horizon, CONFIG.token_dim, generator=rng),
        is_padded=torch.zeros(rows, CONFIG.action_horizon, dtype=torch.bool),
        value_targets=torch.randn(rows, CONFIG.action_horizon, 5, generator=rng),
    )
