"""The dialect of vla-eval, spoken by its published client."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from wamkit_client import pack, unpack
from websockets.sync.client import ClientConnection, connect

from wamkit.serving.server import Server

from ..policies import EPISODE, VIDEO, watched
from .conftest import TASK, observation, serving

FRONT, WRIST = observation()["obs"]


def frame(kind: str, payload: Any, seq: Any = 1) -> bytes:
    return pack({"type": kind, "payload": payload, "seq": seq, "timestamp": 1.5})


def ask(connection: ClientConnection, message: bytes | str) -> dict[str, Any]:
    connection.send(message)
    return unpack(connection.recv())


def seen(row: int = 0, **more: Any) -> dict[str, Any]:
    front, wrist = observation(row)["obs"]
    images = {"front": front, "wrist": wrist}
    return {"images": images, "states": EPISODE.state[row], "task_description": TASK, **more}


@pytest.mark.parametrize("image_format", ["png", "raw"])
def test_the_genuine_client(server: Server, image_format: Any) -> None:
    connection = pytest.importorskip("vla_eval.connection")
    codec = pytest.importorskip("vla_eval.protocol.numpy_codec")

    async def episodes() -> list[list[np.ndarray]]:
        async with connection.Connection(f"{server.url}/vla-eval") as client:
            assert client.server_info["protocol_version"] == 1
            assert client.server_info["observation_params"] == {"send_state": True, "send_wrist_image": True}
            played = []
            for _ in range(2):
                await client.start_episode({"task_description": TASK})
                played.append([(await client.act(seen(row)))["actions"] for row in range(10)])
                await client.end_episode({"success": True})
            with pytest.raises(RuntimeError, match="expected a state of 3 numbers"):
                await client.start_episode({})
                await client.act(seen(states=np.zeros(8, np.float32)))
            assert (await client.act(seen(2)))["actions"].shape == (3,)  # an error does not end the connection
            return played

    before = codec.get_image_format()
    codec.set_image_format(image_format)
    try:
        played = asyncio.run(episodes())
    finally:
        codec.set_image_format(before)
    for actions in played:
        assert np.stack(actions).shape == (10, 3) and len({action.tobytes() for action in actions}) == 10
    assert not np.array_equal(played[0][0], played[1][0]), "episodes have draws of their own"


def test_one_action_for_each_observation_and_a_call_for_each_horizon(server: Server) -> None:
    with connect(f"{server.url}/vla-eval") as connection:
        ask(connection, frame("hello", {"protocol_version": 1, "harness_version": "test"}))
        connection.send(frame("episode_start", {"task_description": TASK}))
        replies = [ask(connection, frame("observation", seen(step), seq=step + 7)) for step in range(8)]
    assert [reply["seq"] for reply in replies] == list(range(7, 15))
    assert {reply["type"] for reply in replies} == {"action"}
    assert all(reply["payload"]["actions"].dtype == np.float32 for reply in replies)


def test_what_comes_between_two_calls_is_remembered() -> None:
    policy, model = watched(1)
    with serving(policy) as server, connect(f"{server.url}/vla-eval") as connection:
        model.memories.clear()
        for _ in range(2):
            connection.send(frame("episode_start", {"task_description": TASK}))
            replies = [ask(connection, frame("observation", seen(step))) for step in range(9)]
            assert {reply["type"] for reply in replies} == {"action"}
    wanted = VIDEO[torch.tensor([[0, 0], [3, 4], [7, 8]])]
    assert torch.equal(torch.cat(model.memories), torch.cat((wanted, wanted)))


def encoded(kind: str, array: np.ndarray = FRONT) -> dict[str, Any]:
    out = io.BytesIO()
    Image.fromarray(array).save(out, format=kind.upper(), quality=95)
    return {"__image__": True, "format": kind, "data": out.getvalue(), "shape": list(array.shape)}


def test_images_come_encoded(server: Server) -> None:
    with connect(f"{server.url}/vla-eval") as connection:
        for kind in ("png", "jpeg"):
            reply = ask(connection, frame("observation", seen(images={"front": encoded(kind), "wrist": WRIST})))
            assert reply["type"] == "action", reply
            connection.send(frame("episode_start", {}))


BOMB = encoded("png", np.zeros((4000, 4000, 3), np.uint8))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("hello", "expected a binary frame"),
        (b"\xc1", "msgpack message"),
        (pack([1]), "a frame with type, payload, seq and timestamp, got list"),
        (pack({"type": "observation"}), r"\['payload', 'seq', 'timestamp'\] not found"),
        (frame("dance", {}), "type hello, observation"),
        (frame("observation", 5), "'payload' as a map"),
        (frame("observation", {}, seq=-1), "'seq' as a whole number"),
        (frame("observation", {}, seq="1"), "'seq' as a whole number"),
        (frame("hello", {"protocol_version": 9}), "protocol_version 1, got 9"),
        (frame("hello", {"protocol_version": np.arange(3)}), "protocol_version 1, got ndarray"),
        (pack({"type": np.arange(3), "payload": {}, "seq": 1, "timestamp": 0}), "type hello.*got ndarray"),
        (frame("observation", seen(compute_kv_cache=True)), "asks for actions, got one that is only remembered"),
        (
            frame("observation", {"reset": True, "prompt": "go"}),
            "an observation with images, which is answered",
        ),
        (
            frame(
                "observation",
                seen(images={"front": {"__image__": True, "format": np.arange(3), "data": b""}, "wrist": WRIST}),
            ),
            "png, jpeg or raw, got ndarray",
        ),
        (frame("observation", {}), "no image of any camera came"),
        (frame("observation", seen(extra=1)), "unknown keys 'extra'"),
        (frame("observation", seen(images={"front": BOMB, "wrist": WRIST})), "4000x4000"),
        (frame("observation", seen(images={"front": {"__image__": True, "data": b"x"}, "wrist": WRIST})), "png image"),
        (
            frame("observation", seen(images={"front": {"__image__": True, "data": "x"}, "wrist": WRIST})),
            "bytes of an image",
        ),
        (
            frame(
                "observation", seen(images={"front": {"__image__": True, "format": "gif", "data": b""}, "wrist": WRIST})
            ),
            "png, jpeg or raw",
        ),
        (
            frame(
                "observation",
                seen(
                    images={
                        "front": {"__image__": True, "format": "raw", "data": b"x", "shape": [2, 2, 3]},
                        "wrist": WRIST,
                    }
                ),
            ),
            "expected 12 bytes",
        ),
    ],
)
def test_what_does_not_fit_is_told_and_the_connection_goes_on(server: Server, message: Any, told: str) -> None:
    with connect(f"{server.url}/vla-eval") as connection:
        reply = ask(connection, message)
        assert reply["type"] == "error" and reply["payload"]["kind"] == "bad_request"
        with pytest.raises(AssertionError, match=told):
            raise AssertionError(reply["payload"]["error"])
        assert ask(connection, frame("observation", seen()))["type"] == "action"


def test_a_shorter_chunk_is_handed_out_to_its_end(server: Server) -> None:
    with connect(f"{server.url}/vla-eval") as connection:
        for row in range(4):
            reply = ask(connection, frame("observation", seen(row, execution_step=2)))
            assert reply["type"] == "action" and reply["payload"]["actions"].shape == (3,)


def test_a_clients_own_error_is_only_logged(server: Server) -> None:
    deep: Any = 0
    for _ in range(500):
        deep = [deep]
    with connect(f"{server.url}/vla-eval") as connection:
        connection.send(frame("error", {"error": deep}))
        assert ask(connection, frame("observation", seen()))["type"] == "action"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"images": {"front": FRONT[:8], "wrist": WRIST}}, "camera 'front'"),
        ({"states": np.full(3, np.nan, np.float32)}, "NaN or infinity"),
        ({"extra": 1}, "unknown keys 'extra'"),
    ],
)
def test_observations_between_two_chunks_are_held_to_the_same(server: Server, more: dict[str, Any], told: str) -> None:
    with connect(f"{server.url}/vla-eval") as connection:
        assert ask(connection, frame("observation", seen()))["type"] == "action"
        reply = ask(connection, frame("observation", seen() | more, seq=5))
        assert reply["type"] == "error" and told in reply["payload"]["error"] and reply["seq"] == 5
        assert ask(connection, frame("observation", seen()))["type"] == "action"


def test_another_sentence_is_answered_with_another_chunk(server: Server) -> None:
    with connect(f"{server.url}/vla-eval") as connection:
        first = ask(connection, frame("observation", seen()))["payload"]["actions"]
        other = ask(connection, frame("observation", seen(task_description="another sentence")))["payload"]["actions"]
        chunk = ask(connection, frame("observation", seen(task_description="another sentence")))["payload"]["actions"]
    assert not np.array_equal(first, other) and not np.array_equal(other, chunk)
