"""What a launcher of several processes (`torchrun`) announces in the environment. Standard library only."""

from __future__ import annotations

import os


def announced_world_size() -> int:
    """How many processes the launcher started; 1 without a launcher.

    Raises:
        RuntimeError: `WORLD_SIZE` is no number of processes.
    """
    text = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not text.isdigit() or int(text) < 1:
        raise RuntimeError(f"expected WORLD_SIZE to be a number of processes, got {text!r}; unset it or correct it")
    return int(text)


def announced_rank() -> int:
    """Number of this process, from 0; 0 when it is alone, whatever `RANK` says then.

    Raises:
        RuntimeError: `RANK` is no number below `WORLD_SIZE`, or that is no number of processes.
    """
    size, text = announced_world_size(), os.environ.get("RANK", "").strip() or "0"
    if size == 1:
        return 0
    if not text.isdigit() or int(text) >= size:
        raise RuntimeError(
            f"expected RANK from 0 to {size - 1} with WORLD_SIZE={size}, got {text!r}; start all processes with one "
            "launcher (`torchrun --nproc-per-node N -m wamkit.cli.main train …`)"
        )
    return int(text)


def is_first_process() -> bool:
    """Whether this process speaks for all.

    Raises:
        RuntimeError: as `announced_rank`.
    """
    return announced_rank() == 0


def is_first_on_machine() -> bool:
    """Whether this process speaks for all on its machine; without a launcher's number of it, it does."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def announced_processes_here() -> int:
    """How many processes the launcher started on this machine; 1 when it does not say."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "").strip()
    return max(1, int(text)) if text.isdigit() else 1
