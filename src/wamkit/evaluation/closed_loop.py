"""Closed-loop evaluation: run a protocol's episodes, keep every result as it comes, resume after a kill."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from wamkit.atomic import atomic_folder
from wamkit.batching import Batching, ExactBatches
from wamkit.envs.base import EpisodeRequest, SimulatorFactory
from wamkit.envs.gl import choose_backend
from wamkit.envs.pool import SimulatorPool
from wamkit.envs.workers import WorkerPool
from wamkit.evaluation.media import encode_rollout
from wamkit.evaluation.protocol import Protocol
from wamkit.evaluation.results import (
    PACKAGES,
    RECORDED_FOLDER,
    RESULTS_FILE,
    RUN_FILE,
    TRACE_FILE,
    VIDEO_FILE,
    EpisodeKey,
    EpisodeLog,
    EpisodeRecord,
    PolicyIdentity,
    Results,
    measure_latency,
    score_episodes,
    total_wall_seconds,
)
from wamkit.evaluation.run_folder import (
    claim_folder,
    remove_evaluation,
    require_evaluation_folder,
    require_same_run,
    warn_about_rounding,
)
from wamkit.lock import FolderLock
from wamkit.progress import ProgressBar
from wamkit.rollout import EpisodeOutcome, rollout
from wamkit.types import ActingPolicy
from wamkit.versions import software_versions

MAX_FILM_FPS = 30
PoolMaker = Callable[[SimulatorFactory, int], SimulatorPool]

logger = logging.getLogger(__name__)


def evaluate(
    policy: ActingPolicy,
    protocol: Protocol,
    factory: SimulatorFactory,
    *,
    identity: PolicyIdentity,
    out: Path,
    tasks: Sequence[str] = (),
    episodes: int | None = None,
    workers: int | None = None,
    make_pool: PoolMaker = WorkerPool,
    record_episodes: int = 4,
    num_groups: int = 1,
    batching: Batching = "exact",
    retries: int = 1,
    resume: bool = True,
    progress: bool = True,
) -> Results:
    """Evaluate a policy under a protocol.

    Each finished episode is a line in `episodes.jsonl` at once; started again on the same folder, only what is missing
    is run. On one machine, with one number of torch threads, the same policy, protocol and seeds give every episode the
    same course to the last bit, whatever the number of workers, wherever they run, recorded or not, and after a resume.
    With free batching that holds up to the rounding of batched arithmetic, which a robot can now and then turn into
    another course.

    Args:
        policy: what acts.
        protocol: what is fixed.
        factory: makes the simulators, with the policy's cameras and image size.
        identity: who is evaluated; a folder that holds results of another one is refused.
        out: folder of the evaluation.
        tasks: some of the protocol's tasks; empty means all.
        episodes: episodes per task and seed; by default the protocol's number.
        workers: simulators; by default see `default_workers`, at most one per episode.
        make_pool: starts that many simulators of the factory; by default in processes of this machine.
        record_episodes: episodes of each task to record (rollout.mp4 and trace.npz), from the first layout on. When all
            of them end alike, solved or not, one that ended the other way is repeated and recorded too.
        num_groups: groups of workers that are served in turn, see `rollout`; at most one per worker.
        batching: `exact` serves robots together only where that changes nothing; `free` always shares policy calls.
        retries: how often an episode is started again when its simulator died.
        resume: keep what the folder holds; `False` removes an earlier evaluation there first, and nothing else.
        progress: show a progress bar on standard error.

    Returns:
        What was written to `results.json`: the requested episodes only.

    Raises:
        SpecMismatch: policy and environment differ; before the first step.
        ValueError: unknown task, or `out` is a file or the folder of another policy, planner or protocol.
        FileExistsError: `out` holds other things and no evaluation.
        BlockingIOError: another process evaluates into `out`.
        RuntimeError: simulators fail one after the other.
        OSError: the disk is full; finished episodes are kept.
    """
    requests = protocol.requests(tasks=tasks, episodes=episodes)
    require_evaluation_folder(out)
    protocol.require_robot(policy.spec.robot)
    horizon = policy.spec.execution_horizon if protocol.execution_horizon is None else protocol.execution_horizon
    run = _describe_run(protocol, horizon, identity, batching)
    if resume:
        require_same_run(out, run)
    settings = protocol.settings(tasks=tasks, episodes=episodes)
    about = {
        "protocol_settings": settings,
        "policy": dataclasses.asdict(identity),
        "robot": policy.spec.robot.name,
        "asked": [_key(request) for request in requests],
    }
    log, lock = EpisodeLog(out), FolderLock(out, doing="evaluating into")
    try:
        if out.is_dir():
            lock.take()
        records = log.read() if resume else {}
        missing = [request for request in requests if not _is_finished(records, request)]
        # A kill may have come between the last episode and the examples of both ends.
        is_done = not missing and ((out / RESULTS_FILE).is_file() or not _examples(_of(requests, records)))
        if not is_done:
            session = 1 + max((record.session for record in records.values()), default=-1)
            begun = time.perf_counter()
            num_workers = max(1, min(workers or default_workers(), len(missing)))
            wanted = _first_of_each_task(requests, record_episodes)
            finished = [records[_key(request)] for request in requests if request not in missing]
            with (
                make_pool(factory, num_workers) as pool,
                _Tally(protocol.title, len(requests), finished, is_visible=progress) as tally,
            ):
                roll = functools.partial(
                    rollout,
                    policy,
                    pool,
                    max_steps=lambda request: protocol.step_limit(request.task),
                    max_calls=lambda request: protocol.call_limit(request.task),
                    execution_horizon=horizon,
                    retries=retries,
                    num_groups=min(num_groups, len(pool)),
                    exact=None if batching == "free" else ExactBatches(policy, first_slot=len(pool), executed=horizon),
                )
                chosen = [index for index, request in enumerate(missing) if _key(request) in wanted]
                outcomes = roll(missing, record=chosen, on_steps=tally.count_steps)
                # Policy and environment fit each other: from here on the folder is this evaluation's.
                if not resume:
                    remove_evaluation(out)
                lock.take()
                machine = _machine(len(pool))
                warn_about_rounding(out, machine)
                claim_folder(out, {**run, **about}, machine)
                for outcome in outcomes:
                    folder = _write_recording(out, outcome, policy.spec.robot.control_hz)
                    record = _record(outcome, session=session, elapsed=time.perf_counter() - begun, folder=folder)
                    log.append(record)
                    records[record.key] = record
                    tally.add(record)
                # Where all recorded episodes ended alike, an example of the other end is repeated and recorded.
                examples = _examples(_of(requests, records))
                if examples:
                    logger.info("recording %d more episodes as examples of success or failure", len(examples))
                for outcome in roll(examples, record=range(len(examples))):
                    record = records[_key(outcome.request)]
                    if (outcome.success, outcome.steps) == (record.success, record.steps):
                        folder = _write_recording(out, outcome, policy.spec.robot.control_hz)
                        log.append(dataclasses.replace(record, folder=folder))
        else:
            claim_folder(out, {**run, **about}, {})
        asked = _of(requests, records)
        names = dict.fromkeys(record.task for record in asked)
        results = Results(
            protocol=protocol.title,
            protocol_settings=settings,
            execution_horizon=horizon,
            policy=identity,
            robot=policy.spec.robot.name,
            tasks={task: score_episodes([record for record in asked if record.task == task]) for task in names},
            overall=score_episodes(asked),
            latency=measure_latency(asked),
            wall_seconds=total_wall_seconds(records.values()),
            versions=run["versions"],
            gl_backend=run["gl_backend"],
            machine=json.loads((out / RUN_FILE).read_text())["machine"],
            batching=batching,
        )
        results.save(out)
        return results
    finally:
        lock.release()


def default_workers() -> int:
    """Simulators that an evaluation runs at once unless told otherwise: one per core, on few cores two.

    The second one makes the policy's batches larger, which costs less per robot.
    """
    cores = os.cpu_count() or 1
    return max(cores, min(2 * cores, 8))


class _Tally:
    """Successes and control steps so far, shown as progress."""

    def __init__(self, title: str, total: int, finished: Sequence[EpisodeRecord], *, is_visible: bool) -> None:
        self._records, self._steps, self._begun = list(finished), 0, time.perf_counter()
        self._bar = ProgressBar(title, total, unit="episodes") if is_visible else None

    def __enter__(self) -> _Tally:
        self._begun = time.perf_counter()
        if self._bar is not None:
            self._bar.__enter__()
            self._bar.resume(len(self._records))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def add(self, record: EpisodeRecord) -> None:
        """Count a finished episode."""
        self._records.append(record)
        self.count_steps(0)

    def count_steps(self, steps: int) -> None:
        """Count control steps."""
        self._steps += steps
        if self._bar is not None:
            trials = sum(record.error is None for record in self._records)
            solved = sum(record.success for record in self._records)
            share = f" ({solved / trials:.0%})" if trials else ""
            rate = self._steps / (time.perf_counter() - self._begun)
            self._bar.update(len(self._records), f"solved {solved}/{trials}{share}, {rate:.0f} steps/s")


def _describe_run(protocol: Protocol, horizon: int, identity: PolicyIdentity, batching: Batching) -> dict[str, Any]:
    """Everything that must be the same when an evaluation is resumed, as it will be when read back from JSON."""
    run = {
        "protocol": protocol.title,
        "execution_horizon": horizon,
        "fingerprint": identity.fingerprint,
        "planner": identity.planner,
        "details": identity.details,
        "batching": batching,
        "versions": software_versions(PACKAGES),
        "gl_backend": choose_backend(),
    }
    read_back: dict[str, Any] = json.loads(json.dumps(run))
    return read_back


def _key(request: EpisodeRequest) -> EpisodeKey:
    return request.task, request.layout, request.layout_seed, request.seed


def _of(requests: Sequence[EpisodeRequest], records: dict[EpisodeKey, EpisodeRecord]) -> list[EpisodeRecord]:
    return [records[_key(request)] for request in requests]


def _is_finished(records: dict[EpisodeKey, EpisodeRecord], request: EpisodeRequest) -> bool:
    """Whether an episode is in; one lost to a simulator error is tried again."""
    record = records.get(_key(request))
    return record is not None and record.error is None


def _first_of_each_task(requests: Sequence[EpisodeRequest], count: int) -> set[EpisodeKey]:
    chosen: dict[str, list[EpisodeKey]] = {}
    for request in requests:
        keys = chosen.setdefault(request.task, [])
        if len(keys) < count:
            keys.append(_key(request))
    return {key for keys in chosen.values() for key in keys}


def _examples(records: Sequence[EpisodeRecord]) -> list[EpisodeRequest]:
    """One unrecorded episode of each task whose end, solved or not, no recorded episode shows."""
    examples: dict[tuple[str, bool], EpisodeRecord] = {}
    shown = {(record.task, record.success) for record in records if record.folder}
    tasks = {task for task, _ in shown}  # where nothing was to be recorded, nothing is
    for record in records:
        kind = (record.task, record.success)
        if record.task in tasks and kind not in shown and record.error is None:
            examples.setdefault(kind, record)
    return [
        EpisodeRequest(task=record.task, layout=record.layout, layout_seed=record.layout_seed, seed=record.seed)
        for record in examples.values()
    ]


def _record(outcome: EpisodeOutcome, *, session: int, elapsed: float, folder: str | None) -> EpisodeRecord:
    return EpisodeRecord(
        **dataclasses.asdict(outcome.request),
        success=outcome.success,
        steps=outcome.steps,
        reward_sum=outcome.reward_sum,
        wall_seconds=round(outcome.wall_seconds, 4),
        session=session,
        elapsed_seconds=round(elapsed, 4),
        latency_seconds=tuple(round(call.seconds, 6) for call in outcome.calls),
        batch_sizes=tuple(call.batch_size for call in outcome.calls),
        recorded=outcome.trace is not None,
        attempts=outcome.attempts,
        digest=outcome.digest,
        error=outcome.error,
        folder=folder,
    )


def _write_recording(out: Path, outcome: EpisodeOutcome, control_hz: float) -> str | None:
    """Write the film and the trace of a recorded episode; gives its folder relative to `out`."""
    if outcome.trace is None:
        return None
    task = re.sub(r"[^\w.-]+", "__", outcome.request.task)  # a task id may hold a slash
    name = f"{RECORDED_FOLDER}/{task}-{outcome.request.seed}"
    with atomic_folder(out / name) as folder:
        film = encode_rollout(outcome.trace.frames, fps=round(min(control_hz, MAX_FILM_FPS)))
        (folder / VIDEO_FILE).write_bytes(film)
        outcome.trace.save(folder / TRACE_FILE)
    return name


def _machine(num_workers: int) -> dict[str, Any]:
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "workers": num_workers,
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    """The processor's model where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), flags=re.MULTILINE) if info.is_file() else []
    return names[0].strip() if names else platform.machine()
