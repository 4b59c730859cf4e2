"""Numbers in and out of the network's range: normalisation of states and actions, symlog of values; each inverts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from wamkit.typed import check_fields, check_least, read_fields

Kind = Literal["minmax", "meanstd"]

FORMULAS: Final[dict[str, str]] = {
    "minmax": "2 * (x - q01) / (q99 - q01 + epsilon) - 1",
    "meanstd": "(x - mean) / (std + epsilon)",
}
VALUE_FORMULA: Final = "symlog((v - mean) / (std + epsilon)), symlog(z) = sign(z) * ln(1 + abs(z))"


@runtime_checkable
class ChannelStatistics(Protocol):
    """What a transform reads of a feature's statistics: one number per channel each."""

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    @property
    def q01(self) -> tuple[float, ...]: ...

    @property
    def q99(self) -> tuple[float, ...]: ...

    @property
    def min(self) -> tuple[float, ...]: ...

    @property
    def max(self) -> tuple[float, ...]: ...


def symlog(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """sign(x) ln(1 + |x|). Source: WAV 3.6 of the specification."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """Normalisation of a vector channel by channel, and its inverse; nothing is clipped.

    Two kinds of channel get a rule of their own, and are listed in the saved file:

    - `constant` (all values equal): normalises to 0 and inverts to its constant, whatever comes in;
    - `widened` (the quantiles, or the trimmed deviation, coincide though values differ, as of a gripper that is hardly
      ever used): an outlier would be divided by epsilon, so the range min … max takes the place of q01 … q99, and
      half of it that of the deviation, around its middle.

    Args:
        kind: `minmax` or `meanstd`; the formula of each is in `formula`.
        q01: 1st percentile per channel (of a widened channel its minimum).
        q99: 99th percentile per channel (of a widened channel its maximum).
        mean: mean per channel.
        std: standard deviation per channel.
        constant: constant channels; their constant is `mean`.
        widened: channels whose range was widened.
        epsilon: added to the divisor.

    Source: WAV 3.6 of the specification; Differs: the rules above.
    """

    kind: Kind
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    constant: tuple[int, ...] = ()
    widened: tuple[int, ...] = ()
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self, "normaliser")
        widths = {name: len(getattr(self, name)) for name in ("q01", "q99", "mean", "std")}
        if len(set(widths.values())) != 1:
            raise ValueError(f"normaliser: expected as many channels in every statistic, got {widths}")
        wrong = [index for index in (*self.constant, *self.widened) if not 0 <= index < len(self.mean)]
        if wrong:
            raise ValueError(f"normaliser: channels {wrong} are outside the {len(self.mean)} channels")
        check_least(self, "normaliser", 0, "epsilon")
        if min((*self._scale, 1.0)) <= 0:
            raise ValueError(
                f"normaliser: expected {'q99 >= q01' if self.kind == 'minmax' else 'std >= 0'} in every channel, "
                f"got {self.to_dict()}; compute the statistics again"
            )

    @classmethod
    def from_statistics(cls, kind: Kind, statistics: ChannelStatistics) -> Normalizer:
        """The normaliser of a feature, with constant and widened channels found from its statistics.

        Args:
            kind: `minmax` or `meanstd`.
            statistics: of the feature, for instance `compute_statistics(dataset)["action"]`.
        """
        columns = {name: list(getattr(statistics, name)) for name in ("q01", "q99", "mean", "std", "min", "max")}
        constant, widened = [], []
        for index, (low, high) in enumerate(zip(columns["min"], columns["max"], strict=True)):
            rounding = 1e-6 * max(1.0, abs(low), abs(high))
            if high - low <= rounding:
                constant.append(index)
            elif columns["q99"][index] - columns["q01"][index] <= rounding or columns["std"][index] <= rounding:
                widened.append(index)
                columns["q01"][index], columns["q99"][index] = low, high
                columns["mean"][index], columns["std"][index] = (low + high) / 2, (high - low) / 2
        return cls(
            kind=kind,
            q01=tuple(columns["q01"]),
            q99=tuple(columns["q99"]),
            mean=tuple(columns["mean"]),
            std=tuple(columns["std"]),
            constant=tuple(constant),
            widened=tuple(widened),
        )

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.mean)

    @property
    def formula(self) -> str:
        """The formula of this kind, in the names of the saved file."""
        return FORMULAS[self.kind]

    @cached_property
    def _scale(self) -> tuple[float, ...]:
        if self.kind == "minmax":
            return tuple((high - low + self.epsilon) / 2 for low, high in zip(self.q01, self.q99, strict=True))
        return tuple(std + self.epsilon for std in self.std)

    @cached_property
    def _shift(self) -> tuple[float, ...]:
        """What normalises to 0; a constant channel's is its constant, so that 0 inverts to it exactly."""
        shift = list(self.mean)
        if self.kind == "minmax":
            shift = [low + scale for low, scale in zip(self.q01, self._scale, strict=True)]
        for index in self.constant:
            shift[index] = self.mean[index]
        return tuple(shift)

    @cached_property
    def _varies(self) -> tuple[float, ...]:
        return tuple(0.0 if index in self.constant else 1.0 for index in range(self.width))

    def normalize(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        """Physical units to the network's range.

        Raises:
            ValueError: the number of channels is not the normaliser's.
        """
        self._check(x)
        return (x - x.new_tensor(self._shift)) * (x.new_tensor(self._varies) / x.new_tensor(self._scale))

    def denormalize(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        """The network's range to physical units; a constant channel gives its constant.

        Raises:
            ValueError: the number of channels is not the normaliser's.
        """
        self._check(x)
        return x * (x.new_tensor(self._varies) * x.new_tensor(self._scale)) + x.new_tensor(self._shift)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the formula and epsilon named; `from_dict` inverts it."""
        return {
            "kind": self.kind,
            "formula": self.formula,
            "epsilon": self.epsilon,
            "q01": list(self.q01),
            "q99": list(self.q99),
            "mean": list(self.mean),
            "std": list(self.std),
            "constant": list(self.constant),
            "widened": list(self.widened),
        }

    @classmethod
    def from_dict(cls, data: object) -> Normalizer:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing, the formula is not the one of this kind, or a value is of another type or not
                finite; the message names it.
        """
        kind = data.get("kind") if isinstance(data, dict) else None
        formula = FORMULAS.get(kind) if isinstance(kind, str) else None
        _check_formula("normaliser", data, formula or f"one of {list(FORMULAS.values())}")
        return read_fields(cls, data, "normaliser", others=True)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.width:
            raise ValueError(
                f"normaliser: expected {self.width} channels, got {x.shape[-1]} (shape {tuple(x.shape)}); "
                "use the statistics of the same robot"
            )


@dataclass(frozen=True, kw_only=True)
class ValueTransform:
    """Value vectors to the network's space: z-score per channel, then symlog; and back.

    Args:
        mean: mean per value channel.
        std: standard deviation per value channel.
        epsilon: added to the deviation.

    Source: WAV 3.6 of the specification.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self, "value transform")
        check_least(self, "value transform", 0, "epsilon")
        if len(self.mean) != len(self.std) or min((*self.std, 0.0)) < 0 or min((*self.std, 1.0)) + self.epsilon <= 0:
            raise ValueError(
                f"value transform: expected as many means as deviations of 0 or more, and an epsilon above 0 "
                f"where they are 0, got {self.mean}, {self.std} and {self.epsilon}"
            )

    @classmethod
    def from_statistics(cls, statistics: ChannelStatistics) -> ValueTransform:
        """The transform of a value column.

        A channel whose trimmed deviation is 0 though its values differ is scaled by half its range instead, as in
        `Normalizer`; a constant channel becomes 0 up to rounding.
        """
        normalizer = Normalizer.from_statistics("meanstd", statistics)
        std = (1.0 if index in normalizer.constant else std for index, std in enumerate(normalizer.std))
        return cls(mean=normalizer.mean, std=tuple(std))

    @property
    def width(self) -> int:
        """Number of value channels."""
        return len(self.mean)

    def normalize(self, values: Float[Tensor, "... r"]) -> Float[Tensor, "... r"]:
        """Value units to the network's space.

        Raises:
            ValueError: the number of channels is not the transform's.
        """
        mean, scale = self._parameters(values)
        return symlog((values - mean) / scale)

    def denormalize(self, targets: Float[Tensor, "... r"]) -> Float[Tensor, "... r"]:
        """The network's space to value units.

        Raises:
            ValueError: the number of channels is not the transform's.
        """
        mean, scale = self._parameters(targets)
        return symexp(targets) * scale + mean

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the formula and epsilon named; `from_dict` inverts it."""
        return {
            "formula": VALUE_FORMULA,
            "epsilon": self.epsilon,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, data: object) -> ValueTransform:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing, the formula is another one, or a value is of another type or not finite; the
                message names it.
        """
        _check_formula("value transform", data, VALUE_FORMULA)
        return read_fields(cls, data, "value transform", others=True)

    def _parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-1] != self.width:
            raise ValueError(
                f"value transform: expected {self.width} channels, got {x.shape[-1]} (shape {tuple(x.shape)}); "
                "use statistics computed after the value labels were written"
            )
        return x.new_tensor(self.mean), x.new_tensor(self.std) + self.epsilon


def _check_formula(what: str, data: object, formula: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected an object with the formula and its statistics, got {data!r}")
    if data.get("formula") != formula or "epsilon" not in data:
        raise ValueError(
            f"{what}: expected the formula {formula!r} and an epsilon, got {data.get('formula')!r} and the keys "
            f"{sorted(data)}; the file was written by another program or version"
        )
