"""What an evaluation leaves behind: one line per finished episode, and `results.json`.

Folder of one evaluation:

    run.json                       what is evaluated and how; a different policy or protocol is refused here
    episodes.jsonl                 one `EpisodeRecord` per finished episode, appended and flushed as it finishes
    results.json                   `Results`, written when the run is complete
    episodes/<task>-<k>/           recorded episodes: rollout.mp4 and trace.npz (`wamkit.trace.Trace`)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from wamkit.atomic import atomic_file
from wamkit.evaluation.statistics import quantile, wilson_interval
from wamkit.typed import blame, read_fields
from wamkit.versions import SIMULATORS

FORMAT = "wamkit-results/1"
EPISODES_FILE, RESULTS_FILE, RUN_FILE, RECORDED_FOLDER = "episodes.jsonl", "results.json", "run.json", "episodes"
VIDEO_FILE, TRACE_FILE = "rollout.mp4", "trace.npz"
PACKAGES = ("torch", "numpy", "gymnasium", *SIMULATORS)
"""What decides how an evaluation ends."""
EpisodeKey = tuple[str, int, int, int]
REMEDY = "restore the file, or make it again"
COUNT_AGAIN = f"the same `wamkit evaluate` command counts {EPISODES_FILE} anew, and runs what is missing there"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PolicyIdentity:
    """Who was evaluated.

    Args:
        name: a name for people, for instance the policy folder's.
        fingerprint: changes whenever anything that decides the policy's actions changes (weights, statistics, codecs).
        planner: the planner's settings, `None` without planning.
        details: further JSON-ready facts (family, sampler steps, training recipe).
    """

    name: str
    fingerprint: str
    planner: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One finished episode, as a line of `episodes.jsonl`.

    Args:
        task: task id.
        layout: initial state.
        layout_seed: family of initial states.
        seed: seed of the policy's draws in this episode.
        success: whether the task was solved; `False` when `error` is set.
        steps: control steps run.
        reward_sum: sum of the simulator's rewards.
        wall_seconds: from reset to end, shared with the episodes that ran beside it.
        session: which start of the run finished it (a killed run has several).
        elapsed_seconds: since that session started.
        latency_seconds: wall time of each policy call, for the whole batch it was part of.
        batch_sizes: robots in that batch.
        recorded: whether the calls also decoded what they imagined, which takes longer.
        attempts: 1, or 2 when it was retried after a simulator error.
        digest: of every executed action and every reward; equal digests mean the same course, bit for bit.
        error: why the simulator could not finish it; such an episode is not a trial.
        folder: recorded episode, relative to the evaluation's folder.
    """

    task: str
    layout: int
    layout_seed: int
    seed: int
    success: bool
    steps: int
    reward_sum: float
    wall_seconds: float
    session: int
    elapsed_seconds: float
    latency_seconds: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    recorded: bool = False
    attempts: int = 1
    digest: str = ""
    error: str | None = None
    folder: str | None = None

    @property
    def key(self) -> EpisodeKey:
        """What makes two records the same episode."""
        return self.task, self.layout, self.layout_seed, self.seed

    def to_json(self) -> str:
        """One line without its end."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> EpisodeRecord:
        """Inverse of `to_json`.

        Raises:
            ValueError: not a record.
        """
        return read_fields(cls, json.loads(line), "episode record")


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Successes of one task, or of all tasks together.

    Args:
        successes: episodes solved.
        trials: episodes finished; those lost to simulator errors are not trials.
        errors: episodes lost to simulator errors.
        interval: Wilson 95 % interval of the success rate.
        mean_steps: mean control steps of an episode, `None` without trials.
        mean_success_steps: mean control steps of the solved ones, `None` when none was.
        seeds: policy seeds of the trials.
        layouts: initial states of the trials.

    Raises:
        ValueError: counts that cannot be, or an interval that is not theirs.
    """

    successes: int
    trials: int
    errors: int
    interval: tuple[float, float]
    mean_steps: float | None
    mean_success_steps: float | None
    seeds: tuple[int, ...]
    layouts: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.errors < 0:
            raise ValueError(f"expected 0 or more episodes lost to simulator errors, got {self.errors}")
        expected = wilson_interval(self.successes, self.trials)
        if not all(math.isclose(*pair, abs_tol=1e-6) for pair in zip(expected, self.interval, strict=True)):
            raise ValueError(
                f"expected the interval of {self.successes} successes in {self.trials} trials, {_pair(expected)}, got "
                f"{_pair(self.interval)}"
            )

    @property
    def rate(self) -> float | None:
        """Success rate, `None` without trials."""
        return self.successes / self.trials if self.trials else None


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall time of a policy call as a robot saw it: of the whole batch its call was part of.

    Args:
        median_seconds: half of the calls were faster.
        p95_seconds: 95 % of the calls were faster.
        calls: number of calls counted.
        mean_batch_size: mean number of robots served by a call.
        while_recording: the calls also decoded what they imagined (no others were made).
    """

    median_seconds: float | None
    p95_seconds: float | None
    calls: int
    mean_batch_size: float | None
    while_recording: bool


@dataclass(frozen=True, kw_only=True)
class Results:
    """The content of `results.json`.

    Args:
        protocol: the protocol's title; two results are comparable only when these agree.
        protocol_settings: every field of the protocol, as it was used.
        execution_horizon: actions run between two policy calls.
        policy: who was evaluated, with the planner's settings.
        robot: the environment's robot.
        tasks: score per task id.
        overall: score of all episodes together.
        latency: of the policy.
        wall_seconds: of all sessions of the run.
        versions: wamkit, Python, torch and simulator packages.
        gl_backend: what rendered, for instance `egl`.
        machine: processor, cores, workers, accelerator.
        batching: `exact` when every robot got what a policy call of its own gives, so that outcomes do not depend on
            the number of workers; `free` when calls were shared whatever that does to rounding.
    """

    protocol: str
    protocol_settings: dict[str, Any]
    execution_horizon: int
    policy: PolicyIdentity
    robot: str
    tasks: dict[str, TaskScore]
    overall: TaskScore
    latency: Latency
    wall_seconds: float
    versions: dict[str, str]
    gl_backend: str
    machine: dict[str, Any]
    batching: Literal["exact", "free"] = "free"

    def __post_init__(self) -> None:
        for key in ("successes", "trials", "errors"):
            total, overall = sum(getattr(score, key) for score in self.tasks.values()), getattr(self.overall, key)
            if total != overall:
                raise ValueError(f"expected overall {key} to be those of all tasks together, {total}, got {overall}")

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` holds."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def save(self, folder: Path) -> Path:
        """Write `results.json` into an evaluation folder, whole or not at all."""
        path = folder / RESULTS_FILE
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read `results.json` of an evaluation folder.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: it is not a result of this format, or its counts contradict each other.
        """
        return read_results(
            folder / RESULTS_FILE, FORMAT, cls, advice=lambda: _advice(folder), remedy=f"{REMEDY}: {COUNT_AGAIN}"
        )


T = TypeVar("T")


def read_results(path: Path, format: str, kind: type[T], *, advice: Callable[[], str], remedy: str = REMEDY) -> T:
    """Read a results file that names its format.

    Args:
        path: the file.
        format: its expected format.
        kind: the dataclass that it holds.
        advice: what to do when there is no such file.
        remedy: what to do when its content is wrong.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a result of this format; the message names the file and the key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}; {advice()}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected results of format {format!r}, got something else ({error})") from error
    found = data.pop("format", None) if isinstance(data, dict) else None
    if found != format:
        raise ValueError(f"{path}: expected results of format {format!r}, got {found!r}; make them again")
    with blame(path, remedy):
        return read_fields(kind, data, "results")


class EpisodeLog:
    """`episodes.jsonl`: appended and flushed line by line, so that a kill loses only the episodes still running."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EPISODES_FILE

    @property
    def has_torn_line(self) -> bool:
        """Whether a kill has cut the last line short."""
        return self.path.is_file() and self._torn() > 0

    def read(self) -> dict[EpisodeKey, EpisodeRecord]:
        """The latest record of every episode; a last line torn by a kill is left out, and told in the log.

        Raises:
            ValueError: a line that is not the last is damaged.
        """
        if not self.path.is_file():
            return {}
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            logger.warning("%s: left out a half-written last line; its episode counts as not run", self.path)
        records = {}
        for number, line in enumerate(whole.decode().splitlines(), start=1):
            try:
                record = EpisodeRecord.from_json(line)
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}; mend or delete that line") from error
            records[record.key] = record
        return records

    def append(self, record: EpisodeRecord) -> None:
        """Add one record, in the place of a torn line if there is one, and force it to the disk."""
        with self.path.open("ab") as file:
            file.truncate(file.tell() - self._torn())
            file.write(record.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _torn(self) -> int:
        """Bytes after the end of the last whole line."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return 0
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return 0
            file.seek(0)
            return size - (file.read().rfind(b"\n") + 1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of `run.json` that a reader needs while there is no `results.json`.

    Args:
        protocol: the protocol's title.
        protocol_settings: every field of the protocol.
        execution_horizon: actions run between two policy calls.
        policy: who is evaluated.
        robot: the environment's robot.
        asked: task, layout, family of layouts and seed of every episode that was asked for last.
        versions: as in `Results`.
        gl_backend: as in `Results`.
        machine: as in `Results`.
        batching: as in `Results`.
    """

    protocol: str
    protocol_settings: dict[str, Any]
    execution_horizon: int
    policy: PolicyIdentity
    robot: str
    asked: tuple[tuple[str, int, int, int], ...]
    versions: dict[str, str]
    gl_backend: str
    machine: dict[str, Any]
    batching: Literal["exact", "free"]

    @classmethod
    def load(cls, folder: Path) -> Run | None:
        """Read `run.json`; `None` when there is none, or one of a version that told less."""
        path = folder / RUN_FILE
        if not path.is_file():
            return None
        with blame(path, "start the evaluation afresh (--fresh)"):
            data = json.loads(path.read_text(encoding="utf-8"))
            is_older = isinstance(data, dict) and "asked" not in data
            return None if is_older else read_fields(cls, data, "run", others=True)

    @property
    def num_asked(self) -> int:
        """Episodes that were asked for last."""
        return len(self.asked)

    def missing(self, records: Mapping[EpisodeKey, EpisodeRecord]) -> list[EpisodeKey]:
        """Those of them that have no record."""
        return [key for key in self.asked if key not in records]

    def results(self, records: Sequence[EpisodeRecord]) -> Results:
        """What some episodes of the run give."""
        names = dict.fromkeys(record.task for record in records)
        return Results(
            protocol=self.protocol,
            protocol_settings=self.protocol_settings,
            execution_horizon=self.execution_horizon,
            policy=self.policy,
            robot=self.robot,
            tasks={task: score_episodes([record for record in records if record.task == task]) for task in names},
            overall=score_episodes(records),
            latency=measure_latency(records),
            wall_seconds=total_wall_seconds(records),
            versions=self.versions,
            gl_backend=self.gl_backend,
            machine=self.machine,
            batching=self.batching,
        )


def score_episodes(records: Sequence[EpisodeRecord]) -> TaskScore:
    """Count successes; an episode lost to a simulator error is neither a success nor a failure."""
    trials = [record for record in records if record.error is None]
    solved = [record for record in trials if record.success]
    return TaskScore(
        successes=len(solved),
        trials=len(trials),
        errors=len(records) - len(trials),
        interval=wilson_interval(len(solved), len(trials)),
        mean_steps=_mean([record.steps for record in trials]),
        mean_success_steps=_mean([record.steps for record in solved]),
        seeds=tuple(sorted({record.seed for record in trials})),
        layouts=tuple(sorted({record.layout for record in trials})),
    )


def measure_latency(records: Sequence[EpisodeRecord]) -> Latency:
    """Median and 95th percentile over the calls of all episodes; recorded ones count only when there are no others."""
    plain = [record for record in records if not record.recorded and record.latency_seconds]
    counted = plain or list(records)
    seconds = [value for record in counted for value in record.latency_seconds]
    sizes = [size for record in counted for size in record.batch_sizes]
    return Latency(
        median_seconds=quantile(seconds, 0.5),
        p95_seconds=quantile(seconds, 0.95),
        calls=len(seconds),
        mean_batch_size=_mean(sizes),
        while_recording=not plain and bool(seconds),
    )


def total_wall_seconds(records: Iterable[EpisodeRecord]) -> float:
    """Wall time of all sessions, each up to the last episode it finished."""
    last: dict[int, float] = {}
    for record in records:
        last[record.session] = max(last.get(record.session, 0.0), record.elapsed_seconds)
    return sum(last.values())


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file so that a kill at any moment leaves the old one or the new one."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2) + "\n")


def _advice(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder; check the path"
    if (folder / "openloop.json").is_file():
        return "it is an open-loop validation: name it with --openloop"
    if (folder / "quality.json").is_file():
        return "it is a measurement of a world model: name it with --quality"
    if (folder / RUN_FILE).is_file():
        return "finish the evaluation there (run it again to resume)"
    return "give the output folder of `wamkit evaluate`"


def _pair(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _mean(values: Sequence[float | int]) -> float | None:
    return sum(values) / len(values) if values else None
