"""The device that a user names on the command line or in a recipe."""

from __future__ import annotations

import time

import torch

_TYPES = ("cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """A device that is really there.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a GPU if there is one.

    Raises:
        ValueError: no such device, or torch does not see it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in _TYPES or (number and not number.isdecimal()):
        raise ValueError(f"expected the device to be auto, cpu, cuda, cuda:1, … or mps, got {name!r}")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= count:
        raise ValueError(
            f"expected a device that torch {torch.__version__} sees here, got {name!r}, and it sees {count} of kind "
            f"{kind!r}; use auto or cpu, or install the torch build for this machine's GPU"
        )
    return torch.device(name)


def clock(device: torch.device | str) -> float:
    """Seconds, once everything that was handed to the device so far is done; differences are what counts."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
