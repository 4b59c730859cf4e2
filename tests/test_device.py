"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from wamkit.device import choose_device, clock


def test_devices_that_are_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["banana", "cuda:one", "cuda:-1", "", "meta"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(ValueError, match="expected the device to be auto, cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda:64", "cpu:3", "mps:7"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}', and it sees .* use auto or cpu"):
        choose_device(name)


def test_the_clock_counts_seconds_on_every_device() -> None:
    for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        began = clock(name)
        torch.ones(4, device=name).sum()
        assert 0 < clock(torch.device(name)) - began < 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_clock_waits_for_the_gpu() -> None:
    big = torch.randn(8192, 8192, device="cuda")
    big @ big
    clock("cuda")
    queued = torch.cuda.Event()
    for _ in range(50):
        big @ big
    queued.record()
    assert not queued.query(), "the products would have to be running still"
    clock("cuda")
    assert queued.query()
