"""Specs: round trips, refused nonsense, and mismatches that name both sides."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from wamkit.spec import CameraSpec, ChannelSpec, PolicySpec, RobotSpec, SpecMismatch, require_match

ROBOT = RobotSpec(
    name="arm/sim",
    cameras=(
        CameraSpec(
            name="front", height=64, width=96, intrinsics=((50.0, 0.0, 47.5), (0.0, 50.0, 31.5), (0.0, 0.0, 1.0))
        ),
        CameraSpec(name="wrist", height=64, width=64),
    ),
    state=(ChannelSpec(name="x", unit="m", frame="world"), ChannelSpec(name="roll", unit="rad", rotation="axis_angle")),
    action=(ChannelSpec(name="dx", unit="m"), ChannelSpec(name="gripper")),
    action_kind="delta",
    gripper_channels=(1,),
    gripper_sign="close_positive",
    control_hz=20.0,
    rendering="plain",
)
POLICY = PolicySpec(
    family="wav",
    robot=ROBOT,
    num_context=2,
    action_horizon=8,
    execution_horizon=4,
    normalization="minmax",
    tasks=("open it",),
    extra={"note": 1},
)


@pytest.mark.parametrize("spec", [ROBOT, POLICY], ids=["robot", "policy"])
def test_a_spec_survives_json(spec: RobotSpec | PolicySpec) -> None:
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_spec_from_before_strides_remembers_calls() -> None:
    written = POLICY.to_dict()
    assert written.pop("context_stride") is None
    assert PolicySpec.from_dict(json.loads(json.dumps(written))) == POLICY


@pytest.mark.parametrize(("stride", "num_context", "reach"), [(None, 4, 0), (1, 1, 0), (1, 2, 1), (3, 4, 9)])
def test_how_far_a_memory_reaches_back(stride: int | None, num_context: int, reach: int) -> None:
    spec = dataclasses.replace(POLICY, context_stride=stride, num_context=num_context)
    assert spec.context_reach == reach and PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_spec_meets_itself_and_one_with_more_cameras() -> None:
    require_match(ROBOT, ROBOT, wanted_by="policy", offered_by="simulator")
    require_match(ROBOT.with_cameras(("wrist",)), ROBOT, wanted_by="policy", offered_by="simulator")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ROBOT.cameras[:1]}, "camera 'wrist' is wanted; offered are ['front']"),
        (
            {"cameras": (ROBOT.cameras[0], CameraSpec(name="wrist", height=32, width=32))},
            "wanted 64x64 px, offered 32x32 px",
        ),
        ({"state": ROBOT.state[:1]}, "state width: wanted 2 ['x', 'roll'], offered 1 ['x']"),
        (
            {"state": (ROBOT.state[0], ChannelSpec(name="roll", unit="rad", rotation="quaternion_xyzw"))},
            "quaternion_xyzw",
        ),
        ({"action_kind": "absolute"}, "action_kind: wanted 'delta', offered 'absolute'"),
        ({"gripper_sign": "open_positive"}, "gripper_sign: wanted 'close_positive', offered 'open_positive'"),
        ({"control_hz": 10.0}, "control_hz: wanted 20.0, offered 10.0"),
        ({"rendering": "shiny"}, "rendering: wanted 'plain', offered 'shiny'"),
    ],
    ids=["camera", "size", "width", "rotation", "kind", "gripper", "rate", "look"],
)
def test_a_mismatch_names_both_sides(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecMismatch) as refused:
        require_match(ROBOT, dataclasses.replace(ROBOT, **change), wanted_by="the policy", offered_by="the simulator")
    assert message in str(refused.value)
    assert "the policy" in str(refused.value) and "the simulator" in str(refused.value)


def test_every_difference_is_listed() -> None:
    other = dataclasses.replace(ROBOT, control_hz=10.0, rendering="shiny")
    with pytest.raises(SpecMismatch, match=r"(?s)control_hz.*rendering"):
        require_match(ROBOT, other, wanted_by="policy", offered_by="simulator")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": (ROBOT.cameras[0], ROBOT.cameras[0])}, "distinct camera names"),
        ({"gripper_channels": (2,)}, "outside the 2 actions"),
        ({"control_hz": 0.0}, "positive, finite control_hz"),
        ({"control_hz": float("nan")}, "positive, finite control_hz"),
    ],
)
def test_a_robot_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ROBOT, **change)


def test_other_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="positive height"):
        CameraSpec(name="front", height=0, width=64)
    with pytest.raises(ValueError, match="execution_horizon"):
        dataclasses.replace(POLICY, execution_horizon=9)
    with pytest.raises(ValueError, match="not \\['top'\\]"):
        ROBOT.with_cameras(("top",))
    with pytest.raises(ValueError, match=r"robot spec: expected the keys .*unknown: colour"):
        RobotSpec.from_dict({**ROBOT.to_dict(), "colour": "red"})
    with pytest.raises(ValueError, match="robot spec: expected the keys"):
        RobotSpec.from_dict({"name": "arm"})
    with pytest.raises(ValueError, match="policy spec: expected the keys"):
        PolicySpec.from_dict({"robot": ROBOT.to_dict()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": None}, "expected family as text, got null"),
        ({"num_context": "2"}, 'expected num_context as a whole number, got "2"'),
        ({"num_context": 0}, "expected num_context of 1 or more, got 0"),
        ({"context_stride": 0}, "expected context_stride of 1 or more, got 0"),
        ({"context_stride": 1.5}, "expected context_stride as a whole number, got 1.5"),
        ({"tasks": "open it"}, 'expected tasks as a list, got "open it"'),
        ({"image_size": [64]}, r"expected image_size as a list of 2, got \[64\]"),
        ({"image_size": [64, -1]}, "expected a positive image_size"),
        ({"robot": {}}, "robot: .*expected the keys name, cameras"),
        ({"robot": [1]}, "robot: .*expected an object"),
    ],
)
def test_a_spec_of_other_types_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicySpec.from_dict(json.loads(json.dumps({**POLICY.to_dict(), **change})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "expected name as text, got null"),
        ({"height": 64.5}, "expected height as a whole number, got 64.5"),
        ({"intrinsics": [[1.0, 0.0], [0.0, 1.0]]}, "expected intrinsics of 3 rows of 3 numbers"),
        ({"intrinsics": [["x"]]}, r"expected intrinsics\[0\]\[0\] as a finite number"),
        ({"pose": 3}, "expected pose as a list, got 3"),
    ],
)
def test_a_camera_of_other_types_is_refused(change: dict[str, Any], message: str) -> None:
    robot = json.loads(json.dumps(ROBOT.to_dict()))
    robot["cameras"][1] |= change
    with pytest.raises(ValueError, match=rf"cameras\[1\]: .*{message}"):
        RobotSpec.from_dict(robot)
