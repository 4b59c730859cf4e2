"""Servers for clients: a real one, and small ones that misbehave; and both clients behind one face."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest
from wamkit_client import AsyncClient, Client, pack, unpack
from websockets.sync.server import ServerConnection, serve

from wamkit.serving.server import Server

from ..serving.conftest import serving

Make = Callable[..., Any]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real one that many tests share."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One that nobody but its owner signed, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-days", "2", *names], check=True, capture_output=True)
    return certificate, key


class Blocking:
    """`AsyncClient` as a program without a loop sees it."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(_opened(url, settings))
        except BaseException:
            self._runner.close()
            raise

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return (lambda *args, **keys: self._runner.run(found(*args, **keys))) if callable(found) else found

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


async def _opened(url: str, settings: dict[str, Any]) -> AsyncClient:
    return await AsyncClient(url, **settings).open()


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a client of one kind or the other."""
    return {"sync": Client, "async": Blocking}[request.param]


class Scripted:
    """A server whose connections are conversations that a test writes.

    Args:
        talk: called with each connection and its number, after the metadata were sent.
        metadata: what it says first; `None` says nothing.
    """

    def __init__(
        self, talk: Callable[[ServerConnection, int], None], metadata: dict[str, Any] | None = None, told: bool = True
    ) -> None:
        self.url, self.port = "", 0
        self.connections = 0
        self.open: list[ServerConnection] = []
        self._talk, self._metadata, self._told = talk, metadata or {}, told

    def __call__(self, connection: ServerConnection) -> None:
        number, self.connections = self.connections, self.connections + 1
        self.open.append(connection)
        with contextlib.suppress(Exception):  # what breaks here is what clients are tried with
            if self._told:
                connection.send(pack(self._metadata))
            self._talk(connection, number)


@contextlib.contextmanager
def scripted(
    talk: Callable[[ServerConnection, int], None], *, port: int = 0, tls: SSLContext | None = None, **settings: Any
) -> Iterator[Scripted]:
    """A server that talks as a test wants."""
    script = Scripted(talk, **settings)
    limits: dict[str, Any] = {"compression": None, "max_size": None, "close_timeout": 0.1}
    with serve(script, "127.0.0.1", port, ssl=tls, **limits) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        script.port = listening.socket.getsockname()[1]
        script.url = f"ws://127.0.0.1:{script.port}"
        yield script
        for connection in script.open:
            vanish(connection)
        listening.shutdown()
        thread.join()


def receive(connection: ServerConnection) -> Any:
    """The next request."""
    return unpack(connection.recv())


def vanish(connection: ServerConnection) -> None:
    """End as a machine does that loses its power: without a word."""
    with contextlib.suppress(OSError):  # has ended already
        connection.socket.shutdown(socket.SHUT_RDWR)
