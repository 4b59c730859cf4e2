"""Clients against a real server and against servers that misbehave."""

from __future__ import annotations

import asyncio
import http.server
import signal
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wamkit_client import (
    AsyncClient,
    BadRequest,
    Busy,
    Client,
    ConnectionLost,
    DeadlineMissed,
    MessageError,
    PolicyChanged,
    ServerError,
    pack,
)
from wamkit_client.wire import address, endpoint, options
from websockets.asyncio.client import connect
from websockets.sync.server import ServerConnection

from wamkit.serving.server import Server

from ..serving.conftest import TASK, alone, observation, serving
from .conftest import Make, receive, scripted, vanish


def echo(connection: ServerConnection, number: int) -> None:
    """Answers with what came and the connection's number."""
    while True:
        connection.send(pack({"got": receive(connection), "connection": number}))


# A real server.


def test_answers_are_the_policys(server: Server, make: Make) -> None:
    with make(server.url) as client:
        assert client.metadata["server"] == "wamkit"
        client.reset(TASK, seed=3)
        rows = [client.infer(observation(row, executed=4))["actions"] for row in (0, 4)]
    assert all(np.array_equal(*pair) for pair in zip(rows, alone([0, 4], seed=3, executed=4), strict=True))


def test_errors_are_of_their_kinds_and_the_episode_goes_on(server: Server, make: Make) -> None:
    with make(server.url) as client:
        client.reset(seed=3)
        first = client.infer(observation(0, executed=4))["actions"]
        with pytest.raises(BadRequest, match="expected a state of 3 numbers"):
            client.infer(observation(state=np.zeros(7, np.float32)))
        with pytest.raises(DeadlineMissed):
            client.infer(observation(4, executed=4, deadline_ms=1e-6))
        with pytest.raises(BadRequest, match="seed"):
            client.reset(seed=-1)  # refused: what was begun before goes on
        with pytest.raises(MessageError, match="convert it first"):
            client.infer({"obs": object()})
        second = client.infer(observation(4, executed=4))["actions"]
        assert client.reconnects == 0
    assert all(np.array_equal(*pair) for pair in zip((first, second), alone([0, 4], seed=3, executed=4), strict=True))


def test_a_connection_that_the_server_closed_in_between_is_made_again(make: Make) -> None:
    with serving(idle_s=0.05) as server, make(server.url) as client:
        client.reset(TASK, seed=3)
        first = client.infer(observation(executed=4))["actions"]
        time.sleep(0.3)
        again = client.infer(observation(executed=4))["actions"]  # an episode that begins here, with the same seed
        assert client.reconnects == 1 and np.array_equal(first, again)


def test_a_server_that_is_started_again_is_waited_for() -> None:
    with serving() as server:
        port = int(server.url.rpartition(":")[2])
        client = Client(server.url)
        client.reset(TASK, seed=3)
    with client, ThreadPoolExecutor(1) as other:
        done = threading.Event()

        def serve_later() -> None:
            time.sleep(0.3)
            with serving(port=port):
                done.wait()

        running = other.submit(serve_later)
        try:
            actions = client.infer(observation(executed=4))["actions"]
        finally:
            done.set()
        running.result()
        assert client.reconnects == 1 and np.array_equal(actions, alone([0], seed=3, executed=4)[0])


def test_the_server_wants_a_token(make: Make) -> None:
    with serving(token="open sesame") as server:
        for token in (None, "sesame"):
            with pytest.raises(PermissionError, match="Authorization: Bearer"):
                make(server.url, token=token, reconnect_s=60)
        with make(server.url, token="open sesame") as client:
            assert client.infer(observation())["actions"].ndim == 2


def test_a_full_server_is_busy(make: Make) -> None:
    full = pytest.raises(Busy, match="1 robots are connected")
    with serving(max_connections=1) as server, Client(server.url), full as told:
        make(server.url, reconnect_s=0.1)
    assert told.value.retry_after_s == 1


def test_a_path_where_nothing_is_served(server: Server, make: Make) -> None:
    with pytest.raises(ConnectionLost, match=r"serves nothing at '/nope' \(HTTP 40[34]\); correct the path"):
        make(f"{server.url}/nope", reconnect_s=3600)


def test_what_is_larger_than_the_server_takes_is_not_sent(make: Make) -> None:
    size = 50_000
    with serving(max_message_bytes=size) as server, make(server.url) as client:
        camera = client.metadata["cameras"][0]
        told = rf"at most {size} bytes, got \d+; send images .*{camera['name']} {camera['height']} x {camera['width']}"
        with pytest.raises(BadRequest, match=told):
            client.infer(observation(obs=np.zeros((2, 480, 640, 3), np.uint8)))
        with pytest.raises(BadRequest, match=f"at most {size} bytes"):
            client.reset("x" * size)
        assert client.infer(observation())["actions"].ndim == 2 and client.reconnects == 0


@pytest.mark.parametrize("metadata", [{}, {"max_message_bytes": 0}, {"max_message_bytes": "many"}])
def test_servers_that_name_no_size_get_everything(metadata: dict[str, Any]) -> None:
    with scripted(echo, metadata=metadata) as server, Client(server.url) as client:
        assert len(client.infer({"x": b"0" * 2**22})["got"]["x"]) == 2**22


def test_what_to_send_instead_is_told_as_far_as_the_server_told_it() -> None:
    metadata = {"max_message_bytes": 100, "cameras": ["front"]}
    refused = pytest.raises(BadRequest, match=r"at most 100 bytes, got \d+; send less")
    with scripted(echo, metadata=metadata) as server, Client(server.url) as client, refused:
        client.infer({"x": b"0" * 200})


def test_threads_share_a_client(server: Server) -> None:
    with Client(server.url) as client, ThreadPoolExecutor(4) as threads:
        client.reset(TASK, seed=0)
        rows = [1, 2, 3, 0] * 3
        steps = [
            reply["actions"].shape
            for reply in threads.map(lambda rows: client.infer(observation(execution_step=rows + 1)), rows)
        ]
    assert steps == [(rows + 1, 3) for rows in rows]


def test_a_certificate_is_trusted_when_the_robot_is_told_to(make: Make, certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with scripted(echo, tls=context) as server:
        url = server.url.replace("ws:", "wss:")
        with pytest.raises(ConnectionLost, match="certificate"):
            make(url, reconnect_s=3600)
        with make(url, ssl=ssl.create_default_context(cafile=certificate[0])) as client:
            assert client.infer({"x": 1})["got"] == {"x": 1}


def test_a_server_that_speaks_tls_is_asked_without(make: Make, certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with scripted(echo, tls=context) as server, pytest.raises(ConnectionLost, match="speaks TLS, ask for wss://"):
        make(server.url, reconnect_s=0)


# Servers that misbehave.


@pytest.mark.parametrize("goodbye", [vanish, ServerConnection.close], ids=["vanished", "closed"])
def test_a_request_that_broke_is_sent_once_more(make: Make, goodbye: Callable[[ServerConnection], None]) -> None:
    seen: list[tuple[int, Any]] = []

    def talk(connection: ServerConnection, number: int) -> None:
        while True:
            request = receive(connection)
            seen.append((number, request))
            if request.get("x") == 2 and number == 0:
                goodbye(connection)
            connection.send(pack({"number": number}))

    with scripted(talk) as server, make(server.url) as client:
        client.reset("task", seed=5)
        assert client.infer({"x": 1}) == {"number": 0} and client.infer({"x": 2}) == {"number": 1}
        assert client.reconnects == 1
    begin = {"reset": True, "prompt": "task", "seed": 5}
    assert seen == [(0, begin), (0, {"x": 1}), (0, {"x": 2}), (1, begin), (1, {"x": 2})]


def test_a_server_that_breaks_while_an_episode_begins_hears_its_beginning_once_more(make: Make) -> None:
    seen: list[tuple[int, Any]] = []

    def talk(connection: ServerConnection, number: int) -> None:
        while True:
            seen.append((number, receive(connection)))
            if number == 0:
                vanish(connection)
            connection.send(pack({}))

    with scripted(talk) as server, make(server.url) as client:
        client.reset(seed=5)
        client.infer({"x": 1})
    begin = {"reset": True, "seed": 5}
    assert seen == [(0, begin), (1, begin), (1, {"x": 1})]


def test_a_server_that_always_breaks_is_given_up(make: Make) -> None:
    def talk(connection: ServerConnection, number: int) -> None:
        receive(connection)
        vanish(connection)

    with scripted(talk) as server, make(server.url) as client:
        client_of = [lambda: client.infer({}), lambda: client.reset(seed=1), lambda: client.infer({})]
        for ask in client_of:  # the last one breaks in the beginning that it sends first
            with pytest.raises(ConnectionLost, match="closed the connection twice"):
                ask()
        assert server.connections == 6


def test_a_server_that_is_gone(make: Make) -> None:
    with scripted(echo) as server:
        client = make(server.url, reconnect_s=0.2)
    with client, pytest.raises(ConnectionLost, match="no policy server answers"):
        client.infer({})
    with pytest.raises(ConnectionLost, match="no policy server answers"):
        make(server.url, reconnect_s=0)


def test_openpis_own_server_tells_errors_as_text_and_closes(make: Make) -> None:
    def talk(connection: ServerConnection, number: int) -> None:
        while True:
            request = receive(connection)
            if "state" not in request:
                connection.send("Traceback (most recent call last):\nKeyError: 'state'")
                connection.close(1011, "Internal server error.")
            connection.send(pack({"actions": np.zeros((2, 3))}))

    with scripted(talk, metadata={"reset_pose": [0.0]}) as server, make(server.url) as client:
        assert client.metadata == {"reset_pose": [0.0]}
        for ask in (lambda: client.infer({}), lambda: client.reset(seed=1)):  # it knows no resetting
            with pytest.raises(ServerError, match="KeyError: 'state'"):
                ask()
            assert client.infer({"state": 0})["actions"].shape == (2, 3)
        assert client.reconnects == 2


def test_an_answer_that_comes_too_late_is_not_the_next_ones(make: Make) -> None:
    def talk(connection: ServerConnection, number: int) -> None:
        while True:
            request = receive(connection)
            time.sleep(request["sleep"])
            connection.send(pack(request))

    with scripted(talk) as server, make(server.url, timeout_s=0.2) as client:
        with pytest.raises(TimeoutError, match=r"no answer from .* in 0\.2 s"):
            client.infer({"sleep": 0.4})
        assert client.infer({"sleep": 0.0}) == {"sleep": 0.0} and client.reconnects == 1


def test_the_time_to_reconnect_is_not_that_of_the_answer(make: Make) -> None:
    with scripted(echo) as server:
        client = make(server.url, timeout_s=0.3)
    done = threading.Event()

    def serve_later() -> None:
        time.sleep(0.6)
        with scripted(echo, port=server.port):
            done.wait()

    with client, ThreadPoolExecutor(1) as other:
        running = other.submit(serve_later)
        try:
            assert client.infer({"x": 1})["got"] == {"x": 1}
        finally:
            done.set()
        running.result()


def test_a_server_that_does_not_read_is_not_waited_for_in_sending(make: Make) -> None:
    until = threading.Event()
    with scripted(lambda *_: until.wait()) as server:
        try:
            with make(server.url, timeout_s=0.3) as client, pytest.raises(TimeoutError, match="no answer"):
                client.infer({"x": np.zeros(2**24, np.uint8)})
        finally:
            until.set()


def test_a_busy_server_is_asked_again(make: Make) -> None:
    asked: list[Any] = []

    def talk(connection: ServerConnection, number: int) -> None:
        while True:
            asked.append(receive(connection))
            busy = {"error": {"kind": "busy", "message": "64 wait", "retry_after_ms": 50}}
            connection.send(pack({} if len(asked) == 3 else busy))

    with scripted(talk) as server, make(server.url, timeout_s=2) as client:
        assert client.infer({"x": 1}) == {} and asked == [{"x": 1}] * 3
        client.timeout_s = 0.2
    with scripted(talk) as server, make(server.url, timeout_s=0.2) as client:
        with pytest.raises(Busy, match="64 wait") as told:
            client.infer({})
        assert told.value.retry_after_s == 0.05 and client.reconnects == 0


@pytest.mark.parametrize(
    ("told", "error", "words"),
    [
        (None, ConnectionLost, r"tell what it serves.* nothing in 0\.1 s; correct the address"),
        ("Traceback …", ServerError, "Traceback"),
        (pack([1]), MessageError, "expected a map from the server, got list"),
        (b"\xc1", MessageError, "expected one msgpack message"),
        (vanish, ConnectionLost, "no policy server answers"),
    ],
)
def test_what_is_no_policy_server(make: Make, told: Any, error: type[Exception], words: str) -> None:
    until = threading.Event()

    def talk(connection: ServerConnection, number: int) -> None:
        if callable(told):
            told(connection)
        elif told is not None:
            connection.send(told)
        until.wait()

    with scripted(talk, told=False) as server:
        try:
            with pytest.raises(error, match=words):
                make(server.url, timeout_s=0.1, reconnect_s=0.1)
        finally:
            until.set()


def test_a_web_server(make: Make) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with pytest.raises(ConnectionLost, match=f"127.0.0.1:{web.server_port}"):
                make(f"http://127.0.0.1:{web.server_port}", reconnect_s=0.1)
        finally:
            web.shutdown()
            thread.join()


FIRST = {
    "server_version": "1",
    "max_message_bytes": 2**20,
    "cameras": [{"name": "front", "height": 8, "width": 8}],
    "action": ["dx", "gripper"],
    "action_horizon": 6,
    "execution_horizon": 4,
    "identity": {"name": "a", "fingerprint": "0123"},
}


def serving_in_turn(*served: dict[str, Any]) -> Callable[[ServerConnection, int], None]:
    """A server that breaks after every answer, and comes back with the next of some metadata."""

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack(served[min(number, len(served) - 1)]))
        receive(connection)
        connection.send(pack({"actions": np.full((6, 2), number)}))
        vanish(connection)

    return talk


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action_horizon": 9}, "action_horizon is 9 and was 6; make a new client, and new brokers"),
        ({"action": ["dx"]}, r"action is \['dx'\] and was \['dx', 'gripper'\]"),
        ({"context_stride": 1}, "context_stride is 1 and was None"),
        ({"cameras": []}, r"cameras is \[\] and was \[{'height': 8, 'name': 'front'"),
        ({"identity": {"name": "a", "fingerprint": "4567"}}, "fingerprint is '4567' and was '0123'"),
        ({"identity": None}, "fingerprint is None"),
    ],
)
def test_a_server_that_comes_back_with_another_policy(make: Make, change: dict[str, Any], words: str) -> None:
    talk = serving_in_turn(FIRST, FIRST | change, FIRST | change, FIRST)
    with scripted(talk, told=False) as server, make(server.url) as client:
        assert client.infer({})["actions"][0, 0] == 0
        for _ in range(2):  # it stays so, and nothing is asked of the other policy
            with pytest.raises(PolicyChanged, match=words):
                client.infer({})
        assert client.metadata == FIRST and client.reconnects == 0
        assert client.infer({})["actions"][0, 0] == 3  # the first one is back
        assert client.reconnects == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (FIRST, FIRST | {"server_version": "2", "max_message_bytes": 2**10, "identity": {"fingerprint": "0123"}}),
        ({}, {}),
        ({}, FIRST),
        ({"reset_pose": [0]}, {"reset_pose": [1]}),
    ],
)
def test_a_server_that_comes_back_as_it_was(make: Make, before: dict[str, Any], after: dict[str, Any]) -> None:
    with scripted(serving_in_turn(before, after), told=False) as server, make(server.url) as client:
        assert [client.infer({})["actions"][0, 0] for _ in range(2)] == [0, 1]
        assert client.metadata == after and client.reconnects == 1


def test_a_client_that_was_closed_may_be_opened_for_another_policy() -> None:
    async def robot(url: str) -> None:
        client = AsyncClient(url)
        for number in range(2):
            async with client:
                assert (await client.infer({}))["actions"][0, 0] == number

    with scripted(serving_in_turn(FIRST, FIRST | {"action_horizon": 9}), told=False) as server:
        asyncio.run(robot(server.url))


# The robot's own program.


@pytest.mark.parametrize("given", [5, None, [("x", 1)]])
def test_what_is_no_observation(server: Server, make: Make, given: Any) -> None:
    with make(server.url) as client:
        with pytest.raises(MessageError, match=f"expected an observation as a map.* got {type(given).__name__}"):
            client.infer(given)
        assert client.infer(observation())["actions"].ndim == 2 and client.reconnects == 0


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "times",
    [
        *({"timeout_s": wrong} for wrong in (None, "5", 0, -1, float("nan"), float("inf"))),
        *({"reconnect_s": wrong} for wrong in (None, -1, float("inf"))),
    ],
    ids=str,
)
def test_times_out_of_range(kind: Make, times: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timeout_s above 0 and reconnect_s of 0 or more"):
        kind("ws://127.0.0.1:9", **times)


def test_another_thread_closes_while_one_waits_for_an_answer() -> None:
    asked = threading.Event()

    def talk(connection: ServerConnection, number: int) -> None:
        receive(connection)
        asked.set()
        receive(connection)

    with scripted(talk) as server, ThreadPoolExecutor(1) as other:
        client = Client(server.url)
        waiting = other.submit(client.infer, {})
        asked.wait()
        client.close()
        with pytest.raises(ConnectionLost, match="was closed; make another"):
            waiting.result()
        with pytest.raises(ConnectionLost, match="was closed; make another"):
            client.infer({})
        client.close()
        assert server.connections == 1


def test_another_thread_closes_while_one_waits_for_the_server() -> None:
    with scripted(echo) as server:
        client = Client(server.url, reconnect_s=3600)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(client.infer, {})
        time.sleep(0.3)
        client.close()
        with pytest.raises(ConnectionLost, match="was closed; make another"):
            waiting.result()


def test_after_an_interruption_the_next_answer_is_its_own() -> None:
    asked, pressed = threading.Event(), threading.Event()

    def talk(connection: ServerConnection, number: int) -> None:
        while True:
            request = receive(connection)
            if request["x"] == 1:
                asked.set()
                pressed.wait()
            connection.send(pack(request))

    def press() -> None:
        asked.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)
        pressed.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with scripted(talk) as server, Client(server.url) as client:
            threading.Thread(target=press).start()
            with pytest.raises(KeyboardInterrupt):
                client.infer({"x": 1})
            assert client.infer({"x": 2}) == {"x": 2}
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_task_is_cancelled_and_another_closes() -> None:
    asked = asyncio.Event()

    def talk(connection: ServerConnection, number: int) -> None:
        while True:
            request = receive(connection)
            if request["x"] == 1:
                loop.call_soon_threadsafe(asked.set)
                time.sleep(0.2)
            connection.send(pack(request))

    async def robot(url: str) -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        async with AsyncClient(url) as client:
            for ends in ("cancelled", "closed"):
                asked.clear()
                waiting = asyncio.create_task(client.infer({"x": 1}))
                await asked.wait()
                if ends == "cancelled":
                    waiting.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
                    assert await client.infer({"x": 2}) == {"x": 2} and client.reconnects == 1
                else:
                    await client.close()
                    with pytest.raises(ConnectionLost, match="was closed"):
                        await waiting
                    with pytest.raises(ConnectionLost, match="was closed"):
                        await client.infer({"x": 2})
            await client.open()
            assert await client.infer({"x": 3}) == {"x": 3}

    loop: Any = None
    with scripted(talk) as server:
        asyncio.run(robot(server.url))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("localhost:8000", "ws://localhost:8000/?errors=reply"),
        ("http://robot/", "ws://robot/?errors=reply"),
        ("https://robot:1/policy?a=b", "wss://robot:1/policy?a=b&errors=reply"),
        ("ws://[::1]:8000", "ws://[::1]:8000/?errors=reply"),
    ],
)
def test_addresses(given: str, wanted: str) -> None:
    assert endpoint(address(given)) == wanted
    assert "errors=" not in address(given), "what messages say is what was typed"


@pytest.mark.parametrize("given", ["", "ftp://robot", "ws://", "ws://robot:80000", "ws://robot:port", "ws://robot:0"])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(ValueError, match="expected an address such as ws://localhost:8000"):
        Client(given)


def test_options_that_this_version_of_websockets_lacks_are_left_out() -> None:
    def old(uri: str, *, compression: str | None, max_size: int | None, close_timeout: float) -> None: ...

    assert options(connect, None)["ping_timeout"] is None and "ping_timeout" not in options(old, None)
