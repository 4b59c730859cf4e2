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
from wamkit_client.errors import Busy, ConnectionLost, NotReady


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
        self.url = wire.endpoint(url)
        self.timeout_s = timeout_s
        self.reconnect_s = reconnect_s
        self.reconnects = 0
        self.metadata: dict[str, Any] = {}
        self._headers = wire.headers(token)
        self._ssl = ssl
        self._beginning: dict[str, Any] | None = None
        self._lock = asyncio.Lock()
        self._was_open = False
        self._connection: ClientConnection | None = None

    async def open(self) -> AsyncClient:
        """Connect.

        Raises:
            ConnectionLost: no server.
            PermissionError: the server wants another token.
        """
        async with self._lock:
            await self._connected()
        return self

    async def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """See `Client.infer`."""
        async with self._lock:
            return await self._ask(wire.write(observation))

    async def reset(self, task: str | None = None, *, seed: int | None = None) -> None:
        """See `Client.reset`."""
        async with self._lock:
            self._beginning = wire.beginning(task, seed)
            await self._ask(wire.write(self._beginning))

    async def close(self) -> None:
        """Leave; the server forgets the episode. A later request connects again."""
        await self._drop()
        self._was_open = False

    async def __aenter__(self) -> AsyncClient:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, request: bytes) -> dict[str, Any]:
        until = time.monotonic() + self.timeout_s
        pauses = wire.pauses()
        while True:
            try:
                return await self._exchange(request, until)
            except (Busy, NotReady) as error:
                pause = error.retry_after_s if error.retry_after_s is not None else next(pauses)
                if time.monotonic() + pause > until:
                    raise
                await asyncio.sleep(pause)

    async def _exchange(self, request: bytes, until: float) -> dict[str, Any]:
        for is_last in (False, True):
            connection = await self._connected()
            try:
                await connection.send(request)
                return wire.read(await asyncio.wait_for(connection.recv(), max(0.0, until - time.monotonic())))
            except TimeoutError:
                await self._drop()  # its answer may still come, and would be taken for that of the next request
                raise TimeoutError(f"no answer from {self.url} in {self.timeout_s:g} s") from None
            except asyncio.CancelledError:
                await self._drop()  # for the same reason
                raise
            except (ConnectionClosed, OSError) as error:
                await self._drop()
                if is_last:
                    raise ConnectionLost(f"{self.url} closed the connection twice: {error}") from error
        raise AssertionError("unreachable")

    async def _connected(self) -> ClientConnection:
        if self._connection is None:
            self._connection = connection = await self._connect()
            self.reconnects += self._was_open
            self._was_open = True
            if self._beginning is not None:
                await connection.send(wire.write(self._beginning))
                wire.read(await asyncio.wait_for(connection.recv(), self.timeout_s))
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connect(self) -> ClientConnection:
        until = time.monotonic() + self.reconnect_s
        for pause in wire.pauses():
            try:
                connection = await connect(
                    self.url,
                    compression=None,
                    max_size=None,
                    additional_headers=self._headers,
                    ssl=self._ssl,
                    open_timeout=max(5.0, self.reconnect_s),
                    close_timeout=1.0,
                )
            except InvalidHandshake as error:
                if wire.is_final(error) or time.monotonic() + pause > until:
                    raise wire.refused(self.url, error) from error
            except (OSError, EOFError) as error:
                if time.monotonic() + pause > until:
                    raise ConnectionLost(f"no server answers at {self.url}: {error}") from error
            else:
                try:
                    self.metadata = wire.read(await asyncio.wait_for(connection.recv(), self.timeout_s))
                except BaseException:
                    await connection.close()
                    raise
                return connection
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")
