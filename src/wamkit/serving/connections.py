"""TCP connections that end in time and stay small, whatever the client does.

uvicorn serves them; what it would wait for without end, or keep without bound, is limited here:

| a client that | is |
|---|---|
| sends a request's head, its body or a message slowly, or not at all | closed after `transfer_s` |
| does not read its answers | cut off after `transfer_s`, and not read from meanwhile |
| sends a message in a great many fragments | given one buffer of the message's size |
| sends many messages before their answers | closed |
| opens very many connections | refused further ones |
| begins TLS and does not go on | closed after `transfer_s` |
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.protocol import State

logger = logging.getLogger(__name__)

MAX_EARLY: Final = 64
"""Messages of one WebSocket that may wait for their turn."""
DEPARTURE: Final = "wamkit.departure"
"""Extension of a WebSocket's scope: a future that is done when the client has left."""
SPARE: Final = 64
"""Connections that may be open beyond those that are served, for instance to be told that the server is busy."""
SAID_S: Final = 10.0
"""Seconds in which it is said once that no more connections can be taken."""


class Loop(asyncio.SelectorEventLoop):
    """An event loop in which TLS begins and ends in time, and a lack of files fills no log.

    Args:
        transfer_s: for a handshake, and for a goodbye.
    """

    def __init__(self, transfer_s: float) -> None:
        super().__init__()
        self._transfer_s = transfer_s
        self._silent_until = 0.0

    async def create_server(self, *args: Any, **settings: Any) -> Any:
        if settings.get("ssl") is not None:
            settings |= {"ssl_handshake_timeout": self._transfer_s, "ssl_shutdown_timeout": self._transfer_s}
        return await super().create_server(*args, **settings)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        message = context.get("message", "")
        if "_start_serving" in message:  # asyncio tries a port again that was closed meanwhile
            return
        if "out of system resource" not in message:
            super().call_exception_handler(context)
        elif self.time() >= self._silent_until:  # asyncio tells it thousands of times a second
            self._silent_until = self.time() + SAID_S
            logger.error(
                "expected room for a further connection, got: %s; allow more open files (ulimit -n)",
                context.get("exception"),
            )


class EndingTransport:
    """A transport whose `close` is over in time; asyncio's own waits until the other side has read everything.

    Args:
        transport: of asyncio.
        seconds: what the other side has for reading.
    """

    def __init__(self, transport: Any, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds

    def close(self) -> None:
        """Close, after what was written has left or after `seconds`."""
        if self._transport.is_closing():  # a second close would break asyncio's transport for TLS
            return
        is_tls = self._transport.get_extra_info("sslcontext") is not None  # what it has written may wait below it
        is_unread = is_tls or self._transport.get_write_buffer_size()
        self._transport.close()
        if is_unread:
            asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class TimedHttp(H11Protocol):
    """HTTP, until a connection becomes a WebSocket; `transfer_s` is set by a subclass."""

    transfer_s: float
    _watched: Any = None  # the client's state that the deadline is for
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(EndingTransport(transport, self.transfer_s))  # type: ignore[arg-type]
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency + SPARE:
            self.transport.abort()
        else:
            self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        super().handle_websocket_upgrade(event)
        self._watched = h11.SWITCHED_PROTOCOL  # the other protocol watches from now on
        _cancel(self._deadline)

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:  # what answers the request under way must not write behind this
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.transfer_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)

    def eof_received(self) -> None:
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._deadline)
        _cancel(self._unread)
        super().connection_lost(exc)

    def _watch(self) -> None:
        state = self.conn.their_state
        if state is self._watched or self._watched is h11.SWITCHED_PROTOCOL:
            return
        self._watched = state
        _cancel(self._deadline)
        if state in (h11.IDLE, h11.SEND_BODY):
            # A second more for a body, in which whoever reads it says that it came too late.
            seconds = self.transfer_s + (state is h11.SEND_BODY)
            self._deadline = self.loop.call_later(seconds, self.transport.close)


class TimedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket; `transfer_s` is set by a subclass."""

    transfer_s: float
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.close_timeout = self.transfer_s  # until a client has said goodbye too
        self._rest = bytearray()  # what has come of a message in fragments
        self._kind = "bytes"
        self._is_within = False  # a message in fragments
        self.queue = self._messages = _Messages()

    async def run_asgi(self) -> None:
        extensions: dict[str, Any] = self.scope["extensions"]
        extensions[DEPARTURE] = self._messages.departure
        await super().run_asgi()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # A head that HTTP allows and WebSockets do not; uvicorn would neither answer nor close.
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
        self._watch()

    def handle_text(self, event: Frame) -> None:
        self._begin(event, "text")

    def handle_bytes(self, event: Frame) -> None:
        self._begin(event, "bytes")

    def handle_cont(self, event: Frame) -> None:
        self._rest += event.data
        if event.fin:
            self._take(bytes(self._rest))

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is None:  # before the connection was accepted
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1002})
            self.transport.close()
        else:
            super().handle_parser_exception()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()  # who does not read what answers pings may send no more of them
        self._unread = self.loop.call_later(self.transfer_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)
        if not self.read_paused:
            self.transport.resume_reading()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.close_sent:  # a refusal is an answer to the handshake too
            self.handshake_complete = True

    async def receive(self) -> Any:
        message = await super().receive()
        if not self.writable.is_set():
            self.transport.pause_reading()
        if self._deadline is not None:  # while nothing was read the client could not go on
            self._arm()
        return message

    def eof_received(self) -> None:
        self.transport.close()

    def shutdown(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._deadline)
        _cancel(self._unread)
        super().connection_lost(exc)

    def _begin(self, event: Frame, kind: str) -> None:
        self._kind, self._is_within = kind, not event.fin
        if event.fin:
            self._take(bytes(event.data))
        else:
            self._rest = bytearray(event.data)

    def _take(self, data: bytes) -> None:
        """Hand a whole message on, and read no more until it was received."""
        _cancel(self._deadline)
        self._deadline, self._rest, self._is_within = None, bytearray(), False
        if self.close_sent:
            return
        message: Any = {"type": "websocket.receive", self._kind: data}
        if self._kind == "text":
            try:
                message["text"] = data.decode()
            except UnicodeDecodeError:
                self._fail(1007, "expected UTF-8 in a text frame")
                return
        if self.queue.qsize() >= MAX_EARLY:
            self._fail(1008, f"expected at most {MAX_EARLY} messages before their answers")
            return
        self.queue.put_nowait(message)
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _watch(self) -> None:
        """Have an end of a message whose beginning is there."""
        is_partly_there = self._is_within or self.conn.reader.buffer
        if not is_partly_there or self.transport.is_closing():
            _cancel(self._deadline)
            self._deadline = None
        elif self._deadline is None:
            self._arm()

    def _arm(self) -> None:
        _cancel(self._deadline)
        self._deadline = self.loop.call_later(self.transfer_s, self._too_slow)

    def _too_slow(self) -> None:
        if self.read_paused or not self.writable.is_set():
            self._arm()
        else:
            self._fail(1008, f"expected a whole message within {self.transfer_s:g} s")

    def _fail(self, code: int, reason: str) -> None:
        """Close because of what came; a connection that closes already goes on with that."""
        if self.conn.state is State.OPEN:
            self.conn.fail(code, reason)
            self.handle_parser_exception()


class _Messages(asyncio.Queue[Any]):
    """What a WebSocket's client said and was not read yet."""

    def __init__(self) -> None:
        super().__init__()
        self.departure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put_nowait(self, item: Any) -> None:
        super().put_nowait(item)
        if item["type"] == "websocket.disconnect" and not self.departure.done():
            self.departure.set_result(None)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
