"""Which parameters a stage trains, and AdamW's state as plain tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from regression_family import Regression, make_stages
from torch import nn

from wamkit.training.optim import (
    MovingAverage,
    load_moments,
    make_optimizer,
    moments_to_tensors,
    restored_requires_grad,
    select_parameters,
)

SEE, ACT = make_stages()


class Misdivided(Regression):
    """Changes the division of the parameters into parts."""

    def __init__(self, **changes: list[str]) -> None:
        super().__init__()
        self.changes = changes

    def parts(self) -> dict[str, list[str]]:
        return {**super().parts(), **self.changes}


def trained_linear(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(3, 2, generator=generator)) for name in ("a", "b")}


def test_only_the_named_parts_require_gradients() -> None:
    model = Regression()
    trained = select_parameters(model, SEE)
    assert set(trained) == set(model.parts()["eye"])
    required = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    assert required == set(trained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hand": []}, "4 parameters belong to no part, for instance .*hand.0.weight"),
        ({"foot": ["foot.weight"]}, "part 'foot' names the parameter 'foot.weight', which the network does not have"),
        ({"foot": ["eye.0.weight"]}, "'eye.0.weight' belongs to both 'eye' and 'foot'"),
    ],
)
def test_parts_that_do_not_divide_the_network_are_refused(changes: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_parameters(Misdivided(**changes), SEE)


def test_borrowed_flags_are_given_back_even_after_an_error() -> None:
    model = Regression()
    model.network.eye_state.weight.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), restored_requires_grad(model.network):
        select_parameters(model, ACT)
        model.network.eye_state.weight.sum().backward()
        1 / 0  # noqa: B018
    assert not model.network.eye_state.weight.requires_grad and model.network.eye_state.weight.grad is None
    assert model.network.hand[0].weight.requires_grad


def test_the_optimizer_follows_the_equations_of_adamw() -> None:
    """Two steps by hand, with decoupled weight decay on every parameter alike."""
    stage = dataclasses.replace(SEE, weight_decay=0.1, learning_rate=0.01, eps=1e-6)
    trained = trained_linear()
    expected = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = make_optimizer(stage, trained)
    mean = {name: torch.zeros(3, 2) for name in trained}
    square = {name: torch.zeros(3, 2) for name in trained}
    for step in (1, 2):
        for name, parameter in trained.items():
            gradient = torch.full((3, 2), 0.5 * step)
            parameter.grad = gradient.clone()
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.95 * square[name] + 0.05 * gradient**2
            direction = (mean[name] / (1 - 0.9**step)) / ((square[name] / (1 - 0.95**step)).sqrt() + 1e-6)
            expected[name] = expected[name] * (1 - 0.01 * 0.1) - 0.01 * direction
        optimizer.step()
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), expected[name])


def test_moments_continue_where_they_were() -> None:
    def steps(optimizer: torch.optim.AdamW, trained: dict[str, nn.Parameter], numbers: range) -> None:
        for number in numbers:
            trained["a"].grad = torch.full((3, 2), float(number + 1))
            optimizer.step()

    straight = trained_linear()
    optimizer = make_optimizer(SEE, straight)
    steps(optimizer, straight, range(2))
    tensors = {name: tensor.clone() for name, tensor in moments_to_tensors(optimizer, straight).items()}
    assert set(tensors) == {"step.a", "exp_avg.a", "exp_avg_sq.a"}, "b never had a gradient and has no moments"
    resumed = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in straight.items()}
    steps(optimizer, straight, range(2, 4))
    other = make_optimizer(SEE, resumed)
    load_moments(other, resumed, tensors, "here")
    steps(other, resumed, range(2, 4))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exp_avg.c": torch.zeros(3, 2)}, "not train, for instance .*exp_avg.c"),
        ({"exp_avg.a": torch.zeros(2, 3)}, "here: moments of 'a': expected step and"),
        ({"step.a": None}, "here: moments of 'a': expected step and"),
    ],
)
def test_foreign_moments_are_refused(changes: dict[str, Any], message: str) -> None:
    trained = trained_linear()
    tensors: dict[str, Any] = {"step.a": torch.tensor(1.0), "exp_avg.a": torch.zeros(3, 2)}
    tensors |= {"exp_avg_sq.a": torch.zeros(3, 2)} | changes
    with pytest.raises(ValueError, match=message):
        load_moments(
            make_optimizer(SEE, trained),
            trained,
            {name: tensor for name, tensor in tensors.items() if tensor is not None},
            "here",
        )


def test_the_average_is_worn_for_a_block_and_taken_off_bit_for_bit() -> None:
    trained = trained_linear()
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    average = MovingAverage(trained, 0.5)
    with torch.no_grad():
        trained["a"] += 1
    moved = trained["a"].detach().clone()
    with pytest.raises(ZeroDivisionError), average.applied():
        assert torch.equal(trained["a"], before["a"])
        1 / 0  # noqa: B018
    assert torch.equal(trained["a"], moved)
    average.update(1000)
    average.adopt()
    torch.testing.assert_close(trained["a"].detach(), (before["a"] + moved) / 2)
    with pytest.raises(ValueError, match=r"here: averages do not fit the trained parameters, for instance .*b"):
        average.load({"a": torch.zeros(3, 2)}, "here")
