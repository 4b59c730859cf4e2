"""Hold a dataset's metadata against each other: totals, features, robot, sentences, the list of excluded episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data import features as words
from wamkit.data.exclusions import EXCLUDE_PATH, Exclusions, is_of_this_dataset, read_exclusions
from wamkit.data.findings import Finding, Kind, Severity, listed_episodes
from wamkit.data.info import count_table_rows, read_info
from wamkit.data.inspection.rows import remedy_for_column
from wamkit.data.layout import DatasetError
from wamkit.data.lerobot import LeRobotDataset
from wamkit.spec import RobotSpec


def open_any(root: Path | str) -> tuple[LeRobotDataset, list[Finding]]:
    """Open a dataset without looking at its files, even one whose total of episodes is wrong.

    Raises:
        FileNotFoundError: no such folder, not a dataset, or no episode table.
        DatasetError: the metadata cannot be read at all.
    """
    root = Path(root)
    announced = int(read_info(root)["total_episodes"])
    try:
        dataset = LeRobotDataset(root, check=False)
        counted = count_table_rows(root)
    except DatasetError as error:
        try:
            counted = count_table_rows(root)
        except DatasetError:
            raise error from None
        if counted == announced:
            raise
        dataset = LeRobotDataset(root, check=False, num_episodes=counted)
    if counted == announced:
        return dataset, []
    is_short = counted < announced
    what = f"total_episodes: expected {counted} by the episode table, got {announced}"
    remedy = "correct the number or copy the metadata again" if is_short else "open the recording once more, or correct"
    return dataset, [_found("metadata", words.INFO, what, remedy, "error" if is_short else "warning")]


def robot_of(dataset: LeRobotDataset) -> tuple[RobotSpec | None, list[Finding]]:
    """The robot spec, or what is wrong with it."""
    try:
        return dataset.robot, []
    except DatasetError as error:
        return None, [_found("metadata", words.INFO, str(error), "correct it, or run `wamkit data describe`")]


def read_tasks(dataset: LeRobotDataset) -> tuple[list[str] | None, list[Finding]]:
    """The sentences, or why they cannot be read."""
    where = "/".join(dataset.tasks_path.parts[-2:])
    try:
        return (dataset.read_tasks() if dataset.num_episodes else []), []
    except FileNotFoundError:
        what = "expected the task table, found none"
        return None, [_found("missing_file", where, what, "copy the dataset again")]
    except DatasetError as error:
        return None, [_found("damaged_file", where, str(error), "copy the dataset again")]


def read_list(dataset: LeRobotDataset) -> tuple[Exclusions, list[Finding]]:
    """The episodes left out, or what is wrong with their list."""
    try:
        return read_exclusions(dataset.root, num_episodes=dataset.num_episodes), []
    except DatasetError as error:
        remedy = "training refuses it: correct it, or remove it and run `wamkit data inspect --exclude`"
        return Exclusions(episodes={}), [_found("exclusions", EXCLUDE_PATH, str(error), remedy)]


def check_list_age(dataset: LeRobotDataset, excluded: Exclusions) -> list[Finding]:
    """Was the list of excluded episodes made of the dataset as it is?

    Args:
        dataset: opened unchecked, its excluded episodes ignored; all others can be read.
        excluded: the list.
    """
    if is_of_this_dataset(excluded, dataset):
        return []
    what = "expected a list made of the dataset as it is, got one from before it changed"
    remedy = "if episodes were replaced, remove it and run `wamkit data inspect --exclude` again"
    return [_found("exclusions", EXCLUDE_PATH, what, remedy, "warning")]


def check_metadata(dataset: LeRobotDataset, robot: RobotSpec | None, tasks: list[str] | None) -> list[Finding]:
    """Everything that needs no data file and no video.

    Args:
        dataset: opened unchecked.
        robot: its robot spec, if that can be read.
        tasks: its sentences, if they can be read.
    """
    findings = []
    totals = {"total_frames": dataset.num_frames}
    if tasks is not None and "total_tasks" in dataset.info:
        totals["total_tasks"] = len(tasks)
    for key, counted in totals.items():
        if dataset.info[key] != counted:
            what = f"{key}: expected {counted} by the tables, got {dataset.info[key]}"
            findings.append(_found("metadata", words.INFO, what, "correct the number or copy the metadata again"))
    widths = {key: int(np.prod(feature["shape"])) for key, feature in dataset.features.items()}
    for key in (words.ACTION, words.STATE):
        is_stateless = key == words.STATE and robot is not None and not robot.state
        if key not in widths and not is_stateless:
            what = f"expected a column {key!r}, got {sorted(widths)}"
            remedy = "training refuses a dataset without it: record or rename it"
            findings.append(_found("missing_column", words.INFO, what, remedy))
    for key in dataset.wamkit.get("columns", []):
        if key not in widths:
            what = f"expected the added column {key!r} among the features, got {sorted(widths)}"
            findings.append(_found("missing_column", words.INFO, what, remedy_for_column(key)))
    silent = tuple(record.index for record in dataset.episodes if not any(task.strip() for task in record.tasks))
    if silent:
        what = f"expected a sentence for every episode, got none for {len(silent)} of {dataset.num_episodes}"
        remedy = "write down what is done: a policy that reads its task learns nothing of it here"
        findings.append(_found("task", listed_episodes(silent), what, remedy, "warning", silent))
    return findings + ([] if robot is None else _check_robot(dataset, robot, widths))


def _check_robot(dataset: LeRobotDataset, robot: RobotSpec, widths: dict[str, int]) -> list[Finding]:
    findings = []
    for key, channels in ((words.ACTION, robot.action), (words.STATE, robot.state)):
        if key in widths and widths[key] != len(channels):
            what = f"{key}: expected {len(channels)} channels by the robot spec, got {widths[key]} in the features"
            findings.append(_found("width", words.INFO, what, "correct whichever is wrong, or record again"))
            continue
        names = dataset.features[key].get("names") if key in widths else None
        wanted = [channel.name for channel in channels]
        if isinstance(names, list) and sorted(map(str, names)) == sorted(wanted) and names != wanted:
            what = f"{key}: expected the channels {wanted} by the robot spec, got the order {names} in the features"
            findings.append(_found("inconsistent", words.INFO, what, "correct whichever is wrong", "warning"))
    if robot.control_hz != dataset.fps:
        what = f"expected control_hz and fps to agree, got {robot.control_hz:g} and {dataset.fps:g}"
        findings.append(_found("rate", words.INFO, what, "correct whichever is wrong", "warning"))
    for camera in robot.cameras:
        known = camera.name in dataset.cameras
        size = words.image_size(dataset.features[dataset.camera_key(camera.name)]) if known else None
        if size != (camera.height, camera.width):
            got = f"{size[0]}x{size[1]}" if size else "no such camera"
            what = f"camera {camera.name!r}: expected {camera.height}x{camera.width} by the robot spec, got {got}"
            findings.append(_found("size", words.INFO, what, "correct whichever is wrong, or record again"))
    ours = [name for name in robot.camera_names if name in dataset.cameras]
    theirs = [name for name in dataset.cameras if name in ours]
    if ours != theirs:
        what = f"cameras: expected the order {ours} by the robot spec, got {theirs} in the features"
        remedy = "correct whichever is wrong: programs that take cameras by their place see them swapped"
        findings.append(_found("inconsistent", words.INFO, what, remedy, "warning"))
    return findings


def check_leftovers(dataset: LeRobotDataset, known: set[Path]) -> list[Finding]:
    """Files that belong to no episode."""
    root = dataset.root
    files = [path for folder in ("data", "videos") for path in (root / folder).rglob("*") if path.is_file()]
    left = [path for path in files if path not in known] + list((root / "meta").rglob(".*.partial"))
    remedy = "delete it, or open the recording once more, which cleans up"
    what = "expected only files of episodes"
    return [_found("leftover", str(path.relative_to(root)), what, remedy, "warning") for path in sorted(left)]


def _found(
    kind: Kind, where: str, what: str, remedy: str, severity: Severity = "error", episodes: tuple[int, ...] = ()
) -> Finding:
    named: dict[str, Any] = {"kind": kind, "severity": severity, "where": where, "what": what}
    return Finding(**named, remedy=remedy, episodes=episodes)
