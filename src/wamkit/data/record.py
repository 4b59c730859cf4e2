"""Record demonstrations: run attempts until each task has enough successes, drop and count the failures.

An attempt is a task and a number; whoever runs it derives layout and seed from the two, so a number names one outcome.
Episodes enter the dataset by task, then by attempt number, whatever order workers finish in, and the position reached
is stored in the same instant as the episode. Killed and started again, a recording ends in the dataset that an
uninterrupted one gives. This module knows no simulator: attempts come from an iterator.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from wamkit.data.writer import LeRobotWriter
from wamkit.episode import Episode

logger = logging.getLogger(__name__)

_NOTES = "recording"
# Episodes that wait for the encoder; more would only hold memory when simulation is faster than encoding.
_MAX_QUEUED = 4
# Distinct failure messages kept per task; a simulator that puts numbers into its messages must not grow the metadata.
_MAX_REASONS = 10


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One demonstration that was tried.

    Args:
        task: the task's name, as in the plan.
        index: the attempt's number within the task, from 0.
        outcome: the episode, or why there is none.
    """

    task: str
    index: int
    outcome: Episode | str


@dataclass(frozen=True, kw_only=True)
class TaskProgress:
    """How far one task is.

    Args:
        task: its name.
        successes: episodes in the dataset (or on their way into it).
        failures: attempts that were dropped.
        target: successes wanted.
        reasons: failure message -> count; the rarest beyond ten distinct ones are counted under `other`.
    """

    task: str
    successes: int
    failures: int
    target: int
    reasons: dict[str, int]

    @property
    def next_attempt(self) -> int:
        """Number of the first attempt whose outcome is not counted yet."""
        return self.successes + self.failures


@dataclass(frozen=True, kw_only=True)
class RecordReport:
    """What a recording did.

    Args:
        tasks: counts per task, in the plan's order, over this and earlier calls.
        new_episodes: episodes added by this call.
        new_frames: their rows.
        seconds: wall time of this call.
    """

    tasks: tuple[TaskProgress, ...]
    new_episodes: int
    new_frames: int
    seconds: float

    @property
    def is_complete(self) -> bool:
        """Whether every task has its successes."""
        return all(task.successes >= task.target for task in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dataclasses.asdict(self) | {"is_complete": self.is_complete}


class RecordingPlan:
    """Which attempt to run next, and in which order outcomes count. Continues where the dataset's notes say.

    Args:
        writer: the dataset.
        tasks: task names in the order in which their episodes are stored.
        target_successes: episodes wanted per task, counting those recorded before.
        max_attempts: attempts per task after which it is given up; ten per wanted success when `None`.

    Raises:
        ValueError: no task, a task twice, or a target below 1.
    """

    def __init__(
        self, writer: LeRobotWriter, tasks: Sequence[str], *, target_successes: int, max_attempts: int | None = None
    ) -> None:
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"expected one or more distinct tasks to record, got {list(tasks)}")
        if target_successes < 1:
            raise ValueError(f"expected a target of 1 or more successes per task, got {target_successes}")
        self.writer, self.tasks, self.target = writer, tuple(tasks), target_successes
        self.max_attempts = 10 * target_successes if max_attempts is None else max_attempts
        stored: dict[str, Any] = writer.notes.get(_NOTES, {})
        empty = {"successes": 0, "failures": 0, "reasons": {}}
        self._counts: dict[str, dict[str, Any]] = stored | {task: stored.get(task, empty) for task in self.tasks}
        counted = {task: self._counts[task]["successes"] + self._counts[task]["failures"] for task in self.tasks}
        self._handed_out = dict(counted)
        self._arrived: dict[str, dict[int, Episode | str]] = {task: {} for task in self.tasks}

    def next_request(self) -> tuple[str, int] | None:
        """The next attempt to run (task, number), or `None` while or because no further one is needed.

        An attempt is only handed out when it is needed even if all that are under way succeed, so none is wasted.
        """
        for task in self.tasks:
            if not self._is_settled(task) and self._possible_successes(task) < self.target:
                index = self._handed_out[task]
                if index < self.max_attempts:
                    self._handed_out[task] = index + 1
                    return task, index
        return None

    def progress(self) -> tuple[TaskProgress, ...]:
        """Counts per task."""
        return tuple(TaskProgress(task=task, target=self.target, **self._counts[task]) for task in self.tasks)

    def notes(self) -> dict[str, Any]:
        """What the dataset must remember to continue from here."""
        counts = {task: {**counts, "reasons": dict(counts["reasons"])} for task, counts in self._counts.items()}
        return self.writer.notes | {_NOTES: counts}

    def accept(self, attempt: Attempt) -> Iterator[Episode]:
        """Take an outcome; give the successful episodes whose turn has come, one by one as each is counted.

        Raises:
            ValueError: the attempt was not asked for, or its outcome is known already.
        """
        if attempt.task not in self.tasks:
            raise ValueError(f"expected an attempt at one of {list(self.tasks)}, got {attempt.task!r}")
        counted, handed_out = self._counted(attempt.task), self._handed_out[attempt.task]
        if not counted <= attempt.index < handed_out or attempt.index in self._arrived[attempt.task]:
            raise ValueError(
                f"{attempt.task}: expected the outcome of an attempt from {counted} to {handed_out - 1} that is still "
                f"under way, got attempt {attempt.index}; run what `next_request` hands out"
            )
        self._arrived[attempt.task][attempt.index] = attempt.outcome
        for task in self.tasks:
            while (index := self._counted(task)) in self._arrived[task]:
                episode = self._count(task, index, self._arrived[task].pop(index))
                if episode is not None:
                    yield episode
            if not self._is_settled(task):
                return

    def _count(self, task: str, index: int, outcome: Episode | str) -> Episode | None:
        counts = self._counts[task]
        if isinstance(outcome, Episode) and outcome.is_success:
            self._counts[task] = {**counts, "successes": counts["successes"] + 1}
            return dataclasses.replace(outcome, metadata={"attempt": index, **outcome.metadata})
        reason = outcome if isinstance(outcome, str) else "the task was not solved"
        logger.info("%s, attempt %d dropped: %s", task, index, reason)
        reasons = dict(counts["reasons"])
        key = reason if reason in reasons or len(reasons) < _MAX_REASONS else "other"
        reasons[key] = reasons.get(key, 0) + 1
        self._counts[task] = {**counts, "failures": counts["failures"] + 1, "reasons": reasons}
        return None

    def _counted(self, task: str) -> int:
        return int(self._counts[task]["successes"] + self._counts[task]["failures"])

    def _is_settled(self, task: str) -> bool:
        return self._counts[task]["successes"] >= self.target or self._counted(task) >= self.max_attempts

    def _possible_successes(self, task: str) -> int:
        """Successes if everything under way succeeds."""
        waiting = [outcome for outcome in self._arrived[task].values() if _is_failure(outcome)]
        under_way = self._handed_out[task] - self._counted(task)
        return int(self._counts[task]["successes"]) + under_way - len(waiting)


def run_attempts(
    plan: RecordingPlan,
    *,
    num_workers: int,
    submit: Callable[[int, str, int], None],
    wait: Callable[[], Iterable[tuple[int, Episode | str]]],
) -> Iterator[Attempt]:
    """Keep workers busy with the plan's attempts and give outcomes as they come; the iterator that `record` reads.

    Args:
        plan: the same plan that `record` gets.
        num_workers: workers, numbered from 0.
        submit: starts (worker, task, attempt number) and returns at once; a `RuntimeError` says that this worker was
            given up, and another one gets the attempt.
        wait: blocks until at least one worker has finished; gives (worker, episode or why there is none).

    Raises:
        RuntimeError: every worker was given up.
    """
    running: dict[int, tuple[str, int]] = {}
    idle = deque(range(num_workers))
    refused: deque[tuple[str, int]] = deque()
    loss: RuntimeError | None = None
    while True:
        while idle and (request := refused.popleft() if refused else plan.next_request()) is not None:
            worker = idle.popleft()
            try:
                submit(worker, *request)
            except RuntimeError as error:  # this worker is gone for good; the others take its attempts
                logger.error("%s", error)
                loss = error
                refused.appendleft(request)
            else:
                running[worker] = request
        if not running:
            if refused:
                raise RuntimeError(f"no simulator is left for {len(refused)} attempts: {loss}") from loss
            return
        for worker, outcome in wait():
            task, index = running.pop(worker)
            idle.append(worker)
            yield Attempt(task=task, index=index, outcome=outcome)


def record(
    plan: RecordingPlan,
    attempts: Iterable[Attempt],
    *,
    progress: Callable[[tuple[TaskProgress, ...]], None] | None = None,
) -> RecordReport:
    """Write the successes among `attempts` until the plan is fulfilled or they end.

    Encoding and writing happen in a thread while the next attempts run.

    Args:
        plan: what to record, and the dataset.
        attempts: outcomes in any order; read only while the plan needs more.
        progress: called after each outcome, in this thread, with the counts per task.

    Raises:
        ValueError: an attempt that the plan did not ask for, or an episode that does not fit the robot.
        OSError: writing failed, for instance on a full disk; complete episodes stay and a later call continues.
    """
    started, writer = time.monotonic(), plan.writer
    episodes_before, frames_before = writer.num_episodes, writer.num_frames
    queued: deque[Future[None]] = deque()
    failed = threading.Event()

    def write(episode: Episode, notes: dict[str, Any]) -> None:
        # Behind an episode that could not be written no other may be: it would hide the gap from the next call.
        if failed.is_set():
            return
        try:
            writer.add(episode, notes=notes)
        except BaseException as error:
            failed.set()
            logger.error("episode not written: %s", error)
            raise

    # Leaving the block waits for the queue, so an interrupt (Ctrl-C) loses no finished episode.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as encoder:
        for attempt in attempts:
            for episode in plan.accept(attempt):
                queued.append(encoder.submit(write, episode, plan.notes()))
            while queued and (queued[0].done() or len(queued) > _MAX_QUEUED):
                queued.popleft().result()
            if progress is not None:
                progress(plan.progress())
        while queued:
            queued.popleft().result()
    if plan.notes() != writer.notes:
        writer.set_notes(plan.notes())
    report = RecordReport(
        tasks=plan.progress(),
        new_episodes=writer.num_episodes - episodes_before,
        new_frames=writer.num_frames - frames_before,
        seconds=time.monotonic() - started,
    )
    for task in report.tasks:
        if task.successes < task.target:
            logger.warning(
                "%s: expected %d successes, got %d in %d attempts (%s)",
                *(task.task, task.target, task.successes, task.next_attempt, task.reasons),
            )
    return report


def _is_failure(outcome: Episode | str) -> bool:
    return isinstance(outcome, str) or not outcome.is_success
