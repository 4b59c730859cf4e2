"""Several processes that train one model: who am I, how many are we, and means over the rows of all.

Without a process group everything here is the identity of a single process. A launcher (`torchrun`, or anything that
sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`) starts the processes; `process_group` joins them.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from wamkit.launcher import announced_rank, announced_world_size, is_first_on_machine

logger = logging.getLogger(__name__)

T = TypeVar("T")

RENDEZVOUS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(hours=1)  # the others wait while rank 0 fits codecs or writes a policy


def is_grouped() -> bool:
    """Whether this process has joined a process group (of any size)."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0; 0 without a process group."""
    return dist.get_rank() if is_grouped() else 0


def world_size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if is_grouped() else 1


def rows_of_this_process(num_rows: int) -> range:
    """The rows of a global batch that this process computes on: r, r + w, r + 2w, …

    Raises:
        ValueError: the rows cannot be divided evenly.
    """
    if num_rows % world_size():
        raise ValueError(
            f"expected a batch that {world_size()} processes can divide evenly, got {num_rows} rows; "
            f"choose a batch_size that is a multiple of {world_size()}, or another number of processes"
        )
    return range(rank(), num_rows, world_size())


def global_mean(total: Float[Tensor, ""], count: Tensor | int | float) -> Float[Tensor, ""]:
    """A mean over the rows of all processes, such that *averaging* it (or its gradient) over processes gives that mean.

    Processes may count different numbers of things (masked tokens), so that a mean of their means would be another
    number. This is total / max(count of all, 1) * world_size; in a single process simply total / max(count, 1).

    Args:
        total: this process's sum; gradients flow through it.
        count: how many things it sums.
    """
    if world_size() == 1:
        return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
    counted = torch.as_tensor(count, device=total.device).detach().to(torch.float64, copy=True)
    dist.all_reduce(counted)
    return total * (world_size() / counted.clamp(min=1)).to(total.dtype)


def mean_over_processes(values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
    """Each number averaged over processes."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return (tensor / world_size()).tolist()


def from_rank_zero(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every process; the others wait. An error there is raised everywhere.

    Args:
        make: called on rank 0 alone; its result must be plain data.
    """
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            # Not the exception itself: some cannot be sent to another process.
            kind = next(
                (kind for kind in (BlockingIOError, ValueError, OSError) if isinstance(error, kind)), RuntimeError
            )
            dist.broadcast_object_list([None, (kind, str(error))], src=0)
            raise
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        kind, message = outcome[1]
        raise kind(message)
    return outcome[0]


def any_process(is_so: bool, device: torch.device | str = "cpu") -> bool:
    """Whether it is so on any process."""
    if world_size() == 1:
        return is_so
    flag = torch.tensor(int(is_so), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def gathered(value: T) -> list[T]:
    """Every process's value (plain data), by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def local_device(device: torch.device | str) -> torch.device:
    """The device of this process: `cuda` becomes the GPU with the number that the launcher gave it."""
    wanted = torch.device(device)
    if str(wanted) == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return wanted


@contextmanager
def process_group(device: torch.device | str, *, alone: bool = False) -> Iterator[None]:
    """Join the processes that a launcher started, for the length of the block; without a launcher do nothing.

    A group that was made before is used as it is.

    Args:
        device: `gloo` connects CPUs, `nccl` GPUs.
        alone: make a group of one when there is no launcher; sharded modules need one.

    Raises:
        RuntimeError: `RANK` is not below `WORLD_SIZE`; or `WORLD_SIZE` says something else than the process group, or
            than the launcher's other variables: several processes would each believe they are alone and overwrite one
            another.
    """
    announced = announced_world_size()
    if is_grouped():
        _require_agreement(announced)
        yield
        return
    if announced == 1 and not alone:
        yield
        return
    where = torch.device(device)
    backend = "nccl" if where.type == "cuda" else "gloo"
    if where.type == "cuda":
        torch.cuda.set_device(local_device(where))
    if announced == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    else:
        missing = [name for name in RENDEZVOUS if not os.environ.get(name)]
        if missing:
            raise RuntimeError(
                f"the environment says WORLD_SIZE={announced}, with no process group and without {', '.join(missing)} "
                f"to make one; {announced} copies of this process would overwrite each other's checkpoints. Start it "
                f"with `torchrun --nproc-per-node {announced} -m wamkit.cli.main train …`, or unset WORLD_SIZE"
            )
        announced_rank()
        if is_first_on_machine():
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            logger.info("waiting for %d processes to meet at %s", announced, address)
        dist.init_process_group(backend, init_method="env://", timeout=TIMEOUT)
    try:
        _require_agreement(announced)
        yield
    finally:
        gc.collect()  # sharded networks are cycles, and hold the group: its threads end when nothing does
        dist.destroy_process_group()


def _require_agreement(announced: int) -> None:
    if announced not in (1, world_size()) or (announced == 1 and os.environ.get("WORLD_SIZE") and world_size() > 1):
        raise RuntimeError(
            f"the environment says WORLD_SIZE={announced}, but the process group has {world_size()}; start all "
            "processes with one launcher (`torchrun --nproc-per-node N -m wamkit.cli.main train …`)"
        )
