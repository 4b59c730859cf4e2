"""Several datasets of one robot as one: episodes numbered through, windows drawn in given shares."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from wamkit.data.features import ACTION, STATE
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE, EpisodeEntry, EpisodeSource, Fingerprinted, where
from wamkit.data.subset import Subset, digest
from wamkit.spec import RobotSpec, SpecMismatch, require_match


@dataclass(frozen=True, kw_only=True)
class MixedEntry:
    """An episode of a mixture.

    Args:
        index: number in the mixture.
        length: rows.
        task: its sentence.
        part: which dataset, from 0.
        own_index: number in that dataset.
    """

    index: int
    length: int
    task: str
    part: int
    own_index: int


class Mixture:
    """Datasets one after the other: episode i of a dataset has the number i + the episodes of those before it.

    Args:
        parts: the datasets.
        names: of each, for messages.
        weights: share of the windows drawn from each dataset, on any scale; `None` draws every window of all datasets
            equally often.

    Raises:
        SpecMismatch: robots, frame rates or columns of two datasets differ; the message names both.
        ValueError: no dataset, one that does not name its robot, or weights that are not positive numbers, one each.
    """

    def __init__(
        self, parts: Sequence[EpisodeSource], *, names: Sequence[str], weights: Sequence[float] | None = None
    ) -> None:
        if not parts or len(names) != len(parts):
            raise ValueError(f"mixture: expected one or more datasets with a name each, got {len(parts)}, {names}")
        self.parts, self.names = tuple(parts), tuple(names)
        self.weights = None if weights is None else shares(weights, names)
        for name, part in zip(names, parts, strict=True):
            require_alike(parts[0], part, names[0], name)
        self._starts = [0, *accumulate(_num_numbers(part) for part in parts)]
        self.episodes: list[EpisodeEntry] = [
            MixedEntry(
                index=self._starts[number] + entry.index,
                length=entry.length,
                task=entry.task,
                part=number,
                own_index=entry.index,
            )
            for number, part in enumerate(parts)
            for entry in part.episodes
        ]

    @property
    def robot(self) -> RobotSpec | None:
        """The robot of all datasets, with the cameras of the first."""
        return self.parts[0].robot

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras of the first dataset; the others have them too."""
        return tuple(self.parts[0].cameras)

    def part_of(self, episode: int) -> int:
        """Which dataset an episode belongs to, from 0."""
        if not 0 <= episode < self._starts[-1]:
            raise ValueError(f"mixture: expected an episode from 0 to {self._starts[-1] - 1}, got {episode}")
        return bisect_right(self._starts, episode) - 1

    def number(self, part: int, episode: int) -> int:
        """The number in the mixture of an episode of a dataset."""
        return self._starts[part] + episode

    def columns(self, episode: int) -> dict[str, np.ndarray]:
        """Columns of an episode, `[T]` or `[T, c]` each."""
        part, own = self._own(episode)
        return part.columns(own)

    def frames(self, episode: int, camera: str, indices: Sequence[int]) -> np.ndarray:
        """The named rows' frames, uint8 `[t, h, w, 3]`."""
        part, own = self._own(episode)
        return part.frames(own, camera, indices)

    def place_name(self, episode: int) -> str:
        """How messages name an episode: by its dataset and its number there."""
        part, own = self._own(episode)
        return f"{where(part, own)} of {self.names[self.part_of(episode)]!r}"

    def content_fingerprint(self) -> str:
        """A hash of the datasets in their order, whatever their weights.

        Raises:
            TypeError: a dataset has no fingerprint.
        """
        others = [type(part).__name__ for part in self.parts if not isinstance(part, Fingerprinted)]
        if others:
            raise TypeError(f"{others[0]} has no fingerprint, so a mixture with it has none")
        return digest([part.fingerprint() for part in self.parts if isinstance(part, Fingerprinted)])

    def fingerprint(self) -> str:
        """A hash of the datasets and their weights.

        Raises:
            TypeError: a dataset has no fingerprint.
        """
        return digest([self.content_fingerprint(), self.weights])

    def _own(self, episode: int) -> tuple[EpisodeSource, int]:
        part = self.part_of(episode)
        return self.parts[part], episode - self._starts[part]


def mixture_of(source: EpisodeSource) -> Mixture | None:
    """The mixture that a dataset is, or is a subset of; `None` for any other."""
    while isinstance(source, Subset):
        source = source.whole
    return source if isinstance(source, Mixture) else None


def shares(weights: Sequence[float], names: Sequence[str]) -> tuple[float, ...]:
    """Weights that sum to 1.

    Raises:
        ValueError: another number of them than names, or one that is not positive and finite.
    """
    wrong = [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]
    if len(weights) != len(names) or wrong:
        raise ValueError(
            f"mixture: expected a positive weight for each of the {len(names)} datasets {list(names)}, got "
            f"{list(weights)}; leave out a dataset that is not wanted"
        )
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def require_alike(one: EpisodeSource, other: EpisodeSource, name: str, other_name: str) -> None:
    """Refuse to mix two datasets whose numbers or pictures mean different things.

    Raises:
        SpecMismatch: robots, rates, columns or value settings differ.
        ValueError: one does not name its robot.
    """
    for source, its_name in ((one, name), (other, other_name)):
        if source.robot is None:
            raise ValueError(
                f"mixture: expected datasets that name their robot, to compare them; {its_name!r} does not: say what "
                "it is with `wamkit data describe`"
            )
    assert one.robot is not None and other.robot is not None
    require_match(one.robot, other.robot, wanted_by=f"dataset {name!r}", offered_by=f"dataset {other_name!r}")
    if not isinstance(one, LeRobotDataset) or not isinstance(other, LeRobotDataset):
        return
    facts = (_facts(one), _facts(other))
    differing = [f"{key}: {facts[0][key]} and {facts[1][key]}" for key in facts[0] if facts[0][key] != facts[1][key]]
    if differing:
        listed = "\n  - ".join(differing)
        raise SpecMismatch(
            f"datasets {name!r} and {other_name!r} cannot be mixed, they differ in\n  - {listed}\nRecord or convert "
            "one as the other; values are written with `wamkit data values` and the same options in both."
        )


def _facts(dataset: LeRobotDataset) -> dict[str, object]:
    columns = {key: dataset.features[key]["shape"] for key in (ACTION, STATE, VALUE) if key in dataset.features}
    found: dict[str, object] = {"fps": dataset.fps}
    found |= {f"column {key!r}": columns.get(key, "none") for key in (ACTION, STATE, VALUE)}
    return found | {"value settings": dataset.wamkit.get(VALUE) if VALUE in columns else None}


def _num_numbers(source: EpisodeSource) -> int:
    """Numbers that a dataset's episodes take, so that leaving some out does not move those of the next dataset."""
    while isinstance(source, Subset):
        source = source.whole
    return max((entry.index for entry in source.episodes), default=-1) + 1
