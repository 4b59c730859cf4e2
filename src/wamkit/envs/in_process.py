"""A simulator inside this process, behind the interface of a pool: for a debugger, and where processes cannot start."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from wamkit.envs.base import BrokenSimulator, Simulator, SimulatorFactory, handle
from wamkit.envs.pool import WorkerError, call_all, gather, require_idle
from wamkit.spec import RobotSpec

logger = logging.getLogger(__name__)


class InProcessPool:
    """One simulator that works while it is submitted to; see `SimulatorPool`.

    A crash or a hang of the simulator is this process's own: only exceptions and numbers that are not finite cost their
    episode alone.

    Args:
        factory: makes the simulator.
    """

    def __init__(self, factory: SimulatorFactory) -> None:
        self.restarts = 0
        self._factory = factory
        self._simulator: Simulator | None = factory()
        self._robot = self._simulator.robot
        self._outcome: tuple[Any] | None = None

    def __len__(self) -> int:
        return 1

    @property
    def robot(self) -> RobotSpec:
        """What the simulator sees, feels and accepts."""
        return self._robot

    def is_busy(self, worker: int) -> bool:
        """Whether its last outcome was not yet given by `wait`."""
        return self._outcome is not None

    def submit(self, worker: int, method: str, *args: Any) -> None:
        """Do the work at once; `wait` gives its outcome."""
        require_idle(self, worker)
        if self._simulator is None:
            self._simulator = self._factory()
            self.restarts += 1
        try:
            outcome = handle(self._simulator, method, args)
        except BrokenSimulator as error:
            logger.warning("%s; replacing the simulator", error)
            self._close_simulator()
            outcome = WorkerError(str(error), kind="broken", error_type=type(error).__name__)
        except Exception as error:
            name = type(error).__name__
            message = f"worker 0: {name}: {error}"
            outcome = WorkerError(message, kind="raised", error_type=name, details=traceback.format_exc())
        self._outcome = (outcome,)

    def wait(self, timeout: float | None = None) -> list[tuple[int, Any]]:
        """The outcome of the last submission, once."""
        outcome, self._outcome = self._outcome, None
        return [] if outcome is None else [(0, outcome[0])]

    def call(self, worker: int, method: str, *args: Any) -> Any:
        """Submit and wait; raises the `WorkerError` when there is no value."""
        return call_all(self, {worker: (method, *args)})[worker]

    def call_all(self, requests: dict[int, Sequence[Any]]) -> dict[int, Any]:
        """See `pool.call_all`."""
        return call_all(self, requests)

    def gather(self, requests: dict[int, Sequence[Any]]) -> dict[int, Any]:
        """See `pool.gather`."""
        return gather(self, requests)

    def close(self) -> None:
        """Free the simulator; closing twice is fine."""
        self._close_simulator()

    def __enter__(self) -> InProcessPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close_simulator(self) -> None:
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            simulator.close()
