"""A dataset's `meta/info.json`, checked; and which layout its version has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from wamkit.data import features as words
from wamkit.data.camera_names import CAMERAS, camera_keys
from wamkit.data.file_facts import read_footer
from wamkit.data.layout import DatasetError, LayoutV3
from wamkit.data.layout_v2 import EPISODES, LayoutV2, total_counts

LAYOUTS: dict[str, type[LayoutV2] | type[LayoutV3]] = {
    **dict.fromkeys(words.VERSIONS_V2, LayoutV2),
    words.VERSION: LayoutV3,
}


def read_info(root: Path) -> dict[str, Any]:
    """Read `meta/info.json`; unknown keys are kept.

    Raises:
        FileNotFoundError: no such folder, or not a LeRobot dataset.
        DatasetError: not JSON, a key is missing, or the version is not supported.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"expected a dataset folder at {root}, found none; check the path or record it first")
    path = root / words.INFO
    if not path.is_file():
        within = sorted(str(entry) for entry in root.iterdir() if (entry / words.INFO).is_file())
        found = within[:8] or sorted(entry.name for entry in root.iterdir())[:8]
        raise FileNotFoundError(
            f"expected a LeRobot dataset with {words.INFO} in {root}, found {found or 'an empty folder'}; "
            + ("give one of these datasets" if within else "give the folder that holds meta/")
        )
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path}: expected JSON, got something else ({error}); copy the dataset again") from error
    if isinstance(info, dict) and "codebase_version" not in info and (root / EPISODES).is_file():
        info = info | {"codebase_version": words.VERSIONS_V2[0]}  # WAV's trainer does not ask for it
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version not in tuple(LAYOUTS):
        raise DatasetError(
            f"{path}: expected a LeRobot version in {sorted(LAYOUTS)} as codebase_version, got {version!r}; HDF5 files "
            "are brought to v3.0 by `wamkit data convert`, versions before v2.0 first to v2.0 by LeRobot's own script"
        )
    is_v2 = version in words.VERSIONS_V2
    if is_v2 and not {"total_episodes", "total_frames"} <= info.keys():
        info = total_counts(root) | info
    needed = {"fps", "features", "total_episodes", "total_frames", "data_path"} | ({"chunks_size"} if is_v2 else set())
    missing = sorted(needed - info.keys())
    if missing:
        raise DatasetError(f"{path}: expected the keys {sorted(needed)}, {missing} are missing; copy the dataset again")
    for key, expected, is_right in _keys(_FIELDS_V2 if is_v2 else _FIELDS_V3):
        if key in info and not is_right(info[key]):
            raise DatasetError(f"{path}: expected {expected} as {key}, got {info[key]!r}; copy the dataset again")
    for name, feature in info["features"].items():
        _check_feature(path, name, feature)
    if any(map(words.is_video, info["features"].values())) and not info.get("video_path"):
        raise DatasetError(f"{path}: expected the key 'video_path', since there are videos; copy the dataset again")
    try:
        camera_keys(info["features"], info.get(words.WAMKIT, {}).get(CAMERAS, {}))
    except ValueError as error:
        raise DatasetError(f"{path}, {words.WAMKIT}.{CAMERAS}: {error}; correct it there") from error
    return info


def count_table_rows(root: Path) -> int:
    """Episodes in the table of episodes, whatever `meta/info.json` says.

    Raises:
        DatasetError: the table cannot be read.
    """
    if (root / EPISODES).is_file():
        return total_counts(root)["total_episodes"]
    return sum(read_footer(path).num_rows for path in (root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))


def _check_feature(path: Path, name: str, feature: Any) -> None:
    shape = feature.get("shape") if isinstance(feature, dict) else None
    is_right = isinstance(shape, list) and all(map(_is_count, shape)) and isinstance(feature.get("dtype"), str)
    is_camera = is_right and (words.is_camera(feature) or words.camera_name(name) != name)
    if not is_right or (is_camera and len(shape or ()) != 3):
        raise DatasetError(
            f"{path}: expected a dtype and a shape (a list of whole numbers, three for a camera) as features.{name}, "
            f"got {feature!r}; copy the dataset again"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_path(value: Any, fields: Collection[str]) -> bool:
    try:
        return bool(value.format(video_key="camera", **dict.fromkeys(fields, 0)))
    except (AttributeError, LookupError, ValueError, TypeError):
        return False


def _is_own_part(value: Any) -> bool:
    """Whether our part of `info.json` has the form that other code relies on."""
    if not isinstance(value, dict) or not isinstance(value.get("columns", []), list):
        return False
    return all(isinstance(value.get(key, {}), dict) for key in ("robot", "video", "notes", CAMERAS))


_FIELDS_V2 = ("episode_chunk", "episode_index")
_FIELDS_V3 = ("chunk_index", "file_index")


def _keys(fields: tuple[str, str]) -> tuple[tuple[str, str, Callable[[Any], bool]], ...]:
    """Key, what it must be, and whether a value is that; `fields` are those of the path templates."""
    listed = " and ".join(f"{{{field}}}" for field in fields)
    return (
        ("fps", "a positive number", _is_rate),
        ("features", "an object", lambda value: isinstance(value, dict)),
        ("total_episodes", "a whole number", _is_count),
        ("total_frames", "a whole number", _is_count),
        ("total_tasks", "a whole number", _is_count),
        ("chunks_size", "a whole number of 1 or more", lambda value: _is_count(value) and value > 0),
        ("data_path", f"a path with {listed}", lambda value: _is_path(value, fields)),
        ("video_path", f"a path with {{video_key}}, {listed}", lambda value: value is None or _is_path(value, fields)),
        (words.WAMKIT, "an object (with objects as robot, video, notes and cameras, a list as columns)", _is_own_part),
    )
