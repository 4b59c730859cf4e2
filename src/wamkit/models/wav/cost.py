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
    dim, text = network.dim, config.codec.text_length
    video = _video_body(config) + 2 * num_video_tokens(config) * network.latent_channels * dim
    video += 2 * text * (network.text_width * dim + dim * dim) + network.num_layers * 4 * text * dim * dim
    video += _timestep(dim, runs=2) + config.num_views * 2 * 6 * dim * dim * bool(network.max_view)
    value = action = reading = 0
    if network.value is not None and value_rows:
        reading = _reading(config, network.value)
        value = reading + value_rows * (_value_row(config, network.value) + _timestep(network.value.dim, runs=1))
    if network.action is not None and action_rows:
        read = _reading(config, network.action)
        row = _action_row(config, network.action) + _timestep(network.action.dim, runs=1 + config.has_state_token)
        action = read + _reading_values(config) + action_rows * row
        reading += read
    return PassCost(video=video, value=value, action=action, reading=reading)


def control_cost(
    config: WAVConfig, *, iterations: int = 0, num_videos: int = 0, num_values: int = 0, num_steps: int = 10
) -> int:
    """Operations of one control step for one observation, with all that does not change computed once.

    Sentence, memory latents and what every noise level is told are known; the video head is not needed.

    Args:
        config: sizes and geometry; the model has both experts.
        iterations: planning rounds K.
        num_videos: candidates G of a round.
        num_values: value samples N of a candidate.
        num_steps: Euler steps S of values and actions.

    Raises:
        ValueError: the model lacks an expert.
    """
    value, action = config.network.value, config.network.action
    if value is None or action is None:
        raise ValueError("expected a model with a value and an action expert; a control step needs both")
    body, row = _video_body(config) + _reading(config, value), _value_row(config, value)
    search = iterations * num_videos * (body + num_steps * num_values * row)
    decode = _reading(config, action) + _reading_values(config) + row
    return search + body + decode + num_steps * _action_row(config, action)


def value_phase_cost(
    config: WAVConfig, *, num_videos: int, num_values: int, num_steps: int = 10, is_cached: bool = True
) -> int:
    """Operations of a planning round behind its video passes: values of every sample, denoised.

    Args:
        config: sizes and geometry.
        num_videos: candidates G.
        num_values: value samples N of a candidate.
        num_steps: Euler steps S.
        is_cached: keys and values of video features are projected once per candidate, not once per sample and step.

    Raises:
        ValueError: the model has no value expert.

    Source: WAV (arXiv 2604.14732); section 5.5 of the specification counts 149 T and 16.5 T for its LIBERO size.
    """
    if config.network.value is None:
        raise ValueError("expected a model with a value expert; there is no value phase without one")
    rows = num_values * num_steps
    reads = 1 if is_cached else rows
    reading, row = _reading(config, config.network.value), _value_row(config, config.network.value)
    return num_videos * (reads * reading + rows * row)


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


def _video_body(config: WAVConfig) -> int:
    """The video stream from embedded latents to its last block, over kept keys and values of the text."""
    network = config.network
    tokens, dim, text = num_video_tokens(config), network.dim, config.codec.text_length
    per_view, layers = tokens // config.num_views, network.num_layers
    across = len(range(0, layers, network.cross_view_every)) if network.cross_view_every else 0
    attended = 4 * tokens * dim * (tokens * across + per_view * (layers - across))
    return 2 * tokens * network.latent_channels * dim + attended + layers * _block(tokens, dim, text)


def _block(tokens: int, dim: int, context: int) -> int:
    """A block without its self-attention's products and its context's keys and values.

    Four projections of self-attention, two of cross-attention, its products, and the feed-forward network.
    """
    return 2 * tokens * dim * dim * (4 + 2 + 8) + 4 * tokens * context * dim


def _value_row(config: WAVConfig, expert: ExpertConfig) -> int:
    length, dim = len(config.value_steps), expert.dim
    layer = _block(length, dim, num_video_tokens(config)) + 4 * length * length * dim
    return config.network.num_layers * layer + 2 * 2 * length * expert.channels * dim


def _action_row(config: WAVConfig, expert: ExpertConfig) -> int:
    """One action row; it reads kept keys and values of video and value features."""
    head, dim = config.action_horizon, expert.dim
    given = head + config.has_state_token
    layer = _block(given, dim, num_video_tokens(config)) + 4 * given * given * dim
    if config.network.value is not None:
        layer += 2 * 2 * given * dim * dim + 4 * given * len(config.value_steps) * dim
    ends = 2 * (given + head) * expert.channels * dim
    return config.network.num_layers * layer + ends


def _reading(config: WAVConfig, expert: ExpertConfig) -> int:
    """Keys and values of the video features for an expert."""
    return config.network.num_layers * 4 * num_video_tokens(config) * config.network.dim * expert.dim


def _reading_values(config: WAVConfig) -> int:
    """Keys and values of the value features for the action expert."""
    value, action = config.network.value, config.network.action
    if value is None or action is None:
        return 0
    return config.network.num_layers * 4 * len(config.value_steps) * value.dim * action.dim


def _timestep(dim: int, runs: int) -> int:
    return runs * 2 * (256 * dim + dim * dim + 6 * dim * dim)
