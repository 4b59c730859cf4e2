"""Which parameters a stage trains, AdamW over exactly those, their moving average, and moments as plain tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wamkit.training.sharding import local
from wamkit.training.stage import TrainStage
from wamkit.types import Trainable

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def select_parameters(model: Trainable, stage: TrainStage) -> dict[str, nn.Parameter]:
    """The parameters that a stage trains, by name; these require gradients afterwards and all others do not.

    Gradients still flow *through* the others to whatever lies before them.

    Args:
        model: names its parts.
        stage: names the parts it trains.

    Raises:
        ValueError: an unknown part, or `parts()` is no partition of the network's parameters.
    """
    parts = model.parts()
    parameters = dict(model.network.named_parameters())
    unknown = [part for part in stage.train if part not in parts]
    if unknown:
        raise ValueError(
            f"stage {stage.name!r} trains {unknown}; this model's parts are {list(parts)}, choose among those"
        )
    owner: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            if name not in parameters:
                raise ValueError(
                    f"parts(): part {part!r} names the parameter {name!r}, which the network does not have"
                )
            if name in owner:
                raise ValueError(f"parts(): the parameter {name!r} belongs to both {owner[name]!r} and {part!r}")
            owner[name] = part
    orphans = [name for name in parameters if name not in owner]
    if orphans:
        raise ValueError(f"parts(): {len(orphans)} parameters belong to no part, for instance {orphans[:5]}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(owner[name] in stage.train)
    return {name: parameter for name, parameter in parameters.items() if owner[name] in stage.train}


@contextmanager
def restored_requires_grad(network: nn.Module) -> Iterator[None]:
    """Give every parameter back the `requires_grad` it came with, and no gradient."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None


def make_optimizer(stage: TrainStage, trained: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over the given parameters, one setting for all; the trainer sets the learning rate at every step."""
    # The fused form does the same arithmetic in one kernel: five times faster on a CPU with a few hundred tensors.
    return torch.optim.AdamW(
        trained.values(),
        lr=stage.learning_rate,
        betas=stage.betas,
        eps=stage.eps,
        weight_decay=stage.weight_decay,
        fused=True,
    )


def moments_to_tensors(optimizer: torch.optim.AdamW, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """AdamW's state as named tensors; parameters that never had a gradient have none."""
    tensors = {}
    for name, parameter in trained.items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value
    return tensors


def moments_like(trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """For every moment that a trained parameter can have, a tensor of its shape, sharded as it is."""
    return {
        f"{moment}.{name}": torch.empty(()) if moment == "step" else parameter.detach()
        for name, parameter in trained.items()
        for moment in _MOMENTS
    }


def load_moments(
    optimizer: torch.optim.AdamW, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], source: str
) -> None:
    """Inverse of `moments_to_tensors`.

    Raises:
        ValueError: a tensor does not belong to a trained parameter, or has another shape.
    """
    wanted = {f"{moment}.{name}": parameter for name, parameter in trained.items() for moment in _MOMENTS}
    foreign = [name for name in tensors if name not in wanted]
    if foreign:
        raise ValueError(f"{source}: moments of parameters that this stage does not train, for instance {foreign[:5]}")
    for name, parameter in trained.items():
        found = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS if f"{moment}.{name}" in tensors}
        if not found:
            continue
        shapes = {moment: list(value.shape) for moment, value in found.items() if moment != "step"}
        expected = {moment: list(parameter.shape) for moment in _MOMENTS[1:]}
        if shapes != expected or "step" not in found:
            raise ValueError(
                f"{source}: moments of {name!r}: expected step and {expected}, got {sorted(found)} {shapes}"
            )
        optimizer.state[parameter] = {moment: value.to(parameter.device) for moment, value in found.items()}


class MovingAverage:
    """Exponential moving average of the trained parameters; of sharded ones each process averages its own parts.

    Args:
        trained: the parameters to follow, by name.
        decay: of late updates; early ones average faster, see `TrainStage.ema_decay`.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self._trained = dict(trained)
        self._decay = decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the current weights; `num_updates` counts the updates before this one."""
        decay = min(self._decay, (1 + num_updates) / (10 + num_updates))
        for name, average in self.tensors.items():
            local(average).lerp_(local(self._trained[name].detach()), 1 - decay)

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take averages from a checkpoint.

        Raises:
            ValueError: other names or shapes than the trained parameters.
        """
        expected = {name: list(average.shape) for name, average in self.tensors.items()}
        got = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if got != expected:
            differing = sorted(name for name in {**expected, **got} if expected.get(name) != got.get(name))
            raise ValueError(f"{source}: averages do not fit the trained parameters, for instance {differing[:5]}")
        for name, average in self.tensors.items():
            local(average).copy_(local(tensors[name]))

    @torch.no_grad()
    def adopt(self) -> None:
        """Make the averages the weights."""
        for name, parameter in self._trained.items():
            local(parameter).copy_(local(self.tensors[name]))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network holds the averages; afterwards its own weights again, bit for bit."""
        own = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        self.adopt()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._trained.items():
                    local(parameter).copy_(local(own[name]))
