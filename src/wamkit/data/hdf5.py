"""Read demonstrations in HDF5 files as LIBERO and robomimic lay them out, as episodes of LIBERO's robot.

A file has a group `data` with groups `demo_0`, `demo_1`, … Each holds `actions`, `rewards`, `dones`, and under `obs`

    LIBERO       agentview_rgb, eye_in_hand_rgb, ee_pos, ee_ori (axis-angle), gripper_states
    robomimic    agentview_image, robot0_eye_in_hand_image, robot0_eef_pos, robot0_eef_quat (xyzw), robot0_gripper_qpos

Source: LIBERO's `create_dataset` and robomimic's `dataset_states_to_obs`; for the rows left out and for sentences made
of file names, the published `modified_libero` data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wamkit.data.layout import DatasetError
from wamkit.data.noop import kept_rows
from wamkit.data.task_names import sentence_of
from wamkit.episode import Episode
from wamkit.robots import LIBERO_CAMERAS, libero_robot
from wamkit.rotations import axis_angle_of_quaternion

SUFFIXES = (".hdf5", ".h5")

_CAMERAS = {
    "LIBERO": dict(zip(LIBERO_CAMERAS, ("agentview_rgb", "eye_in_hand_rgb"), strict=True)),
    "robomimic": dict(zip(LIBERO_CAMERAS, ("agentview_image", "robot0_eye_in_hand_image"), strict=True)),
}
_JOINTS = {"LIBERO": "joint_states", "robomimic": "robot0_joint_pos"}
_NUM_JOINTS = 7


@dataclass(frozen=True, kw_only=True)
class Hdf5Settings:
    """How demonstrations become episodes.

    Args:
        task: the sentence of every episode; by default the file's own, or for LIBERO what its name says.
        idle: whether rows whose action moves nothing and keeps the gripper's command are left out; `auto` drops
            LIBERO's.
        pictures: whether they are turned by 180 degrees; `auto` turns LIBERO's, which are stored as the simulator gives
            them, while robomimic stores its own upright.
        observed: whether row t was seen before action t or after it, in which case it is paired with action t+1.
            `auto` compares the joints with the simulator's states, which were taken before: LIBERO's own files were
            seen after.
    """

    task: str | None = None
    idle: Literal["auto", "drop", "keep"] = "auto"
    pictures: Literal["auto", "turn", "keep"] = "auto"
    observed: Literal["auto", "before", "after"] = "auto"


class BrokenDemonstration(DatasetError):
    """A demonstration cannot be read, or holds what no episode may; leaving it out mends the rest of its file."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One `demo_N`.

    Args:
        episode: what it holds.
        form: `LIBERO` or `robomimic`.
        dropped_rows: left out because they do nothing.
        is_turned: pictures were turned by 180 degrees.
        is_late: pictures and state were taken after the action of their row, and are paired with the next.
    """

    episode: Episode
    form: str
    dropped_rows: int
    is_turned: bool
    is_late: bool


def is_hdf5(source: Path) -> bool:
    """Whether a path is an HDF5 file, or a folder of them that is no dataset."""
    if source.is_dir():
        return not (source / "meta").exists() and bool(hdf5_files(source))
    return source.suffix in SUFFIXES


# -- files -------------------------------------------------------------------------------------------------------------


def hdf5_files(source: Path) -> list[Path]:
    """The file itself, or all files below a folder, by name."""
    if not source.is_dir():
        return [source] if source.is_file() else []
    return sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES and path.is_file())


@contextmanager
def _open(path: Path, damage: type[DatasetError] = DatasetError) -> Iterator[Any]:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading HDF5 files needs h5py, which is not installed; install it with: pip install 'wamkit[hdf5]'",
            name="h5py",
        ) from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(
            f"{path}: expected a complete HDF5 file, got something else ({error}); copy it again"
        ) from error
    try:
        with file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise damage(f"{path}: expected a readable HDF5 file, got damage ({error}); copy it again") from error


def demonstration_names(path: Path) -> list[str]:
    """Names of a file's demonstrations in the order of their numbers.

    Raises:
        DatasetError: it is damaged, or has no demonstrations or another number of them than it says.
        ModuleNotFoundError: h5py is not installed.
    """
    with _open(path) as file:
        data = file.get("data")
        names = [] if data is None else [name for name in data if re.fullmatch(r"demo_\d+", name)]
        if not names:
            raise DatasetError(
                f"{path}: expected a group 'data' with demonstrations 'demo_0', 'demo_1', …, found {list(file)}; give "
                "a file of LIBERO or robomimic"
            )
        announced = data.attrs.get("num_demos")
        if announced is not None and int(announced) != len(names):
            raise DatasetError(f"{path}: expected {announced} demonstrations, got {len(names)}; copy the file again")
        return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _form(path: Path, name: str, demo: Any) -> str:
    found = sorted(demo["obs"]) if "obs" in demo else []
    for form, cameras in _CAMERAS.items():
        if set(cameras.values()) & set(found):
            return form
    wanted = " or ".join(str(list(cameras.values())) for cameras in _CAMERAS.values())
    raise BrokenDemonstration(
        f"{path}, {name}: expected the pictures {wanted} under 'obs', found {found}; extract the observations with "
        "pictures first"
    )


# -- one demonstration -------------------------------------------------------------------------------------------------


def read_demonstration(path: Path, name: str, settings: Hdf5Settings) -> Demonstration:
    """Read one demonstration.

    Args:
        path: an HDF5 file.
        name: `demo_N`.
        settings: how it becomes an episode.

    Raises:
        BrokenDemonstration: it is damaged, holds numbers that are not finite or nothing that moves the robot, or does
            not have the names and sizes of the module's description.
        DatasetError: the file has other conventions than described there, or cannot be opened.
        ModuleNotFoundError: h5py is not installed.
    """
    with _open(path, BrokenDemonstration) as file:
        form = _form(path, name, file["data"][name])
        # LIBERO's task description tells its files also where they have robomimic's names.
        is_libero = form == "LIBERO" or "problem_info" in file["data"].attrs
        is_turned = settings.pictures == "turn" or (settings.pictures == "auto" and is_libero)
        episode, is_late = _read(path, name, file["data"], form, is_turned, settings)
    is_filtered = settings.idle == "drop" or (settings.idle == "auto" and is_libero)
    kept = _without_idle_rows(f"{path}, {name}", episode) if is_filtered else episode
    return Demonstration(
        episode=kept, form=form, dropped_rows=len(episode) - len(kept), is_turned=is_turned, is_late=is_late
    )


def _read(path: Path, name: str, data: Any, form: str, is_turned: bool, settings: Hdf5Settings) -> tuple[Episode, bool]:
    """All rows, and whether they were seen after the action."""
    where, demo = f"{path}, {name}", data[name]
    actions = _rows(where, demo, "actions", 7).astype(np.float32)
    length = len(actions)
    obs = demo["obs"]
    state = _state(where, obs, form, length)
    video = {camera: _pictures(where, obs, key, length, is_turned) for camera, key in _CAMERAS[form].items()}
    sizes = {camera: frames.shape[1:3] for camera, frames in video.items()}
    if len(set(sizes.values())) > 1:
        raise BrokenDemonstration(
            f"{where}: expected both cameras to have one size, got {sizes}; extract the pictures again"
        )
    announced = demo.attrs.get("num_samples")
    if announced is not None and int(announced) != length:
        raise BrokenDemonstration(f"{where}: expected {announced} rows, got {length}; copy the file again")
    grips = set(np.unique(actions[:, 6]).tolist())
    if 0.0 in grips and grips <= {0.0, 1.0}:
        raise DatasetError(
            f"{where}: expected the gripper's command to be -1 (open) to 1 (close), got 0 and 1 as in RLDS data; give "
            "the original files"
        )
    _require_rate(where, data.attrs)
    reward, success = _outcome(where, demo, length)
    is_late = settings.observed == "after" or (
        settings.observed == "auto" and _is_seen_after(where, demo, form, length)
    )
    if is_late:
        if length < 2:
            raise BrokenDemonstration(f"{where}: expected 2 or more rows, got {length}")
        actions, reward, success = actions[1:], reward[1:], success[1:]
        state, video = state[:-1], {camera: frames[:-1] for camera, frames in video.items()}
    metadata: dict[str, Any] = {"file": path.name, "demo": name}
    if "bddl_file_name" in data.attrs:
        metadata["bddl_file"] = Path(_text(data.attrs["bddl_file_name"])).name
    episode = Episode(
        actions=actions,
        state=state,
        video=video,
        reward=reward,
        success=success,
        task=settings.task or _sentence(path, data.attrs, form),
        metadata=metadata,
    )
    return episode, is_late


def _rows(where: str, group: Any, key: str, width: int, length: int | None = None) -> np.ndarray:
    values = _values(where, group, key)
    if values.ndim != 2 or values.shape[1] != width or len(values) == 0 or length not in (None, len(values)):
        rows = "T" if length is None else length
        raise BrokenDemonstration(
            f"{where}: expected {key!r} of shape [{rows}, {width}], got {list(values.shape)}; give a file of one "
            "arm with a gripper of two fingers, controlled by motions of its hand"
        )
    _require_finite(where, key, values)
    return values


def _require_finite(where: str, key: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise BrokenDemonstration(
            f"{where}: expected finite numbers in {key!r}, got {values[row].tolist()} in row {row}"
        )


def _values(where: str, group: Any, key: str) -> np.ndarray:
    if key not in group:
        raise BrokenDemonstration(
            f"{where}: expected {key!r} in {group.name!r}, found {sorted(group)}; give another file"
        )
    try:
        return np.asarray(group[key][()])
    except (OSError, RuntimeError, AttributeError, TypeError) as error:
        raise BrokenDemonstration(
            f"{where}: expected readable numbers as {key!r}, got damage ({error}); copy it again"
        ) from error


def _state(where: str, obs: Any, form: str, length: int) -> np.ndarray:
    """Position, axis-angle, two fingers."""
    if form == "robomimic":
        quaternion = _rows(where, obs, "robot0_eef_quat", 4, length)
        norm = np.linalg.norm(quaternion, axis=1)
        if np.abs(norm - 1).max() > 1e-3:
            row = int(np.abs(norm - 1).argmax())
            raise BrokenDemonstration(
                f"{where}: expected unit quaternions, got {quaternion[row].tolist()} in row {row}"
            )
        pose = [_rows(where, obs, "robot0_eef_pos", 3, length), axis_angle_of_quaternion(quaternion)]
        fingers = _rows(where, obs, "robot0_gripper_qpos", 2, length)
    else:
        whole = "ee_states" in obs and "ee_pos" not in obs
        parts = (("ee_states", 6),) if whole else (("ee_pos", 3), ("ee_ori", 3))
        pose = [_rows(where, obs, key, width, length) for key, width in parts]
        fingers = _rows(where, obs, "gripper_states", 2, length)
    return np.concatenate([*pose, fingers], axis=1).astype(np.float32)


def _pictures(where: str, obs: Any, key: str, length: int, is_turned: bool) -> np.ndarray:
    frames = _values(where, obs, key)
    if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) != length or frames.shape[3] != 3:
        raise BrokenDemonstration(
            f"{where}: expected {key!r} as uint8 [{length}, height, width, 3], got {frames.dtype} "
            f"{list(frames.shape)}; copy the file again"
        )
    return np.ascontiguousarray(frames[:, ::-1, ::-1]) if is_turned else frames


def _outcome(where: str, demo: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Reward per row, and whether the task was solved: a reward of 1, or without rewards the end."""
    key = next((key for key in ("rewards", "dones") if key in demo), "rewards")
    values = _values(where, demo, key).astype(np.float32)
    if values.shape != (length,):
        raise BrokenDemonstration(
            f"{where}: expected {key!r} of shape [{length}], got {list(values.shape)}; copy it again"
        )
    _require_finite(where, key, values)
    return values, values >= 1


def _is_seen_after(where: str, demo: Any, form: str, length: int) -> bool:
    """Do the observed joints fit the simulator's state of the next row rather than that of their own?"""
    if "states" not in demo or _JOINTS[form] not in demo["obs"]:
        return False
    states, joints = _values(where, demo, "states"), _values(where, demo["obs"], _JOINTS[form])
    if (
        states.ndim != 2
        or states.shape[1] <= _NUM_JOINTS
        or len(states) != length
        or joints.shape != (length, _NUM_JOINTS)
    ):
        return False
    simulated = states[:, 1 : 1 + _NUM_JOINTS]  # time comes first
    _require_finite(where, "states", simulated)
    _require_finite(where, _JOINTS[form], joints)
    own, following = np.abs(joints - simulated)[:-1].sum(), np.abs(joints[:-1] - simulated[1:]).sum()
    return bool(following < own / 2)


def _require_rate(where: str, attributes: Any) -> None:
    rate = libero_robot().control_hz
    found = _json(where, attributes, "env_args").get("env_kwargs", {}).get("control_freq", rate)
    if found != rate:
        raise DatasetError(f"{where}: expected {rate:g} rows per second, got {found} in 'env_args'; give other files")


def _sentence(path: Path, attributes: Any, form: str) -> str:
    stored = _json(str(path), attributes, "problem_info").get("language_instruction", "")
    is_text = isinstance(stored, list) and all(isinstance(part, str) for part in stored)
    sentence = "".join(stored if is_text or isinstance(stored, str) else "").strip().strip('"')  # characters, or text
    stem = path.stem
    if not sentence and form == "LIBERO" and stem.endswith("_demo"):
        # As the published data have it: the name without its scene, such as KITCHEN_SCENE10_.
        sentence = sentence_of(stem.removesuffix("_demo"))
    if not sentence:
        raise DatasetError(
            f"{path}: expected a 'language_instruction' in 'problem_info', got none; give one with --task"
        )
    return sentence


def _json(where: str, attributes: Any, key: str) -> dict[str, Any]:
    text = _text(attributes.get(key, "{}"))
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DatasetError(
            f"{where}: expected JSON as the attribute {key!r}, got {text[:80]!r}; copy it again"
        ) from error
    return document if isinstance(document, dict) else {}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _without_idle_rows(where: str, episode: Episode) -> Episode:
    kept = kept_rows(episode.actions, gripper_channels=libero_robot().gripper_channels)
    if len(kept) == 0:
        raise BrokenDemonstration(
            f"{where}: expected actions that move the robot, got none; keep such rows with --idle keep"
        )
    return Episode(
        actions=episode.actions[kept],
        state=episode.state[kept],
        video={camera: frames[kept] for camera, frames in episode.video.items()},
        # What was earned in rows that are left out was earned by the row kept before them.
        reward=None if episode.reward is None else np.maximum.reduceat(episode.reward, kept),
        success=None if episode.success is None else np.logical_or.reduceat(episode.success, kept),
        task=episode.task,
        metadata=episode.metadata | {"dropped_rows": len(episode) - len(kept)},
    )
