"""One WebSocket connection: whole messages in and out, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from wamkit.serving.config import ServerConfig

T = TypeVar("T")

REASON_BYTES = 123
"""What fits into a close frame."""


class Left(Exception):
    """The client is gone, was idle for too long, or the server is stopping: nothing more can be said."""


class Channel:
    """A connection, from its acceptance on.

    While a request is being answered the connection is listened to, so that a robot that leaves is noticed at once.

    Args:
        websocket: not accepted yet.
        config: its time limits.
    """

    def __init__(self, websocket: WebSocket, config: ServerConfig) -> None:
        self._websocket = websocket
        self._config = config
        self._incoming: asyncio.Task[Any] | None = None
        self._is_stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()

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
        if not self._is_stopping.done():
            self._is_stopping.set_result(None)

    async def receive(self) -> bytes | str:
        """The next message: bytes, or text.

        Raises:
            Left: there is none.
        """
        incoming = self._listen()
        await asyncio.wait(
            {incoming, self._is_stopping}, timeout=self._config.idle_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not incoming.done():
            if self._is_stopping.done():
                await self.close(1001, "the server is stopping")
            else:
                await self.close(1001, f"no request for {self._config.idle_s:g} s")
            raise Left
        self._incoming = None
        message = incoming.result()
        if message["type"] == "websocket.disconnect":
            raise Left
        data = message.get("bytes")
        return message["text"] if data is None else data

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, which is given up when the client leaves.

        Raises:
            Left: it has left.
        """
        task = asyncio.ensure_future(work)
        try:
            incoming = self._listen()
            await asyncio.wait({task, incoming}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and incoming.result()["type"] == "websocket.disconnect":
                raise Left
            return await task  # a message that came too early waits for its turn
        finally:
            task.cancel()

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

    def end(self) -> None:
        """Stop listening."""
        if self._incoming is not None:
            self._incoming.cancel()
        self._is_stopping.cancel()

    def _listen(self) -> asyncio.Task[Any]:
        if self._incoming is None:
            self._incoming = asyncio.ensure_future(self._websocket.receive())
        return self._incoming

    async def _out(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._config.transfer_s):
                await self._websocket.send(message)
        except (TimeoutError, OSError, RuntimeError, WebSocketDisconnect) as error:
            # What starlette and uvicorn raise for a connection that was closed in between.
            raise Left from error
