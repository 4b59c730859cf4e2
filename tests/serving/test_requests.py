"""What robots may send, under all its names, and what they are told instead of being misunderstood."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from wamkit_client import BadRequest

from wamkit.planning.config import WAV, PlannerConfig
from wamkit.serving.requests import RequestReader, Settings
from wamkit.spec import CameraSpec, PolicySpec, RobotSpec

from ..policies import EPISODE, make_policy
from .conftest import named, observation

SPEC = make_policy().spec
READER = RequestReader(spec=SPEC, settings=Settings(num_steps=3, planner=None))
FRONT, WRIST = observation()["obs"]
STATE = EPISODE.state[0]


LARGE = {"explore_steps": 20, "dynamic_groups": 64, "value_groups": 32}
SMALL = {"explore_steps": 3, "dynamic_groups": 30, "value_groups": 10}


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def libero_like(*cameras: str) -> RequestReader:
    size = SPEC.robot.cameras[0]
    views = tuple(CameraSpec(name=name, height=size.height, width=size.width) for name in cameras)
    robot: RobotSpec = dataclasses.replace(SPEC.robot, cameras=views)
    spec: PolicySpec = dataclasses.replace(SPEC, robot=robot)
    return RequestReader(spec=spec, settings=READER.settings)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (READER, observation()),
        (READER, observation(cameras=["front", "wrist"])),
        (READER, named()),
        (READER, {"front": FRONT, "wrist": WRIST, "state": list(map(float, STATE)), "task": "go"}),
        (READER, {"observation/front": FRONT, "observation/wrist": WRIST, "observation/state": STATE, "prompt": "go"}),
        (
            READER,
            {
                "observation.images.front": FRONT,
                "observation.images.wrist": WRIST,
                "observation.state": STATE.astype(float),
            },
        ),
        (
            libero_like("agentview", "robot0_eye_in_hand"),
            {"observation/image": FRONT, "observation/wrist_image": WRIST, "state": STATE},
        ),
        (
            libero_like("agentview", "robot0_eye_in_hand"),
            {"images": {"wrist": WRIST, "agentview": FRONT}, "states": STATE, "task_description": "go"},
        ),
        (
            libero_like("agentview", "robot0_eye_in_hand"),
            {"primary_image": FRONT, "left_wrist_image": WRIST, "proprio": STATE, "instruction": "go"},
        ),
    ],
)
def test_one_observation_under_many_names(reader: RequestReader, message: dict[str, Any]) -> None:
    request = reader.read(message)
    assert request.video is not None and (request.video == np.stack([FRONT, WRIST])).all()
    assert request.state is not None and request.state.dtype == np.float32 and np.allclose(request.state, STATE)


def test_a_single_camera_needs_no_name() -> None:
    request = libero_like("cam").read({"full_image": FRONT, "state": STATE})
    assert request.video is not None and (request.video[0] == FRONT).all()


def test_names_of_a_robot_of_its_own() -> None:
    reader = dataclasses.replace(
        READER,
        camera_keys={"observation/exterior_image_1_left": "front", "observation/wrist_image_left": "wrist"},
        state_keys=("observation/joint_position", "observation/gripper_position"),
        ignored=frozenset({"session_id"}),
    )
    request = reader.read(
        {
            "observation/exterior_image_1_left": FRONT,
            "observation/wrist_image_left": WRIST,
            "observation/joint_position": STATE[:2],
            "observation/gripper_position": float(STATE[2]),
            "prompt": "go",
            "session_id": "abc",
        }
    )
    assert request.state is not None and np.allclose(request.state, STATE)
    with pytest.raises(BadRequest, match=r"\['observation/gripper_position'\] with 3 numbers"):
        reader.read(
            {
                "observation/exterior_image_1_left": FRONT,
                "observation/wrist_image_left": WRIST,
                "observation/joint_position": STATE,
            }
        )
    with pytest.raises(ValueError, match=r"cameras \['front', 'wrist'\], got {'a': 'b'}"):
        dataclasses.replace(READER, camera_keys={"a": "b"})


@pytest.mark.parametrize(
    ("more", "executed", "rows"),
    [
        ({}, 1, 1),  # WAV's default
        ({"execution_step": 5}, 5, 5),
        ({"execution_step": 0}, 0, 0),
        ({"execution_step": np.int64(2)}, 2, 2),
        ({"executed": 3}, 3, None),
        ({"executed": 3, "execution_step": 5}, 3, 5),
    ],
)
def test_actions_run_and_wanted(more: dict[str, Any], executed: int, rows: int | None) -> None:
    request = READER.read(observation(**more))
    assert (request.executed, request.rows) == (executed, rows)
    assert READER.read(named()).executed == SPEC.execution_horizon and READER.read(named()).rows is None


def test_float_images_become_pixels() -> None:
    video = np.stack([FRONT, WRIST]).transpose(0, 3, 1, 2) / 127.5 - 1
    for dtype in (np.float32, np.float64):
        request = READER.read(observation(obs=video.astype(dtype)))
        assert request.video is not None and (request.video == np.stack([FRONT, WRIST])).all()


def test_reset_marks_leave_the_sentence() -> None:
    request = READER.read(observation(prompt="<reset> open it"))
    assert request.begins and request.task == "open it"
    assert not READER.read(observation(prompt="open it ")).begins and READER.read({"reset": True}).begins


def test_settings_of_one_request() -> None:
    search = {"explore_steps": 2, "dynamic_groups": 6, "alpha_smooth": 0.5, "sigma_decay": np.float32(0.25)}
    settings = READER.read(observation(num_inference_steps=7, ndim_action=3, explore_config=search)).settings
    wanted = dataclasses.replace(WAV, iterations=2, num_videos=6, keep_mean=0.5, keep_std=0.5, std_decay=0.25)
    assert settings == Settings(num_steps=7, planner=wanted)
    own = dataclasses.replace(READER, settings=Settings(num_steps=3, planner=PlannerConfig(score="mean")))
    changed = own.read(observation(explore_config={"explore_steps": 1})).settings.planner
    assert changed is not None and (changed.score, changed.iterations) == ("mean", 1)
    assert own.read(observation(explore_config=None)).settings == own.settings


BIG = np.zeros((2, 48, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        # not a request
        (None, "expected a map of 'images'"),
        ([1, 2], "list of length 2"),
        ({b"obs": 1}, "text as the keys"),
        ({}, "no image of any camera came"),
        # cameras: count, order, names, resolution, type
        (
            observation(obs=np.stack([FRONT])),
            r"uint8 of shape \(2, 32, 32, 3\), cameras in the order front, wrist.*got uint8 of shape \(1, 32, 32, 3\)",
        ),
        (observation(obs=np.stack([FRONT] * 3)), r"got uint8 of shape \(3,"),
        (observation(obs=BIG), r"got uint8 of shape \(2, 48, 48, 3\)"),
        (observation(obs=np.stack([FRONT, WRIST]).astype(np.int64)), "got int64"),
        (observation(obs=np.stack([FRONT, WRIST]).transpose(0, 3, 1, 2)), r"got uint8 of shape \(2, 3,"),
        (observation(obs=np.full((2, 3, 32, 32), 200.0)), r"in \[-1, 1\], got others; send uint8"),
        (observation(obs=np.full((2, 3, 32, 32), np.nan)), r"finite numbers in \[-1, 1\]"),
        (observation(obs="pixels"), "got str of length 6"),
        (observation(cameras=["wrist", "front"]), r"order \['front', 'wrist'\], got \['wrist', 'front'\]"),
        (observation(cameras="front"), "'cameras' as a list"),
        ({"images": {"front": FRONT}, "state": STATE}, r"got \['front'\]; send \['wrist'\] too"),
        ({"images": {"front": FRONT, "top": WRIST}, "state": STATE}, "an unknown camera: 'top'"),
        ({"images": {"front": FRONT, "wrist": WRIST}, "front": FRONT, "state": STATE}, "two images of camera 'front'"),
        ({"images": {"front": FRONT}, "observation/front": FRONT, "state": STATE}, "two images of camera 'front'"),
        (
            {"images": {"front": FRONT, "wrist": BIG[0]}, "state": STATE},
            r"camera 'wrist' as a uint8 RGB array of shape \(32, 32, 3\), got uint8 of shape \(48, 48, 3\); resize",
        ),
        ({"images": {"front": FRONT, "wrist": WRIST / 255}, "state": STATE}, "got float64"),
        ({"images": [FRONT, WRIST], "state": STATE}, "'images' as a map"),
        # state: missing, width, type, NaN
        ({"obs": observation()["obs"], "prompt": "go"}, r"\['state'\] with 3 numbers \(x, y, "),
        (observation(state=np.zeros(7, np.float32)), "state of 3 numbers.*got 7"),
        (observation(state=np.zeros((1, 3), np.float32)), "'state' as a vector"),
        (observation(state=np.full(3, np.nan, np.float32)), "NaN or infinity; check the robot's sensors"),
        (observation(state=np.full(3, 1e300)), "NaN or infinity"),
        (observation(state=["1", "2", "3"]), "vector of numbers"),
        (observation(state=None), "'state' as a vector of numbers, got nothing"),
        (observation(proprio=STATE), r"one state, got \['state', 'proprio'\]"),
        # the rest
        (observation(proprioception=STATE, colour="red"), "unknown keys 'proprioception', 'colour'"),
        (observation(**{f"key{i}": i for i in range(9)}), "'key4' …"),
        (observation(prompt="x" * 2**20), "at most 4096 characters, got 1048576; shorten it"),
        (observation(prompt=5), "'prompt' as text, got int"),
        (observation(prompt=b"go"), "'prompt' as text, got bytes"),
        (observation(instruction="go"), "one sentence"),
        (observation(execution_step=-1), "execution_step as a whole number of 0 to 100, got -1"),
        (observation(execution_step=10**30), "execution_step as a whole number of 0 to 100, got 10"),
        (observation(execution_step=50), "execution_step of 0 to 9, the actions that this policy predicts, got 50"),
        (observation(execution_step=2.5), "got 2.5"),
        (observation(execution_step=True), "got True"),
        (observation(execution_step=np.array([3])), "got int64 of shape"),
        (observation(executed=101), "executed as a whole number of 0 to 100, got 101"),
        (observation(num_inference_steps=0), "num_inference_steps as a whole number of 1 to 100"),
        (observation(num_inference_steps=10**6), "1 to 100, got 1000000"),
        (observation(ndim_action=14), "ndim_action 3, the width of this policy's actions, got 14"),
        (observation(state_zeropadding=[1]), "state_zeropadding of two whole numbers"),
        (observation(state_zeropadding=[0.5, 0]), "leave it out"),
        (observation(state_zeropadding="no"), "'state_zeropadding' as a vector"),
        (observation(explore_config=[1]), "'explore_config' as a map"),
        (observation(explore_config={"steps": 1}), "explore_steps, dynamic_groups.*got 'steps'"),
        (observation(explore_config={"explore_steps": "many"}), "iterations"),
        (observation(explore_config={"dynamic_groups": 10**6}), "num_videos of at most 64"),
        (observation(explore_config={"explore_steps": -1}), "iterations of 0 or more"),
        (observation(reset="yes"), "reset to be true or false"),
        (observation(imagine=1), "imagine to be true or false"),
        (observation(seed=-5), "seed as a whole number"),
        (observation(batching="fast"), "batching to be 'exact' or 'free', got 'fast'"),
        (observation(deadline_ms=-1), "deadline_ms"),
        (observation(deadline_ms=float("nan")), "deadline_ms"),
        (observation(deadline_ms="soon"), "deadline_ms"),
        # what looks at first like something else
        (observation(state=[10**400, 0, 0]), "'state' of finite numbers"),
        (observation(batching=np.arange(3)), "batching to be 'exact' or 'free', got int64 of shape"),
        (observation(explore_config=np.arange(3)), "'explore_config' as a map"),
        (observation(explore_config={"sigma_decay": 10**400}), "a number for each setting.*sigma_decay"),
        (observation(explore_config={"sigma_decay": nested(900)}), "a number for each setting.*sigma_decay"),
        (observation(cameras=nested(900)), "cameras in the order"),
        (observation(cameras=[np.arange(3), "wrist"]), "cameras in the order"),
        (observation(seed=nested(900)), "seed as a whole number"),
        (observation(seed={"a": nested(900)}), "seed as a whole number.*got a map with the keys"),
        (observation(reset="x" * 10**6), "reset to be true or false"),
        (observation(explore_config=LARGE), "at most 16384 rounds times videos times values times steps, got 122880"),
        (observation(images={"front": FRONT, "wrist": WRIST}), "either 'obs' or images by camera, got both"),
        (observation(front=FRONT), "either 'obs' or images by camera, got both"),
        (named(images={"front": FRONT / 255, "wrist": WRIST}), "send pixels of 0 to 255 as uint8"),
        (observation(explore_config=SMALL, num_inference_steps=100), "lower explore_config or num_inference_steps"),
    ],
)
def test_what_does_not_fit_is_told(message: Any, told: str) -> None:
    with pytest.raises(BadRequest, match=told) as error:
        READER.read(message)
    assert len(str(error.value)) < 1000, "a message for people, whatever was sent"


def test_the_mark_of_a_new_episode_alone_keeps_the_sentence() -> None:
    for prompt in ("<reset>", " <reset> "):
        request = READER.read(observation(prompt=prompt))
        assert request.begins and request.task is None


def test_no_search_but_the_servers_own() -> None:
    reader = dataclasses.replace(READER, max_search_work=0)
    assert reader.read(observation(num_inference_steps=5)).settings.num_steps == 5
    with pytest.raises(BadRequest, match=r"at most 0 rounds.*--max-search-work"):
        reader.read(observation(explore_config={"explore_steps": 1}))


def test_further_names_are_told() -> None:
    reader = dataclasses.replace(READER, camera_keys={"cam0": "front"})
    assert "'cam0' is camera 'front'" in reader.wanted and "is camera" not in READER.wanted
