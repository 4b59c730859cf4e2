"""Protocols name what they fix, and show what was changed."""

from __future__ import annotations

import dataclasses

import pytest

from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.evaluation.protocol import PROTOCOLS, Protocol, get_protocol


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
        "execution_horizon": 2,
        "cameras": ("corner",),
        "rendering": "mujoco-stock",
    }
    uncounted = {"name", "tasks", "episodes", "summary"}
    assert set(other) | uncounted == {item.name for item in dataclasses.fields(Protocol)}
    for key, value in other.items():
        assert get_protocol("metaworld/v1", **{key: value}).title != "metaworld/v1", key


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
    "change", [{"max_steps": 0}, {"episodes": 0}, {"execution_horizon": 0}, {"seeds": ()}, {"seeds": (0, 1, 0)}]
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
