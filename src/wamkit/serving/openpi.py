"""The dialect of openpi's clients, of WAV's and of ours: msgpack maps, strictly in turns, over one WebSocket.

The server speaks first, with its metadata. Each request gets one reply. An error is a text frame, after which the
connection is closed with code 1011; a client that connects with `?errors=reply` gets `{"error": {"kind", "message"}}`
instead and goes on, so that a missed deadline does not end its episode.

Source: openpi's client 0.1.1 and WAV 6.6.
Differs: an error is one sentence for the user; the public servers send a traceback.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.websockets import WebSocket
from wamkit_client.errors import BadRequest, ServerError
from wamkit_client.messages import MessageError, pack, unpack

from wamkit.serving.channel import Channel, Left
from wamkit.serving.service import Service

logger = logging.getLogger(__name__)

DIALECT = "openpi"


async def converse(websocket: WebSocket, channel: Channel, service: Service) -> None:
    """One connection, from its first frame to its last.

    Args:
        websocket: accepted.
        channel: of it.
        service: answers.
    """
    session = service.open(DIALECT, channel.peer)
    goes_on = websocket.query_params.get("errors") == "reply"
    try:
        await channel.send(pack(service.metadata()))
        while True:
            data = await channel.receive()
            arrived = time.monotonic()
            try:
                message = read(data)
                reply: dict[str, Any] = (await channel.during(session.answer(message, arrived=arrived))).to_map()
            except ServerError as error:
                logger.info("%s: %s: %s", session.name, error.kind, error)
                if not goes_on:
                    await channel.send(str(error))
                    await channel.close(1011, error.kind)
                    return
                reply = {"error": error_map(error)}
            await channel.send(pack(reply))
    except Left:
        pass
    finally:
        session.close()


def read(data: bytes | str) -> Any:
    """A message, of bytes.

    Raises:
        BadRequest: text, or bytes that are no message.
    """
    if isinstance(data, str):
        raise BadRequest("expected a binary frame with a msgpack map, got a text frame; pack the request")
    try:
        return unpack(data)
    except MessageError as error:
        raise BadRequest(str(error)) from error


def error_map(error: ServerError) -> dict[str, Any]:
    """An error as clients read it."""
    told: dict[str, Any] = {"kind": error.kind, "message": str(error)}
    if error.retry_after_s is not None:
        told["retry_after_ms"] = round(1000 * error.retry_after_s)
    return told
