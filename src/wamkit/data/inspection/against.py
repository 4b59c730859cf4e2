"""Does a dataset fit a policy that is to be trained on it, or statistics that are to normalize it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wamkit.atomic import complete_folder
from wamkit.data import features as words
from wamkit.data.actions import ActionTransform
from wamkit.data.findings import Finding
from wamkit.data.given_statistics import read_given_statistics
from wamkit.data.inspection.rows import RowFacts, channel_name
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.transforms import Normalizer
from wamkit.spec import PolicySpec, RobotSpec, SpecMismatch, require_match
from wamkit.typed import COPY_AGAIN, blame
from wamkit.weight_files import read_json

# In the network's range, where the data that made the statistics lie within about [-1, 1] (minmax), or have the mean 0
# and the deviation 1 (meanstd). Another task of the same robot stays within these bounds, another unit does not.
_FARTHEST = 3.0
_LEAST_SPREAD = 0.05
_MOST_SPREAD = 5.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a dataset is held against.

    Args:
        name: how messages call it.
        spec: of the policy; `None` for statistics alone.
        action: transform of actions.
        state: normaliser of states.
    """

    name: str
    spec: PolicySpec | None
    action: ActionTransform
    state: Normalizer


def read_wanted(path: Path | str, dataset: LeRobotDataset, *, entry: str = "") -> Wanted:
    """Read a policy folder, or a file of statistics in any form that training takes.

    Args:
        path: the folder or file.
        dataset: whose widths a file has to have.
        entry: which statistics of a WAV file.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the file is damaged, of another form or of another width; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        folder = complete_folder(path)
        if entry:
            raise ValueError(f"--entry {entry}: without effect on a policy folder; leave it out")
        missing = [name for name in ("spec.json", "statistics.json") if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"expected a policy folder or a file of statistics at {path}, {' and '.join(missing)} not found there; "
                "give a folder written by training, for instance one under checkpoints/"
            )
        with blame(folder / "spec.json", COPY_AGAIN):
            spec = PolicySpec.from_dict(read_json(folder / "spec.json"))
        with blame(folder / "statistics.json", COPY_AGAIN):
            stored = read_json(folder / "statistics.json")
            state = Normalizer.from_dict(stored.get("state"))
            action = ActionTransform.from_dict(stored.get("action"), state=state)
        return Wanted(name=f"the policy {path}", spec=spec, action=action, state=state)
    keys = {"action": words.ACTION, "state": words.STATE}
    widths = {
        name: int(np.prod(dataset.features[key]["shape"])) for name, key in keys.items() if key in dataset.features
    }
    given = read_given_statistics(path, widths=widths, entry=entry, option="--entry")
    return Wanted(
        name=f"the statistics {path}",
        spec=None,
        action=ActionTransform(normalizer=Normalizer.from_statistics("minmax", given["action"])),
        state=Normalizer.from_statistics("minmax", given["state"]),
    )


def check_spec(dataset: LeRobotDataset, robot: RobotSpec | None, wanted: Wanted) -> tuple[list[Finding], list[str]]:
    """Cameras, sizes, widths, channels, units and rate of the policy and of the dataset: findings and notes."""
    if wanted.spec is None:
        return [], []
    remedy = "train on data of the same robot and settings, or train a policy for these"
    if robot is None:
        differences = _plain_differences(dataset, wanted.spec.robot)
        note = (
            f"the dataset names no robot: of {wanted.name} only cameras, widths and rate could be compared; say what "
        )
        notes = [note + "it is with `wamkit data describe`"]
    else:
        differences, notes = [], []
        try:
            require_match(wanted.spec.robot, robot, wanted_by=wanted.name, offered_by="the dataset")
        except SpecMismatch as mismatch:
            differences = [line.removeprefix("  - ") for line in str(mismatch).splitlines() if line.startswith("  - ")]
    known = set(wanted.spec.tasks)
    new = sorted({task for record in dataset.episodes for task in record.tasks} - known) if known else []
    if new:
        shown = ", ".join(map(repr, new[:3])) + (", …" if len(new) > 3 else "")
        notes.append(f"{wanted.name} has not seen {len(new)} of the sentences: {shown}")
    return [_found(wanted.name, difference, remedy) for difference in differences], notes


def _plain_differences(dataset: LeRobotDataset, robot: RobotSpec) -> list[str]:
    """What can be compared of a dataset that does not say what its numbers mean."""
    differences = []
    for camera in robot.cameras:
        if camera.name not in dataset.cameras:
            differences.append(f"camera {camera.name!r} is wanted; offered are {list(dataset.cameras)}")
            continue
        height, width = words.image_size(dataset.features[dataset.camera_key(camera.name)])
        if (height, width) != (camera.height, camera.width):
            differences.append(
                f"camera {camera.name!r}: wanted {camera.height}x{camera.width} px, offered {height}x{width} px"
            )
    for key, channels in ((words.STATE, robot.state), (words.ACTION, robot.action)):
        width = int(np.prod(dataset.features[key]["shape"])) if key in dataset.features else 0
        if width != len(channels):
            differences.append(f"{key} width: wanted {len(channels)}, offered {width}")
    if dataset.fps != robot.control_hz:
        differences.append(f"control_hz: wanted {robot.control_hz:g}, offered {dataset.fps:g} rows/s")
    return differences


def check_numbers(dataset: LeRobotDataset, facts: Sequence[RowFacts], wanted: Wanted) -> list[Finding]:
    """Where the dataset's actions and states lie in the range that the statistics were made for."""
    findings = []
    for key, transform in ((words.ACTION, wanted.action), (words.STATE, wanted.state)):
        rows = [one.kept[key] for one in facts if key in one.kept]
        if not rows or any(part.shape[1] != transform.width for part in rows):
            continue  # the widths differ, which is said already
        kind = transform.normalizer.kind if isinstance(transform, ActionTransform) else transform.kind
        constant = transform.normalizer.constant if isinstance(transform, ActionTransform) else transform.constant
        normalize = transform.normalize_episode if isinstance(transform, ActionTransform) else transform.normalize
        x = torch.cat([normalize(torch.from_numpy(part.astype(np.float64))) for part in rows]).numpy()
        for index in range(x.shape[1]):
            values = np.concatenate([part[:, index] for part in rows])
            if index in constant:
                is_far = float(np.ptp(values)) > 1e-6 * max(1.0, float(np.abs(values).max()))
                what = "the statistics know one value alone, the data vary"
            else:
                is_far, what = _far(x[:, index], kind)
            if is_far:
                low, high = np.quantile(values, [0.01, 0.99])
                what = f"expected numbers like those of {wanted.name}: {what}; the rows lie from {low:g} to {high:g}"
                remedy = "check units, signs and the order of channels; train with statistics of this dataset"
                where = f"{key} ({channel_name(dataset, key, index)})"
                findings.append(_found(where, what, remedy, is_error=False))
    return findings


def _far(x: np.ndarray, kind: str) -> tuple[bool, str]:
    """Whether normalised numbers of a channel are unlike those that made its statistics, and how."""
    if kind == "minmax":
        low, high = np.quantile(x, [0.01, 0.99])
        is_far = low < -_FARTHEST or high > _FARTHEST or high - low < 2 * _LEAST_SPREAD
        return bool(is_far), f"normalised they lie from {low:.3g} to {high:.3g} in place of -1 to 1"
    mean, std = float(x.mean()), float(x.std())
    is_far = abs(mean) > _FARTHEST or not _LEAST_SPREAD <= std <= _MOST_SPREAD
    return is_far, f"normalised their mean is {mean:.3g} and their deviation {std:.3g} in place of 0 and 1"


def _found(where: str, what: str, remedy: str, *, is_error: bool = True) -> Finding:
    return Finding(
        kind="policy", severity="error" if is_error else "warning", where=where, what=what, remedy=remedy, episodes=()
    )
