"""Simulators on all machines of a Ray cluster, behind the interface of a pool.

The package must be installed on every machine. Ray only starts the simulators and carries requests and outcomes: an
episode takes the same course as in a process of this machine, up to what other processors and OpenGL libraries change.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from wamkit.envs.base import BrokenSimulator, SimulatorFactory, handle
from wamkit.envs.pool import Loss, WorkerError, call_all, gather, require_idle
from wamkit.envs.workers import MAX_FAILED_STARTS, ONE_THREAD
from wamkit.spec import RobotSpec

logger = logging.getLogger(__name__)

_PASSED_ON = ("MUJOCO_GL",)  # all machines render with the same library


def require_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        ImportError: saying what to install.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("the ray backend needs the package ray, which is not installed: pip install wamkit[ray]")


class SimulatorActor:
    """What runs on the other side: one simulator."""

    def __init__(self) -> None:
        self._simulator: Any = None

    def start(self, factory: SimulatorFactory) -> tuple[Any, ...]:
        """Make the simulator: `("ready", robot)` or `("failed", …)`."""
        try:
            self._simulator = factory()
        except Exception as error:
            return ("failed", *_describe(error))
        return ("ready", self._simulator.robot)

    def run(self, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """`("value", …)`, `("raised", …)` or `("broken", …)`."""
        # Ray hands out arrays that cannot be written to, and simulators may.
        args = tuple(arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args)
        try:
            return "value", handle(self._simulator, method, args)
        except BrokenSimulator as error:
            return ("broken", *_describe(error))
        except Exception as error:
            return ("raised", *_describe(error))

    def process_id(self) -> int:
        """Of the process that runs this simulator."""
        return os.getpid()


@dataclass
class _Worker:
    actor: Any
    start: Any  # reference to the outcome of the start, until it is known
    begun: float
    work: Any = None  # reference to the outcome of the submission, until `wait` gives it


class RayPool:
    """Ray actors that each run one simulator; see `SimulatorPool`.

    Args:
        factory: makes the simulator; a picklable dataclass that every machine can import.
        num_workers: simulators, spread over the machines.
        address: of the cluster (`auto` for the one that this machine belongs to); `None` takes the cluster that the
            program is connected to, else that of the environment, else starts one on this machine.
        deadline_s: a worker that has not answered within this time is taken for hung, killed and replaced.
        start_deadline_s: the same for its start.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the simulator refused its settings, or there is no worker to start.
        RuntimeError: the simulator could not start, with its message.
        ConnectionError: there is no cluster at that address.
    """

    def __init__(
        self,
        factory: SimulatorFactory,
        num_workers: int,
        *,
        address: str | None = None,
        deadline_s: float = 300.0,
        start_deadline_s: float = 120.0,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"expected at least one worker, got {num_workers}")
        require_ray()
        import ray

        self.restarts = 0
        self.deadline_s, self.start_deadline_s = deadline_s, start_deadline_s
        self._ray: Any = ray
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            # Our standard output is for answers, so nothing that simulators print goes there.
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        share = min(1.0, ray.cluster_resources().get("CPU", 1.0) / num_workers)
        environment = {**ONE_THREAD, **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}
        if self._owns_ray and address is None:
            # The processes are this machine's, and find what this one finds.
            environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._actor: Any = ray.remote(SimulatorActor).options(
            num_cpus=share, max_restarts=0, scheduling_strategy="SPREAD", runtime_env={"env_vars": environment}
        )
        self._factory = factory
        self._failed_starts = [0] * num_workers
        self._last_failure = ""
        self._workers: list[_Worker | None] = []
        self._robot: RobotSpec | None = None
        try:
            self._workers += [self._start() for _ in range(num_workers)]
            for number, worker in enumerate(self._workers):
                error = None if worker is None else self._finish_start(number, worker, wait=True)
                if error is not None:
                    refused = ValueError if error.error_type == "ValueError" else RuntimeError
                    raise refused(str(error)) from error
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
        """Process id of each worker on its machine; 0 where one was given up. All must be idle."""
        return tuple(self._ray.get(worker.actor.process_id.remote()) if worker else 0 for worker in self._workers)

    def is_busy(self, worker: int) -> bool:
        """Whether a worker has a submission whose outcome was not yet given by `wait`."""
        state = self._workers[worker]
        return state is not None and state.work is not None

    def submit(self, worker: int, method: str, *args: Any) -> None:
        """Ask a worker for something; its outcome comes from `wait`. See `SimulatorPool`."""
        require_idle(self, worker)
        state = self._workers[worker]
        if state is None:
            raise RuntimeError(
                f"worker {worker} failed to start {MAX_FAILED_STARTS} times in a row and was given up: "
                f"{self._last_failure}"
            )
        if state.start is None:
            state.begun = time.monotonic()
        state.work = state.actor.run.remote(method, args)  # an actor works in order, so after its start

    def wait(self, timeout: float | None = None) -> list[tuple[int, Any]]:
        """Outcomes that are ready, at least one unless nothing is outstanding or the time is over."""
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            busy = [
                (number, worker) for number, worker in enumerate(self._workers) if worker and worker.work is not None
            ]
            outcomes = [(number, self._receive(number, worker)) for number, worker in busy]
            ready = [(number, outcome[0]) for number, outcome in outcomes if outcome is not None]
            now = time.monotonic()
            if ready or not busy or (limit is not None and now >= limit):
                return ready
            until = min(self._deadline(worker) for _, worker in busy)
            until = until if limit is None else min(until, limit)
            waited = [worker.work if worker.start is None else worker.start for _, worker in busy]
            self._ray.wait(waited, num_returns=1, timeout=max(0.0, until - now))

    def call(self, worker: int, method: str, *args: Any) -> Any:
        """Submit to one worker and wait for it; raises the `WorkerError` when there is no value."""
        return call_all(self, {worker: (method, *args)})[worker]

    def call_all(self, requests: dict[int, Sequence[Any]]) -> dict[int, Any]:
        """See `pool.call_all`."""
        return call_all(self, requests)

    def gather(self, requests: dict[int, Sequence[Any]]) -> dict[int, Any]:
        """See `pool.gather`."""
        return gather(self, requests)

    def close(self) -> None:
        """End all workers, and the cluster if it was started here; closing twice is fine."""
        workers, self._workers = [worker for worker in self._workers if worker is not None], []
        for worker in workers:
            self._ray.kill(worker.actor)
        if self._owns_ray:
            self._owns_ray = False
            self._ray.shutdown()

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> _Worker:
        actor: Any = self._actor.remote()
        return _Worker(actor=actor, start=actor.start.remote(self._factory), begun=time.monotonic())

    def _finish_start(self, number: int, worker: _Worker, *, wait: bool) -> WorkerError | None:
        """Take in how a worker's start went, when that is known (or wait for it); an error when it failed."""
        timeout = max(0.0, self._deadline(worker) - time.monotonic()) if wait else 0.0
        answer = self._fetch(worker.start, timeout)
        if answer is None and time.monotonic() < self._deadline(worker):
            return None
        if answer is not None and answer[0] == "ready":
            worker.start, worker.begun = None, time.monotonic()
            self._robot, self._failed_starts[number] = answer[1], 0
            return None
        kind, *content = answer or ("hung",)
        return self._error(number, kind, "while starting", content)

    def _receive(self, number: int, worker: _Worker) -> tuple[Any] | None:
        """The outcome of a worker's submission, in a tuple of one, if it is there."""
        if worker.start is not None:
            error = self._finish_start(number, worker, wait=False)
            if error is not None:
                self._failed_starts[number] += 1
                self._last_failure = str(error)
                return self._replace(number, worker, error)
            if worker.start is not None:
                return None
        answer = self._fetch(worker.work, 0.0)
        if answer is None and time.monotonic() < self._deadline(worker):
            return None
        kind, *content = answer or ("hung",)
        if kind == "value":
            worker.work = None
            return (content[0],)
        error = self._error(number, kind, "while working", content)
        if kind == "raised":
            worker.work = None
            return (error,)
        return self._replace(number, worker, error)

    def _fetch(self, reference: Any, timeout: float) -> tuple[Any, ...] | None:
        """An actor's answer, `("died", …)` where it has none left to give, `None` when it is not there yet."""
        done, _ = self._ray.wait([reference], timeout=timeout)
        if not done:
            return None
        try:
            answer: tuple[Any, ...] = self._ray.get(reference)
            return answer
        except self._ray.exceptions.RayTaskError as error:  # the request or the factory could not be read there
            return ("failed", *_describe(error.cause or error))
        except self._ray.exceptions.RayError as error:
            return ("died", *_describe(error))

    def _error(self, number: int, kind: Loss, when: str, content: Sequence[str]) -> WorkerError:
        error_type, message, details = content or ("", "", "")
        first = message.strip().splitlines()[0] if message.strip() else ""
        text = {
            "died": f"worker {number} died {when} ({first})",
            "hung": f"worker {number} gave no answer {when} within its deadline and was killed",
            "raised": f"worker {number}: {error_type}: {message}",
            "broken": f"worker {number}: {message}",
            "failed": message,
        }[kind]
        return WorkerError(text, kind=kind, error_type=error_type, details=details)

    def _replace(self, number: int, worker: _Worker, error: WorkerError) -> tuple[WorkerError]:
        logger.warning("%s; replacing it", error)
        self._ray.kill(worker.actor)
        is_given_up = self._failed_starts[number] >= MAX_FAILED_STARTS
        self._workers[number] = None if is_given_up else self._start()
        self.restarts += not is_given_up
        return (error,)

    def _deadline(self, worker: _Worker) -> float:
        return worker.begun + (self.deadline_s if worker.start is None else self.start_deadline_s)


def _describe(error: Exception) -> tuple[str, str, str]:
    return type(error).__name__, str(error), traceback.format_exc()
