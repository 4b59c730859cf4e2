"""What every pool of simulators offers, wherever they run: in processes, in this process, on other machines."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

from wamkit.spec import RobotSpec

Loss = Literal["raised", "died", "hung", "failed", "broken"]


class WorkerError(RuntimeError):
    """What became of a submission that gave no value.

    Args:
        message: what happened and, for an exception inside the simulator, its message.
        kind: `raised` (an exception inside the simulator; the worker lives on), `died`, `hung`, `broken` (the simulator
            gave numbers that are not finite; the worker is replaced), or `failed` (a replacement could not start).
        error_type: name of the exception's type, when one was raised.
        details: the worker's traceback, for logs.
    """

    def __init__(self, message: str, *, kind: Loss, error_type: str = "", details: str = "") -> None:
        super().__init__(message)
        self.kind, self.error_type, self.details = kind, error_type, details


@runtime_checkable
class SimulatorPool(Protocol):
    """Numbered simulators that work at the same time; closed at the end, or used as a context manager.

    Submit at most one request to a worker at a time, then `wait` for whichever is ready. A worker that died, hung or
    gave numbers that are not finite is replaced; what it was doing has a `WorkerError` as its outcome.
    """

    restarts: int

    @property
    def robot(self) -> RobotSpec:
        """What the simulators see, feel and accept."""
        ...

    def __len__(self) -> int: ...

    def is_busy(self, worker: int) -> bool:
        """Whether a worker has a submission whose outcome was not yet given by `wait`."""
        ...

    def submit(self, worker: int, method: str, *args: Any) -> None:
        """Ask an idle worker for `reset`, `run_chunk` or `demonstrate` of `wamkit.envs.base`, or a simulator's method.

        Raises `ValueError` for a worker that is busy or does not exist, and `RuntimeError` for one that was given up
        because its replacements could not start.
        """
        ...

    def wait(self, timeout: float | None = None) -> list[tuple[int, Any]]:
        """Worker numbers and outcomes that are ready; at least one unless nothing is outstanding or time is over."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> SimulatorPool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def require_idle(pool: SimulatorPool, worker: int) -> None:
    """Refuse a submission to a worker that does not exist or is busy.

    Raises:
        ValueError: naming the worker.
    """
    if not 0 <= worker < len(pool):
        raise ValueError(f"expected a worker from 0 to {len(pool) - 1}, got {worker}")
    if pool.is_busy(worker):
        raise ValueError(f"worker {worker} is busy; wait for its outcome before submitting again")


def gather(pool: SimulatorPool, requests: dict[int, Sequence[Any]]) -> dict[int, Any]:
    """Submit to several workers at once and wait for all of them; all workers must be idle.

    Args:
        pool: the simulators.
        requests: worker -> `(method, *args)`.

    Returns:
        Worker -> value, or its `WorkerError`.

    Raises:
        ValueError: a worker is busy.
    """
    busy = [worker for worker in range(len(pool)) if pool.is_busy(worker)]
    if busy:
        raise ValueError(f"workers {busy} are busy; wait for their outcomes first")
    outcomes: dict[int, Any] = {}
    for worker, request in requests.items():
        try:
            pool.submit(worker, *request)
        except RuntimeError as error:  # given up; raised here, it would leave the others busy
            outcomes[worker] = WorkerError(str(error), kind="failed")
    while len(outcomes) < len(requests):
        outcomes.update(pool.wait())
    return {worker: outcomes[worker] for worker in requests}


def call_all(pool: SimulatorPool, requests: dict[int, Sequence[Any]]) -> dict[int, Any]:
    """Like `gather`, but all must give a value.

    Raises:
        WorkerError: of the first worker without a value, once all have answered.
        ValueError: a worker is busy.
    """
    outcomes = gather(pool, requests)
    for outcome in outcomes.values():
        if isinstance(outcome, WorkerError):
            raise outcome
    return outcomes
