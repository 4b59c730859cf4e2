"""What synchronous and asynchronous clients share: addresses, headers, the first message, and waiting times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from wamkit_client.errors import ConnectionLost, server_error
from wamkit_client.messages import MessageError, pack, unpack

_SCHEMES = {"ws": "ws", "http": "ws", "": "ws", "wss": "wss", "https": "wss"}


def endpoint(url: str) -> str:
    """Where to connect, with what we ask of the connection: errors as messages, so that one does not end an episode.

    Args:
        url: `ws://host:port`, with `wss`, `http` or `https` too, or `host:port` alone.

    Raises:
        ValueError: another scheme, or no host.
    """
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(f"expected an address such as ws://localhost:8000, got {url!r}")
    query = "&".join(filter(None, (parts.query, urlencode({"errors": "reply"}))))
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, parts.path or "/", query, ""))


def headers(token: str | None) -> dict[str, str]:
    """Headers of the first request."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def read(data: bytes | str) -> dict[str, Any]:
    """A reply.

    Raises:
        ServerError: it stands for an error.
        MessageError: it is no map.
    """
    reply = data if isinstance(data, str) else unpack(data)
    error = server_error(reply)
    if error is not None:
        raise error
    if not isinstance(reply, dict):
        raise MessageError(f"expected a map from the server, got {type(reply).__name__}")
    return reply


def write(request: Mapping[str, Any]) -> bytes:
    """A request's bytes."""
    return pack(dict(request))


def beginning(task: str | None, seed: int | None) -> dict[str, Any]:
    """The request that begins an episode."""
    request: dict[str, Any] = {"reset": True}
    if task is not None:
        request["prompt"] = task
    if seed is not None:
        request["seed"] = seed
    return request


def pauses() -> Iterator[float]:
    """Seconds to wait between attempts to connect: longer and longer, up to two."""
    pause = 0.05
    while True:
        yield pause
        pause = min(2.0, 2 * pause)


def refused(url: str, error: Exception) -> Exception:
    """The error of a server that answers, but not to us; waiting for it does not help."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    body = getattr(getattr(error, "response", None), "body", b"") or b""
    told = body.decode("utf-8", "replace").strip() or str(error)
    if status in (401, 403):
        return PermissionError(f"{url} refuses us: {told}")
    return ConnectionLost(f"{url} refuses us: {told}")


def is_final(error: Exception) -> bool:
    """Whether an answer to the first request will not change by waiting."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and 400 <= status < 500
