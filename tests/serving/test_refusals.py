"""What only the model can refuse, a sentence that is too long for its text: told to the robot that sent it, as its own.

The policy is a WorldVLA, which reads whole sentences or none; a WAV cuts them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Iterator
from concurrent.futures import Future, wait

import numpy as np
import pytest
import torch
from wamkit_client import BadRequest, Client
from websockets.sync.client import connect

from wamkit.data.synthetic import synthetic_robot
from wamkit.models.worldvla import config as worldvla
from wamkit.models.worldvla.family import WorldVLA
from wamkit.planning.config import WAV, PlannerConfig
from wamkit.policy import Policy
from wamkit.serving.inference import MAX_REASON, Answer, Batching, Call, Inference
from wamkit.serving.requests import Settings
from wamkit.serving.server import Server
from wamkit.untrained import untrained_policy

from ..policies import EPISODE, VIDEO
from .conftest import TASK, named, observation, serving
from .test_http import act
from .test_openpi import ask as ask_openpi
from .test_openpi import plain
from .test_vla_eval import ask as ask_vla_eval
from .test_vla_eval import frame, seen

LONG = "open the drawer " * 100
TOLD = r"sentences of at most text_length = 128 .*, got \d+ .*; shorten it"
SETTINGS = Settings(num_steps=1, planner=None)


@functools.cache
def _untrained(*, reads_state: bool = False) -> Policy:
    tiny = worldvla.tiny(num_views=2, action_dim=3, state_dim=3)
    codec = dataclasses.replace(tiny.codec, fit_steps=2)
    config = dataclasses.replace(tiny, image_size=32, codec=codec, reads_state=reads_state)
    return untrained_policy(config, synthetic_robot(), execution_horizon=4)


def make_reader() -> Policy:
    """A policy that reads sentences of a limited length, with no robot in it."""
    made = _untrained()
    return Policy(made.model, made.spec, made.transforms, num_steps=1)


@pytest.fixture(scope="module")
def reader() -> Iterator[Server]:
    with serving(make_reader()) as running:
        yield running


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a robot did wrong is no defect of the server, and its sentence does not fill the log."""
    caplog.set_level(logging.INFO)
    yield
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert max((len(record.getMessage()) for record in caplog.records), default=0) < 2 * MAX_REASON


def is_told(reason: str) -> bool:
    with pytest.raises(AssertionError, match=TOLD):
        raise AssertionError(reason)
    return len(reason) <= MAX_REASON + 3 and "\n" not in reason


def test_over_http(reader: Server) -> None:
    body = named() | {"images": {key: image.tolist() for key, image in named()["images"].items()}}
    body = json.loads(json.dumps(body | {"state": body["state"].tolist()}))
    status, answer = act(reader, body | {"prompt": LONG}, "talker")
    assert status == 400 and answer["kind"] == "bad_request" and is_told(answer["error"])
    assert act(reader, body, "talker")[0] == 200


def test_over_websockets(reader: Server) -> None:
    with plain(reader) as connection:
        told = ask_openpi(connection, observation(prompt=LONG))
        assert isinstance(told, str) and is_told(told)
    with connect(f"{reader.url}/vla-eval") as connection:
        reply = ask_vla_eval(connection, frame("observation", seen(task_description=LONG)))
        assert reply["type"] == "error" and reply["payload"]["kind"] == "bad_request"
        assert is_told(reply["payload"]["error"])
        assert ask_vla_eval(connection, frame("observation", seen()))["type"] == "action"


def test_the_episode_goes_on(reader: Server) -> None:
    wanted = chunks([0, 4], seed=7)
    with Client(reader.url) as client:
        client.reset(TASK, seed=7)
        assert np.array_equal(client.infer(named(executed=4))["actions"], wanted[0])
        with pytest.raises(BadRequest, match=TOLD):
            client.infer(named(8, executed=4, prompt=LONG))
        assert np.array_equal(client.infer(named(4, executed=4))["actions"], wanted[1])


@pytest.mark.parametrize("exact", [False, True])
def test_those_who_share_its_call_are_answered(exact: bool, caplog: pytest.LogCaptureFixture) -> None:
    with running(exact) as inference:
        first = together(inference, [TASK] * 3, row=0, begins=True)
        answers = together(inference, [TASK, LONG, TASK], row=4)
        with pytest.raises(BadRequest, match=TOLD):
            answers[1].result()
        for seed in (0, 2):
            wanted = chunks([0, 4], seed=seed)
            for answer, actions in zip((first[seed], answers[seed]), wanted, strict=True):
                np.testing.assert_allclose(answer.result().actions, actions, atol=1e-5)
    assert "a call for 3 robots failed" in caplog.text


def test_warming_up_tells_of_no_robot(caplog: pytest.LogCaptureFixture) -> None:
    """There is none yet: what is tried lies in the middle of what training saw, and zero may lie far from it."""
    policy = _untrained(reads_state=True)
    far = dataclasses.replace(policy.transforms.state, kind="minmax", q01=(5.0,) * 3, q99=(6.0,) * 3)
    far = dataclasses.replace(far, constant=(), widened=())
    policy = Policy(policy.model, policy.spec, dataclasses.replace(policy.transforms, state=far), num_steps=1)
    inference = Inference(policy, Batching(max_batch=3, max_wait_s=1.0, exact=True), SETTINGS)
    inference.start()
    try:
        assert isinstance(policy.model, WorldVLA)
        states = policy.model.clipped["states"]
        assert states.num_seen >= 30 and not states.num_clipped
        assert "lay outside" not in caplog.text
    finally:
        inference.stop(20.0)


@pytest.mark.parametrize("exact", [False, True])
def test_a_search_that_the_policy_does_not_know(exact: bool) -> None:
    with running(exact) as inference:
        together(inference, [TASK] * 2, row=0, begins=True)
        for answer in together(inference, [TASK] * 2, row=4, planner=WAV):
            with pytest.raises(BadRequest, match="planner"):
                answer.result(timeout=60)
        for answer in together(inference, [TASK] * 2, row=4):
            assert answer.result(timeout=60).actions.shape == (5, 3)


@contextlib.contextmanager
def running(exact: bool) -> Iterator[Inference]:
    inference = Inference(make_reader(), Batching(max_batch=3, max_wait_s=1.0, exact=exact), SETTINGS)
    inference.start()
    try:
        yield inference
    finally:
        inference.stop(20.0)


def together(
    inference: Inference, tasks: list[str], *, row: int, begins: bool = False, planner: PlannerConfig | None = None
) -> list[Future[Answer]]:
    """Answers to robots that ask at the same time; a robot's seed is its place."""
    calls = [
        Call(
            slot=100 + place,
            video=VIDEO[row].numpy(),
            state=EPISODE.state[row],
            task=task,
            executed=4,
            seed=place if begins else None,
            settings=dataclasses.replace(SETTINGS, planner=planner),
            exact=inference.batching.exact,
        )
        for place, task in enumerate(tasks)
    ]
    answers = [inference.submit(call) for call in calls]
    wait(answers, timeout=30)
    return answers


def chunks(rows: list[int], *, seed: int) -> list[np.ndarray]:
    """What the policy gives one robot in this process."""
    alone = make_reader()
    alone.reset([0], seeds=[seed])
    inputs = [{"video": VIDEO[row][None], "state": torch.from_numpy(EPISODE.state[row][None])} for row in rows]
    return [alone.act([0], task=[TASK], executed=[4], **each).actions[0].numpy() for each in inputs]
