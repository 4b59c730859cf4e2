"""The published sizes of WorldVLA and RynnVLA-002 on LIBERO, for GPUs and the published weights.

Source: WorldVLA (arXiv 2506.21539), RynnVLA-002 (arXiv 2511.17502) and their released training scripts.
"""

from __future__ import annotations

import dataclasses

from wamkit.models.worldvla import config
from wamkit.models.worldvla import objective as worldvla
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.recipes.run import DataConfig, InitialWeights, Run
from wamkit.training.stage import TrainStage

STEPS_PER_EPOCH = 6500
"""Of one LIBERO suite, in batches of 16: about 430 trajectories of 125 steps, an action and a world sample each."""


def worldvla_libero() -> Run:
    """WorldVLA 7 B on one LIBERO suite at 256 px, for 40 epochs.

    It starts from Chameleon: --initial.path names its weights, --model.codec.pretrained its tokenisers.
    """
    return _run(config.libero(), weight_decay=0.1, batch_size=16)


def rynnvla_libero() -> Run:
    """RynnVLA-002 7 B on one LIBERO suite: wrist camera, state and continuous actions."""
    return _run(config.rynnvla(), weight_decay=0.15, batch_size=64)


def _run(model: WorldVLAConfig, *, weight_decay: float, batch_size: int) -> Run:
    objective = worldvla.joint()
    epoch = STEPS_PER_EPOCH * 16 // batch_size
    stage = TrainStage(
        name="joint",
        objective=objective,
        train=model.parts,
        steps=40 * epoch,
        batch_size=batch_size,
        learning_rate=5e-6,
        warmup_steps=max(1, epoch // 100),
        schedule="constant",
        weight_decay=weight_decay,
        max_grad_norm=4.0,
        needs_future=objective.needs_future,
    )
    return Run(
        model=model,
        stages=(stage,),
        data=dataclasses.replace(DataConfig(), preprocess="resize"),
        initial=InitialWeights(profile="chameleon"),
        execution_horizon=model.action_horizon,
        save_every=epoch,
        keep_policy_every=5 * epoch,
        precision="bf16",
        activation_checkpointing=True,
    )
