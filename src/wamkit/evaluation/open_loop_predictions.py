"""What a policy predicted along recorded episodes, beside what was recorded: arrays, and their npz files."""

from __future__ import annotations

import dataclasses
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from wamkit.atomic import atomic_file


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Predicted and recorded numbers of every call, in physical units and in the network's range.

    Args:
        predicted: `[n, p, c]`, physical units.
        true: the same rows as recorded; past the end of the episode its last row.
        normalized: `predicted` in the network's range (values: z-scored).
        true_normalized: `true` in the network's range.
    """

    predicted: Float[np.ndarray, "n p c"]
    true: Float[np.ndarray, "n p c"]
    normalized: Float[np.ndarray, "n p c"]
    true_normalized: Float[np.ndarray, "n p c"]


@dataclass(frozen=True, kw_only=True)
class VideoComparison:
    """Mean squared pixel errors of every imagined frame, 0 … 255 squared.

    Args:
        steps: control steps ahead of each frame.
        rows: dataset rows of the real frames; past the end of the episode there is none to compare with.
        error: of the imagined frame.
        copy_error: of the last remembered frame in its place.
    """

    steps: Int[np.ndarray, "k"]
    rows: Int[np.ndarray, "n k"]
    error: Float[np.ndarray, "n k v"]
    copy_error: Float[np.ndarray, "n k v"]


@dataclass(frozen=True, kw_only=True)
class EpisodePrediction:
    """Everything that was predicted along one episode.

    Args:
        episode: index in the dataset.
        seed: of the policy's draws.
        length: rows of the episode.
        current: present row of each call.
        rows: dataset rows of the predicted actions and states; those not below `length` are not compared.
        value_positions: place of each value within the chunk.
        actions: control channels.
        states: state channels, or `None` when the policy predicts none.
        value: the last value channel, or `None`.
        video: imagined frames, or `None`.
    """

    episode: int
    seed: int
    length: int
    current: Int[np.ndarray, "n"]
    rows: Int[np.ndarray, "n p"]
    value_positions: Int[np.ndarray, "y"]
    actions: Comparison
    states: Comparison | None
    value: Comparison | None
    video: VideoComparison | None

    @property
    def is_inside(self) -> Bool[np.ndarray, "n p"]:
        """Which rows are part of the episode."""
        return self.rows < self.length

    def save(self, path: Path) -> None:
        """Write all arrays as npz, whole or not at all."""
        arrays: dict[str, np.ndarray] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if dataclasses.is_dataclass(value):
                arrays |= {f"{item.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
            elif value is not None:
                arrays[item.name] = np.asarray(value)
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> EpisodePrediction:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"expected the predictions of an episode at {path}, found no file")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            parts: dict[str, dict[str, np.ndarray]] = {}
            for name in [name for name in arrays if "." in name]:
                group, part = name.split(".")
                parts.setdefault(group, {})[part] = arrays.pop(name)
            plain: dict[str, Any] = {key: int(arrays.pop(key)) for key in ("episode", "seed", "length")}
            video = parts.pop("video", None)
            groups: dict[str, Any] = {
                key: Comparison(**parts[key]) if key in parts else None for key in ("actions", "states", "value")
            }
            return cls(**plain, **arrays, **groups, video=None if video is None else VideoComparison(**video))
        except (KeyError, TypeError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: expected the predictions of an episode, got something else ({error})") from error
