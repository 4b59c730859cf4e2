"""Simulators in processes of their own: a dead or hung one costs its episode, is reported and replaced, never the run.

Each worker is a fresh interpreter (nothing is forked, so no GL context, lock or torch is inherited, and scripts need no
`if __name__ == "__main__"` guard) limited to one thread. Numpy arrays cross a socket between our own processes.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from wamkit.envs.base import SimulatorFactory
from wamkit.envs.pool import Loss, WorkerError, call_all, gather, require_idle
from wamkit.spec import RobotSpec

logger = logging.getLogger(__name__)

_BEGIN_EPISODES = ("reset", "demonstrate")
MAX_FAILED_STARTS = 3  # in a row, after which a worker is not started again
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",  # Mesa's software rasterizer draws in the calling thread
}


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    started: float
    is_ready: bool = False
    is_working: bool = False  # has a submission whose outcome was not given yet
    lost: WorkerError | None = None  # how the worker before it was lost between two submissions
    submitted: float = 0.0
    backlog: list[Any] = field(default_factory=list)  # submissions that wait for the start to finish


class WorkerPool:
    """Processes that each run one simulator.

    Submit at most one request to a worker at a time, then `wait` for whichever is ready. Use as a context manager, or
    call `close`. A worker that died between two submissions has been replaced: a submission that begins an episode goes
    to the new one, any other has the loss as its outcome.

    Args:
        factory: makes the simulator; a picklable dataclass that worker processes can import.
        num_workers: processes.
        deadline_s: a worker that has not answered within this time is taken for hung, killed and replaced.
        start_deadline_s: the same for its start.

    Raises:
        ValueError: the simulator refused its settings (an unknown camera), or there is no worker to start.
        RuntimeError: the simulator could not start (no OpenGL), with the worker's message.
    """

    def __init__(
        self,
        factory: SimulatorFactory,
        num_workers: int,
        *,
        deadline_s: float = 300.0,
        start_deadline_s: float = 120.0,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"expected at least one worker, got {num_workers}")
        self.deadline_s, self.start_deadline_s = deadline_s, start_deadline_s
        self.restarts = 0
        self._factory = pickle.dumps(factory)
        self._failed_starts = [0] * num_workers
        self._last_failure = ""
        self._start_error: WorkerError | None = None
        self._robot: RobotSpec | None = None
        self._is_starting = True
        self._workers: list[_Worker | None] = []
        try:
            for _ in range(num_workers):
                self._workers.append(self._start())
            self._await_start()
            self._is_starting = False
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def robot(self) -> RobotSpec:
        """What the simulators see, feel and accept."""
        assert self._robot is not None
        return self._robot

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Process id of each worker; 0 where one was given up."""
        return tuple(worker.process.pid if worker else 0 for worker in self._workers)

    def is_busy(self, worker: int) -> bool:
        """Whether a worker has a submission whose outcome was not yet given by `wait`."""
        state = self._workers[worker]
        return state is not None and state.is_working

    def submit(self, worker: int, method: str, *args: Any) -> None:
        """Ask a worker for something; its outcome comes from `wait`.

        Args:
            worker: number of an idle worker.
            method: `reset`, `run_chunk` or `demonstrate` of `wamkit.envs.base`, or any method of the simulator.
            args: arguments after the simulator.

        Raises:
            ValueError: no such worker, or it is busy.
            RuntimeError: this worker was given up because its replacements could not start.
        """
        require_idle(self, worker)
        self._receive(worker)  # notices a worker that died while it was idle
        state = self._workers[worker]
        if state is None:
            raise RuntimeError(
                f"worker {worker} failed to start {MAX_FAILED_STARTS} times in a row and was given up: "
                f"{self._last_failure}"
            )
        state.is_working, state.submitted = True, time.monotonic()
        if method in _BEGIN_EPISODES:
            state.lost = None  # nothing of the episode that was under way is needed
        request = (method, args)
        if state.lost is not None:
            return  # the loss is the outcome: the new simulator knows nothing of the episode
        if state.is_ready:
            _send(state, pickle.dumps(request))
        else:
            state.backlog.append(request)

    def wait(self, timeout: float | None = None) -> list[tuple[int, Any]]:
        """Outcomes that are ready, at least one unless nothing is outstanding or the time is over.

        Args:
            timeout: seconds; `None` waits until something is ready.

        Returns:
            Pairs of worker number and outcome: the value, or a `WorkerError`.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            outcomes = self._collect()
            if outcomes or not any(self.is_busy(worker) for worker in range(len(self._workers))):
                return outcomes
            now = time.monotonic()
            if limit is not None and now >= limit:
                return []
            until = min([self._deadline(worker) for worker in self._workers if worker], default=now)
            until = until if limit is None else min(until, limit)
            wait([worker.connection for worker in self._workers if worker], max(0.0, until - now))

    def call(self, worker: int, method: str, *args: Any) -> Any:
        """Submit to one worker and wait for it; other workers must be idle.

        Raises:
            WorkerError: there is no value.
            ValueError: a worker is busy.
        """
        return call_all(self, {worker: (method, *args)})[worker]

    def call_all(self, requests: dict[int, Sequence[Any]]) -> dict[int, Any]:
        """Submit to several idle workers at once and wait for all of them.

        Args:
            requests: worker -> `(method, *args)`.

        Returns:
            Worker -> value.

        Raises:
            WorkerError: of the first worker without a value, once all have answered.
            ValueError: a worker is busy.
        """
        return call_all(self, requests)

    def gather(self, requests: dict[int, Sequence[Any]]) -> dict[int, Any]:
        """Like `call_all`, but a worker without a value gives its `WorkerError` as the outcome."""
        return gather(self, requests)

    def close(self) -> None:
        """End all workers; closing twice is fine."""
        workers = [worker for worker in self._workers if worker is not None]
        self._workers = []
        for worker in workers:
            worker.connection.close()  # a worker ends when its parent hangs up
        for worker in workers:
            try:
                worker.process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_workers", None):
            self.close()

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = dict(os.environ) | ONE_THREAD
            environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "wamkit.envs.worker_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,  # a package that asks a question gets the end of file, not a hung worker
                stdout=2,  # our standard output is for answers (`--json`); what simulators print goes beside it
            )
        worker = _Worker(process=process, connection=Connection(ours.detach()), started=time.monotonic())
        _send(worker, self._factory)
        return worker

    def _await_start(self) -> None:
        while any(worker is not None and not worker.is_ready for worker in self._workers):
            self._collect()
            if self._start_error is not None:
                refused = ValueError if self._start_error.error_type == "ValueError" else RuntimeError
                raise refused(str(self._start_error)) from self._start_error
            wait([worker.connection for worker in self._workers if worker], timeout=1.0)

    def _collect(self) -> list[tuple[int, Any]]:
        outcomes = [(number, self._receive(number)) for number in range(len(self._workers))]
        return [(number, outcome[0]) for number, outcome in outcomes if outcome is not None]

    def _receive(self, number: int) -> tuple[Any] | None:
        """The outcome of a worker's submission, in a tuple of one, if it is there."""
        worker = self._workers[number]
        if worker is None:
            return None
        if worker.is_working and worker.lost is not None:
            loss, worker.lost, worker.is_working = worker.lost, None, False
            return (loss,)
        try:
            while worker.connection.poll():
                kind, *content = worker.connection.recv()
                if kind == "ready":
                    self._mark_ready(number, worker, content[0])
                elif kind in ("failed", "broken"):
                    return self._lose(number, worker, kind, *content[0])
                else:
                    worker.is_working = False
                    return (content[0] if kind == "value" else _raised(number, *content[0]),)
        except (EOFError, OSError):
            return self._lose(number, worker, "died")
        if time.monotonic() > self._deadline(worker):
            return self._lose(number, worker, "hung")
        return None

    def _mark_ready(self, number: int, worker: _Worker, robot: RobotSpec) -> None:
        worker.is_ready = True
        worker.submitted = time.monotonic()
        self._robot, self._failed_starts[number] = robot, 0
        for request in worker.backlog:
            _send(worker, pickle.dumps(request))
        worker.backlog.clear()

    def _lose(
        self, number: int, worker: _Worker, kind: Loss, error_type: str = "", message: str = "", details: str = ""
    ) -> tuple[WorkerError] | None:
        """Put an end to a worker, start another in its place, and give the outcome of the submission it had, if any."""
        if kind == "hung":
            worker.process.kill()
        worker.connection.close()
        status = _reap(worker.process)
        when = "while starting" if not worker.is_ready else "while working" if worker.is_working else "while idle"
        what = {
            "died": f"worker {number} died {when} ({status})",
            "hung": f"worker {number} gave no answer {when} within its deadline and was killed",
            "failed": message,
            "broken": f"worker {number}: {message}",
        }[kind]
        error = WorkerError(what, kind=kind, error_type=error_type, details=details)
        if self._robot is None or not worker.is_ready:
            self._failed_starts[number] += 1
            self._last_failure = what
        if self._is_starting:
            self._start_error = error
            self._workers[number] = None
            return None
        logger.warning("%s; replacing it", what)
        is_given_up = self._failed_starts[number] >= MAX_FAILED_STARTS
        self._workers[number] = None if is_given_up else self._start()
        self.restarts += not is_given_up
        if worker.is_working:
            return (error,)
        if (replacement := self._workers[number]) is not None:
            replacement.lost = error
        return None

    def _deadline(self, worker: _Worker) -> float:
        if not worker.is_ready:
            return worker.started + self.start_deadline_s
        return worker.submitted + self.deadline_s if worker.is_working else math.inf


def _raised(number: int, error_type: str, message: str, details: str) -> WorkerError:
    text = f"worker {number}: {error_type}: {message}"
    return WorkerError(text, kind="raised", error_type=error_type, details=details)


def _send(worker: _Worker, message: bytes) -> None:
    try:
        worker.connection.send_bytes(message)
    except (BrokenPipeError, ConnectionResetError):
        logger.debug("worker process %d is gone; its loss is found when its answer is read", worker.process.pid)


def _reap(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code >= 0:
        return f"exit status {code}"
    hint = ", as happens when memory runs out" if -code == signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{hint}"
