"""Look through a whole dataset once and report what would spoil training: files, numbers, frames, statistics.

Opening a dataset stops at the first thing that is wrong; this goes on, and says what could not be looked at. Every
video is decoded once and every row read once, in several threads; `wamkit.data.inspection` holds the checks.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wamkit.data import features as words
from wamkit.data.exclusions import EXCLUDE_PATH, read_exclusions, write_exclusions
from wamkit.data.findings import Finding, Kind, Report, TaskSummary, listed_episodes
from wamkit.data.inspection import against as policies
from wamkit.data.inspection import metadata, statistics
from wamkit.data.inspection.rows import RowChecks, RowFacts
from wamkit.data.inspection.videos import check_video
from wamkit.data.lerobot import LeRobotDataset
from wamkit.spec import RobotSpec

_MOST_THREADS = 8

Job = Callable[[], tuple[list[Finding], list[RowFacts], int]]
"""Looks through one file: findings, what its episodes hold, steps of progress."""


def inspect(
    root: Path | str,
    *,
    against: Path | str | None = None,
    entry: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check every file, row and frame of a dataset.

    Episodes that `meta/wamkit_exclude.json` leaves out are looked at too, but what is wrong with them alone is no
    finding.

    Args:
        root: dataset folder.
        against: a policy folder, or a file of statistics, that the dataset has to fit.
        entry: which statistics of a WAV file `against` means.
        progress: called with (steps done, steps), a step being a video file or an episode's rows.

    Raises:
        FileNotFoundError: no such folder, not a dataset, or no episode table; or nothing at `against`.
        DatasetError: the metadata cannot be read at all; nothing else can be looked at then.
        ValueError: what is at `against` is damaged or of another form.
    """
    dataset, findings = metadata.open_any(root)
    wanted = None if against is None else policies.read_wanted(against, dataset, entry=entry)
    robot, of_robot = metadata.robot_of(dataset)
    tasks, of_tasks = metadata.read_tasks(dataset)
    excluded, of_list = metadata.read_list(dataset)
    findings += of_robot + of_tasks + of_list + metadata.check_metadata(dataset, robot, tasks)
    of_files, facts = _look_through(dataset, tasks, progress)
    findings += of_files

    left_out = set(excluded.episodes)
    if left_out:
        dataset = LeRobotDataset(root, check=False, ignored=left_out, num_episodes=dataset.num_episodes)
    shown = [finding for finding in findings if not finding.episodes or not left_out.issuperset(finding.episodes)]
    kept = [one for one in facts if one.episode not in left_out]
    is_sound = all(finding.severity == "warning" for finding in shown)
    faulty = {episode for finding in findings if finding.severity == "error" for episode in finding.episodes}
    shown += statistics.check_channels(dataset, robot, kept)
    shown += statistics.check_duplicates(kept)
    shown += statistics.check_own_statistics(dataset, left_out, is_sound=is_sound)
    shown += statistics.check_recorded_statistics(kept, faulty)
    of_lerobot, notes = statistics.check_lerobot_statistics(dataset, facts, is_sound=not faulty)
    shown += of_lerobot
    if is_sound:
        shown += metadata.check_list_age(dataset, excluded) + statistics.check_values(dataset)
    places = [dataset.place(record.index) for record in dataset.episodes]
    known = {place.data for place in places} | {video.path for place in places for video in place.videos.values()}
    shown += metadata.check_leftovers(dataset, known)
    if wanted is not None:
        of_spec, of_wanted = policies.check_spec(dataset, robot, wanted)
        shown += of_spec + policies.check_numbers(dataset, kept, wanted)
        notes += of_wanted
    if left_out:
        notes.insert(0, f"{EXCLUDE_PATH} leaves out {listed_episodes(left_out)}")
    return _report(dataset, robot, facts, shown, notes)


@dataclass(frozen=True, kw_only=True)
class ExclusionPlan:
    """Which episodes a report leaves out.

    Args:
        episodes: number -> reason, those of the earlier list among them.
        new: numbers that the earlier list does not have.
        remaining: errors that leaving out episodes does not mend.
    """

    episodes: dict[int, str]
    new: tuple[int, ...]
    remaining: tuple[Finding, ...]


def plan_exclusions(report: Report, *, also: Collection[Kind] = ()) -> ExclusionPlan:
    """The list that would leave out what a report complains of; earlier entries stay.

    Args:
        report: of `inspect`.
        also: kinds of warnings whose episodes are left out too.

    Raises:
        ValueError: no episode would be left, or the earlier list cannot be read.
    """
    earlier = read_exclusions(report.root, num_episodes=report.num_episodes).episodes
    found = report.to_exclude(also)
    episodes = dict(sorted({**found, **earlier}.items()))
    if episodes and len(episodes) == report.num_episodes:
        first = next(iter(episodes.items()))
        raise ValueError(
            f"{report.root}: expected to leave some of the {report.num_episodes} episodes, all have errors (episode "
            f"{first[0]}: {first[1]}); mend what they have in common, or record again"
        )
    new = tuple(number for number in episodes if number not in earlier)
    return ExclusionPlan(episodes=episodes, new=new, remaining=report.not_excludable)


def exclude(report: Report, plan: ExclusionPlan) -> Path:
    """Write the list of a plan; training, statistics and evaluation then leave those episodes out.

    Raises:
        OSError: writing failed; the old list is untouched.
    """
    dataset = LeRobotDataset(report.root, check=False, ignored=plan.episodes, num_episodes=report.num_episodes)
    return write_exclusions(report.root, plan.episodes, fingerprint=dataset.recorded_fingerprint())


def _look_through(
    dataset: LeRobotDataset, tasks: list[str] | None, progress: Callable[[int, int], None] | None
) -> tuple[list[Finding], list[RowFacts]]:
    """Every file once: findings in the order of the files, and what each episode holds."""
    rows: dict[Path, list[int]] = defaultdict(list)
    videos: dict[tuple[Path, str], list[int]] = defaultdict(list)
    for record in dataset.episodes:
        place = dataset.place(record.index)
        rows[place.data].append(record.index)
        for key, video in place.videos.items():
            videos[video.path, key].append(record.index)
    checks = RowChecks(
        dataset=dataset,
        tasks=tasks,
        stored=dataset.episode_statistics(),
        first_rows=np.cumsum([0, *(record.length for record in dataset.episodes)]),
    )

    def of_video(path: Path, key: str, episodes: list[int]) -> Job:
        return lambda: (check_video(dataset, path, key, episodes), [], 1)

    def of_rows(path: Path, episodes: list[int]) -> Job:
        return lambda: (*checks.check_file(path, episodes), len(episodes))

    jobs = [of_video(path, key, episodes) for (path, key), episodes in videos.items()]
    jobs += [of_rows(path, episodes) for path, episodes in rows.items()]
    findings: list[Finding] = []
    facts: list[RowFacts] = []
    done, total = 0, len(videos) + dataset.num_episodes
    pool = ThreadPoolExecutor(max_workers=min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="inspecting")
    try:
        for of_file, of_episodes, steps in pool.map(lambda job: job(), jobs):
            findings += of_file + [finding for one in of_episodes for finding in one.findings]
            facts += of_episodes
            for _ in range(steps):
                done += 1
                if progress is not None:
                    progress(done, total)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return findings, facts


def _report(
    dataset: LeRobotDataset,
    robot: RobotSpec | None,
    facts: list[RowFacts],
    findings: list[Finding],
    notes: list[str],
) -> Report:
    lengths = [record.length for record in dataset.episodes]
    solved = {one.episode: one.solved for one in facts if one.solved is not None}
    tasks = []
    for task in dict.fromkeys(record.task for record in dataset.episodes):
        records = [record for record in dataset.episodes if record.task == task]
        successes = sum(solved.get(record.index, False) for record in records) if solved else None
        frames = sum(record.length for record in records)
        tasks.append(TaskSummary(task=task, episodes=len(records), frames=frames, successes=successes))
    visual = {dataset.camera_key(name) for name in dataset.cameras}
    return Report(
        root=str(dataset.root),
        version=dataset.info["codebase_version"],
        robot=None if robot is None else robot.name,
        fps=dataset.fps,
        num_episodes=dataset.num_episodes,
        num_frames=dataset.num_frames,
        cameras={name: words.image_size(dataset.features[dataset.camera_key(name)]) for name in dataset.cameras},
        columns={key: int(np.prod(f["shape"])) for key, f in dataset.features.items() if key not in visual},
        tasks=tuple(tasks),
        lengths=(min(lengths), float(np.median(lengths)), max(lengths)) if lengths else None,
        success_rate=sum(solved.values()) / len(solved) if solved else None,
        findings=tuple(sorted(findings, key=lambda finding: finding.severity)),
        notes=tuple(notes),
    )
