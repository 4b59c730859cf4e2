"""The next batches, drawn in a background thread while the current one is computed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from wamkit.types import Batch


@runtime_checkable
class BatchSource(Protocol):
    """Gives every batch as a pure function of its number, so that resuming needs no state."""

    def batch(self, step: int) -> Batch: ...


def prefetched(source: BatchSource, first: int, end: int, depth: int = 2) -> Generator[Batch, None, None]:
    """Batches number `first` to `end - 1` in order, up to `depth` of them drawn ahead in one thread.

    Close the iterator to stop the thread early; at most one batch under way is then waited for.

    Args:
        source: draws a batch; errors in it are raised here, at the batch they belong to.
        first: number of the first batch.
        end: number after the last.
        depth: batches drawn ahead; each holds its frames in memory.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        pending = deque(executor.submit(source.batch, number) for number in range(first, min(first + depth, end)))
        for number in range(first, end):
            batch = pending.popleft().result()
            if number + depth < end:
                pending.append(executor.submit(source.batch, number + depth))
            yield batch
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
