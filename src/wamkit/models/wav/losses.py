"""The flow-matching losses of WAV's three streams, for any training stage.

Source: WAV (arXiv 2604.14732), section 4; public trainer.
Differs: pure-noise streams are told the timestep they really have (`reference_timesteps` restores the public choice);
dropping a caption drops its mask too; several noise draws may share one pass of the video stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from wamkit.draws import TrainingDraws
from wamkit.flow import cosmap, expand, interpolate, logit_normal, mode, sigma_sqrt, training_sigma, velocity
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.control import to_tokens
from wamkit.models.wav.experts import ExpertTokens
from wamkit.models.wav.model import WAVTransformer
from wamkit.models.wav.objective import FlowWeighting, WAVObjective
from wamkit.nn.modulation import Timesteps
from wamkit.parallel import global_mean

Losses = tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """A training batch after the frozen codecs.

    Args:
        memory: memory latents, the current frame last.
        future: future latents; `None` where pure noise replaces them.
        text: text embeddings.
        text_mask: 1 on text.
        empty_text: embedding of the empty sentence, one row.
        empty_mask: its mask.
        state: normalised current state.
        actions: action and state of the same rows, normalised.
        is_padded: rows past the end of the episode.
        value_targets: value vectors in the network's space, or `None`.
    """

    memory: Float[Tensor, "b v c f h w"]
    future: Float[Tensor, "b v c z h w"] | None
    text: Float[Tensor, "b t e"]
    text_mask: Bool[Tensor, "b t"]
    empty_text: Float[Tensor, "1 t e"]
    empty_mask: Bool[Tensor, "1 t"]
    state: Float[Tensor, "b s"]
    actions: Float[Tensor, "b p a"]
    is_padded: Bool[Tensor, "b p"]
    value_targets: Float[Tensor, "b p r"] | None


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """Noise levels of some rows.

    Args:
        sigma: the level there is.
        told: the timestep that the network is told.
        weight: of the loss at that level.
    """

    sigma: Float[Tensor, "*r"]
    told: Float[Tensor, "*r"]
    weight: Float[Tensor, "*r"]


@dataclass(frozen=True, kw_only=True)
class Noised:
    """One expert's noisy rows with their targets.

    Args:
        tokens: what the network is given.
        target: noise - data of the rows the loss covers.
        weight: of each of these rows' loss.
        skipped: leading rows of each observation that carry no loss.
    """

    tokens: ExpertTokens
    target: Float[Tensor, "r p c"]
    weight: Float[Tensor, " r"]
    skipped: int = 0


def perturb_memory(
    memory: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], sigma: Float[Tensor, " b"], share: float
) -> Float[Tensor, "b ..."]:
    """Memory latents as they enter the network: (1-σ) mem + σ ((1-r) mem + r ε) = mem + σ r (ε - mem).

    Args:
        memory: clean latents.
        noise: ε.
        sigma: noise level of the future.
        share: r, drawn once per batch from [0, noise_to_first_frame).
    """
    return memory + expand(sigma, memory) * share * (noise - memory)


def video_loss(
    predicted: Float[Tensor, "b v l c"],
    target: Float[Tensor, "b v l c"],
    num_memory_tokens: int,
    weight: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Squared error on future tokens, averaged over all tokens (memory tokens count as 0).

    Args:
        predicted: velocities of all tokens.
        target: noise - data.
        num_memory_tokens: leading tokens without loss.
        weight: of each row's loss; 1 by default.
    """
    error = (predicted - target)[:, :, num_memory_tokens:].float().square()
    if weight is not None:
        error = error * expand(weight, error)
    return global_mean(error.sum(), predicted.numel())


def losses(
    network: WAVTransformer,
    config: WAVConfig,
    batch: EncodedBatch,
    objective: WAVObjective,
    draws: TrainingDraws,
) -> Losses:
    """The weighted sum of the stage's losses, and each of them.

    Several processes may hold some rows of a batch each: the mean of their results over processes (and so of their
    gradients) is the result of one process with all rows.

    Args:
        network: in training mode.
        config: geometry of the windows.
        batch: encoded windows.
        objective: what the stage asks for.
        draws: every noise level and noise number comes from it.

    Raises:
        ValueError: value targets or future frames are needed and absent.
    """
    for name, weight in (("value", objective.value_weight), ("action", objective.action_weight)):
        if weight and getattr(config.network, name) is None:
            raise ValueError(
                f"the objective asks for a {name} loss, but this model has no {name} expert; set {name}_weight=0"
            )
    rows, device = len(batch.memory), batch.memory.device
    level = _levels(draws, "level", (), objective.weighting)  # u1; the action stream has the same
    imagines = torch.ones(rows, dtype=torch.bool)  # rows whose future is partly there: they carry the video loss
    video_level = level
    if objective.noisy_video:
        imagines = torch.tensor(draws.rows) < _num_imagining(draws.num_rows, objective.video_share)
        hide = objective.reference_timesteps and objective.action_weight == 0
        video_level = NoiseLevel(
            sigma=torch.where(imagines, level.sigma, 1.0),
            told=level.told if hide else torch.where(imagines, level.told, 1000.0),
            weight=level.weight,
        )

    tokens, video_target = _noisy_video(config, batch, objective, video_level.sigma.to(device), draws)
    area = config.grid[1] * config.grid[2]
    num_memory = config.num_context * area
    timesteps = Timesteps.clean_then(num_memory, video_level.told.to(device), tokens.shape[2] - num_memory)
    text, mask = _drop_captions(batch, objective, draws)

    value = _noisy_value(config, batch, objective, draws)
    action = _noisy_action(config, batch, objective, level, draws)
    output = network(
        tokens,
        timesteps,
        network.read_text(text, mask),
        config.grid,
        value=None if value is None else value.tokens,
        action=None if action is None else action.tokens,
    )
    parts: dict[str, Tensor] = {}
    if video_target is not None and objective.video_weight:
        own = imagines.to(device)
        parts["video"] = video_loss(
            output.video[own], video_target[own], num_memory, video_level.weight.to(device)[own]
        )
    keep = ~batch.is_padded if objective.mask_padding else torch.ones_like(batch.is_padded)
    if objective.video_share:
        keep = keep & ~imagines.to(device)[:, None]
    if value is not None and objective.value_weight:
        predicted = output.value.unflatten(0, (rows, -1))[:, value.skipped :].flatten(0, 1)
        parts["value"] = _masked_mean(predicted, value, keep[:, _value_rows(config)])
    if action is not None:
        parts["action"] = _masked_mean(output.action, action, keep)
    weights = {"video": objective.video_weight, "value": objective.value_weight, "action": objective.action_weight}
    total = torch.stack([weights[name] * loss for name, loss in parts.items()]).sum()
    return total, {f"{name}_loss": loss.detach() for name, loss in parts.items()}


def _num_imagining(rows: int, share: float) -> int:
    """Rows of a global batch that carry the video loss: at least one, and never all."""
    if not share:
        return 0
    if rows < 2:
        raise ValueError(
            "video_share needs batches of 2 or more windows, got 1; raise batch_size, or set video_share=0"
        )
    return min(max(1, round(rows * share)), rows - 1)


def _levels(draws: TrainingDraws, stream: str, shape: tuple[int, ...], weighting: FlowWeighting) -> NoiseLevel:
    """Noise levels `[b, *shape]` with the weights of their losses."""
    u = draws.uniform(stream, shape).cpu()
    if weighting.scheme == "logit_normal":
        u = logit_normal(u, weighting.logit_mean, weighting.logit_std)
    elif weighting.scheme == "mode":
        u = mode(u, weighting.mode_scale)
    sigma, told = training_sigma(u, bf16=weighting.bf16_sigmas)
    weigh = {"sigma_sqrt": sigma_sqrt, "cosmap": cosmap}.get(weighting.scheme, torch.ones_like)
    return NoiseLevel(sigma=sigma, told=told, weight=weigh(sigma))


def _noisy_video(
    config: WAVConfig, batch: EncodedBatch, objective: WAVObjective, sigma: Tensor, draws: TrainingDraws
) -> tuple[Tensor, Tensor | None]:
    """Tokens of memory and future, and the velocity target of all tokens (memory targets are never used)."""
    memory = batch.memory
    share = draws.shared("memory share") * objective.memory_noise
    memory_noise = _noise(draws, "memory", memory.shape[1:], memory) if share else torch.zeros_like(memory)
    future_shape = (*memory.shape[1:3], config.num_future_latents, *memory.shape[4:])
    noise = _noise(draws, "video", future_shape, memory)
    perturbed = to_tokens(perturb_memory(memory, memory_noise, sigma, share))
    if not objective.needs_future:
        return torch.cat((perturbed, to_tokens(noise)), dim=-2), None
    if batch.future is None:
        raise ValueError("this stage reads future frames, but the batch has none; set needs_future=True on the stage")
    future = interpolate(batch.future, noise, sigma)
    target = torch.cat((memory_noise - memory, velocity(batch.future, noise)), dim=-3)
    return torch.cat((perturbed, to_tokens(future)), dim=-2), to_tokens(target)


def _value_rows(config: WAVConfig) -> slice:
    """Rows of the window that value tokens stand for."""
    first, every = config.value_steps[0] - 1, config.value_steps[0]
    return slice(first, None, every)


def _noisy_value(
    config: WAVConfig, batch: EncodedBatch, objective: WAVObjective, draws: TrainingDraws
) -> Noised | None:
    """Value rows: a pure-noise row for the action expert to read, then one row per draw for the value loss."""
    expert = config.network.value
    if expert is None or not (objective.value_weight or objective.action_weight):
        return None
    pure = 1 if objective.pure_value and objective.action_weight else 0
    count = objective.num_draws if objective.value_weight or not pure else 0
    targets = batch.value_targets
    if count and targets is None:
        raise ValueError("this stage reads value targets, but the batch has none; write them with `wamkit data values`")
    like = batch.memory
    level = _levels(draws, "value level", (pure + count,), objective.weighting)  # u2
    sigma, told = level.sigma.clone(), level.told.clone()
    if pure:
        sigma[:, 0] = 1.0
        if not objective.reference_timesteps:
            told[:, 0] = 1000.0
    noise = _noise(draws, "value", (pure + count, len(config.value_steps), expert.channels), like)
    data = torch.zeros_like(noise[:, :1]) if targets is None else targets[:, None, _value_rows(config)]
    noisy = interpolate(data.expand_as(noise).flatten(0, 1), noise.flatten(0, 1), sigma.flatten().to(like.device))
    return Noised(
        tokens=ExpertTokens(tokens=noisy, timestep=told.flatten().to(like.device)),
        target=(noise - data)[:, pure:].flatten(0, 1),
        weight=level.weight[:, pure:].flatten().to(like.device),
        skipped=pure,
    )


def _noisy_action(
    config: WAVConfig,
    batch: EncodedBatch,
    objective: WAVObjective,
    first: NoiseLevel,
    draws: TrainingDraws,
) -> Noised | None:
    """Action rows, `num_draws` per observation; the first shares the video stream's noise level."""
    if not objective.action_weight:
        return None
    like, count = batch.memory, objective.num_draws
    others = _levels(draws, "action level", (count - 1,), objective.weighting)
    sigma, told, weight = (
        torch.cat((getattr(first, key)[:, None], getattr(others, key)), dim=1).flatten().to(like.device)
        for key in ("sigma", "told", "weight")
    )
    data = repeat(batch.actions, "b p a -> (b m) p a", m=count)
    noise = _noise(draws, "action", (count, *batch.actions.shape[1:]), like).flatten(0, 1)
    state = None
    if config.has_state_token:
        state = torch.nn.functional.pad(batch.state, (config.num_zeros_before_state, 0))
        state = repeat(state, "b a -> (b m) 1 a", m=count)
    tokens = ExpertTokens(tokens=interpolate(data, noise, sigma), timestep=told, state_token=state)
    return Noised(tokens=tokens, target=velocity(data, noise), weight=weight)


def _drop_captions(
    batch: EncodedBatch, objective: WAVObjective, draws: TrainingDraws
) -> tuple[Float[Tensor, "b t e"], Bool[Tensor, "b t"]]:
    """Replace sentence and mask by those of the empty sentence, row by row with the given probability."""
    if not objective.caption_dropout:
        return batch.text, batch.text_mask
    dropped = (draws.uniform("caption") < objective.caption_dropout).to(batch.text.device)
    text = torch.where(dropped[:, None, None], batch.empty_text, batch.text)
    if objective.reference_caption_mask:
        return text, batch.text_mask
    return text, torch.where(dropped[:, None], batch.empty_mask, batch.text_mask)


def _masked_mean(predicted: Float[Tensor, "r p c"], noised: Noised, keep: Bool[Tensor, "b p"]) -> Float[Tensor, ""]:
    """Mean squared error over the tokens that count; each observation's mask serves all its rows."""
    error = (predicted - noised.target).float().square() * expand(noised.weight, predicted)
    keep = repeat(keep, "b p -> (b m) p 1", m=len(error) // len(keep))
    return global_mean((error * keep).sum(), keep.sum() * error.shape[-1])


def _noise(draws: TrainingDraws, stream: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return draws(stream, shape).to(like.device, like.dtype)
