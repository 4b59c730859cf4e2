"""WAV `small` in Meta-World and LIBERO, in the three stages of the paper, on a CPU."""

from __future__ import annotations

import dataclasses

from wamkit.models.wav import config
from wamkit.models.wav import objective as wav
from wamkit.models.wav.config import WAVConfig
from wamkit.models.wav.objective import WAVObjective
from wamkit.recipes.run import Run
from wamkit.training.stage import TrainStage


def wav_metaworld() -> Run:
    """WAV `small` for one Meta-World task: minutes on two cores.

    Differs from the paper's schedule where the size asks for it: small batches and higher learning rates with a cosine
    decay, averaged weights, two noise draws per observation in the expert stages, memory as the control loop has it, no
    memory noise (memory is one clean frame), no loss on rows past the end of an episode. In the last stage a quarter of
    each batch goes on training video and the value loss goes on at half weight, because the action loss alone makes the
    other streams forget what they imagine.
    """
    return _run(config.small(), video_steps=400, value_steps=150, action_steps=550, ema_decay=0.99, save_every=350)


def wav_metaworld_many() -> Run:
    """WAV `small` for several Meta-World tasks told apart by their sentences: about an hour on two cores.

    `wav_metaworld` with more steps and a longer average; it made `zoo/wav-metaworld-small`.
    """
    return _run(config.small(), video_steps=1500, value_steps=400, action_steps=5500, ema_decay=0.998, save_every=500)


def wav_libero_small() -> Run:
    """WAV `small` for the tasks of a LIBERO suite, on scripted demonstrations: about two hours on two cores.

    `wav_metaworld_many` for an arm of seven actions and eight states, with room for LIBERO's longer sentences.
    """
    model = config.small(action_dim=7, state_dim=8)
    model = dataclasses.replace(model, codec=dataclasses.replace(model.codec, text_length=24))
    return _run(model, video_steps=1500, value_steps=400, action_steps=6500, ema_decay=0.998, save_every=500)


def _run(
    model: WAVConfig, *, video_steps: int, value_steps: int, action_steps: int, ema_decay: float, save_every: int
) -> Run:
    video = dataclasses.replace(wav.video_only(), memory_noise=0.0, caption_dropout=0.0)
    value = dataclasses.replace(wav.value_only(), memory_noise=0.0, num_draws=2, mask_padding=True)
    action = dataclasses.replace(
        wav.action_full(),
        memory_noise=0.0,
        num_draws=2,
        mask_padding=True,
        video_weight=1.0,
        video_share=0.25,
        value_weight=0.5,
    )
    return Run(
        model=model,
        stages=(
            _stage("video_only", ("video",), video, steps=video_steps, ema_decay=ema_decay),
            _stage("value_only", ("value",), value, steps=value_steps, ema_decay=ema_decay),
            _stage("action_full", ("video", "value", "action"), action, steps=action_steps, ema_decay=ema_decay),
        ),
        save_every=save_every,
    )


def debug() -> Run:
    """WAV `tiny` for a few steps: a smoke run that takes seconds."""
    steps = 4
    return Run(
        model=config.tiny(),
        stages=(
            _stage("video_only", ("video",), wav.video_only(), steps=steps, batch_size=4),
            _stage("value_only", ("value",), wav.value_only(), steps=steps, batch_size=4),
            _stage("action_full", ("video", "value", "action"), wav.action_full(), steps=steps, batch_size=4),
        ),
        execution_horizon=4,
        save_every=2,
    )


def _stage(
    name: str,
    train: tuple[str, ...],
    objective: WAVObjective,
    *,
    steps: int,
    batch_size: int = 16,
    ema_decay: float = 0.99,
) -> TrainStage:
    return TrainStage(
        name=name,
        objective=objective,
        train=train,
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        warmup_steps=min(20, steps // 2),
        schedule="cosine",
        needs_future=objective.needs_future,
        ema_decay=ema_decay,
    )
