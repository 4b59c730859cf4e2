"""Frame folders and lists of conversations laid out by hand, for tests that break them in one place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wamkit.data.conversations import ACTION_TEXT, WORLD_TEXT, Conversation, action_path, image_path
from wamkit.robots import libero_robot
from wamkit.spec import RobotSpec

ROBOT: RobotSpec = libero_robot()


def frame(task: str, number: int, row: int, size: int = 16) -> np.ndarray:
    """A smooth picture of its own."""
    base = np.linspace(0, 120, size)[:, None] + np.linspace(0, 60, size)[None]
    return np.repeat((base + len(task) + 5 * number + 3 * row)[..., None], 3, axis=2).astype(np.uint8)


def action(task: str, number: int, row: int, width: int = 7) -> np.ndarray:
    return (np.arange(width) / 10 + row + 10 * number + len(task) / 100).astype(np.float64)


def lay_out(root: Path, task: str, number: int, length: int, *, size: int = 16, width: int = 7) -> None:
    """The files of one trajectory; actions in float64, as the public code has them."""
    for path in (image_path(task, number, 0), action_path(task, number, 0)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    for row in range(length):
        Image.fromarray(frame(task, number, row, size)).save(root / image_path(task, number, row))
        np.save(root / action_path(task, number, row), action(task, number, row, width))


def about_actions(
    task: str, number: int, rows: Sequence[int], *, ahead: int = 2, sentence: str = "open it", root: str = ""
) -> list[dict[str, Any]]:
    """Questions about actions: two frames (at the beginning one), `ahead` actions."""
    return [
        Conversation(
            kind="action",
            text=ACTION_TEXT.replace("{task}", sentence),
            images=tuple(root + image_path(task, number, at) for at in range(max(0, row - 1), row + 1)),
            actions=tuple(root + action_path(task, number, at) for at in range(row, row + ahead)),
        ).to_dict()
        for row in rows
    ]


def about_frames(task: str, number: int, rows: Sequence[int], *, root: str = "") -> list[dict[str, Any]]:
    """Questions about the next frame."""
    return [
        Conversation(
            kind="world",
            text=WORLD_TEXT,
            images=tuple(root + image_path(task, number, at) for at in (row, row + 1)),
            actions=(root + action_path(task, number, row),),
        ).to_dict()
        for row in rows
    ]


def write_list(path: Path, items: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items))
    return path
