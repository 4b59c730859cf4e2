"""Write a LeRobot dataset as frames and actions in files of their own, with the conversations that WorldVLA reads."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from wamkit.data.conversations import (
    ACTION_TEXT,
    TASK,
    WORLD_TEXT,
    Conversation,
    Kind,
    action_path,
    action_rows,
    has_placeholder,
    image_path,
    require_texts,
    world_rows,
)
from wamkit.data.conversion import new_dataset
from wamkit.data.exclusions import open_usable, without_excluded
from wamkit.data.features import ACTION
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.noop import kept_rows
from wamkit.data.source import EpisodeEntry, EpisodeSource, numeric_column, where
from wamkit.data.splits import PARTS, Part, split_episodes
from wamkit.data.task_names import task_name

logger = logging.getLogger(__name__)

_LONGEST_NAME = 200
"""Bytes of a folder's name; file systems end at 255."""


@dataclass(frozen=True, kw_only=True)
class ConversationSettings:
    """What is written.

    Args:
        name: beginning of the lists' names, as libero_goal; by default the dataset folder's.
        camera: whose frames; by default the first.
        action_history: M, frames in a question about actions.
        action_horizon: K, actions in an answer.
        world_history: (frame, action) pairs in a question about the next frame.
        action_text: question about actions; `{task}` stands for the sentence.
        world_text: question about the next frame.
        parts: which parts of the split get lists; frames and actions of every episode are written.
        legacy_lexicographic: split as the published files do (`split_episodes`).
        legacy_prompt: call a task by its name with its scene, in folder and question, as the published files do; by
            default by its sentence.
        pictures: `turn` turns them by 180 degrees. The published files turn what LIBERO's simulator gives, which makes
            it upright; datasets of ours are upright.
        idle: `drop` leaves out rows that do nothing (`kept_rows`).
        absolute_paths: name files by absolute paths, as the published code does; by default from the lists' folder.

    Source: WorldVLA 2.5 and 3.3 of the specification.
    """

    name: str = ""
    camera: str = ""
    action_history: int = 2
    action_horizon: int = 5
    world_history: int = 1
    action_text: str = ACTION_TEXT
    world_text: str = WORLD_TEXT
    parts: tuple[Part, ...] = ("train", "val_ind", "val_ood")
    legacy_lexicographic: bool = False
    legacy_prompt: bool = False
    pictures: Literal["turn", "keep"] = "keep"
    idle: Literal["drop", "keep"] = "keep"
    absolute_paths: bool = False

    def __post_init__(self) -> None:
        for name in ("action_history", "action_horizon", "world_history"):
            if getattr(self, name) < 1:
                raise ValueError(f"conversations: expected {name} of 1 or more, got {getattr(self, name)}")
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"conversations: expected some of the parts {list(PARTS)}, got {list(self.parts)}")
        if self.name and folder_name(self.name) != self.name:
            raise ValueError(
                f"conversations: expected a name of letters, digits and ._,'- for the files, got {self.name!r}; try "
                f"{folder_name(self.name)!r}"
            )
        require_texts(self.action_text, self.world_text)


@dataclass(frozen=True, kw_only=True)
class ConversationsReport:
    """What was written.

    Args:
        output: the folder made.
        camera: whose frames.
        episodes: written as trajectories.
        frames: in them.
        dropped_rows: left out because they do nothing.
        short_episodes: of fewer rows than an answer has actions, so that nothing is asked about theirs.
        files: list -> its conversations.
        empty: parts that have no episodes, and so no lists.
    """

    output: Path
    camera: str
    episodes: int
    frames: int
    dropped_rows: int
    short_episodes: int
    files: dict[str, int]
    empty: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dataclasses.asdict(self) | {"output": str(self.output)}


def write_conversations(
    source: Path | str,
    output: Path | str,
    settings: ConversationSettings | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ConversationsReport:
    """Write every usable episode of a dataset as a trajectory, and the lists of the wanted parts.

    Numbers are written as float32, frames as they are decoded. State, rewards and other cameras have no place there.

    Args:
        source: dataset folder.
        output: a folder that does not exist, or an empty one.
        settings: what.
        progress: called with (episodes done, episodes).

    Returns:
        What was written.

    Raises:
        FileNotFoundError: no dataset, or a file of it is missing.
        FileExistsError: there is something at `output`.
        DatasetError: the dataset is damaged.
        ValueError: an unknown camera, two tasks whose folders would have one name, an episode without a sentence, or
            rows that do nothing cannot be told.
        OSError: writing failed.
    """
    source, output, settings = Path(source), Path(output), settings or ConversationSettings()
    whole = open_usable(source)
    dataset = without_excluded(whole)
    names = _folder_names(dataset.episodes, settings)
    camera = _camera(whole, settings.camera)
    grippers = _grippers(whole) if settings.idle == "drop" else None
    splits = split_episodes(dataset.episodes, legacy_lexicographic=settings.legacy_lexicographic)
    members = {part: set(splits.part(part)) for part in settings.parts}
    numbers: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    with new_dataset(output, source) as folder, ExitStack() as stack:
        root = f"{output.absolute().as_posix()}/" if settings.absolute_paths else ""
        lists: dict[str, _JsonList] = {}
        for done, entry in enumerate(dataset.episodes):
            task = names[entry.index]
            actions, frames = _recorded(dataset, entry, camera, grippers)
            if settings.pictures == "turn":
                frames = frames[:, ::-1, ::-1]
            _write_trajectory(folder, task, numbers[task], actions, frames)
            asked = _Asked(task=task, number=numbers[task], length=len(actions), root=root, sentence=entry.task)
            for part in (part for part in settings.parts if entry.index in members[part]):
                for kind, items in (("action", asked.about_actions(settings)), ("world", asked.about_frames(settings))):
                    name = _list_name(kind, part, settings, folder_name(source.resolve().name), frames.shape[1:3])
                    if name not in lists:
                        lists[name] = stack.enter_context(_JsonList(folder / name))
                    lists[name].add(items)
            numbers[task] += 1
            counts += Counter(
                frames=len(actions),
                dropped=entry.length - len(actions),
                short=int(len(actions) < settings.action_horizon),
            )
            if progress is not None:
                progress(done + 1, len(dataset.episodes))
    return ConversationsReport(
        output=output,
        camera=camera,
        episodes=len(dataset.episodes),
        frames=counts["frames"],
        dropped_rows=counts["dropped"],
        short_episodes=counts["short"],
        files={name: written.count for name, written in lists.items()},
        empty=tuple(part for part in settings.parts if not members[part]),
    )


def folder_name(text: str) -> str:
    """A text as a folder's name: underscores for spaces and for what file systems may not take."""
    name = re.sub(r"(?:[^\w.,'-]|_)+", "_", text.strip()).lstrip(".")
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore")


# -- before anything is written ----------------------------------------------------------------------------------------


def _folder_names(entries: Sequence[EpisodeEntry], settings: ConversationSettings) -> dict[int, str]:
    """Name of the task's folder, by episode."""
    names: dict[int, str] = {}
    owners: dict[str, str] = {}
    for entry in entries:
        if has_placeholder(entry.task):
            raise ValueError(f"episode {entry.index}: expected a sentence without placeholders, got {entry.task!r}")
        task = task_name(entry) if settings.legacy_prompt else entry.task.strip()
        name = folder_name(task)
        if not name:
            raise ValueError(
                f"episode {entry.index}: expected a sentence to name its folder by, got {entry.task!r}; exclude the "
                "episode, or write down what is done in it"
            )
        owner = owners.setdefault(name, task)
        if owner != task:
            raise ValueError(
                f"expected tasks whose folders have different names, got {name!r} for {owner!r} and {task!r}; give one "
                "of them another sentence"
            )
        names[entry.index] = name
    if settings.legacy_prompt and all(names[entry.index] == folder_name(entry.task) for entry in entries):
        logger.warning("legacy_prompt has no effect: no episode of the dataset says its scene")
    return names


def _camera(dataset: LeRobotDataset, wanted: str) -> str:
    cameras = dataset.robot.camera_names if dataset.robot is not None else dataset.cameras
    if not cameras or wanted not in ("", *dataset.cameras):
        raise ValueError(f"expected a camera among {list(dataset.cameras)}, got {wanted!r}; choose one with --camera")
    return wanted or cameras[0]


def _grippers(dataset: LeRobotDataset) -> tuple[int, ...]:
    """Channels that drive grippers, of a robot whose zero action moves nothing."""
    if dataset.robot is None:
        raise ValueError(
            f"expected a dataset that names its robot, whose grippers tell which rows do nothing, {dataset.root} does "
            "not; say what it is with `wamkit data describe`, or keep every row"
        )
    if dataset.robot.action_kind == "absolute":
        raise ValueError(
            f"expected actions that are motions, of which zero does nothing, robot {dataset.robot.name!r} of "
            f"{dataset.root} is driven by positions; keep every row"
        )
    return dataset.robot.gripper_channels


# -- one episode -------------------------------------------------------------------------------------------------------


def _recorded(
    dataset: EpisodeSource, entry: EpisodeEntry, camera: str, grippers: tuple[int, ...] | None
) -> tuple[Float[np.ndarray, "t a"], UInt8[np.ndarray, "t h w 3"]]:
    """Actions and frames of an episode, without rows that do nothing if grippers are given."""
    actions = numeric_column(dataset.columns(entry.index), ACTION, entry, source=dataset)
    rows = np.arange(len(actions)) if grippers is None else kept_rows(actions, gripper_channels=grippers)
    if len(rows) == 0:
        raise ValueError(
            f"{where(dataset, entry.index)}: expected actions that move the robot, got none; exclude the episode, or "
            "keep every row"
        )
    return actions[rows], dataset.frames(entry.index, camera, rows.tolist())


def _write_trajectory(folder: Path, task: str, number: int, actions: np.ndarray, frames: np.ndarray) -> None:
    for path in (image_path(task, number, 0), action_path(task, number, 0)):
        (folder / path).parent.mkdir(parents=True)
    for row, (action, frame) in enumerate(zip(actions, frames, strict=True)):
        Image.fromarray(np.ascontiguousarray(frame)).save(folder / image_path(task, number, row))
        np.save(folder / action_path(task, number, row), action, allow_pickle=False)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What can be asked about a trajectory."""

    task: str
    number: int
    length: int
    root: str
    sentence: str

    def about_actions(self, settings: ConversationSettings) -> Iterator[Conversation]:
        """Of every row that has K actions left."""
        task = self.task.replace("_", " ") if settings.legacy_prompt else self.sentence.strip()
        text = settings.action_text.replace(TASK, task)
        for row in range(self.length - settings.action_horizon + 1):
            rows = action_rows(row, history=settings.action_history, horizon=settings.action_horizon)
            yield self._asked("action", text, *rows)

    def about_frames(self, settings: ConversationSettings) -> Iterator[Conversation]:
        """Of every row that has a next one."""
        for row in range(self.length - 1):
            yield self._asked("world", settings.world_text, *world_rows(row, history=settings.world_history))

    def _asked(self, kind: Kind, text: str, image_rows: range, rows: range) -> Conversation:
        return Conversation(
            kind=kind,
            text=text,
            images=tuple(self.root + image_path(self.task, self.number, row) for row in image_rows),
            actions=tuple(self.root + action_path(self.task, self.number, row) for row in rows),
        )


# -- the lists ---------------------------------------------------------------------------------------------------------


def _list_name(kind: str, part: Part, settings: ConversationSettings, dataset: str, size: tuple[int, ...]) -> str:
    """Name of a list, as the published preparation gives it."""
    side = f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"
    name = settings.name or dataset
    if kind == "action":
        return f"{name}_his_{settings.action_history}_{part}_img_only_ck_{settings.action_horizon}_{side}.json"
    return f"{name}_his_{settings.world_history}_{part}_a2i_{side}.json"


class _JsonList:
    """A JSON list on disk that grows, one item a line; a context manager."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._file: IO[str] = path.open("w", encoding="utf-8")

    def add(self, items: Iterator[Conversation]) -> None:
        for item in items:
            text = json.dumps(item.to_dict(), ensure_ascii=False)
            self._file.write((",\n" if self.count else "[\n") + text)
            self.count += 1

    def __enter__(self) -> _JsonList:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.write("\n]\n" if self.count else "[]\n")
        self._file.close()
