"""Episodes to train on, episodes of the same tasks to measure on, and episodes of tasks never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from wamkit.data.source import EpisodeEntry
from wamkit.data.task_names import task_name

Part = Literal["train", "val_ind", "val_ood", "all"]
PARTS: Final[tuple[Part, ...]] = ("train", "val_ind", "val_ood", "all")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Three sets of episodes without a common one, as rising numbers.

    Args:
        train: to train on.
        val_ind: of the same tasks (in distribution), held out.
        val_ood: of tasks that are held out as a whole (out of distribution).
    """

    train: tuple[int, ...]
    val_ind: tuple[int, ...]
    val_ood: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Every episode. What was trained on these has seen both validation sets: measured there, it says nothing."""
        return tuple(sorted((*self.train, *self.val_ind, *self.val_ood)))

    def part(self, name: Part) -> tuple[int, ...]:
        """One of the sets, by its name."""
        return {"train": self.train, "val_ind": self.val_ind, "val_ood": self.val_ood, "all": self.all}[name]


def split_episodes(entries: Sequence[EpisodeEntry], *, legacy_lexicographic: bool = False) -> Splits:
    """Split the episodes of one dataset, always in the same way.

    Tasks are sorted by name; the first nine tenths, rounded up, are in distribution. Of each of these the first nine
    tenths of its episodes, rounded up, are trained on. So fewer than ten tasks leave none out of distribution, and a
    task of fewer than ten episodes leaves none of them out.

    Published tables of success rates are of policies trained on `Splits.all`, which holds both validation sets: for
    such a policy they are part of the training data, and numbers measured there mean nothing. Train on `train` for
    world-model metrics and ablations.

    Args:
        entries: the episodes of one dataset that may be used; of several datasets split each on its own, as a mixture
            knows its tasks by their sentences alone.
        legacy_lexicographic: count a task's episodes as the published files do, whose folders `trj_0`, `trj_1`,
            `trj_10`, … are sorted as text, so that of 50 the numbers 5 to 9 are held out instead of 45 to 49.

    Raises:
        ValueError: there are no episodes.

    Source: WorldVLA 3.3 of the specification.
    Differs: numeric order, unless the other is asked for.
    """
    if not entries:
        raise ValueError("splits: expected episodes, got none; choose a dataset that has some")
    tasks: dict[str, list[int]] = {}
    for entry in sorted(entries, key=lambda entry: entry.index):
        tasks.setdefault(task_name(entry), []).append(entry.index)
    names = sorted(tasks)
    num_in_distribution = _nine_tenths(len(names))
    train: list[int] = []
    val_ind: list[int] = []
    for name in names[:num_in_distribution]:
        order = sorted(range(len(tasks[name])), key=str) if legacy_lexicographic else range(len(tasks[name]))
        numbers = [tasks[name][position] for position in order]
        train += numbers[: _nine_tenths(len(numbers))]
        val_ind += numbers[_nine_tenths(len(numbers)) :]
    val_ood = [number for name in names[num_in_distribution:] for number in tasks[name]]
    return Splits(train=tuple(sorted(train)), val_ind=tuple(sorted(val_ind)), val_ood=tuple(sorted(val_ood)))


def _nine_tenths(count: int) -> int:
    """ceil(0.9 count), in whole numbers: 0.9 has no exact float."""
    return (9 * count + 9) // 10
