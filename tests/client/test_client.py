"""Clients against a real server and against servers that misbehave."""

from __future__ import annotations

import asyncio
import http.server
import signal
import ssl
import subprocess
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
    ServerError,
    pack,
)
from wamkit_client.wire import endpoint, options
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


def test_a_full_server_is_told_of(make: Make) -> None:
    full = pytest.raises(ConnectionLost, match="1 robots are connected")
    with serving(max_connections=1) as server, Client(server.url), full:
        make(server.url, reconnect_s=0.1)


def test_threads_share_a_client(server: Server) -> None:
    with Client(server.url) as client, ThreadPoolExecutor(4) as threads:
        client.reset(TASK, seed=0)
        rows = [1, 2, 3, 0] * 3
        steps = [
            reply["actions"].shape
            for reply in threads.map(lambda rows: client.infer(observation(execution_step=rows + 1)), rows)
        ]
    assert steps == [(rows + 1, 3) for rows in rows]


def test_a_certificate_that_nobody_trusts_is_told_at_once(make: Make, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run([*command, "-days", "2", "-subj", "/CN=localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with scripted(echo, tls=context) as server, pytest.raises(ConnectionLost, match="certificate"):
        make(server.url.replace("ws:", "wss:"), reconnect_s=3600)


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


# The robot's own program.


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
    asked = threading.Event()

    def talk(connection: ServerConnection, number: int) -> None:
        while True:
            request = receive(connection)
            if request["x"] == 1:
                asked.set()
                time.sleep(0.2)
            connection.send(pack(request))

    def press() -> None:
        asked.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with scripted(talk) as server, Client(server.url) as client:
        threading.Thread(target=press).start()
        with pytest.raises(KeyboardInterrupt):
            client.infer({"x": 1})
        assert client.infer({"x": 2}) == {"x": 2}


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
    assert endpoint(given) == wanted


@pytest.mark.parametrize("given", ["", "ftp://robot", "ws://", "ws://robot:80000", "ws://robot:port", "ws://robot:0"])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(ValueError, match="expected an address such as ws://localhost:8000"):
        Client(given)


def test_options_that_this_version_of_websockets_lacks_are_left_out() -> None:
    def old(uri: str, *, compression: str | None, max_size: int | None, close_timeout: float) -> None: ...

    assert options(connect, None)["ping_timeout"] is None and "ping_timeout" not in options(old, None)
