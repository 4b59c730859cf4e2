"""The client for programs that run on asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from ssl import SSLContext
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from wamkit_client import wire
from wamkit_client.errors import Busy, ConnectionLost, NotReady, ServerError


class AsyncClient:
    """`Client` for asyncio: `await client.infer(…)`; the connection is made with `async with` or `await open()`.

    Args:
        url: see `Client`, as all that follows.
        token: see `Client`.
        timeout_s: see `Client`.
        reconnect_s: see `Client`.
        ssl: see `Client`.
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
        self._lock = asyncio.Lock()
        self._is_closed = False
        self._was_open = False
        self._has_begun = True  # the server knows of `_beginning`
        self._connection: ClientConnection | None = None

    async def open(self) -> AsyncClient:
        """Connect, also again after `close`, to whatever policy is served by then.

        Raises:
            What `Client` raises when it is made.
        """
        self._is_closed = False
        async with self._lock:
            if self._connection is None:
                await self._reconnected()
        return self

    async def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """See `Client.infer`."""
        request = wire.write(observation)
        async with self._lock:
            return await self._ask(request)

    async def reset(self, task: str | None = None, *, seed: int | None = None) -> None:
        """See `Client.reset`."""
        async with self._lock:
            before, self._beginning = self._beginning, wire.beginning(task, seed)
            self._has_begun = False
            try:
                await self._ask(None)
            except ServerError:
                self._beginning, self._has_begun = before, True
                raise

    async def close(self) -> None:
        """Leave; the server forgets the episode. Tasks that wait for an answer get `ConnectionLost`."""
        self._is_closed = True
        await self._drop()
        self._was_open = False

    async def __aenter__(self) -> AsyncClient:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, request: bytes | None) -> dict[str, Any]:
        """The answer to a request, or to the beginning of the episode alone."""
        pauses, breaks, until = wire.pauses(), 0, 0.0
        while True:
            connection = self._connection
            if connection is None:
                connection = await self._reconnected()
                until = 0.0
            until = until or time.monotonic() + self.timeout_s
            reply: dict[str, Any] = {}
            try:
                if not self._has_begun and self._beginning is not None:
                    reply = await self._exchange(connection, wire.write(self._beginning), until)
                    self._has_begun = True
                return reply if request is None else await self._exchange(connection, request, until)
            except (Busy, NotReady) as error:
                pause = next(pauses) if error.retry_after_s is None else error.retry_after_s
                if time.monotonic() + pause > until:
                    raise
                await asyncio.sleep(pause)
            except asyncio.TimeoutError:  # before Python 3.11 another class than TimeoutError
                raise TimeoutError(f"no answer from {self.url} in {self.timeout_s:g} s") from None
            except (ConnectionClosed, OSError) as error:
                if self._is_closed:
                    raise ConnectionLost(wire.CLOSED) from None
                breaks += 1
                if breaks == 2:
                    raise ConnectionLost(f"{self.url} closed the connection twice: {error}") from error

    async def _exchange(self, connection: ClientConnection, request: bytes, until: float) -> dict[str, Any]:
        wire.check_size(request, self.metadata)

        async def turn() -> bytes | str:
            await connection.send(request)
            return await connection.recv()

        try:
            data = await asyncio.wait_for(turn(), max(0.0, until - time.monotonic()))
        except BaseException:
            await self._drop()  # when cancelled, too: a late answer would be taken for that of the next request
            raise
        return wire.read(data)

    async def _reconnected(self) -> ClientConnection:
        self._connection = connection = await self._connect()
        self._has_begun = self._beginning is None
        self.reconnects += self._was_open
        self._was_open = True
        if self._is_closed:  # meanwhile, by another task, which saw no connection to close
            await self._drop()
            raise ConnectionLost(wire.CLOSED)
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connect(self) -> ClientConnection:
        until = time.monotonic() + self.reconnect_s
        for pause in wire.pauses():
            if self._is_closed:
                raise ConnectionLost(wire.CLOSED)
            try:
                connection = await connect(
                    wire.endpoint(self.url),
                    additional_headers=self._headers,
                    open_timeout=max(5.0, self.reconnect_s),
                    **wire.options(connect, self._ssl),
                )
                self.metadata = await self._told(connection)
            except (InvalidHandshake, ConnectionClosed, OSError, EOFError, asyncio.TimeoutError) as error:
                if wire.is_final(error) or time.monotonic() + pause > until:
                    raise wire.refused(self.url, error) from error
            else:
                return connection
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _told(self, connection: ClientConnection) -> dict[str, Any]:
        """What the server says first."""
        try:
            told = wire.read(await asyncio.wait_for(connection.recv(), self.timeout_s))
            wire.check_same(self.url, self.metadata if self._was_open else {}, told)
        except BaseException as error:
            await connection.close()
            if isinstance(error, asyncio.TimeoutError):
                raise wire.silent(self.url, self.timeout_s) from None
            raise
        return told
