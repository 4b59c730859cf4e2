"""The conversations that WorldVLA was trained on: JSON lists of questions about frames and actions, with their answers.

Frames and actions lie in files of their own, beside the lists or elsewhere:

    <task>/trj_<i>/imgs/image_<j>.png        what was seen in step j
    <task>/trj_<i>/action/action_<j>.npy     the action taken then, in physical units

and a list names them in the order of its placeholders:

    {"conversations": [{"from": "human", "value": "What action should the robot take to open it?<|image|><|image|>"},
                       {"from": "gpt", "value": "<|action|><|action|>"}],
     "image": ["open_it/trj_0/imgs/image_3.png", …4.png], "action": ["open_it/trj_0/action/action_4.npy", …5.npy]}

Source: WorldVLA 2.5 and 3.3 of the specification.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from wamkit.data.layout import DatasetError

Kind = Literal["action", "world"]

IMAGE: Final = "<|image|>"
ACTION: Final = "<|action|>"
TASK: Final = "{task}"
ACTION_TEXT: Final = "What action should the robot take to {task}?"
WORLD_TEXT: Final = (
    "Generate the next image based on the provided sequence of historical images and corresponding actions."
)

_MARK = re.compile(r"<\|[^|]*\|>")
_PLACE = re.compile(
    r"(?P<folder>(?:.*/)?(?P<task>[^/]+)/trj_(?P<trajectory>\d+))/"
    r"(?:imgs/image_(?P<image>\d+)\.png|action/action_(?P<action>\d+)\.npy)"
)
_MOST_SHOWN = 8
_PICKLE = b"\x80"


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A question and its answer, of one trajectory.

    Args:
        kind: `action`: actions for some frames, the newest last; `world`: the frame after (frame, action) pairs.
        text: the question without its placeholders.
        images: files; of `world` those of the pairs and the next one.
        actions: files; of `action` those of the answer.
    """

    kind: Kind
    text: str
    images: tuple[str, ...]
    actions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """An item of a JSON list; `read_conversation` inverts it."""
        if self.kind == "action":
            human, gpt = IMAGE * len(self.images), ACTION * len(self.actions)
        else:
            human, gpt = (IMAGE + ACTION) * len(self.actions), IMAGE
        return {
            "conversations": [{"from": "human", "value": self.text + human}, {"from": "gpt", "value": gpt}],
            "image": list(self.images),
            "action": list(self.actions),
        }


@dataclass(frozen=True, kw_only=True)
class FramePlace:
    """What the path of a frame or an action says.

    Args:
        folder: of the trajectory, as it is written.
        task: name of the task's folder.
        trajectory: number of the trajectory in it.
        row: step of the trajectory.
    """

    folder: str
    task: str
    trajectory: int
    row: int


def image_path(task: str, trajectory: int, row: int) -> str:
    """Path of a frame, from the folder that holds the tasks."""
    return f"{task}/trj_{trajectory}/imgs/image_{row}.png"


def action_path(task: str, trajectory: int, row: int) -> str:
    """Path of an action, from the folder that holds the tasks."""
    return f"{task}/trj_{trajectory}/action/action_{row}.npy"


def place_of(path: str, kind: Literal["image", "action"]) -> FramePlace:
    """What a path says; inverts `image_path` and `action_path`.

    Raises:
        ValueError: it has another form.
    """
    match = _PLACE.fullmatch(path)
    row = None if match is None else match[kind]
    if match is None or row is None:
        form = image_path("<task>", 0, 0) if kind == "image" else action_path("<task>", 0, 0)
        raise ValueError(f"expected {kind} files as …/{form}, got {path!r}; lay the files out so")
    return FramePlace(folder=match["folder"], task=match["task"], trajectory=int(match["trajectory"]), row=int(row))


def action_rows(row: int, *, history: int, horizon: int) -> tuple[range, range]:
    """Rows of the frames and of the actions of an action conversation about a row; fewer frames at the beginning."""
    return range(max(0, row - history + 1), row + 1), range(row, row + horizon)


def world_rows(row: int, *, history: int) -> tuple[range, range]:
    """Rows of the frames, the next one last, and of the actions of a world conversation about a row."""
    first = max(0, row - history + 1)
    return range(first, row + 2), range(first, row + 1)


def require_texts(action_text: str, world_text: str = WORLD_TEXT) -> None:
    """Refuse questions that could not be told apart from their placeholders, or have no place for the task.

    Raises:
        ValueError: naming the question.
    """
    if action_text.count(TASK) != 1:
        raise ValueError(f"action text: expected {TASK} once, as in {ACTION_TEXT!r}, got {action_text!r}; correct it")
    for name, text in (("action", action_text), ("world", world_text)):
        if _MARK.search(text):
            raise ValueError(f"{name} text: expected no placeholders, they are added, got {text!r}; leave them out")


def has_placeholder(text: str) -> bool:
    """Whether something in a text would be taken for a placeholder."""
    return _MARK.search(text) is not None


def read_conversation(item: object) -> Conversation:
    """An item of a JSON list, checked: roles, placeholders against lists, and whether rows follow each other.

    Raises:
        ValueError: it is no such conversation.
    """
    if not isinstance(item, dict) or not {"conversations", "image", "action"} <= item.keys():
        got = sorted(map(str, item)) if isinstance(item, dict) else repr(item)[:80]
        raise ValueError(f"expected the keys conversations, image and action, got {got}")
    if item.get("state"):
        raise ValueError("expected frames and actions alone, got states too, which are not read; leave out 'state'")
    human, gpt = _turns(item["conversations"])
    images, actions = _paths(item, "image"), _paths(item, "action")
    asked, answered = _MARK.findall(human), _MARK.findall(gpt)
    unknown = sorted({*asked, *answered} - {IMAGE, ACTION})
    if unknown:
        raise ValueError(f"expected the placeholders {IMAGE} and {ACTION} alone, got {', '.join(unknown)}")
    for mark, files, name in ((IMAGE, images, "image"), (ACTION, actions, "action")):
        count = (asked + answered).count(mark)
        if count != len(files):
            raise ValueError(f"expected as many {name} files as placeholders {mark}, got {len(files)} and {count}")
    text = _MARK.split(human)[0]
    if _MARK.sub("", human[len(text) :]).strip() or _MARK.sub("", gpt).strip():
        raise ValueError(
            f"expected one sentence, then placeholders alone, got {_short(human)} answered by {_short(gpt)}"
        )
    kind = _kind(asked, answered)
    _require_rows(kind, images, actions)
    return Conversation(kind=kind, text=text.strip(), images=images, actions=actions)


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations of a file.

    Raises:
        FileNotFoundError: there is no such file.
        DatasetError: it is something else, or holds items that are no conversations; the message lists some of them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected conversations at {path}, found no file; check the path")
    data = path.read_bytes()
    if path.suffix in (".pkl", ".pickle") or data[:1] == _PICKLE:
        raise DatasetError(
            f"{path}: expected a JSON list of conversations, got a pickle of token ids, which may run any program when "
            "it is opened and is therefore never opened; give the JSON lists that it was made of"
        )
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DatasetError(
            f"{path}: expected a JSON list of conversations, got no JSON ({error}); copy it again"
        ) from error
    if (
        isinstance(document, list)
        and document
        and isinstance(document[0], dict)
        and {"file", "len"} <= set(document[0])
    ):
        raise DatasetError(
            f"{path}: expected a list of conversations, got the record of pickles of token ids, which are never "
            "opened; give the JSON lists that they were made of"
        )
    if not isinstance(document, list) or not document:
        got = "an empty list" if document == [] else type(document).__name__
        raise DatasetError(f"{path}: expected a list of conversations, got {got}; give another file")
    found, problems = [], []
    for number, item in enumerate(document):
        try:
            found.append(read_conversation(item))
        except ValueError as error:
            problems.append(f"item {number}: {error}")
    refuse(problems, f"{path}: expected conversations of WorldVLA, {len(problems)} of {len(document)} items are others")
    return found


def refuse(problems: Sequence[str], what: str, *, remedy: str = "correct them, or leave them out") -> None:
    """Raise the first few of some problems, if there are any.

    Raises:
        DatasetError: listing them.
    """
    if problems:
        more = len(problems) - _MOST_SHOWN
        listed = [*problems[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise DatasetError(what + ":\n  - " + "\n  - ".join(listed) + f"\n{remedy[0].upper()}{remedy[1:]}.")


def _turns(turns: object) -> tuple[str, str]:
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        roles = [turn.get("from") for turn in turns]
        values = [turn.get("value") for turn in turns]
        if roles == ["human", "gpt"] and all(isinstance(value, str) for value in values):
            return values[0], values[1]
        raise ValueError(f"expected a text 'value' from human, then one from gpt, got {roles}")
    raise ValueError(f"expected two turns as 'conversations', got {_short(turns)}")


def _paths(item: dict[str, Any], key: str) -> tuple[str, ...]:
    files = item[key]
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"expected a list of paths as {key!r}, got {_short(files)}")
    return tuple(files)


def _kind(asked: list[str], answered: list[str]) -> Kind:
    if asked and set(asked) == {IMAGE} and answered and set(answered) == {ACTION}:
        return "action"
    if asked and asked == [IMAGE, ACTION] * (len(asked) // 2) and answered == [IMAGE]:
        return "world"
    raise ValueError(
        f"expected images answered by actions, or (image, action) pairs answered by one image, got {' '.join(asked)} "
        f"answered by {' '.join(answered)}"
    )


def _require_rows(kind: Kind, images: tuple[str, ...], actions: tuple[str, ...]) -> None:
    """Refuse frames and actions of several trajectories, or of rows that do not belong together."""
    seen = [place_of(path, "image") for path in images]
    done = [place_of(path, "action") for path in actions]
    folders = {place.folder for place in (*seen, *done)}
    if len(folders) > 1:
        raise ValueError(f"expected files of one trajectory, got {sorted(folders)}")
    image_rows, rows = [place.row for place in seen], [place.row for place in done]
    if kind == "action":
        wanted = (
            [*range(image_rows[0], image_rows[0] + len(seen))],
            [*range(image_rows[-1], image_rows[-1] + len(done))],
        )
        rule = "frames in a row and actions from the last one's on"
    else:
        wanted = [*range(image_rows[0], image_rows[0] + len(seen))], image_rows[:-1]
        rule = "frames in a row and the action of each but the last"
    if (image_rows, rows) != wanted:
        raise ValueError(f"expected {rule}, got frames {image_rows} and actions {rows}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:117]}…"
