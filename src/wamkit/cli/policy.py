"""The policy as commands load it: where it computes, in which type, and how it plans and decodes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from wamkit.cli.planner import PlannerOptions
from wamkit.planning.config import PlannerConfig

if TYPE_CHECKING:
    from wamkit.evaluation.results import PolicyIdentity
    from wamkit.policy import Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """Options of commands that run a policy."""

    planning: Annotated[PlannerOptions, tyro.conf.arg(name="")] = field(default_factory=PlannerOptions)
    """How the policy plans."""
    max_rows: int = 32
    """Imagined videos computed at once while planning; fewer take less memory."""
    num_steps: int = 10
    """Denoising steps of the policy's decoder."""
    device: str = "auto"
    """Where the policy computes: cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the network computes in; bfloat16 is for GPUs, and changes actions by its rounding."""
    pretrained: Path | None = None
    """Folder with vae/, text_encoder/ and tokenizer/, for a policy whose pretrained codecs have moved."""

    def check(self) -> PlannerConfig | None:
        """The planner; wrong options are told before anything heavy is loaded.

        Raises:
            ValueError: an option out of range, or an unknown planner.
        """
        for name in ("num_steps", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        return self.planning.config()

    def load(self, folder: Path, **settings: Any) -> Policy:
        """The policy of a folder.

        Args:
            folder: policy folder, or a training checkpoint.
            settings: further arguments of `wamkit.policy.load_policy`.
        """
        import torch

        from wamkit.device import choose_device
        from wamkit.policy import load_policy

        return load_policy(
            folder,
            device=choose_device(self.device),
            planner=self.check(),
            max_rows=self.max_rows,
            num_steps=self.num_steps,
            dtype=getattr(torch, self.dtype),
            pretrained=self.pretrained,
            **settings,
        )

    def identity(self, folder: Path, policy: Policy, **settings: Any) -> PolicyIdentity:
        """The policy as results name it: its folder, weights, planner, and what else changes its actions.

        Args:
            folder: where it was loaded from.
            policy: what `load` gave.
            settings: of the command, recorded beside ours.
        """
        from wamkit.evaluation.results import PolicyIdentity

        details = {"family": policy.spec.family, "num_steps": self.num_steps, **settings}
        if self.dtype != "float32":
            details["dtype"] = self.dtype
        return PolicyIdentity(
            name="/".join(folder.resolve().parts[-2:]),
            fingerprint=policy.fingerprint,
            planner=self.planning.describe(),
            details=details,
        )


def warn_unless_imagining_was_learned(training: Mapping[str, Any]) -> None:
    """Say it when a policy's record (`training.json`) tells that it never saw a future frame."""
    from wamkit.training.record import saw_no_future

    if saw_no_future(training):
        logger.warning(
            "no stage of this policy's training read future frames, so it never learned to imagine them: expect noise, "
            "or train it with a stage that does"
        )
