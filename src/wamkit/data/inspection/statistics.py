"""Compare episodes with each other, and all of them with the statistics stored beside them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data import features as words
from wamkit.data.added_columns import is_of_this_recording
from wamkit.data.findings import RECORD_AGAIN, Finding, Kind, listed_episodes
from wamkit.data.inspection.rows import RowFacts, channel_name, short
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import VALUE
from wamkit.data.stats import STATISTICS_PATH
from wamkit.data.subset import Subset
from wamkit.spec import RobotSpec

_TOLERANCE = 1e-3
_QUANTILE_TOLERANCE = 0.01  # of the range between the quantiles
_LIMIT = 1 + 1e-5
_LIMITED_SHARE = 0.9  # of rows in [-1, 1] makes a channel one that is meant to stay there


def joined(facts: Sequence[RowFacts], name: str) -> np.ndarray | None:
    """All rows of actions or states, float32 `[n, c]`; `None` without any."""
    parts = [one.kept[name] for one in facts if name in one.kept]
    widths = {part.shape[1] for part in parts}
    return np.concatenate(parts) if len(widths) == 1 else None


def check_channels(dataset: LeRobotDataset, robot: RobotSpec | None, facts: Sequence[RowFacts]) -> list[Finding]:
    """Channels that never move, and actions outside the range that they are meant to stay in."""
    findings = []
    grippers = () if robot is None else robot.gripper_channels
    ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for one in facts:
        for name, (low, high) in one.extremes.items():
            before = ranges.get(name, (low, high))
            if before[0].shape == low.shape:
                ranges[name] = (np.minimum(before[0], low), np.maximum(before[1], high))
    for name, (low, high) in ranges.items():
        if name == "timestamp" or name.startswith("next."):
            continue
        for index in np.flatnonzero(low == high).tolist():
            where = f"{name} ({channel_name(dataset, name, index)})"
            if name == words.ACTION and index in grippers:
                what = f"expected a gripper that opens and closes, got {low[index]:g} in every row of the dataset"
                remedy = "check the gripper's channel and its sign: a policy learns never to grasp"
            else:
                what = f"expected a channel that varies, got {low[index]:g} in every row of the dataset"
                remedy = "check the sensor or the channel's order; drop the channel if it means nothing"
            findings.append(_found("constant_channel", where, what, remedy))
    return findings + ([] if robot is None else _check_limits(dataset, robot, facts))


def _check_limits(dataset: LeRobotDataset, robot: RobotSpec, facts: Sequence[RowFacts]) -> list[Finding]:
    """Commands without a unit are meant to stay in [-1, 1], which simulators and drivers cut them to."""
    actions = joined(facts, words.ACTION)
    if actions is None or actions.shape[1] != len(robot.action):
        return []
    findings = []
    for index, channel in enumerate(robot.action):
        outside = np.abs(actions[:, index]) > _LIMIT
        if channel.unit != "1" or not outside.any() or outside.mean() > 1 - _LIMITED_SHARE:
            continue
        own = ((one.episode, one.kept[words.ACTION]) for one in facts if words.ACTION in one.kept)
        of_episodes = [episode for episode, rows in own if (np.abs(rows[:, index]) > _LIMIT).any()]
        most = actions[np.argmax(np.abs(actions[:, index])), index]
        what = f"expected commands within [-1, 1], got {int(outside.sum())} rows outside, the farthest {most:g}"
        where = f"{words.ACTION} ({channel_name(dataset, words.ACTION, index)}), {listed_episodes(of_episodes)}"
        remedy = "the robot cuts them off: cut them before training, or check their scale"
        findings.append(_found("range", where, what, remedy, tuple(of_episodes)))
    return findings


def check_duplicates(facts: Sequence[RowFacts]) -> list[Finding]:
    """Episodes with the same actions and states bit for bit."""
    by_hash: dict[str, list[int]] = defaultdict(list)
    for one in facts:
        if one.movement is not None:
            by_hash[one.movement].append(one.episode)
    findings = []
    for same in by_hash.values():
        if len(same) > 1:
            listed = listed_episodes(same)
            what = f"expected different episodes, got the same actions and states in {listed}"
            remedy = f"exclude all but one; were layouts or seeds repeated in recording? {RECORD_AGAIN}"
            findings.append(_found("duplicate", listed, what, remedy, tuple(sorted(same)[1:])))
    return findings


def check_own_statistics(dataset: LeRobotDataset, excluded: Collection[int], *, is_sound: bool) -> list[Finding]:
    """`meta/wamkit_statistics.json`: of the dataset as it is?

    Args:
        dataset: opened unchecked, its excluded episodes ignored.
        excluded: episodes that the statistics leave out.
        is_sound: nothing else is wrong; mending that would change files once more, so only then they are compared.
    """
    path = dataset.root / STATISTICS_PATH
    if not path.is_file():
        return []
    stored = read_json(path)
    found = stored.get("features", {})
    kept = [record.index for record in dataset.episodes if record.index not in excluded]
    rows = sum(dataset.episodes[episode].length for episode in kept)
    counts = {name: feature.get("count") for name, feature in found.items() if name in ("action", "state")}
    what = ""
    if not counts or any(count != rows for count in counts.values()):
        what = f"expected statistics of {rows} rows, got {counts}"
    elif is_sound and kept and stored.get("fingerprint") != Subset(dataset, kept).fingerprint():
        what = "expected statistics of the dataset as it is, got those from before it was changed"
    elif (VALUE in dataset.features) != (VALUE in found):
        what = f"expected statistics of the columns there are, got {sorted(found)}"
    return (
        [_found("stale_statistics", STATISTICS_PATH, what, f"run `wamkit data stats {dataset.root}`")] if what else []
    )


def check_values(dataset: LeRobotDataset) -> list[Finding]:
    """The added column `value`: of the rows and frames that are there?

    Args:
        dataset: opened unchecked, its excluded episodes ignored; all others can be read.
    """
    if VALUE not in dataset.features or is_of_this_recording(dataset, VALUE) is not False:
        return []
    what = (
        "expected values of every episode as it is, got those from before the dataset or its list of exclusions changed"
    )
    return [_found("stale_values", VALUE, what, f"run `wamkit data values {dataset.root}` with the same settings")]


def check_recorded_statistics(facts: Sequence[RowFacts], faulty: Collection[int]) -> list[Finding]:
    """Statistics of each episode from when it was recorded.

    Args:
        facts: of all episodes.
        faulty: episodes in which something else is wrong.
    """
    by_name: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for one in facts:
        for name, what in one.differing:
            if one.episode not in faulty:
                by_name[name].append((one.episode, what))
    findings = []
    for name, cases in by_name.items():
        episode, what = cases[0]
        episodes = tuple(case for case, _ in cases)
        remedy = "the rows were changed after they were recorded: copy the dataset again if that was not meant; "
        remedy += "LeRobot's tools would normalize wrongly"
        where = f"{name} of {listed_episodes(episodes)}"
        findings.append(_found("stale_statistics", where, f"episode {episode}: {what}", remedy, episodes))
    return findings


def check_lerobot_statistics(
    dataset: LeRobotDataset, facts: Sequence[RowFacts], *, is_sound: bool
) -> tuple[list[Finding], list[str]]:
    """`meta/stats.json`, which LeRobot's tools normalize with: findings and notes.

    Args:
        dataset: opened unchecked.
        facts: of all episodes.
        is_sound: all rows could be read.
    """
    path = dataset.root / words.STATS
    if not path.is_file():
        return [], []
    stored = read_json(path)
    findings: list[Finding] = []
    notes: list[str] = []
    remedy = "LeRobot's tools would normalize wrongly: copy the file again"
    for key in (words.ACTION, words.STATE):
        kept = stored.get(dataset.stored_name(key) if key in dataset.features else key)
        kept = kept if isinstance(kept, dict) else {}
        count = kept.get("count")
        is_counted = count is not None or dataset.info["codebase_version"] == words.VERSION  # v2.0 does not say
        if key == words.ACTION and is_counted and count != [dataset.num_frames]:
            what = f"expected a count of [{dataset.num_frames}] for {words.ACTION!r}, got {count}"
            findings.append(_found("stale_statistics", words.STATS, what, remedy))
            return findings, notes
        rows = joined(facts, key)
        if not is_sound or rows is None:
            continue
        now = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0, dtype=np.float64)}
        scale = max(1.0, float(np.abs(rows).max()))
        for name, values in now.items():
            old = np.asarray(kept.get(name, values), dtype=np.float64).ravel()
            if old.size != values.size or np.abs(old - values).max() > _TOLERANCE * scale:
                what = f"{key}: expected a {name} of {short(values)}, got {short(old)}"
                findings.append(_found("stale_statistics", words.STATS, what, remedy))
                break
        else:
            notes += _note_quantiles(key, kept, rows)
    return findings, notes


def _note_quantiles(key: str, kept: dict[str, Any], rows: np.ndarray) -> list[str]:
    if not {"q01", "q99"} <= kept.keys():
        return []
    old = np.stack([np.asarray(kept[name], dtype=np.float64).ravel() for name in ("q01", "q99")])
    now = np.quantile(rows, [0.01, 0.99], axis=0)
    if old.shape != now.shape or (np.abs(old - now) <= _QUANTILE_TOLERANCE * (now[1] - now[0]) + 1e-6).all():
        return []
    index = int(np.argmax(np.abs(old - now).max(0)))
    return [
        f"{words.STATS}: q01 and q99 of {key!r} are averages over the episodes, not quantiles of all rows (channel "
        f"{index}: {old[0, index]:g} to {old[1, index]:g} there, {now[0, index]:g} to {now[1, index]:g} in the rows); "
        "wamkit computes its own"
    ]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file holds something else."""
    try:
        document = json.loads(path.read_text())
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _found(kind: Kind, where: str, what: str, remedy: str, episodes: tuple[int, ...] = ()) -> Finding:
    return Finding(kind=kind, severity="warning", where=where, what=what, remedy=remedy, episodes=episodes)
