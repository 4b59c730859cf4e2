"""The datasets of a run, opened: which episodes are trained on, which are held out, and what identifies them."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from wamkit.data.choices import choose_episodes, parse_episodes, ranges_of, require_tasks
from wamkit.data.exclusions import EXCLUDE_PATH, open_usable, without_excluded
from wamkit.data.given_statistics import read_given_statistics
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.mixture import Mixture
from wamkit.data.source import EpisodeSource
from wamkit.data.splits import split_episodes
from wamkit.data.stats import Statistics, compute_statistics, current_statistics
from wamkit.data.subset import Subset, digest
from wamkit.draws import seeded
from wamkit.progress import ProgressBar
from wamkit.recipes.run import DataConfig, Run
from wamkit.spec import RobotSpec
from wamkit.training.stage import plain

logger = logging.getLogger(__name__)

_CHOICES: Final = ("roots", "weights", "episodes", "tasks", "split", "cameras", "statistics", "statistics_entry")
"""Settings that a record has only when they are set, so that runs begun before there were any can be continued."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The datasets of a run and its choice of episodes; of several datasets episodes are numbered through.

    Args:
        name: for messages.
        datasets: as they are on disk.
        whole: all their episodes.
        usable: those that no list of excluded episodes names.
        chosen: those of `usable` that the run chooses: statistics and sentences are theirs.
        training: those of `chosen` that are not held out.
        held_out: numbers of episodes that are not trained on, but measured on.
        fingerprint: of what is chosen, and of the weights.
        content_fingerprint: of the datasets alone.
    """

    name: str
    datasets: tuple[LeRobotDataset, ...]
    whole: LeRobotDataset | Mixture
    usable: Subset
    chosen: Subset
    training: Subset
    held_out: tuple[int, ...]
    fingerprint: str
    content_fingerprint: str

    @property
    def robot(self) -> RobotSpec | None:
        """The robot of all datasets."""
        return self.whole.robot

    @property
    def validation(self) -> Subset:
        """The held-out episodes."""
        return Subset(self.whole, self.held_out)

    @property
    def is_whole_dataset(self) -> bool:
        """Whether it is one dataset, of which only excluded episodes are left out."""
        return len(self.datasets) == 1 and len(self.chosen.episodes) == len(self.usable.episodes)

    @property
    def wanted(self) -> Subset:
        """Every episode that the run reads."""
        return Subset(self.whole, {entry.index for entry in self.chosen.episodes} | set(self.held_out))

    def record(self) -> dict[str, Any]:
        """What a run's record says of several datasets, or of a part of one; empty for one dataset as it is."""
        if len(self.datasets) == 1 and len(self.chosen.episodes) == len(self.whole.episodes):
            return {}
        weights = self.whole.weights if isinstance(self.whole, Mixture) else None
        return {
            "datasets": [
                {
                    "name": dataset.root.resolve().name,
                    "fingerprint": dataset.fingerprint(),
                    "episodes": ranges_of(_own(self.whole, self.chosen, number)),
                    "weight": None if weights is None else weights[number],
                }
                for number, dataset in enumerate(self.datasets)
            ]
        }


def open_data(run: Run) -> TrainingData:
    """Open the datasets of a run.

    Raises:
        FileNotFoundError: no dataset.
        SpecMismatch: the datasets are not of one robot, one rate and the same columns.
        ValueError: an unknown episode or sentence, nothing is left to train on, or a damaged dataset.
    """
    datasets = tuple(open_usable(root) for root in run.data.all_roots)
    names = [dataset.root.resolve().name for dataset in datasets]
    whole: LeRobotDataset | Mixture = datasets[0]
    if len(datasets) > 1:
        whole = Mixture(datasets, names=names, weights=run.data.weights or None)
    counts = [dataset.num_episodes for dataset in datasets]
    usable = [{entry.index for entry in without_excluded(dataset).episodes} for dataset in datasets]
    chosen = _chosen(run, datasets, names, counts, usable)
    held_out = _held_out(run, names, counts, usable, chosen)
    for name, own, out in zip(names, chosen, held_out, strict=True):
        if not own - out:
            raise ValueError(
                f"validation: expected to hold out some, not all, of the episodes {ranges_of(own)} of dataset "
                f"{name!r}, got {ranges_of(out)}; change validation.episodes or validation.fraction"
            )
    if len(datasets) > 1:
        for number, name in enumerate(names):
            start = _number(whole, number, 0)
            logger.info(
                "dataset %s: %d of %d episodes, numbered from %d on", name, len(chosen[number]), counts[number], start
            )
    selected = _numbered(whole, chosen)
    subset = Subset(whole, selected)
    return TrainingData(
        name=" + ".join(str(dataset.root) for dataset in datasets),
        datasets=datasets,
        whole=whole,
        usable=Subset(whole, _numbered(whole, usable)),
        chosen=subset,
        training=Subset(whole, set(selected) - set(_numbered(whole, held_out))),
        held_out=tuple(sorted(_numbered(whole, held_out))),
        fingerprint=subset.fingerprint(),
        content_fingerprint=whole.content_fingerprint() if isinstance(whole, Mixture) else whole.fingerprint(),
    )


def data_record(data: DataConfig) -> dict[str, Any]:
    """What a run's record says of its data settings: folders by name alone, and choices only where some were made."""
    named = dataclasses.replace(
        data,
        root=Path(data.root.name),
        roots=tuple(Path(root.name) for root in data.roots),
        cache=Path(data.cache.name),
        statistics=Path(data.statistics.name),
    )
    record: dict[str, Any] = plain(named)
    unset = plain(DataConfig())
    del record["workers"]  # changes no number
    return {key: item for key, item in record.items() if key not in _CHOICES or item != unset[key]}


def run_statistics(settings: DataConfig, data: TrainingData) -> tuple[dict[str, Statistics], dict[str, Any]]:
    """What states, actions and values are normalized with, and what is recorded of a file that gives it.

    One set serves all datasets of a mixture, because one set travels with the policy: rows count as often as they are
    drawn. Held-out episodes count too, those that the run does not choose do not.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: a row of the data, or the file, cannot be used.
    """
    if data.is_whole_dataset:
        statistics = current_statistics(data.datasets[0], view=data.usable)
    else:
        with ProgressBar("statistics", unit="episodes") as bar:
            statistics = compute_statistics(data.chosen, progress=bar.show)
    if settings.statistics == Path():
        return statistics, {}
    widths = {name: feature.width for name, feature in statistics.items()}
    given = read_given_statistics(
        settings.statistics,
        widths=widths,
        entry=settings.statistics_entry,
        kind=settings.normalization,
        action_type=settings.action_type,
    )
    logger.info(
        "normalizing with %s of %s; %s computed from the data",
        *(", ".join(given), settings.statistics, ", ".join(set(statistics) - set(given)) or "nothing is"),
    )
    chosen = {name: feature.to_dict() for name, feature in given.items()}
    return statistics | given, {"statistics": {"name": settings.statistics.name, "sha256": digest([chosen])}}


def _chosen(
    run: Run, datasets: tuple[LeRobotDataset, ...], names: list[str], counts: list[int], usable: list[set[int]]
) -> list[set[int]]:
    """Numbers trained on or held out of them, by dataset."""
    tasks = set(run.data.tasks)
    every = (entry.task for dataset in datasets for entry in dataset.episodes)
    require_tasks(run.data.tasks, every, setting="data.tasks")
    ranges = parse_episodes(run.data.episodes, setting="data.episodes")
    wanted = choose_episodes(ranges, names=names, counts=counts, setting="data.episodes")
    chosen = []
    for number, dataset in enumerate(datasets):
        named = wanted[number]
        own = usable[number] if named is None else named & usable[number]
        if run.data.split != "all":
            entries = [dataset.episodes[index] for index in sorted(usable[number])]
            own &= set(split_episodes(entries).part(run.data.split))
        if tasks:
            own = {index for index in own if dataset.episodes[index].task in tasks}
        if not own:
            raise ValueError(
                f"expected episodes to train on in {dataset.root}, none of its {dataset.num_episodes} is left by "
                f"data.episodes {list(run.data.episodes)}, data.tasks {list(run.data.tasks)}, data.split "
                f"{run.data.split!r} and {EXCLUDE_PATH} "
                f"({dataset.num_episodes - len(usable[number])} episodes); change these, or leave the dataset out"
            )
        chosen.append(own)
    return chosen


def _held_out(
    run: Run, names: list[str], counts: list[int], usable: list[set[int]], chosen: list[set[int]]
) -> list[set[int]]:
    """Numbers that are not trained on, by dataset.

    Of a share, whether an episode is held out depends on the seed, its number and the episodes in its dataset alone: no
    choice of episodes, tasks or other datasets brings one that was measured on into training. A dataset none of whose
    chosen episodes is drawn gives the first in the order of the draw.
    """
    wanted = run.validation
    if wanted.fraction:
        held_out = []
        for count, own in zip(counts, chosen, strict=True):
            order = torch.randperm(count, generator=seeded(run.seed, "held out")).tolist()
            drawn = set(order[: max(1, round(wanted.fraction * count))]) & own
            held_out.append(drawn or {next(index for index in order if index in own)})
        return held_out
    ranges = parse_episodes(wanted.episodes, setting="validation.episodes")
    named = choose_episodes(ranges, names=names, counts=counts, setting="validation.episodes")
    held_out = [set() if own is None else own for own in named]
    for name, own, known in zip(names, held_out, usable, strict=True):
        if not own <= known:
            raise ValueError(
                f"validation.episodes: expected episodes that can be used, got {ranges_of(own - known)} of dataset "
                f"{name!r}, which its {EXCLUDE_PATH} leaves out; choose others"
            )
    return held_out


def _number(whole: EpisodeSource, part: int, episode: int) -> int:
    return whole.number(part, episode) if isinstance(whole, Mixture) else episode


def _numbered(whole: EpisodeSource, chosen: list[set[int]]) -> list[int]:
    return [_number(whole, part, index) for part, own in enumerate(chosen) for index in own]


def _own(whole: EpisodeSource, subset: Subset, part: int) -> list[int]:
    """Numbers, in their own dataset, of a subset's episodes of one dataset."""
    if not isinstance(whole, Mixture):
        return [entry.index for entry in subset.episodes]
    first = whole.number(part, 0)
    return [entry.index - first for entry in subset.episodes if whole.part_of(entry.index) == part]
