"""A client that waits for its answers."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from ssl import SSLContext
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from wamkit_client import wire
from wamkit_client.errors import Busy, ConnectionLost, NotReady, ServerError


class Client:
    """A connection to a policy server, which remembers this robot's episode for as long as it lasts.

    A connection that breaks is made again within `reconnect_s`, and the request that it broke is sent once more. The
    server has forgotten the episode by then, so it goes on as one that begins with that observation, with the same
    seed; `reconnects` counts how often that happened. One thread at a time talks to the server; others wait. Any of
    them may `close`, which ends the waiting of the others with `ConnectionLost`.

    A client stays with the policy that it found first: a server that comes back with another one gets no request.

    Args:
        url: `ws://host:port` (`wss://` with TLS).
        token: what the server wants to know its friends by.
        timeout_s: how long to wait for an answer, a busy server's included; reconnecting takes time of its own.
        reconnect_s: how long to wait for a server that is not there; 0 tries once.
        ssl: for `wss://`, certificates to trust other than the system's.

    Raises:
        ValueError: no address of a server, or a time out of range.
        ConnectionLost: no server, or one of another kind, which says nothing.
        Busy: the server has as many robots as it takes.
        MessageError: one that says something else than policy servers do.
        PermissionError: the server wants another token, or to be asked for by another name.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        reconnect_s: float = 10.0,
        ssl: SSLContext | None = None,
    ) -> None:
        wire.check_times(timeout_s, reconnect_s)
        self.url = wire.address(url)
        self.timeout_s = timeout_s
        self.reconnect_s = reconnect_s
        self.reconnects = 0
        self.metadata: dict[str, Any] = {}
        self._headers = wire.headers(token)
        self._ssl = ssl
        self._beginning: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._has_begun = True  # the server knows of `_beginning`
        self._connection: ClientConnection | None = self._connect()

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to one observation, for instance `actions` `[T, a]` in the robot's units.

        Args:
            observation: `obs`, `state` and `prompt`, or the names that the server's metadata tells.

        Raises:
            MessageError: something that no message may hold.
            BadRequest: it does not fit the policy, or is larger than the server takes.
            Busy: the server stayed busy for `timeout_s`, or full for `reconnect_s`.
            DeadlineMissed: its `deadline_ms` passed before its turn came.
            ServerError: the server failed.
            TimeoutError: no answer in `timeout_s`.
            ConnectionLost: the server is gone, or this client was closed.
            PolicyChanged: the server came back with another policy.
        """
        request = wire.write(observation)
        with self._lock:
            return self._ask(request)

    def reset(self, task: str | None = None, *, seed: int | None = None) -> None:
        """Begin an episode. When it fails for want of an answer, the next request begins it.

        A broker has a chunk of its own to forget: call its `reset` too.

        Args:
            task: its sentence, for requests that name none.
            seed: what every draw of the episode follows from; the server chooses one when `None`.

        Raises:
            What `infer` raises; after a `ServerError` the episode before goes on.
        """
        with self._lock:
            before, self._beginning = self._beginning, wire.beginning(task, seed)
            self._has_begun = False
            try:
                self._ask(None)
            except ServerError:
                self._beginning, self._has_begun = before, True
                raise

    def close(self) -> None:
        """Leave; the server forgets the episode."""
        self._closing.set()
        self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: bytes | None) -> dict[str, Any]:
        """The answer to a request, or to the beginning of the episode alone."""
        pauses, breaks, until = wire.pauses(), 0, 0.0
        while True:
            connection = self._connection
            if connection is None:
                connection = self._reconnected()
                until = 0.0
            until = until or time.monotonic() + self.timeout_s
            reply: dict[str, Any] = {}
            try:
                if not self._has_begun and self._beginning is not None:
                    reply = self._exchange(connection, wire.write(self._beginning), until)
                    self._has_begun = True
                return reply if request is None else self._exchange(connection, request, until)
            except (Busy, NotReady) as error:
                pause = next(pauses) if error.retry_after_s is None else error.retry_after_s
                if time.monotonic() + pause > until:
                    raise
                self._closing.wait(pause)
            except (ConnectionClosed, OSError) as error:
                if self._closing.is_set():
                    raise ConnectionLost(wire.CLOSED) from None
                if isinstance(error, TimeoutError) or time.monotonic() >= until:
                    raise TimeoutError(f"no answer from {self.url} in {self.timeout_s:g} s") from None
                breaks += 1
                if breaks == 2:
                    raise ConnectionLost(f"{self.url} closed the connection twice: {error}") from error

    def _exchange(self, connection: ClientConnection, request: bytes, until: float) -> dict[str, Any]:
        wire.check_size(request, self.metadata)
        try:
            _end_sending_in(connection.socket, until - time.monotonic())
            connection.send(request)
            data = connection.recv(timeout=max(0.0, until - time.monotonic()))
        except BaseException:
            self._drop()  # after Ctrl-C, too: an answer that still comes would be taken for that of the next request
            raise
        return wire.read(data)

    def _reconnected(self) -> ClientConnection:
        self._connection = connection = self._connect()
        self._has_begun = self._beginning is None
        self.reconnects += 1
        if self._closing.is_set():  # meanwhile, by another thread, which saw no connection to close
            self._drop()
            raise ConnectionLost(wire.CLOSED)
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> ClientConnection:
        until = time.monotonic() + self.reconnect_s
        for pause in wire.pauses():
            if self._closing.is_set():
                raise ConnectionLost(wire.CLOSED)
            try:
                entered = connect(
                    wire.endpoint(self.url),
                    additional_headers=self._headers,
                    open_timeout=max(5.0, self.reconnect_s),
                    **wire.options(connect, self._ssl),
                )
                connection = entered.__enter__()  # newer versions of websockets connect only here
                self.metadata = self._told(connection)
            except (InvalidHandshake, ConnectionClosed, OSError, EOFError) as error:
                if wire.is_final(error) or time.monotonic() + pause > until:
                    raise wire.refused(self.url, error) from error
            else:
                return connection
            self._closing.wait(pause)
        raise AssertionError("unreachable")

    def _told(self, connection: ClientConnection) -> dict[str, Any]:
        """What the server says first."""
        try:
            told = wire.read(connection.recv(timeout=self.timeout_s))
            wire.check_same(self.url, self.metadata, told)
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                raise wire.silent(self.url, self.timeout_s) from None
            raise
        return told


def _end_sending_in(connection: socket.socket, seconds: float) -> None:
    """Have the system give up on a peer that takes nothing for so long; sending to it would never end."""
    milliseconds = max(1, round(1000 * seconds))
    limit = (
        struct.pack("@I", milliseconds)
        if sys.platform == "win32"
        else struct.pack("@ll", milliseconds // 1000, milliseconds % 1000 * 1000)
    )
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
