"""Record demonstrations of a simulator's scripted demonstrator as a LeRobot dataset.

Failed attempts are dropped and counted. A recording that was interrupted leaves a readable dataset, and the same
command continues it; with a larger --episodes it adds to a finished one, as long as no column was added to that
(`wamkit data values` adds one: record all episodes before). Exit status 1 when a task did not reach its number of
successes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from wamkit.envs import choices_error, match_tasks, require_demonstrator, suite_factory, suite_tasks
from wamkit.envs.base import DemonstrationOptions, EpisodeRequest
from wamkit.envs.gl import choose_backend
from wamkit.progress import ProgressBar
from wamkit.versions import SIMULATORS, installed_versions

if TYPE_CHECKING:
    from wamkit.data.record import Attempt, RecordingPlan, TaskProgress
    from wamkit.data.writer import LeRobotWriter
    from wamkit.envs.base import SimulatorFactory
    from wamkit.episode import Episode

logger = logging.getLogger(__name__)

_NOTES = "demonstrations"
_SIMULATORS = "simulators"
_SEEDS_APART = 100_000  # noise seeds between one --seed and the next, so that no two recordings share noise


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit record`."""

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TASK...")]
    """Task ids, for instance drawer-open-v3, or shell-style patterns such as 'libero_object/*'; episodes are stored in
    this order."""
    output: Path
    """Dataset folder: made, or continued."""
    episodes: int = 40
    """Successful episodes wanted of each task, counting those recorded before."""
    suite: str = "metaworld"
    """Simulator suite."""
    cameras: tuple[str, ...] = ()
    """Cameras in view order; by default the suite's."""
    size: int | None = None
    """Height and width of the images in pixels; by default the suite's."""
    rendering: str | None = None
    """Rendering setting; by default the suite's. Policies are evaluated with the setting they were trained on."""
    layout_seed: int = 42
    """Seed of the family of initial layouts; attempt k starts from layout k. Evaluation uses another family."""
    seed: int = 0
    """Seed of the action noise."""
    demonstration: Annotated[DemonstrationOptions, tyro.conf.arg(name="")] = field(default_factory=DemonstrationOptions)
    """How the demonstrator acts."""
    max_attempts: int | None = None
    """Attempts after which a task is given up; by default ten for each episode wanted."""
    video: Literal["standard", "lossless"] = "standard"
    """How frames are kept: `standard` is H.264 as every player reads it, which loses detail of small pictures (about 27
    dB are left at 64 px) and flickers from frame to frame; `lossless` keeps what was rendered, at six times the size. A
    world model, which learns what changes from one frame to the next, wants the latter."""
    workers: int | None = None
    """Simulator processes; by default one per core."""
    json: bool = False
    """Print the report as JSON."""


def run(options: Options) -> int:
    """Record until every task has its successes; 1 when one was given up."""
    from wamkit.data.record import RecordingPlan, record
    from wamkit.data.video import VideoSettings
    from wamkit.data.writer import LeRobotWriter

    if options.workers is not None and options.workers < 1:
        raise ValueError(f"expected --workers of 1 or more, got {options.workers}; leave it out for one per core")
    if not options.demonstration.record_video:
        raise ValueError("a dataset needs its videos; leave out --no-record-video")
    for name in ("seed", "layout_seed"):
        if getattr(options, name) < 0:
            raise ValueError(f"expected {name} of 0 or more, got {getattr(options, name)}")
    known = suite_tasks(options.suite)
    chosen, unknown = match_tasks(options.tasks, known)
    if unknown:
        raise choices_error(f"{options.suite} task", unknown[0], known)
    options = dataclasses.replace(options, tasks=chosen)
    max_attempts = _max_attempts(options)
    factory = _factory(options)
    require_demonstrator(options.suite, options.tasks)
    video = VideoSettings(crf=0, pixel_format="yuv444p") if options.video == "lossless" else None
    with LeRobotWriter(options.output, factory.robot, video=video) as writer:
        if writer.num_episodes == 0 and writer.notes.get(_NOTES) != _settings(options):
            writer.set_notes({_NOTES: _settings(options)})  # nothing was recorded with other settings
        _require_same_settings(_settings(options), writer.notes.get(_NOTES, {}), options.output)
        plan = RecordingPlan(writer, options.tasks, target_successes=options.episodes, max_attempts=max_attempts)
        if _missing(plan):
            writer.require_open_to_episodes()
            _note_simulator(writer, options.output)
        total = options.episodes * len(options.tasks)
        with ProgressBar(f"recording {options.output}", total, unit="episodes") as bar:
            bar.resume(_successes(plan.progress()))
            report = record(plan, _attempts(plan, factory, options), progress=lambda tasks: _show(bar, tasks))
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
        return 0 if report.is_complete else 1
    for done in report.tasks:
        reasons = "".join(f"\n    {count} x {reason}" for reason, count in done.reasons.items())
        print(f"{done.task}: {done.successes}/{done.target} episodes, {done.failures} attempts dropped{reasons}")
    rate = report.new_frames / report.seconds
    added = f"{report.new_episodes} episodes, {report.new_frames} steps in {report.seconds:.0f} s ({rate:.0f} steps/s)"
    print(f"added {added if report.new_episodes else 'nothing'}; the dataset is {options.output}")
    return 0 if report.is_complete else 1


def attempt_request(options: Options, task: str, index: int) -> EpisodeRequest:
    """What an attempt starts from. It depends on the attempt's number alone, never on how many episodes are wanted.

    Args:
        options: of the recording.
        task: task id.
        index: number of the attempt, below 100,000.
    """
    seed = options.seed * _SEEDS_APART + index
    return EpisodeRequest(task=task, layout=index, layout_seed=options.layout_seed, seed=seed)


def _max_attempts(options: Options) -> int:
    # Told before a dataset is made, whose stored settings a corrected command would then have to share.
    if options.episodes < 1 or (options.max_attempts is not None and options.max_attempts < 1):
        raise ValueError(
            f"expected episodes and max_attempts of 1 or more for each task, got {options.episodes} and "
            f"{options.max_attempts}"
        )
    for name, number in (("episodes", options.episodes), ("max_attempts", options.max_attempts or 0)):
        if number > _SEEDS_APART:
            raise ValueError(
                f"expected {name} of at most {_SEEDS_APART} for each task, got {number}; record the rest into another "
                "dataset with another seed and layout seed"
            )
    return min(10 * options.episodes, _SEEDS_APART) if options.max_attempts is None else options.max_attempts


def _factory(options: Options) -> Any:
    given: dict[str, Any] = {"cameras": options.cameras, "rendering": options.rendering}
    given |= {"height": options.size, "width": options.size}
    return suite_factory(options.suite)(**{key: item for key, item in given.items() if item not in (None, ())})


def _settings(options: Options) -> dict[str, Any]:
    """What decides how an attempt ends, besides the robot that the dataset compares itself."""
    settings = {"suite": options.suite, "layout_seed": options.layout_seed, "seed": options.seed}
    return settings | dataclasses.asdict(options.demonstration)


def _require_same_settings(wanted: dict[str, Any], stored: dict[str, Any], output: Path) -> None:
    differences = [
        f"{key}: now {wanted.get(key)!r}, before {stored.get(key)!r}"
        for key in sorted(wanted.keys() | stored.keys())
        if wanted.get(key) != stored.get(key)
    ]
    if differences:
        raise ValueError(
            f"{output} was recorded with other settings ({'; '.join(differences)}); continue it with the same ones, or "
            "record into another folder"
        )


def _note_simulator(writer: LeRobotWriter, output: Path) -> None:
    """Store which simulator packages record and what renders; a dataset recorded with several names each once."""
    here = {"gl_backend": choose_backend(), **installed_versions(SIMULATORS)}
    earlier = writer.notes.get(_SIMULATORS, [])
    if here in earlier:
        return
    if earlier:
        logger.warning("%s was recorded with %s so far, now with %s; pictures may differ", output, earlier[-1], here)
    writer.set_notes(writer.notes | {_SIMULATORS: [*earlier, here]})


def _missing(plan: RecordingPlan) -> int:
    """Episodes that are still wanted, of tasks that were not given up."""
    tasks = [task for task in plan.progress() if task.next_attempt < plan.max_attempts]
    return sum(max(0, task.target - task.successes) for task in tasks)


def _attempts(plan: RecordingPlan, factory: SimulatorFactory, options: Options) -> Iterator[Attempt]:
    """Outcomes of the attempts that the plan asks for; simulators run only if there is one."""
    from wamkit.data.record import run_attempts
    from wamkit.envs.workers import WorkerError, WorkerPool

    missing = _missing(plan)
    if not missing:
        return
    num_workers = min(options.workers or os.cpu_count() or 1, missing)
    logger.info("recording %d episodes with %d simulators", missing, num_workers)
    with WorkerPool(factory, num_workers) as pool:

        def submit(worker: int, task: str, index: int) -> None:
            pool.submit(worker, "demonstrate", attempt_request(options, task, index), options.demonstration)

        def wait() -> Iterable[tuple[int, Episode | str]]:
            for worker, outcome in pool.wait():
                yield worker, str(outcome) if isinstance(outcome, WorkerError) else outcome

        yield from run_attempts(plan, num_workers=num_workers, submit=submit, wait=wait)


def _show(bar: ProgressBar, tasks: tuple[TaskProgress, ...]) -> None:
    failures = sum(task.failures for task in tasks)
    bar.update(_successes(tasks), note=f"{failures} attempts dropped" if failures else "")


def _successes(tasks: tuple[TaskProgress, ...]) -> int:
    return sum(min(task.successes, task.target) for task in tasks)
