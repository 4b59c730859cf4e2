"""Small changes of a policy folder's JSON files: the folder is read, or refused by a message that names the file."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wamkit.checkpoint import PolicyFiles, read_policy
from wamkit.codecs.load import load_text_encoder, load_video_codec
from wamkit.data.actions import ActionTransform
from wamkit.data.stats import feature_statistics
from wamkit.policy import load_policy, read_settings

from .policies import CONFIG, EPISODE, make_policy

FILES = (
    "config.json",
    "spec.json",
    "statistics.json",
    "training.json",
    "codecs/video/config.json",
    "codecs/text/config.json",
)
REPLACEMENTS: tuple[Any, ...] = (None, "x", {}, [], float("nan"), -1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with differences as actions, so that every key of its statistics is there."""
    policy = make_policy()
    statistics = {
        "action": feature_statistics(EPISODE.actions),
        "state": feature_statistics(EPISODE.state),
        "action_delta": feature_statistics(EPISODE.actions[1:] - EPISODE.actions[:-1]),
    }
    robot = policy.spec.robot
    names = [channel.name for channel in robot.state][: len(robot.action) - len(robot.gripper_channels)]
    action = ActionTransform.from_statistics("delta", "minmax", statistics, robot, targets=names)
    policy.transforms = dataclasses.replace(policy.transforms, action=action)
    path = tmp_path_factory.mktemp("files") / "policy"
    training = {"recipe": {"data": {"action_offset": 0}}, "versions": {"torch": "2"}, "seed": 0}
    return policy.save(path, config=CONFIG.to_dict(), training=training)


def places(data: Any) -> Iterator[tuple[Any, ...]]:
    """Paths of every value within, of lists the last item only."""
    keys: list[Any] = list(data) if isinstance(data, dict) else []
    if isinstance(data, list) and data:
        keys = [len(data) - 1]
    for key in keys:
        yield (key,)
        yield from ((key, *rest) for rest in places(data[key]))


def changed(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The data with each value taken out or replaced, and with a stranger in each dict."""
    for place in places(data):
        for value in ("deleted", *REPLACEMENTS):
            other = copy.deepcopy(data)
            parent = other
            for key in place[:-1]:
                parent = parent[key]
            if isinstance(parent[place[-1]], dict) and value == {}:
                parent[place[-1]]["stranger"] = 1
            elif value == "deleted":
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
            yield f"{place} {value!r}", other


def read(files: PolicyFiles, name: str, data: dict[str, Any]) -> None:
    """What a policy folder says in one of its files, held to the others; no weights of the network."""
    (files.folder / name).write_text(json.dumps(data))
    if name == "codecs/video/config.json":
        load_video_codec(files.codecs / "video")
    elif name == "codecs/text/config.json":
        load_text_encoder(files.codecs / "text")
    elif name == "statistics.json":
        read_settings(dataclasses.replace(files, statistics=data))
    elif name == "config.json" and data.pop("type", None) == files.family:
        read_settings(dataclasses.replace(files, config=data))
    elif name == "training.json":
        read_policy(files.folder)
    else:
        read_settings(read_policy(files.folder))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_read_or_refused_by_name(folder: Path, name: str) -> None:
    text = (folder / name).read_text()
    files, refused, unnamed = read_policy(folder), 0, []
    try:
        for what, data in changed(json.loads(text)):
            try:
                read(files, name, data)
            except (ValueError, OSError) as error:
                refused += 1
                if str((folder / name).parent) not in str(error) or Path(name).name not in str(error):
                    unnamed.append(f"{what}: {error}")
    finally:
        (folder / name).write_text(text)
    read(files, name, json.loads(text))
    assert not unnamed, "\n".join(unnamed)
    assert refused


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("config.json", ("network", "norm_eps"), "x", 'network: .*expected norm_eps as a finite number, got "x"'),
        ("config.json", ("network", "num_heads"), 0, "expected num_heads of 1 or more, got 0"),
        ("config.json", ("network", "cross_view_every"), True, "expected cross_view_every as a whole number, got true"),
        ("config.json", ("network", "value", "rope_base"), -1, "value: .*expected a positive rope_base, got -1"),
        ("config.json", ("network",), 3, "network: .*expected an object with the keys .*, got 3"),
        ("config.json", ("codec", "text_length"), {}, r"codec: .*expected text_length as a whole number, got \{\}"),
        ("config.json", ("image_size",), "64", 'expected image_size as a whole number, got "64"'),
        ("config.json", ("stranger",), 1, r"unknown: stranger"),
        (
            "spec.json",
            ("robot", "cameras", 0, "name"),
            None,
            r"cameras\[0\]: .*expected name as text, got null",
        ),
        ("spec.json", ("robot", "cameras"), [], r"expected, .*2 cameras \(num_views\), got 0"),
        ("spec.json", ("robot", "control_hz"), float("inf"), "expected control_hz as a finite number, got Infinity"),
        ("statistics.json", ("state", "q01", 0), float("nan"), r"state: expected q01\[0\] as a finite number, got NaN"),
        ("statistics.json", ("action", "mean"), [0.0], "action: normaliser: expected as many channels"),
        ("statistics.json", ("action", "moving"), [0, 0], "action: expected distinct moving channels among"),
        ("statistics.json", ("action", "representation"), "absolute", "action: .*another program or version"),
        ("statistics.json", ("value", "std", 0), -1.0, "value: value transform: expected .* deviations of 0 or more"),
        ("training.json", ("versions",), None, "expected versions as an object, got null"),
    ],
)
def test_a_wrong_value_is_named(folder: Path, name: str, place: tuple[Any, ...], value: Any, message: str) -> None:
    text = (folder / name).read_text()
    data = parent = json.loads(text)
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    try:
        (folder / name).write_text(json.dumps(data))
        with pytest.raises(ValueError, match=rf"{name}.*{message}.*copy the policy folder again, or export it anew"):
            load_policy(folder)
    finally:
        (folder / name).write_text(text)


@pytest.mark.parametrize("vector", ["state", "action", "value"])
def test_statistics_of_another_width_are_refused_before_weights_are_read(
    folder: Path, tmp_path: Path, vector: str
) -> None:
    shutil.copytree(folder, tmp_path / "policy")
    data = json.loads((folder / "statistics.json").read_text())
    wide = len(data[vector]["mean"])
    for name in {"q01", "q99", "mean", "std"} & set(data[vector]):
        data[vector][name].append(1.0)
    (tmp_path / "policy" / "statistics.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"statistics\.json .*: .*{vector} of {wide} channels, got {wide + 1}"):
        load_policy(tmp_path / "policy")
