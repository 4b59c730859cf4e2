"""A client that waits for its answers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from ssl import SSLContext
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from wamkit_client import wire
from wamkit_client.errors import Busy, ConnectionLost, NotReady


class Client:
    """A connection to a policy server, which remembers this robot's episode for as long as it lasts.

    A connection that breaks is made again within `reconnect_s`, and the request that it broke is sent once more. The
    server has forgotten the episode by then, so it goes on as one that begins with that observation, with the same
    seed; `reconnects` counts how often that happened. One thread at a time talks to the server; others wait.

    Args:
        url: `ws://host:port` (`wss://` with TLS).
        token: what the server wants to know its friends by.
        timeout_s: how long to wait for an answer, a busy server's included.
        reconnect_s: how long to wait for a server that is not there; 0 tries once.
        ssl: for `wss://`, certificates to trust other than the system's.

    Raises:
        ConnectionLost: no server.
        PermissionError: the server wants another token.
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
        self.url = wire.endpoint(url)
        self.timeout_s = timeout_s
        self.reconnect_s = reconnect_s
        self.reconnects = 0
        self.metadata: dict[str, Any] = {}
        self._headers = wire.headers(token)
        self._ssl = ssl
        self._beginning: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._ending = contextlib.ExitStack()  # of the connection
        self._connection: ClientConnection | None = self._connect()

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to one observation, for instance `actions` `[T, a]` in the robot's units.

        Args:
            observation: `obs`, `state` and `prompt`, or the names that the server's metadata tells.

        Raises:
            BadRequest: it does not fit the policy.
            Busy: the server stayed busy for `timeout_s`.
            DeadlineMissed: its `deadline_ms` passed before its turn came.
            ServerError: the server failed.
            TimeoutError: no answer in `timeout_s`.
            ConnectionLost: the server is gone.
        """
        with self._lock:
            return self._ask(wire.write(observation))

    def reset(self, task: str | None = None, *, seed: int | None = None) -> None:
        """Begin an episode.

        Args:
            task: its sentence, for requests that name none.
            seed: what every draw of the episode follows from; the server chooses one when `None`.

        Raises:
            What `infer` raises.
        """
        with self._lock:
            self._beginning = wire.beginning(task, seed)
            self._ask(wire.write(self._beginning))

    def close(self) -> None:
        """Leave; the server forgets the episode."""
        self._is_closed = True
        self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: bytes) -> dict[str, Any]:
        until = time.monotonic() + self.timeout_s
        pauses = wire.pauses()
        while True:
            try:
                return self._exchange(request, until)
            except (Busy, NotReady) as error:
                pause = error.retry_after_s if error.retry_after_s is not None else next(pauses)
                if time.monotonic() + pause > until:
                    raise
                time.sleep(pause)

    def _exchange(self, request: bytes, until: float) -> dict[str, Any]:
        for is_last in (False, True):
            connection = self._connected()
            try:
                connection.send(request)
                return wire.read(connection.recv(timeout=max(0.0, until - time.monotonic())))
            except TimeoutError:
                self._drop()  # its answer may still come, and would be taken for that of the next request
                raise TimeoutError(f"no answer from {self.url} in {self.timeout_s:g} s") from None
            except (ConnectionClosed, OSError) as error:
                self._drop()
                if is_last:
                    raise ConnectionLost(f"{self.url} closed the connection twice: {error}") from error
        raise AssertionError("unreachable")

    def _connected(self) -> ClientConnection:
        if self._is_closed:
            raise ConnectionLost("this client was closed; make another")
        if self._connection is None:
            self._connection = connection = self._connect()
            self.reconnects += 1
            if self._beginning is not None:
                connection.send(wire.write(self._beginning))
                wire.read(connection.recv(timeout=self.timeout_s))
        return self._connection

    def _drop(self) -> None:
        self._connection = None
        self._ending.close()

    def _connect(self) -> ClientConnection:
        until = time.monotonic() + self.reconnect_s
        for pause in wire.pauses():
            try:
                connection = self._ending.enter_context(
                    connect(
                        self.url,
                        compression=None,
                        max_size=None,
                        additional_headers=self._headers,
                        ssl=self._ssl,
                        open_timeout=max(5.0, self.reconnect_s),
                        close_timeout=1.0,
                    )
                )
            except InvalidHandshake as error:
                if wire.is_final(error) or time.monotonic() + pause > until:
                    raise wire.refused(self.url, error) from error
            except (OSError, EOFError) as error:
                if time.monotonic() + pause > until:
                    raise ConnectionLost(f"no server answers at {self.url}: {error}") from error
            else:
                try:
                    self.metadata = wire.read(connection.recv(timeout=self.timeout_s))
                except BaseException:
                    self._ending.close()
                    raise
                return connection
            time.sleep(pause)
        raise AssertionError("unreachable")
