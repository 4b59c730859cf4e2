"""WAV at its published size and schedule: LIBERO's single arm and the real robot's two arms.

Source: WAV (arXiv 2604.14732), appendix, and its public configurations. The appendix's text and its tables disagree on
steps; the tables' 40 000 + 30 000 + 30 000 stand here.
Differs: pure-noise streams are told their true timestep, noise levels are not rounded, the dropped caption takes its
mask with it (`--stages.N.objective…` restores each); GPUs share batches of 128.
"""

from __future__ import annotations

from wamkit.data.image_settings import ColorJitter
from wamkit.models.wav import config
from wamkit.models.wav import objective as wav
from wamkit.models.wav.config import WAVConfig
from wamkit.recipes.run import DataConfig, InitialWeights, Run
from wamkit.training.stage import TrainStage


def wav_libero() -> Run:
    """WAV `libero`, 2.3 B parameters, in the paper's three stages from GE-base: days on eight GPUs.

    Set data.root, output, initial.path (GE-base) and model.codec.pretrained (LTX-Video's vae/, text_encoder/ and
    tokenizer/). GE-base's view table has a row for a third camera, which stays idle.
    """
    return _run(config.libero(), memory_noise=0.01, action_rate=5e-5, execution_horizon=8, sample_n_frames=500)


def wav_dualarm() -> Run:
    """WAV `dualarm`: three cameras, two arms, 2.3 B parameters, in the paper's three stages from GE-base.

    Set what `wav_libero` asks for. Of the published learning rates of the last stage this is that of drawer and bowls.
    """
    return _run(config.dualarm(), memory_noise=0.1, action_rate=3e-4, execution_horizon=54, sample_n_frames=900)


def _run(
    model: WAVConfig, *, memory_noise: float, action_rate: float, execution_horizon: int, sample_n_frames: int
) -> Run:
    video, value = wav.video_only(), wav.value_only(memory_noise=memory_noise)
    action = wav.action_full(memory_noise=memory_noise)
    every = ("video", "value", "action")
    return Run(
        model=model,
        initial=InitialWeights(profile="ge_base"),
        data=DataConfig(
            pick="random",
            action_offset=1,
            first_row=1,
            sample_n_frames=sample_n_frames,
            preprocess="resize",
            color_jitter=ColorJitter.published(),
        ),
        stages=(
            published_stage("video_only", ("video",), video, steps=40_000, learning_rate=3e-4),
            published_stage("value_only", ("value",), value, steps=30_000, learning_rate=5e-5),
            published_stage("action_full", every, action, steps=30_000, learning_rate=action_rate),
        ),
        execution_horizon=execution_horizon,
        seed=42,
        save_every=3000,
        precision="bf16",
        activation_checkpointing=True,
    )


def published_stage(
    name: str, train: tuple[str, ...], objective: wav.WAVObjective, *, steps: int, learning_rate: float
) -> TrainStage:
    """A stage with the published optimiser: AdamW, constant rate after 1000 steps of warm-up, clipping at 1."""
    return TrainStage(
        name=name,
        objective=objective,
        train=train,
        steps=steps,
        batch_size=128,
        learning_rate=learning_rate,
        warmup_steps=1000,
        needs_future=objective.needs_future,
    )
