"""What an open-loop validation leaves behind: `openloop.json`, and where its other files lie.

openloop.json                            `OpenLoopResults`
predictions/episode_000001_seed_0.npz    `EpisodePrediction`: predicted and recorded numbers of every call
plots/episode_000001/*.svg               predicted against recorded, one picture per channel
videos/episode_000001.mp4                real frames above imagined ones, cameras side by side
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.data.lerobot import LeRobotDataset
from wamkit.evaluation.open_loop_errors import Errors
from wamkit.evaluation.open_loop_protocol import OpenLoopProtocol
from wamkit.evaluation.results import PolicyIdentity, read_results, write_json

FORMAT = "wamkit-openloop/1"
RESULTS_FILE, PREDICTIONS_FOLDER, PLOTS_FOLDER, VIDEOS_FOLDER = "openloop.json", "predictions", "plots", "videos"
OWN_FILES = (RESULTS_FILE, PREDICTIONS_FOLDER, PLOTS_FOLDER, VIDEOS_FOLDER)


@dataclass(frozen=True, kw_only=True)
class DatasetIdentity:
    """What was validated on.

    Args:
        name: a name for people, for instance the folder's.
        fingerprint: of its content, or `None` when it has none.
        robot: the robot's name.
        was_trained_on: whether the policy says that it was trained on this very dataset; `None` when it does not say
            what it was trained on.
    """

    name: str
    fingerprint: str | None
    robot: str
    was_trained_on: bool | None

    @classmethod
    def of(cls, dataset: LeRobotDataset, training: Mapping[str, Any]) -> DatasetIdentity:
        """A dataset, beside what a policy says of its training (`training.json`)."""
        fingerprint, trained_on = dataset.fingerprint(), training.get("data_fingerprint")
        recipe = training.get("recipe")
        parts = recipe.get("datasets") if isinstance(recipe, Mapping) else None
        known = [part.get("fingerprint") for part in parts or () if isinstance(part, Mapping)]
        return cls(
            name=dataset.root.resolve().name,
            fingerprint=fingerprint,
            robot="" if dataset.robot is None else dataset.robot.name,
            was_trained_on=None if trained_on is None else fingerprint in (trained_on, *known),
        )


@dataclass(frozen=True, kw_only=True)
class EpisodeErrors:
    """Errors of one episode, over all seeds.

    Args:
        episode: index in the dataset.
        task: its sentence.
        length: rows.
        errors: of every call on it.
    """

    episode: int
    task: str
    length: int
    errors: Errors


@dataclass(frozen=True, kw_only=True)
class OpenLoopResults:
    """The content of `openloop.json`.

    Args:
        protocol: which rows were shown and compared.
        policy: who predicted, with the planner's settings.
        dataset: what was validated on.
        num_context: frames the policy remembers.
        action_horizon: actions of a chunk.
        control_hz: rows per second.
        seeds: of the policy's draws; each is a pass over all calls.
        batch_size: calls computed at once.
        episodes: errors of each.
        total: errors over all of them; every compared row counts alike.
        wall_seconds: of the predictions.
        versions: wamkit, Python, torch, simulators.
    """

    protocol: OpenLoopProtocol
    policy: PolicyIdentity
    dataset: DatasetIdentity
    num_context: int
    action_horizon: int
    control_hz: float
    seeds: tuple[int, ...]
    batch_size: int
    episodes: tuple[EpisodeErrors, ...]
    total: Errors
    wall_seconds: float
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """What `openloop.json` holds."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def save(self, folder: Path) -> Path:
        """Write `openloop.json`, whole or not at all."""
        path = folder / RESULTS_FILE
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, folder: Path) -> OpenLoopResults:
        """Read `openloop.json` of a folder.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: it is not a result of this format.
        """
        return read_results(folder / RESULTS_FILE, FORMAT, cls, advice=lambda: "make it with `wamkit openloop`")


def prediction_path(folder: Path, episode: int, seed: int) -> Path:
    """Where the predictions of an episode lie."""
    return folder / PREDICTIONS_FOLDER / f"{episode_name(episode)}_seed_{seed}.npz"


def video_path(folder: Path, episode: int) -> Path:
    """Where the film of an episode lies, if one was made."""
    return folder / VIDEOS_FOLDER / f"{episode_name(episode)}.mp4"


def episode_name(episode: int) -> str:
    """As datasets name their files."""
    return f"episode_{episode:06d}"
