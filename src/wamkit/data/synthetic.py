"""A world too small to fail: a coloured square that actions push to a corner, for tests and smoke runs.

Everything follows from the seed: the picture from the state, the next state from the action.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from wamkit.data.features import ACTION, REWARD, STATE, SUCCESS
from wamkit.data.source import VALUE
from wamkit.episode import Episode
from wamkit.spec import CameraSpec, ChannelSpec, RobotSpec

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230), "yellow": (230, 210, 50)}
REACHED = 0.08


def synthetic_robot(
    *, height: int = 32, width: int = 32, cameras: Sequence[str] = ("front", "wrist"), control_hz: float = 20.0
) -> RobotSpec:
    """The square's spec: position and gripper as state (3), push and gripper as action (3)."""
    return RobotSpec(
        name="square/synthetic",
        cameras=tuple(CameraSpec(name=name, height=height, width=width) for name in cameras),
        state=(
            ChannelSpec(name="x", unit="m", frame="world"),
            ChannelSpec(name="y", unit="m", frame="world"),
            ChannelSpec(name="gripper_opening"),
        ),
        action=(
            ChannelSpec(name="dx", unit="m", frame="world"),
            ChannelSpec(name="dy", unit="m", frame="world"),
            ChannelSpec(name="gripper"),
        ),
        action_kind="delta",
        gripper_channels=(2,),
        gripper_sign="close_positive",
        control_hz=control_hz,
        rendering="numpy",
    )


def render_square(
    position: np.ndarray, opening: float, colour: tuple[int, int, int], *, height: int, width: int, view: int
) -> np.ndarray:
    """One picture, uint8 `[h, w, 3]`.

    Args:
        position: x and y in [0, 1], y upwards.
        opening: gripper opening in [0, 1]; the square fades as the gripper closes.
        colour: of the square.
        height: pixels.
        width: pixels.
        view: 0 looks at the table from the front; every further view is turned by another quarter, with a darker table.
    """
    x, y = position
    rows = (np.arange(height)[:, None] + 0.5) / height
    columns = (np.arange(width)[None, :] + 0.5) / width
    for _ in range(view % 4):
        rows, columns = columns, 1 - rows
    square = (np.abs(columns - x) < 0.13) & (np.abs(1 - rows - y) < 0.13)
    goal = (columns > 0.85) & (1 - rows > 0.85)
    picture = np.full((height, width, 3), 150 - 25 * (view % 4), dtype=np.float64)
    picture[goal] = (255, 255, 255)
    picture[square] = np.array(colour) * (0.6 + 0.4 * opening)
    return picture.astype(np.uint8)


def synthetic_episodes(
    num: int,
    *,
    length: int = 20,
    height: int = 32,
    width: int = 32,
    cameras: Sequence[str] = ("front", "wrist"),
    seed: int = 0,
) -> list[Episode]:
    """Demonstrations in which the square is pushed to the upper right corner and the gripper closes there.

    Args:
        num: episodes.
        length: rows of each, 2 or more; the corner is reached shortly before the last.
        height: pixels.
        width: pixels.
        cameras: names, in view order.
        seed: of starts, colours and the demonstrator's noise.
    """
    if length < 2:
        raise ValueError(f"expected synthetic episodes of 2 or more rows, got length={length}")
    return [
        _episode(length, height, width, tuple(cameras), np.random.default_rng((seed, number)), number)
        for number in range(num)
    ]


def _episode(
    length: int, height: int, width: int, cameras: tuple[str, ...], rng: np.random.Generator, number: int
) -> Episode:
    name = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    goal = np.array([0.9, 0.9])
    position, opening = rng.uniform([0.1, 0.1], [0.5, 0.9]), 1.0
    step = np.abs(goal - position).max() / max(1.0, 0.8 * (length - 1))
    states, actions, success = [], [], []
    video: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    for _ in range(length):
        states.append([*position, opening])
        for view, camera in enumerate(cameras):
            video[camera].append(render_square(position, opening, COLOURS[name], height=height, width=width, view=view))
        reached = bool(np.abs(goal - position).max() < REACHED)
        push = np.clip(goal - position, -step, step) * rng.uniform(0.8, 1.2, size=2)
        actions.append([*push, 1.0 if reached else -1.0])
        position = np.clip(position + push, 0.0, 1.0)
        opening = 0.3 if reached else 1.0
        success.append(bool(np.abs(goal - position).max() < REACHED))
    return Episode(
        actions=np.array(actions, dtype=np.float32),
        state=np.array(states, dtype=np.float32),
        video={camera: np.stack(frames) for camera, frames in video.items()},
        reward=np.array(success, dtype=np.float32),
        success=np.array(success),
        task=f"push the {name} square into the corner",
        metadata={"episode": number, "colour": name},
    )


@dataclass(frozen=True, kw_only=True)
class MemoryEntry:
    """One line of the episode table of a `MemoryDataset`."""

    index: int
    length: int
    task: str


class MemoryDataset:
    """Episodes in memory with the reading interface of a dataset on disk.

    Args:
        episodes: in the order of their indices.
        robot: their robot; `None` as of a foreign dataset.
        values: value column per episode, float32 `[T, r]`, if the episodes are labelled.
    """

    def __init__(
        self, episodes: Iterable[Episode], robot: RobotSpec | None, values: Sequence[np.ndarray] | None = None
    ) -> None:
        self.robot = robot
        self._episodes = list(episodes)
        self._values = values
        self.episodes = [
            MemoryEntry(index=index, length=len(episode), task=episode.task)
            for index, episode in enumerate(self._episodes)
        ]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names in view order."""
        return self.robot.camera_names if self.robot is not None else tuple(self._episodes[0].video)

    def columns(self, episode: int) -> dict[str, np.ndarray]:
        """Columns of an episode under the names of a dataset on disk."""
        chosen = self._episodes[episode]
        outcome = {REWARD: chosen.reward, SUCCESS: chosen.success}
        columns = {ACTION: chosen.actions, STATE: chosen.state}
        columns |= {key: column for key, column in outcome.items() if column is not None}
        return columns if self._values is None else {**columns, VALUE: self._values[episode]}

    def frames(self, episode: int, camera: str, indices: Sequence[int]) -> np.ndarray:
        """Frames of the named rows, uint8 `[t, h, w, 3]`."""
        return self._episodes[episode].video[camera][np.asarray(indices, dtype=np.int64)]
