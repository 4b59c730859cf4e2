"""Open-loop validation: what a policy predicts along recorded episodes, beside what was recorded.

Nothing is executed, so it needs no simulator and says nothing of success; it shows in seconds whether a policy's
actions, values and imagined frames follow the data.

Source: WAV (arXiv 2604.14732), validation of its public trainer; section 6.4 of the specification.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from wamkit.atomic import atomic_folder
from wamkit.data.source import EpisodeEntry, EpisodeSource
from wamkit.evaluation.open_loop_calls import Answer, Call, Caller, assemble, read_episode
from wamkit.evaluation.open_loop_errors import Errors, measure
from wamkit.evaluation.open_loop_films import FilmCutter
from wamkit.evaluation.open_loop_plots import write_plots
from wamkit.evaluation.open_loop_predictions import EpisodePrediction
from wamkit.evaluation.open_loop_protocol import OpenLoopProtocol
from wamkit.evaluation.open_loop_results import (
    OWN_FILES,
    PLOTS_FOLDER,
    DatasetIdentity,
    EpisodeErrors,
    OpenLoopResults,
    episode_name,
    prediction_path,
    video_path,
)
from wamkit.evaluation.own_folder import require_own_folder
from wamkit.evaluation.results import PACKAGES, PolicyIdentity
from wamkit.policy import Policy
from wamkit.progress import ProgressBar
from wamkit.spec import SpecMismatch, require_match
from wamkit.versions import software_versions


def open_loop(
    policy: Policy,
    dataset: EpisodeSource,
    protocol: OpenLoopProtocol,
    *,
    identity: PolicyIdentity,
    source: DatasetIdentity,
    out: Path,
    episodes: Sequence[int] = (1,),
    seeds: Sequence[int] = (0,),
    batch_size: int = 16,
    with_values: bool = True,
    with_video: bool = True,
    fresh: bool = False,
) -> OpenLoopResults:
    """Validate a policy on some episodes of a dataset and write numbers, plots and films.

    Every draw follows from (seed, episode, number of the call), so that equal arguments give equal numbers; another
    batch size changes them by rounding alone.

    Args:
        policy: what predicts.
        dataset: recorded episodes of the policy's robot.
        protocol: which rows are shown and compared, see `make_protocol`.
        identity: who is validated, for the record.
        source: what is validated on, for the record.
        out: folder to make, see `open_loop_results`.
        episodes: indices; the default is the published one.
        seeds: of the policy's draws; each is a pass over all calls. Films and plots show the first.
        batch_size: calls computed at once.
        with_values: compare values too, when the policy has them.
        with_video: compare imagined frames and write films.
        fresh: replace an earlier validation in the folder.

    Returns:
        What was written to `openloop.json`.

    Raises:
        SpecMismatch: the dataset's robot is not the policy's; before anything is computed.
        ValueError: an unknown or too short episode, a missing column, a number that is not finite, in the dataset or
            predicted, or a folder that holds something else.
        DiskFull: no room; what the folder held is untouched.
    """
    if batch_size < 1 or not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ValueError(
            f"expected batch_size >= 1 and distinct seeds of 0 or more, got {batch_size} and {list(seeds)}"
        )
    require_own_folder(out, OWN_FILES, command="openloop", fresh=fresh)
    require_robot(policy, dataset, identity, source)
    recorded = [
        read_episode(policy, dataset, entry, protocol, with_values=with_values)
        for entry in choose_episodes(dataset, episodes)
    ]
    calls = [
        Call(episode=episode, seed=seed, number=number)
        for seed in seeds
        for episode in recorded
        for number in range(len(episode.calls))
    ]
    begun = time.perf_counter()
    films = FilmCutter(robot=policy.spec.robot, seed=seeds[0]) if with_video else None
    answers = _ask(Caller(policy=policy, dataset=dataset, protocol=protocol, films=films), calls, batch_size)
    seconds = time.perf_counter() - begun
    predictions = {
        (episode.entry.index, seed): assemble(
            episode, seed, [answer for answer in answers if answer.call.episode is episode and answer.call.seed == seed]
        )
        for episode in recorded
        for seed in seeds
    }
    results = OpenLoopResults(
        protocol=protocol,
        policy=identity,
        dataset=source,
        num_context=policy.spec.num_context,
        action_horizon=policy.spec.action_horizon,
        control_hz=policy.spec.robot.control_hz,
        seeds=tuple(seeds),
        batch_size=batch_size,
        episodes=tuple(
            EpisodeErrors(
                episode=episode.entry.index,
                task=episode.entry.task,
                length=episode.entry.length,
                errors=_measure(policy, [predictions[episode.entry.index, seed] for seed in seeds]),
            )
            for episode in recorded
        ),
        total=_measure(policy, list(predictions.values())),
        wall_seconds=round(seconds, 4),
        versions=software_versions(PACKAGES),
    )
    with atomic_folder(out) as folder:
        for (index, seed), prediction in predictions.items():
            prediction.save(prediction_path(folder, index, seed))
            if seed == seeds[0]:
                write_plots(prediction, policy.spec.robot, protocol, folder / PLOTS_FOLDER / episode_name(index))
        for index, film in ({} if films is None else films.films()).items():
            video_path(folder, index).parent.mkdir(exist_ok=True)
            video_path(folder, index).write_bytes(film)
        results.save(folder)
    return results


def _ask(caller: Caller, calls: Sequence[Call], batch_size: int) -> list[Answer]:
    answers: list[Answer] = []
    with ProgressBar("open loop", len(calls), unit="policy calls") as bar:
        for first in range(0, len(calls), batch_size):
            answers += caller.ask(calls[first : first + batch_size])
            bar.update(len(answers))
    return answers


def _measure(policy: Policy, predictions: Sequence[EpisodePrediction]) -> Errors:
    robot = policy.spec.robot
    return measure(predictions, actions=robot.action, states=robot.state, cameras=robot.camera_names)


def require_robot(policy: Policy, dataset: EpisodeSource, identity: PolicyIdentity, source: DatasetIdentity) -> None:
    """Refuse a dataset of another robot than the policy's.

    Raises:
        SpecMismatch: it is, or it does not say which it is.
    """
    wanted = policy.spec.robot
    if dataset.robot is None:
        raise SpecMismatch(
            f"policy {identity.name} was trained for the robot {wanted.name!r}, and dataset {source.name} (cameras "
            f"{list(dataset.cameras)}) does not say which robot it holds; record it with `wamkit record`, or add the "
            "robot to its info.json"
        )
    require_match(wanted, dataset.robot, wanted_by=f"policy {identity.name}", offered_by=f"dataset {source.name}")


def choose_episodes(dataset: EpisodeSource, episodes: Sequence[int]) -> list[EpisodeEntry]:
    """Lines of the episode table.

    Raises:
        ValueError: no episodes, or an unknown one.
    """
    entries = {entry.index: entry for entry in dataset.episodes}
    unknown = [index for index in episodes if index not in entries]
    if unknown or not episodes or len(set(episodes)) != len(episodes):
        known = f"{min(entries)} to {max(entries)}" if entries else "none"
        raise ValueError(
            f"expected distinct episodes among those of the dataset ({known}), got {list(episodes)}; choose with "
            "--episodes"
        )
    return [entries[index] for index in episodes]
