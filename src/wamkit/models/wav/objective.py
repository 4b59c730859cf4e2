"""What the training stages ask of WAV; importing this module loads no torch.

Source: WAV (arXiv 2604.14732), section 4 and appendix, and its public trainer. Where they leave a stream's noise level
and the timestep that the network is told in disagreement, the truth is told by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Weighting = Literal["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"]


@dataclass(frozen=True, kw_only=True)
class FlowWeighting:
    """How often noise levels are drawn and how their losses weigh, by Stable Diffusion 3's names.

    Args:
        scheme: `none` draws u uniformly; `logit_normal` and `mode` draw it with another density; `sigma_sqrt` and
            `cosmap` draw uniformly and weigh the loss by 1/σ² and 2/(π(1 - 2σ + 2σ²)).
        logit_mean: of `logit_normal`, u = sigmoid(logit_mean + logit_std n).
        logit_std: of `logit_normal`.
        mode_scale: of `mode`, u = 1 - v - mode_scale (cos²(πv/2) - 1 + v).
        bf16_sigmas: round noise levels and timesteps to bf16, as the public trainer does.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 3.1.
    """

    scheme: Weighting = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    bf16_sigmas: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Weighting):
            raise ValueError(f"expected a weighting among {', '.join(get_args(Weighting))}, got {self.scheme!r}")
        if self.logit_std <= 0:
            raise ValueError(f"expected logit_std above 0, got {self.logit_std}")


@dataclass(frozen=True, kw_only=True)
class WAVObjective:
    """What one training stage asks of WAV (paper section 4; public trainer).

    Args:
        video_weight: weight of the video loss; 0 skips the video target.
        value_weight: weight of the value loss.
        action_weight: weight of the action loss; 0 skips the action expert.
        noisy_video: future video is pure noise (sigma 1), as it is at control time.
        video_share: with `noisy_video`, share of each batch whose future is noised as in video training instead; these
            rows carry the video loss and the others the expert losses, so that a stage that moves the video stream by
            the action loss does not forget how to imagine.
        pure_value: the value tokens that the action expert reads are pure noise, as they are at control time.
        memory_noise: memory frames are perturbed by up to this fraction of noise (`noise_to_first_frame`).
        caption_dropout: probability of replacing a task sentence by the empty one.
        reference_caption_mask: keep the original sentence's attention mask beside the empty one, as the public trainer
            does.
        reference_timesteps: tell the network the timesteps that the public trainer tells it, which disagree with the
            actual noise level of pure-noise streams; `False` tells the truth.
        weighting: of noise levels.
        num_draws: noise draws of value and action tokens per observation; they share one pass of the video stream.
        mask_padding: leave out of the losses rows past the end of the episode.
    """

    video_weight: float = 0.0
    value_weight: float = 0.0
    action_weight: float = 0.0
    noisy_video: bool = False
    video_share: float = 0.0
    pure_value: bool = False
    memory_noise: float = 0.0
    caption_dropout: float = 0.0
    reference_caption_mask: bool = False
    reference_timesteps: bool = False
    weighting: FlowWeighting = FlowWeighting()
    num_draws: int = 1
    mask_padding: bool = False

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("video_weight", "value_weight", "action_weight")}
        if not any(weights.values()) or min(weights.values()) < 0:
            raise ValueError(f"expected loss weights of 0 or more, and one above 0, got {weights}")
        if not 0 <= self.video_share < 1:
            raise ValueError(f"expected video_share in [0, 1), got {self.video_share}")
        if self.noisy_video and bool(self.video_weight) != bool(self.video_share):
            raise ValueError(
                "noisy_video replaces the future by pure noise, except in the rows of video_share; set video_weight "
                f"and video_share together, got {self.video_weight} and {self.video_share}"
            )
        if self.video_share and not self.noisy_video:
            raise ValueError("video_share has no effect without noisy_video; leave it at 0")
        if self.num_draws < 1:
            raise ValueError(f"expected num_draws of 1 or more, got {self.num_draws}")
        for name in ("memory_noise", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} in [0, 1], got {getattr(self, name)}")

    @property
    def needs_future(self) -> bool:
        """Whether future frames are read; pure noise replaces them otherwise."""
        return not self.noisy_video or self.video_share > 0


def video_only() -> WAVObjective:
    """Stage 1: the video stream learns to predict. Trains `video`."""
    return WAVObjective(video_weight=1.0, memory_noise=0.1, caption_dropout=0.06)


def value_only(*, memory_noise: float = 0.01) -> WAVObjective:
    """Stage 2: the value expert learns to read the video stream. Trains `value`.

    Args:
        memory_noise: the published 0.01 is LIBERO's; on real robots it was 0.1.
    """
    return WAVObjective(value_weight=1.0, noisy_video=True, memory_noise=memory_noise)


def action_full(*, memory_noise: float = 0.01) -> WAVObjective:
    """Stage 3: everything learns to act, by the action loss alone. Trains `video`, `value` and `action`.

    Nothing keeps the predicted values calibrated in it; `value_weight` above 0 does.

    Args:
        memory_noise: the published 0.01 is LIBERO's; on real robots it was 0.1.
    """
    return WAVObjective(action_weight=1.0, noisy_video=True, pure_value=True, memory_noise=memory_noise)


def action_only(*, memory_noise: float = 0.01) -> WAVObjective:
    """The action expert alone, beside frozen streams. Trains `action`."""
    return action_full(memory_noise=memory_noise)


def value_action(*, value_weight: float = 0.0, memory_noise: float = 0.01) -> WAVObjective:
    """Both experts beside a frozen video stream. Trains `value` and `action`.

    Args:
        value_weight: the public trainer has no value loss here, so that predicted values drift; above 0 restores it.
        memory_noise: as in the other stages.
    """
    return WAVObjective(
        action_weight=1.0, value_weight=value_weight, noisy_video=True, pure_value=True, memory_noise=memory_noise
    )


def everything(*, video_weight: float = 1.0, value_weight: float = 1.0, action_weight: float = 1.0) -> WAVObjective:
    """All three losses at once on partly noisy streams. Trains `video`, `value` and `action`."""
    return WAVObjective(
        video_weight=video_weight, value_weight=value_weight, action_weight=action_weight, memory_noise=0.01
    )
