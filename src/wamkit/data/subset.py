"""Some episodes of a dataset, which is a dataset too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wamkit.data.source import EpisodeEntry, EpisodeSource, Fingerprinted, where
from wamkit.spec import RobotSpec


class Subset:
    """Some episodes of a dataset under the numbers that they have there; nothing is copied.

    Args:
        whole: the dataset.
        episodes: numbers of those wanted; they come in the order of the dataset.

    Raises:
        ValueError: none are wanted, or the dataset does not have one.
    """

    def __init__(self, whole: EpisodeSource, episodes: Iterable[int]) -> None:
        wanted = set(episodes)
        known = {entry.index for entry in whole.episodes}
        if not wanted or not wanted <= known:
            raise ValueError(
                f"expected some of the dataset's {len(known)} episodes, got {sorted(wanted - known) or 'none'}; choose "
                "others"
            )
        self.whole = whole
        self.episodes: list[EpisodeEntry] = [entry for entry in whole.episodes if entry.index in wanted]

    @property
    def robot(self) -> RobotSpec | None:
        """The dataset's."""
        return self.whole.robot

    @property
    def cameras(self) -> tuple[str, ...]:
        """The dataset's."""
        return tuple(self.whole.cameras)

    def columns(self, episode: int) -> dict[str, np.ndarray]:
        """Columns of an episode, `[T]` or `[T, c]` each."""
        return self.whole.columns(episode)

    def frames(self, episode: int, camera: str, indices: Sequence[int]) -> np.ndarray:
        """The named rows' frames, uint8 `[t, h, w, 3]`."""
        return self.whole.frames(episode, camera, indices)

    def place_name(self, episode: int) -> str:
        """How messages name an episode."""
        return where(self.whole, episode)

    def fingerprint(self) -> str:
        """A hash of the dataset and the choice; the dataset's own when all its episodes are chosen.

        Raises:
            TypeError: the dataset has no fingerprint.
        """
        if not isinstance(self.whole, Fingerprinted):
            raise TypeError(f"a {type(self.whole).__name__} has no fingerprint, so its subsets have none")
        if len(self.episodes) == len(self.whole.episodes):
            return self.whole.fingerprint()
        return digest([self.whole.fingerprint(), [entry.index for entry in self.episodes]])


def digest(facts: list[Any]) -> str:
    """SHA-256 of JSON facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
