"""What a policy is given, held to its spec before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wamkit.spec import PolicySpec
from wamkit.types import InputError


def check_inputs(spec: PolicySpec, video: Any, state: Any, task: Sequence[str], *, fitted: bool = False) -> None:
    """Refuse frames and states that do not fit the spec.

    Args:
        spec: of the policy.
        video: `b v h w c`, newest frame of every camera.
        state: `b s`, physical units.
        task: a sentence for each row, of characters that UTF-8 has.
        fitted: frames may also have the model's size.

    Raises:
        InputError: not tensors of the spec's shapes, or numbers that are not finite.
    """
    _require_tensor("video", video)
    _require_tensor("state", state)
    robot = spec.robot
    camera = robot.cameras[0]
    wanted = (len(task), len(robot.cameras), camera.height, camera.width, 3)
    size = spec.image_size if fitted else None
    if tuple(video.shape) not in (wanted, (*wanted[:2], *(size or wanted[2:4]), 3)):
        raise InputError(
            f"expected video of shape (robots, cameras, height, width, 3) = {wanted} "
            f"(cameras {', '.join(robot.camera_names)}), got {tuple(video.shape)}"
        )
    if tuple(state.shape) != (len(task), len(robot.state)):
        names = ", ".join(channel.name for channel in robot.state)
        raise InputError(f"expected state of shape {(len(task), len(robot.state))} ({names}), got {tuple(state.shape)}")
    _require_floats("state", state)
    for sentence in task:
        if not _is_text(sentence):
            raise InputError(f"expected sentences of Unicode text, got {sentence[:80]!r}; send whole characters")
    if not torch.isfinite(state).all():
        raise InputError("expected finite states, got NaN or infinity; check the robot's sensors")


def require_normal(state: Tensor) -> None:
    """Refuse finite states so large that normalising them leaves the range of floating-point numbers.

    Raises:
        InputError: some do.
    """
    if not torch.isfinite(state).all():
        raise InputError("expected states near those of training, got numbers beyond all bounds; check their units")


def check_actions(spec: PolicySpec, actions: Any, rows: int) -> None:
    """Refuse actions `b p a` to imagine along, in physical units, that do not fit the spec.

    Raises:
        InputError: no floating-point tensor of one or more actions for each row, or numbers that are not finite.
    """
    _require_tensor("actions", actions)
    _require_floats("actions", actions)
    wide = len(spec.robot.action)
    if actions.ndim != 3 or actions.shape[0::2] != (rows, wide) or not actions.shape[1]:
        raise InputError(f"expected actions of shape ({rows}, one or more, {wide}), got {tuple(actions.shape)}")
    if not torch.isfinite(actions).all():
        raise InputError("expected finite actions, got NaN or infinity; check where they come from")


def check_known(known: Tensor | None, shape: tuple[int, int]) -> None:
    """Refuse what no memory says of its frames.

    Raises:
        InputError: naming the frames.
    """
    if known is None:
        return
    if known.shape != shape or not known[:, -1].all() or (known[:, :-1] & ~known[:, 1:]).any():
        raise InputError(
            f"expected known to say of {shape[0]} x {shape[1]} frames whether they were seen, as are all from one "
            f"of them to the newest, got {known.tolist()}"
        )


def _require_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"expected {name} as a torch tensor, got {type(value).__name__}; use torch.as_tensor({name})")


def _require_floats(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise InputError(f"expected {name} in floating point, got {value.dtype}; use {name}.float()")


def _is_text(sentence: Any) -> bool:
    """Whether UTF-8 can write it, as all but lone surrogates."""
    try:
        sentence.encode()
    except (AttributeError, UnicodeEncodeError):
        return False
    return True
