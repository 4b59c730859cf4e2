"""The next batches, drawn beside the computation on the current one: in a thread, or in processes of their own.

Where frames are decoded for each batch, threads spend much of their time waiting for the interpreter; processes do not.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import torch
import torch.multiprocessing

from wamkit.data.frames import num_cores
from wamkit.data.loader import WindowLoader
from wamkit.launcher import announced_processes_here
from wamkit.parallel import world_size
from wamkit.types import Batch

logger = logging.getLogger(__name__)

_SHARED_MEMORY: Final = Path("/dev/shm")
_HELD: Final = 2  # batches that a drawing process has ready or under way
_LONGEST_S: Final = 900.0  # without a batch from a process: something hangs


@runtime_checkable
class BatchSource(Protocol):
    """Gives every batch as a pure function of its number, so that resuming needs no state."""

    def batch(self, step: int) -> Batch: ...


@runtime_checkable
class DrawnElsewhere(BatchSource, Protocol):
    """A source whose batches can be drawn in other processes: `batch(step)` is `finish(step, draw(step))`."""

    @property
    def num_processes(self) -> int:
        """How many processes draw; 0 draws in a thread of this one."""
        ...

    def draw(self, step: int) -> Batch:
        """The part that needs no accelerator."""
        ...

    def finish(self, step: int, drawn: Batch) -> Batch:
        """The rest, in this process."""
        ...


def prefetched(source: BatchSource, first: int, end: int, depth: int = 2) -> Generator[Batch, None, None]:
    """Batches number `first` to `end - 1` in order, some of them drawn ahead.

    Close the iterator to stop early; batches under way are then waited for. Processes are forked at the first batch.
    The numbers and pixels are the same in all cases.

    Args:
        source: draws a batch, in `num_processes` if it is `DrawnElsewhere`; errors in it are raised here, at the batch
            they belong to.
        first: number of the first batch.
        end: number after the last.
        depth: batches finished ahead; each holds its frames in memory. Each process holds two more.

    Raises:
        RuntimeError: a process that draws was killed, or gives nothing for fifteen minutes.
    """
    drawing = None
    make = source.batch
    if isinstance(source, DrawnElsewhere) and source.num_processes and first < end:
        drawing = _Drawing(source, first, end)
        make = drawing.batch
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        pending = deque(executor.submit(make, number) for number in range(first, min(first + depth, end)))
        for number in range(first, end):
            batch = pending.popleft().result()
            if number + depth < end:
                pending.append(executor.submit(make, number + depth))
            yield batch
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        if drawing is not None:
            drawing.close()


class _Drawing:
    """Processes that draw the batches `first` to `end - 1` of a source.

    They are made here, in the caller's thread: a fork amid computation may inherit a lock that nobody opens.
    """

    def __init__(self, source: DrawnElsewhere, first: int, end: int) -> None:
        self._source, self._next, self._end = source, first, end
        others = set(multiprocessing.active_children())
        # torch's context sends tensors through shared memory; forked processes are sent no data.
        self._pool = ProcessPoolExecutor(
            source.num_processes,
            mp_context=torch.multiprocessing.get_context("fork"),
            initializer=_begin,
            initargs=(source, os.getpid()),
        )
        self._drawn: deque[Future[Batch]] = deque()
        for _ in range(_HELD * source.num_processes):
            self._draw_next()
        self._processes = set(multiprocessing.active_children()) - others

    def _draw_next(self) -> None:
        if self._next < self._end:
            self._drawn.append(self._pool.submit(_draw, self._next))
            self._next += 1

    def batch(self, step: int) -> Batch:
        """The next batch, finished; `step` is its number."""
        told = f"batch {step}: expected it from a process that reads data, got"
        try:
            drawn = self._drawn.popleft().result(timeout=_LONGEST_S)
            self._draw_next()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"{told} an end of that process; if memory or {_SHARED_MEMORY} ran out, choose fewer (--data.workers), "
                "or 0 for none"
            ) from error
        except FutureTimeout as error:
            for process in self._processes:
                process.kill()
            raise RuntimeError(
                f"{told} nothing for {_LONGEST_S:.0f} s; is the disk reachable? --data.workers 0 reads in this process"
            ) from error
        return self._source.finish(step, drawn)

    def close(self) -> None:
        """End the processes, after what they are drawing."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def drawing_processes(loader: WindowLoader, wanted: int | None) -> int:
    """How many processes draw a loader's batches.

    None where no frame is decoded, because a thread is fast enough then, and where processes cannot be forked. Their
    batches travel through shared memory, of which there has to be enough.

    Args:
        loader: of the batches.
        wanted: a number, or `None` for one per core that this process may count as its own, eight at most.

    Raises:
        ValueError: less than 0.
    """
    if wanted is not None and wanted < 0:
        raise ValueError(f"data.workers: expected 0 or more processes, got {wanted}")
    if not loader.decodes_per_batch or sys.platform != "linux":
        return 0
    number = min(8, max(1, num_cores() // announced_processes_here())) if wanted is None else wanted
    size = loader.bytes_per_window * loader.batch_size // world_size()
    room = shutil.disk_usage(_SHARED_MEMORY).free // 2 // announced_processes_here() if _SHARED_MEMORY.is_dir() else 0
    affordable = room // max(1, _HELD * size)
    if affordable < number:
        logger.warning(
            "%d processes that read data need %d MB each of %s, which has room for %d of them; reading in %s (a "
            "container may need --shm-size)",
            *(number, _HELD * size >> 20, _SHARED_MEMORY, affordable, affordable or "a thread"),
        )
    return min(number, affordable)


@dataclass
class _Here:
    """What a drawing process draws from."""

    source: DrawnElsewhere | None = None


_HERE = _Here()  # a pool gives its processes nothing else to keep something in


def _begin(source: DrawnElsewhere, parent: int) -> None:
    """In a new process. Whether to stop on Ctrl-C is decided by the one that trains, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    _HERE.source = source
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _draw(step: int) -> Batch:
    assert _HERE.source is not None, "processes begin with a source"
    try:
        return _HERE.source.draw(step)
    except Exception as error:
        raise _portable(error) from error


def _portable(error: Exception) -> Exception:
    """The error, or its text if it could not be made again in the process that trains, which would end the pool."""
    try:
        copy.copy(error)  # made again in the same way
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with(parent: int) -> None:
    """No process outlives the one that trains, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
