"""Protocols name what they fix, and show what was changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.evaluation.protocol import PROTOCOLS, Protocol, get_protocol, same_rules
from wamkit.evaluation.results import Results


def test_changes_stand_in_the_title() -> None:
    assert get_protocol("metaworld/v1").title == "metaworld/v1"
    assert get_protocol("metaworld/v1", max_steps=300).title == "metaworld/v1 (max_steps=300)"
    assert get_protocol("metaworld/v1", max_steps=500).title == "metaworld/v1"
    changed = get_protocol("metaworld/v1", execution_horizon=4, seeds=(0, 1), max_steps=None)
    assert changed.title == "metaworld/v1 (seeds=0+1, execution_horizon=4)"
    assert get_protocol("metaworld/v1", episodes=20, tasks=("reach-v3",)).title == "metaworld/v1"
    own = dataclasses.replace(PROTOCOLS["metaworld/v1"], name="lab/reach", max_steps=70)
    assert own.title == "lab/reach"


def test_every_change_that_matters_changes_the_title() -> None:
    other = {
        "suite": "libero",
        "layout_seed": 1,
        "seeds": (3,),
        "max_steps": 7,
        "task_limits": (("drawer-*", 90),),
        "limit_unit": "calls",
        "settle_steps": 10,
        "execution_horizon": 2,
        "cameras": ("corner",),
        "rendering": "mujoco-stock",
    }
    uncounted = {"name", "tasks", "episodes", "num_layouts", "summary"}
    assert set(other) | uncounted == {item.name for item in dataclasses.fields(Protocol)}
    for key, value in other.items():
        needed = {"task_limits": (("*", 9),)} if key == "limit_unit" else {}
        changed = get_protocol("metaworld/v1", **{**needed, key: value})
        assert f"{key}=" in changed.title
        named, settings = (dataclasses.asdict(protocol) for protocol in (PROTOCOLS["metaworld/v1"], changed))
        assert not same_rules(named, settings), key


def test_results_tell_the_settings_that_were_used() -> None:
    plain = get_protocol("metaworld/v1")
    assert plain.settings() == dataclasses.asdict(plain)
    used = get_protocol("metaworld/v1", max_steps=40).settings(tasks=["drawer-*"], episodes=1)
    assert (used["episodes"], used["max_steps"], used["summary"]) == (1, 40, "metaworld/v1 with max_steps=40")
    assert sorted(used["tasks"]) == ["drawer-close-v3", "drawer-open-v3"]
    assert same_rules(used, dataclasses.asdict(get_protocol("metaworld/v1", max_steps=40))), "they change no trial"
    own = dataclasses.replace(plain, name="lab/v1", max_steps=40, summary="ours")
    assert own.settings()["summary"] == "ours"


def test_results_from_before_a_setting_existed_follow_the_same_rules() -> None:
    settings = json.loads(json.dumps(dataclasses.asdict(PROTOCOLS["metaworld/v1"])))
    older = {key: settings[key] for key in settings if key not in ("task_limits", "limit_unit", "settle_steps")}
    assert same_rules(older, dataclasses.asdict(get_protocol("metaworld/v1", episodes=3, tasks=("reach-v3",))))
    assert not same_rules({**older, "max_steps": 300}, settings)
    committed = Path(__file__).parents[2] / "results" / "demo" / "plain"
    assert Results.load(committed).protocol_settings["max_steps"] == 500
    assert same_rules(Results.load(committed).protocol_settings, settings)


@pytest.mark.parametrize(
    ("changes", "steps", "calls", "rules"),
    [
        ({}, 500, None, "at most 500 control steps"),
        ({"task_limits": (("drawer-*", 90),), "settle_steps": 10}, 90, None, "90 control steps, at most 500 control"),
        ({"task_limits": (("drawer-*", 900),)}, 500, None, "900 control steps, at most 500 control steps"),
        ({"task_limits": (("door-*", 9), ("*", 70))}, 70, None, "9 to 70 control steps by task, at most 500"),
        ({"task_limits": (("drawer-*", 90),), "limit_unit": "calls"}, 500, 90, "90 policy calls, at most 500 control"),
        ({"task_limits": (("door-*", 90),), "limit_unit": "calls"}, 500, None, "90 policy calls, at most 500 control"),
    ],
)
def test_limits_by_task(changes: dict[str, Any], steps: int, calls: int | None, rules: str) -> None:
    protocol = get_protocol("metaworld/v1", **changes)
    assert (protocol.step_limit("drawer-open-v3"), protocol.call_limit("drawer-open-v3")) == (steps, calls)
    assert rules in protocol.rules and ("10 settle steps" in protocol.rules) == ("settle_steps" in changes)


def test_tasks_may_be_patterns() -> None:
    protocol = get_protocol("metaworld/v1")
    drawers = ("drawer-close-v3", "drawer-open-v3")
    assert tuple(sorted(protocol.choose(["drawer-*"]))) == drawers
    assert protocol.choose(["drawer-open-v3", "drawer-*"]) == drawers[::-1]
    assert protocol.choose([]) == protocol.task_ids
    own = Protocol(
        name="lab/shelves", suite="metaworld", tasks=("shelf/0", "shelf/1", "table/0"), layout_seed=0, episodes=1,
        max_steps=5, cameras=("front",), rendering="painted",
    )  # fmt: skip
    assert own.choose(["shelf/*"]) == ("shelf/0", "shelf/1")
    with pytest.raises(ValueError, match=r"has no task shelves/\* .did you mean shelf/1\?.; it covers shelf/0"):
        own.choose(["shelves/*"])


def test_requests_cover_layouts_and_seeds_that_training_never_sees() -> None:
    requests = get_protocol("metaworld/v1", seeds=(0, 2)).requests(tasks=["reach-v3", "push-v3"], episodes=3)
    assert [(r.task, r.layout, r.seed) for r in requests[:6]] == [
        ("reach-v3", 0, 0),
        ("reach-v3", 1, 1),
        ("reach-v3", 2, 2),
        ("reach-v3", 0, 200_000),
        ("reach-v3", 1, 200_001),
        ("reach-v3", 2, 200_002),
    ]
    assert len(requests) == len(set(requests)) == 12
    assert {r.layout_seed for r in requests} == {1042}
    everything = get_protocol("metaworld/v1").requests()
    assert len(everything) == 50 * 50 and len({r.task for r in everything}) == 50


def test_a_repeated_task_is_run_once() -> None:
    assert len(get_protocol("metaworld/v1").requests(tasks=["push-v3", "push-v3"], episodes=2)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["open-sesame"]}, "no task open-sesame; it covers .*drawer-open-v3"),
        ({"episodes": 0}, "between 1 and"),
        ({"episodes": 100_000}, "between 1 and"),
    ],
)
def test_wrong_requests_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_protocol("metaworld/v1").requests(**arguments)  # type: ignore[arg-type]


def test_unknown_protocols_are_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown protocol 'metaworld/v9'; choose one of .*metaworld/v1"):
        get_protocol("metaworld/v9")


@pytest.mark.parametrize(
    "change",
    [
        {"task_limits": (("*", 0),)},
        {"limit_unit": "calls"},
        {"settle_steps": -1},
        {"max_steps": 0},
        {"episodes": 0},
        {"execution_horizon": 0},
        {"seeds": ()},
        {"seeds": (0, 1, 0)},
    ],
)
def test_impossible_protocols_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="protocol 'metaworld/v1': expected"):
        get_protocol("metaworld/v1", **change)


def test_a_robot_must_see_what_the_protocol_shows() -> None:
    protocol = get_protocol("metaworld/v1")
    protocol.require_robot(MetaWorldFactory().robot)
    protocol.require_robot(MetaWorldFactory(cameras=("gripperPOV",), height=128, width=128).robot)
    with pytest.raises(ValueError, match="also wants topview"):
        protocol.require_robot(MetaWorldFactory(cameras=("corner2", "topview")).robot)
    with pytest.raises(ValueError, match="'mujoco-low-cost', but the policy was trained on 'mujoco-stock'"):
        protocol.require_robot(MetaWorldFactory(rendering="stock").robot)
    with pytest.raises(ValueError, match=r"protocol's rendering \(--rendering stock\).*\(--rendering low_cost\)"):
        protocol.require_robot(MetaWorldFactory(rendering="stock").robot)
    with pytest.raises(ValueError, match=r"rendering, or train .* protocol's \(--rendering low_cost\)$"):
        protocol.require_robot(dataclasses.replace(MetaWorldFactory().robot, rendering="camera"))


@pytest.mark.parametrize(
    ("name", "task", "steps", "calls"),
    [
        ("libero/standard", "libero_spatial/0", 220, None),
        ("libero/standard", "libero_object/9", 280, None),
        ("libero/standard", "libero_goal/1", 300, None),
        ("libero/standard", "libero_10/3", 520, None),
        ("libero/standard", "libero_90/89", 400, None),
        ("libero/wav-reference", "libero_object/0", 1000, 280),
        ("libero/wav-reference", "libero_90/0", 1000, 400),
    ],
)
def test_libero_limits(name: str, task: str, steps: int, calls: int | None) -> None:
    protocol = get_protocol(name)
    assert (protocol.step_limit(task), protocol.call_limit(task)) == (steps, calls)
    assert (protocol.settle_steps, protocol.execution_horizon, protocol.episodes) == (10, 8, 50)
    assert len(protocol.task_ids) == 130
    requests = protocol.requests(tasks=("libero_object/*",))
    assert len(requests) == 500 and {request.layout_seed for request in requests} == {0}


def test_a_family_of_initial_states_has_an_end() -> None:
    with pytest.raises(ValueError, match="50 initial states for each task"):
        get_protocol("libero/standard").requests(tasks=("libero_object/0",), episodes=51)
    drawn = get_protocol("libero/standard", layout_seed=7)
    assert drawn.title == "libero/standard (layout_seed=7)"
    assert len(drawn.requests(tasks=("libero_object/0",), episodes=51)) == 51
