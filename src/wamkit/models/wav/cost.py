"""What a pass through WAV costs: floating-point operations of its matrix products, counted from the sizes alone.

Two operations per multiply-add; norms, rotations, activations and the softmax are left out, as is usual. Nothing here
needs weights or torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from wamkit.models.wav.config import ExpertConfig, WAVConfig
from wamkit.models.wav.objective import WAVObjective


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """Operations of one forward pass for one observation.

    Args:
        video: the video stream with its text and its head.
        value: all value rows.
        action: all action rows.
        reading: of the experts' operations, those that project video features.
    """

    video: int
    value: int
    action: int
    reading: int

    @property
    def total(self) -> int:
        """All streams."""
        return self.video + self.value + self.action


def num_video_tokens(config: WAVConfig) -> int:
    """Tokens of the video stream, all views."""
    frames, height, width = config.grid
    return config.num_views * frames * height * width


def forward_cost(config: WAVConfig, *, value_rows: int = 1, action_rows: int = 1) -> PassCost:
    """Operations of `WAVTransformer.forward` for one observation.

    Args:
        config: sizes and geometry.
        value_rows: value rows of the observation; 0 skips the value expert.
        action_rows: action rows; 0 skips the action expert.
    """
    network = config.network
    tokens, dim, text = num_video_tokens(config), network.dim, config.codec.text_length
    per_view = tokens // config.num_views
    across = len(range(0, network.num_layers, network.cross_view_every)) if network.cross_view_every else 0
    video = 2 * tokens * network.latent_channels * dim * 2  # in and out
    video += 2 * text * (network.text_width * dim + dim * dim)
    video += network.num_layers * _block(tokens, dim, dim)
    video += network.num_layers * (2 * 2 * tokens * dim * dim + 2 * 2 * text * dim * dim + 4 * tokens * text * dim)
    video += 4 * tokens * tokens * dim * across + 4 * tokens * per_view * dim * (network.num_layers - across)
    video += _timestep(dim, runs=2) + config.num_views * 2 * 6 * dim * dim * bool(network.max_view)
    value = action = reading = 0
    length = len(config.value_steps)
    if network.value is not None and value_rows:
        value = _expert(network.value, network.num_layers, value_rows, length, length, tokens, dim)
        reading += network.num_layers * 4 * tokens * dim * network.value.dim
    if network.action is not None and action_rows:
        head = config.action_horizon
        given = head + config.has_state_token
        action = _expert(network.action, network.num_layers, action_rows, given, head, tokens, dim)
        if network.value is not None:
            inner, read = network.action.dim, network.value.dim
            each = 2 * 2 * length * read * inner + action_rows * given * (4 * inner * inner + 4 * length * inner)
            action += network.num_layers * each
        reading += network.num_layers * 4 * tokens * dim * network.action.dim
    return PassCost(video=video, value=value, action=action, reading=reading)


def training_cost(config: WAVConfig, objective: WAVObjective, train: tuple[str, ...]) -> int:
    """Operations of one observation's loss and gradients; what activation checkpointing repeats is not counted.

    A backward pass costs twice its forward pass: gradients of inputs and of weights. Of a video stream that a stage
    leaves as it is, and of the features read from it, there are none of inputs, or none at all.

    Args:
        config: sizes and geometry.
        objective: decides which streams run, on how many rows.
        train: parts that the stage trains.
    """
    rows = objective.num_draws
    pure = bool(objective.pure_value and objective.action_weight)
    value_rows = pure + (rows if objective.value_weight or (objective.action_weight and not pure) else 0)
    cost = forward_cost(config, value_rows=value_rows, action_rows=rows if objective.action_weight else 0)
    if "video" in train:
        return 3 * cost.total
    return cost.video + 3 * (cost.value + cost.action) - cost.reading


def _block(tokens: int, dim: int, inner: int) -> int:
    """Projections of self-attention and the feed-forward network."""
    return 2 * tokens * dim * inner * 4 + 2 * tokens * dim * 4 * dim * 2


def _timestep(dim: int, runs: int) -> int:
    return runs * 2 * (256 * dim + dim * dim + 6 * dim * dim)


def _expert(
    expert: ExpertConfig, num_layers: int, rows: int, given: int, head: int, video_tokens: int, video_dim: int
) -> int:
    """One expert: its own rows, and the video features, projected once for all of them."""
    tokens, dim = rows * given, expert.dim
    layer = _block(tokens, dim, dim) + 4 * tokens * given * dim
    layer += 2 * 2 * video_tokens * video_dim * dim + 2 * 2 * tokens * dim * dim + 4 * tokens * video_tokens * dim
    ends = 2 * (tokens + rows * head) * expert.channels * dim
    return num_layers * layer + ends + rows * _timestep(dim, runs=1 + (given > head))
