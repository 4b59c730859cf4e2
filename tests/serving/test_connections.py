"""Connections of clients that trickle, flood, vanish or do not read: each ends in time, and no other notices."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from wamkit_client import Client, pack, unpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from wamkit.serving.connections import Loop
from wamkit.serving.server import Server

from .conftest import TASK, alone, observation, serving
from .test_server import gauge, raw

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """A server that gives half a second for every transfer."""
    with serving(transfer_s=0.5) as running:
        yield running


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client sends or leaves out may look like a defect of the server."""
    yield
    assert not [record.getMessage() for record in caplog.get_records("call") if record.exc_info]


def frame(payload: bytes, opcode: int = 2, *, fin: bool = True) -> bytes:
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
    return bytes([fin << 7 | opcode]) + size + bytes(4) + payload


def until_closed(connection: socket.socket, seconds: float = 8) -> bytes:
    """Everything that comes; an error when the connection is open after that time."""
    connection.settimeout(seconds)
    data = b""
    try:
        while part := connection.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return data


def upgraded(server: Server, path: str = "/") -> socket.socket:
    connection = raw(server)
    connection.sendall(UPGRADE.format(path=path, more="").encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1)
    return connection


def closing(data: bytes) -> tuple[int, str]:
    """Code and reason of the close frame at the end of some bytes."""
    at = data.rindex(b"\x88")
    return int.from_bytes(data[at + 2 : at + 4], "big"), data[at + 4 :].decode()


def trickle(connection: socket.socket, data: bytes) -> None:
    """Send byte by byte until the other side has closed."""
    begun = time.monotonic()
    with pytest.raises(OSError):
        for at in range(len(data)):
            connection.sendall(data[at : at + 1])
            time.sleep(0.1)
            assert time.monotonic() - begun < 8
        raise AssertionError("everything was taken")


@pytest.mark.parametrize(
    "head", [b"", GET + b"Content-Length: 100000\r\n\r\n", GET + b"Transfer-Encoding: chunked\r\n\r\n"]
)
def test_what_trickles_is_cut(hasty: Server, head: bytes) -> None:
    with raw(hasty) as connection:
        connection.sendall(head)
        trickle(connection, b"1\r\n1\r\n" * 100 if b"chunked" in head else b"a" * 600)


def test_a_message_that_trickles_is_cut(hasty: Server) -> None:
    with upgraded(hasty) as connection:
        connection.sendall(frame(pack(observation()))[:100])
        assert closing(until_closed(connection)) == (1008, "expected a whole message within 0.5 s")
    with upgraded(hasty, "/vla-eval") as connection:
        connection.sendall(frame(b"a", fin=False))
        assert closing(until_closed(connection))[0] == 1008


def test_time_that_passes_between_messages_is_nobodys_fault(hasty: Server) -> None:
    with Client(hasty.url) as client:
        for _ in range(3):
            assert client.infer(observation())["actions"].shape == (1, 3)
            time.sleep(0.6)


@pytest.mark.parametrize("kind", ["pings", "pages", "answers"])
def test_who_does_not_read_is_cut_off(hasty: Server, kind: str) -> None:
    page = b"GET /page/live.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
    data = {"pings": frame(b"p" * 125, 9) * 500, "pages": page, "answers": frame(b"\xc0") * 50}[kind]
    connection = raw(hasty) if kind == "pages" else upgraded(hasty, "/?errors=reply")
    connection.settimeout(20)
    with connection, pytest.raises(OSError) as error:
        while True:
            connection.sendall(data)
    assert not isinstance(error.value, TimeoutError)
    with Client(hasty.url) as client:
        assert client.infer(observation())["actions"].shape == (1, 3)


def test_a_message_in_very_many_fragments_is_the_same_message(hasty: Server) -> None:
    data = pack(observation(seed=7, reset=True, executed=4))
    parts = [data[at : at + 1] for at in range(1, 2000)] + [b""] * 3000 + [data[2000:]]
    sent = frame(data[:1], fin=False) + b"".join(frame(part, 0, fin=False) for part in parts) + frame(b"", 0)
    with upgraded(hasty) as connection:
        connection.sendall(sent)
        received = b""
        while b"prev_total_ms" not in received and b"policy_timing" not in received:
            received += connection.recv(1 << 16)
        at = received.rindex(b"\x82")
        while not received[at + 4 :].startswith((b"\x84\xa7actions", b"\x85\xa7actions")):
            at = received.rindex(b"\x82", 0, at)
        reply = unpack(received[at + 4 : at + 4 + int.from_bytes(received[at + 2 : at + 4], "big")])
    assert np.array_equal(reply["actions"], alone([0], seed=7, executed=4)[0])


@pytest.mark.parametrize("path", ["/?errors=reply", "/vla-eval"])
def test_messages_far_before_their_turn(hasty: Server, path: str) -> None:
    with upgraded(hasty, path) as connection:
        connection.sendall(frame(b"\xc0") * 300)
        assert closing(until_closed(connection)) == (1008, "expected at most 64 messages before their answers")


def test_some_messages_before_their_turn_are_answered_in_it(hasty: Server) -> None:
    with connect(hasty.url + "/?errors=reply", compression=None) as connection:
        connection.recv()
        for row in (0, 4, 8):
            connection.send(pack(observation(row, executed=4, **({"reset": True, "seed": 7} if row == 0 else {}))))
        replies = [unpack(connection.recv(timeout=60)) for _ in range(3)]
    assert [reply["chunk_id"] for reply in replies] == [1, 2, 3]
    for reply, wanted in zip(replies, alone([0, 4, 8], seed=7, executed=4), strict=True):
        assert np.array_equal(reply["actions"], wanted)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"\xff", 1), 1007),
        (frame(b"\xff", 1, fin=False) + frame(b"\xfe", 0), 1007),
        (frame(b"\xff", 1) + frame(b"\x03\xe8", 8), 1000),
        (frame(b"a", fin=False) + frame(b"\x03\xe8", 8), 1002),
        (frame(b"", 3), 1002),
        (b"\x82\xff" + struct.pack("!Q", 1 << 40) + bytes(4), 1009),
    ],
)
def test_frames_that_are_none(hasty: Server, sent: bytes, code: int) -> None:
    with upgraded(hasty) as connection:
        connection.sendall(sent)
        assert closing(until_closed(connection))[0] == code


@pytest.mark.parametrize(
    ("more", "status"),
    [("a: b\r\n" * 200, b"431"), (f"a: {'b' * 9000}\r\n", b"431"), ("Origin: http://[x\r\n", b"403")],
)
def test_handshakes_that_are_none(hasty: Server, more: str, status: bytes) -> None:
    with raw(hasty) as connection:
        connection.sendall(UPGRADE.format(path="/", more=more).encode())
        assert until_closed(connection).split()[1] == status


@pytest.mark.parametrize(
    "sent",
    [
        GET + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        GET + b"\r\n" + b"\x00\x01\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_requests_that_end_in_noise(hasty: Server, sent: bytes) -> None:
    with raw(hasty) as connection:
        connection.sendall(sent)
        assert until_closed(connection).split()[1] in (b"200", b"400")


def vanish_within_a_body(server: Server) -> None:
    with raw(server) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n{")


def vanish_within_a_message(server: Server) -> None:
    with upgraded(server) as connection:
        connection.sendall(frame(pack(observation()))[:-10])


def vanish_before_the_answer(server: Server) -> None:
    with upgraded(server) as connection:
        connection.sendall(frame(pack(observation())) * 3)


def vanish_before_the_beginning(server: Server) -> None:
    with raw(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no goodbye
        connection.sendall(UPGRADE.format(path="/", more="").encode())


def close_before_the_answer(server: Server) -> None:
    with upgraded(server) as connection:
        connection.sendall(frame(pack(observation(prompt=TASK))) + frame(b"\x03\xe8", 8))


@pytest.mark.parametrize(
    "vanish",
    [
        vanish_within_a_body,
        vanish_within_a_message,
        vanish_before_the_answer,
        vanish_before_the_beginning,
        close_before_the_answer,
    ],
)
def test_who_vanishes_leaves_nothing(hasty: Server, vanish: Callable[[Server], None]) -> None:
    for _ in range(5):
        vanish(hasty)
    until = time.monotonic() + 8
    while gauge(hasty, 'wamkit_connections{dialect="openpi"}') and time.monotonic() < until:
        time.sleep(0.05)
    assert gauge(hasty, 'wamkit_connections{dialect="openpi"}') == 0


def test_connections_beyond_those_that_are_served() -> None:
    with serving(max_connections=1) as server:
        idle = [raw(server) for _ in range(140)]
        time.sleep(0.3)
        with pytest.raises((OSError, ConnectionClosed)):
            idle[-1].sendall(GET + b"\r\n")
            if not until_closed(idle[-1]):
                raise ConnectionResetError
        for connection in idle:
            connection.close()
        with Client(server.url) as client:
            assert client.infer(observation())["actions"].shape == (1, 3)


def test_connections_without_a_file_for_them_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def crowd() -> None:
        taken = asyncio.Event()

        class Taken(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transport.close()
                taken.set()

        loop = asyncio.get_running_loop()
        server, ending = [await loop.create_server(Taken, "127.0.0.1", 0) for _ in range(2)]
        with socket.socket() as client, socket.socket() as late:
            with open("/dev/null") as unused:
                lowest = unused.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
            try:
                client.connect(server.sockets[0].getsockname())
                late.connect(ending.sockets[0].getsockname())
                await asyncio.sleep(0.1)
                ending.close()
                assert not taken.is_set()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await asyncio.wait_for(taken.wait(), 10)
            await asyncio.sleep(0.2)
        server.close()

    with asyncio.Runner(loop_factory=lambda: Loop(1.0)) as runner:
        runner.run(crowd())
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "expected room for a further connection, got"
    ]


def test_a_client_that_says_no_goodbye_is_left_alone() -> None:
    with serving(transfer_s=0.5, idle_s=0.3) as server, upgraded(server) as connection:
        assert closing(until_closed(connection, 3)) == (1001, "no request for 0.3 s")


def half(connection: ClientConnection) -> None:
    connection.socket.shutdown(socket.SHUT_WR)


def test_who_sends_no_more_is_gone(hasty: Server) -> None:
    with connect(hasty.url) as connection:
        connection.recv()
        half(connection)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=5)


def test_the_end_comes_though_somebody_does_not_read() -> None:
    with serving(transfer_s=0.5, grace_s=0.5) as server:
        connection = raw(server)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                connection.send(b"GET /page/live.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        begun = time.monotonic()
    assert time.monotonic() - begun < 8
    connection.close()
