"""What a training stage asks of WorldVLA; importing this module loads no torch.

Source: WorldVLA (arXiv 2506.21539), section 3.4 and its released code; RynnVLA-002 (arXiv 2511.17502).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class WorldVLAObjective:
    """What one training stage asks of WorldVLA.

    Args:
        world_share: share of each batch that predicts the next frame; the rest predicts actions. 0 trains the policy
            alone, 1 the world model alone. The published mixture has about as many samples of either.
        loss_mode: `token_weighted` is the released code's mean over all predicted ids, weighted; `task_sum` the paper's
            sum: mean over the ids of action samples + alpha * mean over those of world samples.
        image_weight: of image codes in `token_weighted`; every other id weighs 1.
        alpha: of world samples in `task_sum`.
        reference_weights: weigh ids 3 to 8194 instead of the image codes, as the released code does, which takes in one
            id too early and leaves out the last code; for the published vocabulary alone.
        z_loss: weight of the mean squared log-partition, which keeps logits from drifting.
        head_weight: weight of the continuous head's L1 error, where the model has a head.
        history_dropout: probability that an action prompt shows the newest frame alone, as at the first step of an
            episode, so that a policy that missed the frame before still knows what to do.
    """

    world_share: float = 0.5
    loss_mode: Literal["token_weighted", "task_sum"] = "token_weighted"
    image_weight: float = 0.04
    alpha: float = 0.04
    reference_weights: bool = False
    z_loss: float = 1e-5
    head_weight: float = 10.0
    history_dropout: float = 0.0

    def __post_init__(self) -> None:
        modes = ("token_weighted", "task_sum")
        if self.loss_mode not in modes:
            raise ValueError(f"expected loss_mode among {', '.join(modes)}, got {self.loss_mode!r}")
        for name in ("world_share", "history_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} in [0, 1], got {getattr(self, name)}")
        for name in ("image_weight", "alpha", "z_loss", "head_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} of 0 or more, got {getattr(self, name)}")

    def check_batch(self, size: int) -> None:
        """Refuse batches too small to hold samples of both kinds, where both are asked for.

        Raises:
            ValueError: naming the share.
        """
        num_world = round(self.world_share * size)
        if 0 < self.world_share < 1 and num_world in (0, size):
            missing = "action" if num_world else "world"
            raise ValueError(
                f"expected batches in which world_share = {self.world_share:g} leaves samples of either kind, got "
                f"batches of {size} without {missing} samples; use larger batches, or a world_share of 0 or 1"
            )

    @property
    def needs_future(self) -> bool:
        """Whether future frames are read."""
        return self.world_share > 0


def joint() -> WorldVLAObjective:
    """Policy and world model together, as published. Trains `transformer`."""
    return WorldVLAObjective()


def action_only() -> WorldVLAObjective:
    """The policy alone."""
    return WorldVLAObjective(world_share=0.0)


def world_only() -> WorldVLAObjective:
    """The world model alone; the released recipe's pre-training."""
    return WorldVLAObjective(world_share=1.0)
