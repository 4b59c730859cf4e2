"""One WebSocket connection: whole messages in and out, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from wamkit.serving.config import ServerConfig
from wamkit.serving.connections import DEPARTURE

T = TypeVar("T")

REASON_BYTES = 123
"""What fits into a close frame."""


class Left(Exception):
    """The client is gone, was idle for too long, or the server is stopping: nothing more can be said."""


class Channel:
    """A connection, from its acceptance on.

    A robot that leaves while its request is being answered is noticed at once.

    Args:
        websocket: not accepted yet, and of a `TimedWebSocket`.
        config: its time limits.
    """

    def __init__(self, websocket: WebSocket, config: ServerConfig) -> None:
        self._websocket = websocket
        self._config = config
        self._departure: asyncio.Future[None] = websocket.scope["extensions"][DEPARTURE]
        self._idle: asyncio.Timeout | None = None  # of a wait for the next request
        self._is_stopping = False

    @property
    def peer(self) -> str:
        """Who is there."""
        client = self._websocket.client
        return "unknown" if client is None else f"{client.host}:{client.port}"

    async def accept(self) -> None:
        """Let the client in.

        Raises:
            Left: it is gone already.
        """
        try:
            await self._websocket.accept()
        except (OSError, RuntimeError) as error:
            raise Left from error

    def stop(self) -> None:
        """Let the connection end once the request under way is answered."""
        self._is_stopping = True
        if self._idle is not None and not self._idle.expired():
            self._idle.reschedule(asyncio.get_running_loop().time())

    async def receive(self) -> bytes | str:
        """The next message: bytes, or text.

        Raises:
            Left: there is none.
        """
        try:
            if self._is_stopping:
                raise TimeoutError
            async with asyncio.timeout(self._config.idle_s) as self._idle:
                message = await self._websocket.receive()
        except TimeoutError:
            told = "the server is stopping" if self._is_stopping else f"no request for {self._config.idle_s:g} s"
            await self.close(1001, told)
            raise Left from None
        finally:
            self._idle = None
        if message["type"] == "websocket.disconnect":
            raise Left
        data = message.get("bytes")
        return message["text"] if data is None else data

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, which is given up when the client leaves.

        Raises:
            Left: it has left.
        """
        if self._departure.done():
            work.close()
            raise Left
        presence = asyncio.timeout(None)

        def end(_: asyncio.Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the work was done at the same moment
                presence.reschedule(asyncio.get_running_loop().time())

        try:
            async with presence:
                self._departure.add_done_callback(end)
                try:
                    return await work
                finally:
                    self._departure.remove_done_callback(end)
        except TimeoutError:
            if presence.expired():
                raise Left from None
            raise

    async def send(self, data: bytes | str) -> None:
        """Send a message.

        Raises:
            Left: the client is gone, or does not read.
        """
        message: dict[str, Any] = {"type": "websocket.send"}
        message["text" if isinstance(data, str) else "bytes"] = data
        await self._out(message)

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye."""
        text = reason.encode()[:REASON_BYTES].decode("utf-8", "ignore")
        with contextlib.suppress(Left):
            await self._out({"type": "websocket.close", "code": code, "reason": text})

    async def _out(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._config.transfer_s):
                await self._websocket.send(message)
        except (TimeoutError, OSError, RuntimeError, WebSocketDisconnect) as error:
            # What starlette and uvicorn raise for a connection that was closed in between.
            raise Left from error
