"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from wamkit.device import choose_device


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
