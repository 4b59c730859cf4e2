"""What a training stage is: which parts it trains, on which objective, for how long and how fast (no torch)."""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, Protocol, runtime_checkable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")


@runtime_checkable
class ReadsFuture(Protocol):
    """An objective that knows whether it reads future frames."""

    @property
    def needs_future(self) -> bool: ...


@runtime_checkable
class DividesBatches(Protocol):
    """An objective that gives the rows of a batch different things to learn."""

    def check_batch(self, size: int) -> None:
        """Refuse batches of `size` windows that it cannot divide.

        Raises:
            ValueError: saying which sizes it can.
        """


@dataclass(frozen=True, kw_only=True)
class TrainStage:
    """One stage of training; AdamW with linear warm-up and gradient clipping.

    Args:
        name: names the stage in metrics and checkpoints; letters, digits, `_` and `.`.
        objective: the family's own frozen dataclass, handed to its `loss`; one that divides batches has `check_batch`.
        train: names of the model's parts that change; gradients flow through the others.
        steps: optimiser steps.
        batch_size: windows per batch.
        accumulation: batches per optimiser step; their gradients are averaged.
        learning_rate: peak, reached after the warm-up.
        warmup_steps: steps of linear warm-up from near 0.
        schedule: after the warm-up, `constant`, or `cosine` down to 0 at the end of the stage.
        betas: AdamW's moments.
        eps: AdamW's denominator.
        weight_decay: decoupled, the same for every trained parameter.
        max_grad_norm: the gradient's 2-norm is clipped to this.
        needs_future: whether batches must hold future frames; the data room reads it. An objective that says so itself
            (`ReadsFuture`) is believed.
        ema_decay: when given, the stage's result (and every policy saved in it) is the moving average of the trained
            weights; the decay of update n is `min(ema_decay, (1 + n) / (10 + n))`, so that short stages average too.
    """

    name: str
    objective: Any
    train: tuple[str, ...]
    steps: int
    batch_size: int
    accumulation: int = 1
    learning_rate: float
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-5
    max_grad_norm: float = 1.0
    needs_future: bool
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"expected a stage name of letters, digits, '_' and '.', got {self.name!r}")
        if not self.train:
            raise ValueError(f"stage {self.name!r}: expected at least one part to train, got none")
        for key in ("steps", "batch_size", "accumulation", "learning_rate", "eps", "max_grad_norm"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"stage {self.name!r}: expected a positive {key}, got {getattr(self, key)}")
        for key in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"stage {self.name!r}: expected {key} of 0 or more, got {getattr(self, key)}")
        if any(not 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"stage {self.name!r}: expected betas in [0, 1), got {self.betas}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"stage {self.name!r}: expected ema_decay in (0, 1) or None, got {self.ema_decay}")
        if isinstance(self.objective, ReadsFuture):
            object.__setattr__(self, "needs_future", self.objective.needs_future)
        if isinstance(self.objective, DividesBatches):
            self.objective.check_batch(self.batch_size)
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"stage {self.name!r}: expected schedule 'constant' or 'cosine', got {self.schedule!r}")


def learning_rate_at(stage: TrainStage, step: int) -> float:
    """Learning rate of the optimiser step with this index (the first is 0); pure, so that resuming needs no state."""
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    if stage.schedule == "constant":
        return stage.learning_rate
    progress = (step - stage.warmup_steps) / max(stage.steps - stage.warmup_steps, 1)
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def plain(value: Any) -> Any:
    """A value as JSON would give it back: dataclasses become dicts with their class name under "type".

    Raises:
        ValueError: something in it has no plain form, for instance a tensor or an open file.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(
        f"expected finite numbers, strings, lists, dicts or dataclasses of them in a recipe, got {value!r}"
    )


def resolved_recipe(stages: Sequence[TrainStage], seed: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The whole recipe as plain data: what training.json records and what a resumed run is compared with.

    Args:
        stages: in the order they run; their names differ.
        seed: of every draw.
        extra: the caller's own settings (model configuration, data), JSON-ready or dataclasses.

    Raises:
        ValueError: no stage, equal stage names, or a setting without a plain form.
    """
    names = [stage.name for stage in stages]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected one or more stages with distinct names, got {names}")
    clash = sorted({"seed", "stages"} & set(extra))
    if clash:
        raise ValueError(f"expected a recipe without the keys {clash}, which the trainer writes itself; rename them")
    return {"seed": seed, "stages": [plain(stage) for stage in stages], **plain(extra)}


def recipe_differences(saved: Any, current: Any, where: str = "") -> list[str]:
    """Every place where two recipes differ, as `stages[0].steps: saved 100, now 200`.

    Args:
        saved: plain data as read from a checkpoint.
        current: plain data of this run.
        where: path so far.
    """
    if isinstance(saved, dict) and isinstance(current, dict):
        keys = [*saved, *(key for key in current if key not in saved)]
        pairs = [
            (f"{where}.{key}" if where else key, saved.get(key, _ABSENT), current.get(key, _ABSENT)) for key in keys
        ]
    elif isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        pairs = [(f"{where}[{index}]", *items) for index, items in enumerate(zip(saved, current, strict=True))]
    elif isinstance(saved, list) and isinstance(current, list) and where == "stages":
        names = [[stage.get("name") for stage in stages] for stages in (saved, current)]
        return [f"stages: saved {names[0]}, now {names[1]}"]
    else:
        return [] if saved == current else [f"{where}: saved {saved!r}, now {current!r}"]
    return [line for path, ours, theirs in pairs for line in recipe_differences(ours, theirs, path)]


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()
