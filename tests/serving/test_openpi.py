"""The dialect of openpi and WAV: published clients, the metadata, histories, errors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from wamkit_client import AsyncClient, BadRequest, Client, DeadlineMissed, pack, unpack
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from wamkit.serving.server import Server

from ..policies import CONFIG, EPISODE, PLANNER
from .conftest import TASK, alone, named, observation, serving

HORIZON = CONFIG.action_horizon


@contextlib.contextmanager
def plain(server: Server) -> Iterator[ClientConnection]:
    """A connection as foreign clients make it, its metadata read."""
    with connect(server.url, compression=None, max_size=None) as connection:
        assert unpack(connection.recv())["server"] == "wamkit"
        yield connection


def ask(connection: ClientConnection, request: dict[str, Any]) -> Any:
    connection.send(pack(request))
    reply = connection.recv()
    return reply if isinstance(reply, str) else unpack(reply)


def test_the_genuine_client_of_openpi(server: Server) -> None:
    openpi = pytest.importorskip("openpi_client.websocket_client_policy")
    host, _, port = server.url.rpartition(":")
    policy = openpi.WebsocketClientPolicy(host, int(port), api_key="none")
    assert policy.get_server_metadata()["action_horizon"] == HORIZON
    front, wrist = EPISODE.video["front"][0], EPISODE.video["wrist"][0]
    request = {
        "observation/front": front,
        "observation/wrist": wrist,
        "observation/state": EPISODE.state[0],
        "prompt": TASK,
    }
    replies = [policy.infer(request) for _ in range(3)]
    for reply in replies:
        assert reply["actions"].shape == (HORIZON, 3) and reply["actions"].dtype == np.float32
        assert reply["server_timing"]["infer_ms"] > 0
    assert "prev_total_ms" not in replies[0]["server_timing"] and replies[1]["server_timing"]["prev_total_ms"] > 0
    with pytest.raises(RuntimeError, match="expected a state of 3 numbers"):
        policy.infer({**request, "observation/state": np.zeros(7, np.float32)})
    policy._ws.close()


def test_requests_of_wav_are_accepted_unchanged(server: Server) -> None:
    with plain(server) as connection:
        for step, rows in ((5, 5), (1, 1), (0, 1)):
            request = {
                **observation(prompt=f"<reset>{TASK}" if step == 5 else TASK),
                "execution_step": step,
                "state_zeropadding": [3, 0],
                "num_inference_steps": 2,
                "ndim_action": 3,
            }
            reply = ask(connection, request)
            assert reply["actions"].shape == (rows, 3) and reply["policy_timing"]["act_ms"] > 0
        assert ask(connection, observation())["actions"].shape == (1, 3)  # WAV's default
        video = observation()["obs"].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        assert ask(connection, observation(obs=video, execution_step=4))["actions"].shape == (4, 3)


def test_the_reply_is_wavs_frame(server: Server) -> None:
    # What WAV's clients decode: a map whose first key is `actions`, in the bytes of the published example.
    with plain(server) as connection:
        connection.send(pack(observation(execution_step=1)))
        frame = connection.recv()
    assert isinstance(frame, bytes)
    actions = np.frombuffer(frame[32:44], "<f4")
    assert frame[1:10].hex() == "a7616374696f6e7384" and frame[10:23].hex() == "c40b5f5f6e6461727261795f5f"
    assert (unpack(frame)["actions"].ravel() == actions).all()


def test_metadata_say_what_to_send_and_who_answers(server: Server) -> None:
    with Client(server.url) as client:
        told = client.metadata
    assert [camera["name"] for camera in told["cameras"]] == ["front", "wrist"]
    assert (told["state_dim"], told["action_dim"], told["action_horizon"]) == (3, 3, HORIZON)
    assert told["execution_horizon"] == 4 and told["planner"] is None and told["identity"]["fingerprint"] == "0123"
    assert told["policy_spec"]["robot"]["name"] == told["robot"]


@pytest.mark.parametrize("planner", [None, PLANNER], ids=["drawn", "planned"])
def test_actions_are_those_of_the_policy_here(planner: Any) -> None:
    from ..policies import make_policy

    with serving(make_policy(planner)) as server, Client(server.url) as client:
        assert (client.metadata["planner"] is None) == (planner is None)
        client.reset(seed=5)
        chunks = [client.infer(named(row, executed=4))["actions"] for row in (0, 4, 8)]
    for chunk, wanted in zip(chunks, alone([0, 4, 8], seed=5, executed=4, planner=planner), strict=True):
        assert np.array_equal(chunk, wanted)


def test_histories_never_mix(server: Server) -> None:
    rows = {seed: [(3 * seed + 4 * call) % 25 for call in range(4)] for seed in range(6)}
    given: dict[int, list[np.ndarray]] = {}

    def robot(seed: int) -> None:
        with Client(server.url) as client:
            client.reset(TASK, seed=seed)
            request = [{**observation(row, executed=4, batching="exact")} for row in rows[seed]]
            given[seed] = [client.infer(each)["actions"] for each in request]

    threads = [threading.Thread(target=robot, args=(seed,)) for seed in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, chunks in given.items():
        for chunk, wanted in zip(chunks, alone(rows[seed], seed=seed, executed=4), strict=True):
            assert np.array_equal(chunk, wanted)


def test_every_way_to_begin_an_episode(server: Server) -> None:
    first, second = alone([0, 4], seed=7, executed=4)
    assert not np.array_equal(first, second)
    with plain(server) as connection:
        for begin in ("map", "prompt", "together"):
            more: dict[str, Any] = {"seed": 7, "executed": 4}
            if begin == "map":
                assert ask(connection, {"reset": True, "seed": 7, "prompt": TASK}) == {}
                more = {"executed": 4}
            elif begin == "together":
                more["reset"] = True
            request = observation(**more)
            request["prompt"] = f"<reset>{TASK}" if begin == "prompt" else request["prompt"]
            if begin == "map":
                del request["prompt"]  # told with the beginning
            assert np.array_equal(ask(connection, request)["actions"], first)
            assert np.array_equal(ask(connection, observation(4, executed=4))["actions"], second)
    with plain(server) as connection:  # a new connection is a new episode too
        assert np.array_equal(ask(connection, observation(seed=7, reset=True, executed=4))["actions"], first)


def test_frames_fed_back_are_remembered_and_not_answered(server: Server) -> None:
    with plain(server) as connection:
        assert ask(connection, {"reset": True, "seed": 7}) == {}
        assert ask(connection, {"obs": observation()["obs"], "compute_kv_cache": True}) == {}
        fed = ask(connection, observation(4, executed=4))["actions"]
        assert ask(connection, {"reset": True, "seed": 7}) == {}
        unfed = ask(connection, observation(4, executed=4))["actions"]
    assert not np.array_equal(fed, unfed)


def test_values_frames_and_scores_come_when_asked_for(server: Server) -> None:
    search = {"explore_steps": 2, "dynamic_groups": 4, "value_groups": 2, "value_elites": 0.25}
    with Client(server.url) as client:
        client.reset(seed=3)
        plain = client.infer(named())
        client.reset(seed=3)
        valued = client.infer(named(value=True))
        client.reset(seed=3)
        full = client.infer(named(imagine=True, explore_config=search))
    assert set(plain) == {"actions", "chunk_id", "server_timing", "policy_timing"}
    assert np.array_equal(plain["actions"], valued["actions"]) and len(valued["value"]) > 0
    assert full["predicted_video"].dtype == np.uint8 and full["predicted_video"].shape[0] == 2
    assert len(full["video_steps"]) == full["predicted_video"].shape[1] and full["scores"].shape == (2, 8)


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_error_is_told_as_the_client_reads_it(server: Server, goes_on: bool) -> None:
    wrong = observation(state=np.full(3, np.nan, np.float32))
    if goes_on:
        with Client(server.url) as client:
            client.reset(seed=7)
            with pytest.raises(BadRequest, match="NaN or infinity; check the robot's sensors"):
                client.infer(wrong)
            reply = client.infer(observation(executed=4))
            assert np.array_equal(reply["actions"], alone([0], seed=7, executed=4)[0]) and client.reconnects == 0
        return
    with plain(server) as connection:
        told = ask(connection, wrong)
        assert isinstance(told, str) and "NaN or infinity" in told and "Traceback" not in told and "\n" not in told
        with pytest.raises(ConnectionClosedError) as closed:
            connection.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"reset": True, "prompt": "push the puck", "deadline_ms": 1e-3}, DeadlineMissed),
        ({"reset": True, "execution_step": 0}, BadRequest),
        ({"seed": 9}, BadRequest),
        ({"prompt": "push the puck", "seed": 9}, BadRequest),
    ],
)
def test_a_request_that_fails_changes_nothing(server: Server, wrong: dict[str, Any], error: type[Exception]) -> None:
    first, second = alone([0, 4], seed=7, executed=4)
    with Client(server.url) as client:
        client.reset(TASK, seed=7)
        assert np.array_equal(client.infer(named(executed=4))["actions"], first)
        with pytest.raises(error):
            client.infer(named(8, executed=4) | wrong)
        went_on = named(4, executed=4)
        del went_on["prompt"]  # the sentence is still the first one
        assert np.array_equal(client.infer(went_on)["actions"], second)


def test_a_seed_may_come_with_the_first_observation_of_an_episode_that_was_begun(server: Server) -> None:
    with plain(server) as connection:
        assert ask(connection, {"reset": True, "prompt": TASK}) == {}
        reply = ask(connection, observation(seed=7, executed=4))
    assert np.array_equal(reply["actions"], alone([0], seed=7, executed=4)[0])


def test_a_cameras_own_pictures_are_told_the_size_to_send(server: Server) -> None:
    large = np.zeros((480, 640, 3), np.uint8)
    with Client(server.url) as client, pytest.raises(BadRequest, match=r"shape \(32, 32, 3\).*\(480, 640, 3\)"):
        client.infer({**named(), "images": {"front": large, "wrist": large}})


def test_the_mark_alone_begins_an_episode_of_the_same_sentence(server: Server) -> None:
    with plain(server) as connection:
        ask(connection, observation(3, executed=4))
        again = ask(connection, observation(prompt="<reset>", seed=7, executed=4))["actions"]
    assert np.array_equal(again, alone([0], seed=7, executed=4)[0])


async def _ask_all(url: str, count: int) -> list[np.ndarray]:
    import asyncio

    async def robot(seed: int) -> np.ndarray:
        async with AsyncClient(url) as client:
            await client.reset(TASK, seed=seed)
            return (await client.infer(observation(executed=4, batching="exact")))["actions"]

    return list(await asyncio.gather(*(robot(seed) for seed in range(count))))


def test_asynchronous_clients(server: Server) -> None:
    import asyncio

    for seed, actions in enumerate(asyncio.run(_ask_all(server.url, 4))):
        assert np.array_equal(actions, alone([0], seed=seed, executed=4)[0])
