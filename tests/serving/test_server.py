"""A server's life: the port, the door, the limits, the clock, and the end."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
from wamkit_client import Busy, Client, ConnectionLost, DeadlineMissed, NotReady, pack
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.sync.client import connect

from wamkit.policy import Policy
from wamkit.serving.config import ServerConfig
from wamkit.serving.inference import Batching
from wamkit.serving.server import Server, bind, build

from ..policies import make_policy
from .conftest import TASK, alone, observation, serving


class Slow(Policy):
    """The policy, with a second's thought."""

    seconds = 1.0

    def decide(self, slots: Any, **inputs: Any) -> Any:
        time.sleep(self.seconds)
        return super().decide(slots, **inputs)

    def varied(self, **settings: Any) -> Slow:
        return self


def slow(seconds: float = 1.0) -> Slow:
    policy = make_policy()
    policy.__class__ = Slow
    assert isinstance(policy, Slow)
    policy.seconds = seconds
    return policy


def get(server: Server, path: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(server.address + path, headers=headers), timeout=60
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def raw(server: Server) -> socket.socket:
    host, _, port = server.address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def gauge(server: Server, name: str) -> float:
    lines = get(server, "/metrics")[1].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


# The port


def test_a_port_in_use_is_told_before_anything_is_loaded() -> None:
    with bind(ServerConfig(port=0)) as taken:
        taken.listen()
        with pytest.raises(OSError, match=r"127\.0\.0\.1:\d+ is in use; stop what runs there or name another --port"):
            bind(ServerConfig(port=taken.getsockname()[1]))
    with bind(ServerConfig(port=0)) as first:
        port = first.getsockname()[1]
        with bind(ServerConfig(port=port)) as second:  # nobody listens yet
            app = build(make_policy(), ServerConfig(port=port), identity={})
            second.listen()
            with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port} is in use; stop what runs there"):
                Server(app, first).run()
    with pytest.raises(OSError, match=r"cannot listen at 203\.0\.113\.7:0: .*name another --host"):
        bind(ServerConfig(host="203.0.113.7", port=0))


def test_a_server_may_have_as_many_files_as_its_user() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = min(1000, before[1] - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
    try:
        with serving():
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == low
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_port_opens_when_the_policy_is_warm() -> None:
    config = ServerConfig(port=0)
    app = build(slow(0.3), config, identity={}, batching=Batching(max_batch=1))
    with bind(config) as listening:
        server = Server(app, listening)
        thread = threading.Thread(target=server.run, daemon=True)
        begun = time.monotonic()
        thread.start()
        with pytest.raises(ConnectionRefusedError):
            raw(server)
        with Client(server.url) as client:  # it waits for the server
            assert time.monotonic() - begun > 0.3 and client.reconnects == 0
        server.stop()
        thread.join()


def test_a_request_before_warm_up_is_told_so() -> None:
    server = Server(build(make_policy(), config := ServerConfig(port=0), identity={}), bind(config))
    server.app.service.inference.start = lambda: None  # type: ignore[method-assign]
    with server.running():
        for path in ("/healthz", "/health"):
            status, body = get(server, path)
            assert status == 503 and json.loads(body)["kind"] == "not_ready"
        with Client(server.url, timeout_s=0.9) as client, pytest.raises(NotReady, match="still warms up"):
            client.infer(observation())
        with connect(server.url) as connection:
            connection.recv()
            connection.send(pack(observation()))
            assert "GET /healthz answers OK" in str(connection.recv())


# The limits


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 70000},
        {"max_connections": 0},
        {"max_message_bytes": 0},
        {"idle_s": 0.0},
        {"grace_s": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ServerConfig(**wrong)


def test_one_robot_too_many_is_told_to_come_again() -> None:
    with serving(max_connections=2) as server, Client(server.url) as one:
        with Client(server.url):
            with pytest.raises(Busy, match="2 robots are connected"):
                Client(server.url, reconnect_s=0.1)
            assert one.infer(observation())["actions"].shape == (1, 3)
        with Client(server.url) as after:
            assert after.infer(observation())["actions"].shape == (1, 3)


def test_messages_are_bounded() -> None:
    with serving(max_message_bytes=20_000) as server, Client(server.url) as honest:
        assert honest.metadata["max_message_bytes"] == 20_000
        with connect(server.url, max_size=None) as connection:
            connection.recv()
            connection.send(b"\0" * 20_001)
            with pytest.raises(ConnectionClosedError) as closed:
                connection.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        body = urllib.request.Request(f"{server.address}/act", data=b" " * 20_001, method="POST")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(body, timeout=10)
        assert error.value.code == 400 and b"at most 20000 bytes" in error.value.read()
        assert honest.infer(observation())["actions"].shape == (1, 3)


def test_what_arrives_too_slowly_is_cut() -> None:
    with serving(transfer_s=0.3) as server:
        for beginning in (
            b"",
            b"GET /health",
            b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        ):
            begun = time.monotonic()
            with raw(server) as slow_client:
                slow_client.sendall(beginning)
                answer = slow_client.recv(1000)
                assert time.monotonic() - begun < 5 and (answer == b"" or b"408" in answer.split(b"\r\n")[0])
        with Client(server.url) as client:
            time.sleep(0.6)  # longer than a transfer may take, and nothing is under way
            assert client.infer(observation())["actions"].shape == (1, 3)


def test_a_connection_that_asks_nothing_is_closed() -> None:
    with serving(idle_s=0.3) as server:
        with connect(server.url) as connection:
            connection.recv()
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=10)
            assert closed.value.rcvd is not None and "no request for 0.3 s" in closed.value.rcvd.reason
        post = urllib.request.Request(f"{server.address}/reset", data=b"", method="POST")
        urllib.request.urlopen(post, timeout=10).close()
        assert gauge(server, "wamkit_connections{") == 1
        until = time.monotonic() + 10
        while gauge(server, "wamkit_connections{") and time.monotonic() < until:
            time.sleep(0.05)
        assert gauge(server, "wamkit_connections{") == 0, "sessions over HTTP end too"


def test_a_busy_server_says_so_and_recovers() -> None:
    with serving(slow(0.3), Batching(max_batch=1, max_waiting=1)) as server:
        told: list[object] = []

        def robot() -> None:
            with Client(server.url, timeout_s=0.05) as client:
                try:
                    told.append(client.infer(observation()))
                except (Busy, TimeoutError) as error:
                    told.append(error)

        robots = [threading.Thread(target=robot) for _ in range(6)]
        for each in robots:
            each.start()
        for each in robots:
            each.join()
        assert any(isinstance(each, Busy) for each in told)
        with Client(server.url, timeout_s=20) as client:  # it waits until there is room
            assert client.infer(observation())["actions"].shape == (1, 3)


def test_a_deadline_is_kept_and_the_episode_goes_on() -> None:
    with serving(slow(0.2), Batching(max_batch=1)) as server, Client(server.url) as one, Client(server.url) as other:
        one.reset(TASK, seed=6)
        busy = threading.Thread(target=other.infer, args=(observation(),))
        busy.start()
        time.sleep(0.1)
        with pytest.raises(DeadlineMissed, match="its turn"):
            one.infer(observation(deadline_ms=20))
        busy.join()
        reply = one.infer(observation(deadline_ms=20_000, executed=4))
        assert np.array_equal(reply["actions"], alone([0], seed=6, executed=4)[0])


def test_a_slow_policy_keeps_nobody_from_being_answered() -> None:
    with serving(slow(2.5), Batching(max_batch=1)) as server, Client(server.url) as robot:
        busy = threading.Thread(target=robot.infer, args=(observation(),))
        busy.start()
        time.sleep(0.2)
        slowest = 0.0
        while busy.is_alive():
            begun = time.monotonic()
            with connect(server.url) as connection:
                connection.recv()
                assert connection.ping().wait(5)
            assert get(server, "/healthz") == (200, b"OK\n")
            slowest = max(slowest, time.monotonic() - begun)
        assert 0 < slowest < 1.5, "less than the policy takes, on a busy machine too"


# The end


def test_robots_have_their_answers_before_the_end() -> None:
    with serving(slow(0.5), Batching(max_batch=1)) as server, Client(server.url, reconnect_s=0) as client:
        answers: list[Any] = []
        robot = threading.Thread(target=lambda: answers.append(client.infer(observation())))
        robot.start()
        time.sleep(0.2)
        server.stop()
        robot.join()
        assert answers[0]["actions"].shape == (1, 3)
        with pytest.raises(ConnectionLost):
            client.infer(observation())


def test_the_end_does_not_wait_for_ever() -> None:
    with serving(slow(3.0), Batching(max_batch=1), grace_s=0.2) as server, connect(server.url) as connection:
        connection.recv()
        connection.send(pack(observation()))
        time.sleep(0.1)
        begun = time.monotonic()
        server.stop()
        with pytest.raises(ConnectionClosed):
            while True:
                connection.recv(timeout=10)
        assert time.monotonic() - begun < 2


def test_a_client_that_leaves_in_the_middle_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with serving(slow(0.2), Batching(max_batch=1)) as server:
        for _ in range(3):
            with connect(server.url) as connection:
                connection.recv()
                connection.send(pack(observation()))
        until = time.monotonic() + 10
        while gauge(server, "wamkit_connections{") and time.monotonic() < until:
            time.sleep(0.02)
        assert gauge(server, "wamkit_connections{") == 0
        with Client(server.url) as client:
            assert client.infer(observation())["actions"].shape == (1, 3)
    assert "Traceback" not in caplog.text
