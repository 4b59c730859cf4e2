"""Frame folders, as conversations name them: which trajectories there are, and what is in their files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from wamkit.data.conversations import (
    ACTION_TEXT,
    TASK,
    Conversation,
    FramePlace,
    place_of,
    read_conversations,
    refuse,
    require_texts,
)
from wamkit.data.layout import DatasetError
from wamkit.data.task_names import sentence_of, without_scene

What = Literal["image", "action"]

_FOLDERS: Final[dict[What, tuple[str, str]]] = {"image": ("imgs", ".png"), "action": ("action", ".npy")}


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One trajectory on disk.

    Args:
        folder: of its `imgs` and `action`.
        task: name of the task's folder.
        number: of the trajectory in it.
        sentence: what is done.
        images: file of each row's frame.
        actions: file of each row's action.
        cut: rows at the end of which only the frame or only the action is there; they are no part of it.
    """

    folder: Path
    task: str
    number: int
    sentence: str
    images: tuple[Path, ...]
    actions: tuple[Path, ...]
    cut: int


@dataclass(kw_only=True)
class _Mentions:
    """What conversations say of one trajectory: where each file is named first, and what is done in it."""

    place: FramePlace
    rows: dict[What, dict[int, str]] = field(default_factory=lambda: {"image": {}, "action": {}})
    sentences: dict[str, str] = field(default_factory=dict)


def conversation_files(sources: Iterable[Path | str]) -> list[Path]:
    """The files themselves, and the JSON files of folders, each once.

    Raises:
        FileNotFoundError: a path that there is not, or a folder without JSON files.
    """
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        files = sorted(source.glob("*.json")) if source.is_dir() else [source]
        if not files or not all(file.is_file() for file in files):
            raise FileNotFoundError(f"expected JSON lists of conversations at {source}, found none; check the path")
        found |= dict.fromkeys(files)
    return list(found)


def is_conversations(source: Path) -> bool:
    """Whether a path is a JSON list or what was made of one, or a folder of such that is no dataset."""
    if source.is_dir():
        return not (source / "meta").exists() and any(source.glob("*.json"))
    return source.suffix in (".json", ".pkl", ".pickle")


def find_trajectories(
    files: Sequence[Path], *, root: Path | None = None, action_text: str = ACTION_TEXT
) -> list[Trajectory]:
    """The trajectories that conversations speak of, by task and number; of their files only the names are looked at.

    Rows are those that some conversation names. Of a row of which only the frame or only the action is named, the other
    is taken from its place in the folder: the last frames of a trajectory are named by no question about actions.

    Args:
        files: lists of conversations.
        root: folder that relative paths start from, by default each list's own. Of an absolute path only the end
            `<task>/trj_<i>/…` is then looked for in it, so that lists made elsewhere can be read.
        action_text: question about actions, `{task}` in the place of the sentence; trajectories about which nothing of
            the kind is asked have the sentence that their folder's name spells.

    Raises:
        FileNotFoundError: a list is not there.
        DatasetError: a list is something else; files that it names are not there or lie elsewhere than below `root` or
            the list; a trajectory lacks a row, or is told to do several things. The message lists some of them.
        ValueError: `action_text` has no place for the sentence.
    """
    require_texts(action_text)
    found: dict[Path, _Mentions] = {}
    problems: list[str] = []
    for path in files:
        folders = _Folders(path.parent, root)
        for number, item in enumerate(read_conversations(path)):
            try:
                _note(item, f"item {number} of {path.name}", folders, action_text, found)
            except ValueError as error:
                problems.append(f"{path}, item {number}: {error}")
    refuse(problems, f"expected conversations about files that can be found, {len(problems)} are not")
    trajectories = []
    for folder in sorted(found, key=lambda folder: (folder.parent, found[folder].place.trajectory)):
        trajectory, own = _trajectory(folder, found[folder])
        problems += own
        trajectories += [] if trajectory is None else [trajectory]
    remedy = "copy the files again, or leave out what is asked about them"
    refuse(problems, f"expected whole trajectories, {len(problems)} problems were found", remedy=remedy)
    return trajectories


def read_trajectory(
    trajectory: Trajectory, *, width: int, size: tuple[int, int] | None = None
) -> tuple[Float32[np.ndarray, "t a"], UInt8[np.ndarray, "t h w 3"]]:
    """Actions and frames.

    Args:
        trajectory: which.
        width: numbers of an action.
        size: height and width of the frames; by default those of the first.

    Raises:
        DatasetError: files that cannot be read, hold numbers that are not finite, or have another width or size. The
            message lists some of them.
    """
    actions, frames, problems = [], [], []
    for action_file, image_file in zip(trajectory.actions, trajectory.images, strict=True):
        try:
            actions.append(_read_action(action_file, width))
        except ValueError as error:
            problems.append(str(error))
        try:
            frames.append(_read_image(image_file, size))
            size = frames[0].shape[:2] if size is None else size
        except ValueError as error:
            problems.append(str(error))
    remedy = "copy the files again, or leave out what is asked about the trajectory"
    refuse(problems, f"{trajectory.folder}: expected frames and actions that can be used", remedy=remedy)
    return np.stack(actions), np.stack(frames)


# -- what is named -----------------------------------------------------------------------------------------------------


class _Folders:
    """Where the folders are that the paths of a list mean."""

    def __init__(self, own: Path, root: Path | None) -> None:
        self._own, self._root = own, root
        self._known: dict[str, Path] = {}

    def __getitem__(self, place: FramePlace) -> Path:
        if place.folder not in self._known:
            self._known[place.folder] = self._find(place)
        return self._known[place.folder]

    def _find(self, place: FramePlace) -> Path:
        named = Path(place.folder)
        base = self._own if self._root is None else self._root
        if named.is_absolute() and self._root is not None:
            named = Path(named.parent.name, named.name)
        found = Path(os.path.abspath(base / named))
        if named.is_absolute() or found.is_relative_to(os.path.abspath(base)):
            return found
        raise ValueError(
            f"expected paths below {base}, got {place.folder!r}; name the folder that they start from with --root"
        )


def _note(item: Conversation, where: str, folders: _Folders, action_text: str, found: dict[Path, _Mentions]) -> None:
    """Add what a conversation says to what is known of its trajectory."""
    paths: tuple[tuple[What, tuple[str, ...]], ...] = (("image", item.images), ("action", item.actions))
    sentence = None if item.kind == "world" else _sentence(item.text, action_text)
    for kind, names in paths:
        for name in names:
            place = place_of(name, kind)
            mentions = found.setdefault(folders[place], _Mentions(place=place))
            mentions.rows[kind].setdefault(place.row, where)
            if sentence is not None:
                mentions.sentences.setdefault(sentence, where)


def _sentence(text: str, action_text: str) -> str:
    before, after = (part.strip() for part in action_text.split(TASK))
    inner = text.removeprefix(before).removesuffix(after).strip()
    if not (text.startswith(before) and text.endswith(after) and inner):
        raise ValueError(f"expected the question {action_text!r}, got {text!r}; give the list's own with --action-text")
    return without_scene(inner)


# -- what is there -----------------------------------------------------------------------------------------------------


def _trajectory(folder: Path, mentions: _Mentions) -> tuple[Trajectory | None, list[str]]:
    """A trajectory, or what is wrong with it."""
    problems = []
    files = {kind: _files(folder, kind) for kind in _FOLDERS}
    for kind, rows in mentions.rows.items():
        missing = [row for row in sorted(rows) if row not in files[kind]]
        for row in missing[:1]:
            name = f"{folder / _FOLDERS[kind][0]}/{kind}_{row}{_FOLDERS[kind][1]}"
            more = f" and {len(missing) - 1} others of the trajectory" if len(missing) > 1 else ""
            problems.append(f"expected {name}{more}, named first by {rows[row]}, found none")
    if len(mentions.sentences) > 1:
        asked = [f"{sentence!r} ({where})" for sentence, where in mentions.sentences.items()]
        problems.append(f"{folder}: expected one sentence, got {' and '.join(asked[:3])}")
    named = sorted(mentions.rows["image"].keys() | mentions.rows["action"].keys())
    gap = next((place for place, row in enumerate(named) if place != row), None)
    if gap is not None:
        problems.append(f"{folder}: expected rows 0 to {named[-1]}, row {gap} is named by no conversation")
    if problems:
        return None, problems
    complete = [row for row in named if row in files["image"] and row in files["action"]]
    if complete != named[: len(complete)] or not complete:
        row = next(row for place, row in enumerate(named) if place == len(complete) or row != complete[place])
        return None, [f"{folder}: expected a frame and an action of row {row}, one of them is neither named nor there"]
    trajectory = Trajectory(
        folder=folder,
        task=mentions.place.task,
        number=mentions.place.trajectory,
        sentence=next(iter(mentions.sentences), sentence_of(mentions.place.task)),
        images=tuple(files["image"][row] for row in complete),
        actions=tuple(files["action"][row] for row in complete),
        cut=len(named) - len(complete),
    )
    return trajectory, []


def _files(folder: Path, kind: What) -> dict[int, Path]:
    """Files of a trajectory by their row."""
    name, suffix = _FOLDERS[kind]
    form = re.compile(rf"{kind}_(\d+){re.escape(suffix)}")
    if not (folder / name).is_dir():
        return {}
    matches = (form.fullmatch(entry.name) for entry in os.scandir(folder / name))
    return {int(match[1]): folder / name / match[0] for match in matches if match is not None}


# -- what is in a file -------------------------------------------------------------------------------------------------


def _read_action(path: Path, width: int) -> np.ndarray:
    try:
        stored = np.lib.format.open_memmap(path, mode="r")  # reads no more than there is, and never an object
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path.name}: expected an array of {width} numbers, it cannot be read ({error})") from error
    if stored.shape != (width,) or stored.dtype.kind not in "fiu":
        got = f"{stored.dtype} {list(stored.shape)}"
        raise DatasetError(f"{path.name}: expected {width} numbers, the robot's action, got {got}")
    values = np.array(stored, dtype=np.float32)
    if not np.isfinite(values).all():
        raise DatasetError(f"{path.name}: expected finite numbers, got {values.tolist()}")
    return values


def _read_image(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path.name}: expected a PNG picture, it cannot be read ({error})") from error
    if mode != "RGB":
        raise DatasetError(f"{path.name}: expected a picture in RGB, got {mode}")
    if size is not None and pixels.shape[:2] != tuple(size):
        raise DatasetError(
            f"{path.name}: expected {size[0]}x{size[1]} pixels as in the first frame, got "
            f"{pixels.shape[0]}x{pixels.shape[1]}"
        )
    return pixels
