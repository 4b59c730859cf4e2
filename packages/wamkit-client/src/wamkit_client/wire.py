"""What synchronous and asynchronous clients share: addresses, headers, the first message, and waiting times."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from ssl import SSLCertVerificationError, SSLContext
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from wamkit_client.errors import ConnectionLost, server_error
from wamkit_client.messages import MessageError, pack, unpack

CLOSED = "this client was closed; make another"

_SCHEMES = {"ws": "ws", "http": "ws", "": "ws", "wss": "wss", "https": "wss"}


def endpoint(url: str) -> str:
    """Where to connect, with what we ask of the connection: errors as messages, so that one does not end an episode.

    Args:
        url: `ws://host:port`, with `wss`, `http` or `https` too, or `host:port` alone.

    Raises:
        ValueError: another scheme, or no host.
    """
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    try:
        is_whole = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        is_whole = False
    if not is_whole:
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


def options(connect: Callable[..., Any], ssl: SSLContext | None) -> dict[str, Any]:
    """What both clients want of a connection, as far as this version of websockets knows it.

    A server of another project may compute where it should answer pings, so a missing pong is no sign of its end;
    TCP and `timeout_s` notice one that is gone.
    """
    wanted: dict[str, Any] = {"compression": None, "max_size": None, "close_timeout": 0.5, "ping_timeout": None}
    known = inspect.signature(connect).parameters
    trusting = {} if ssl is None else {"ssl": ssl}  # `None` is not taken for an answer where TLS is asked for
    return trusting | {name: value for name, value in wanted.items() if name in known}


def refused(url: str, error: Exception) -> Exception:
    """The error of a server that cannot be reached, or answers, but not to us."""
    if isinstance(error, ConnectionLost):
        return error
    response = getattr(error, "response", None)
    if response is None:
        return ConnectionLost(f"no policy server answers at {url}: {error}")
    told = (response.body or b"").decode("utf-8", "replace").strip() or str(error)
    if response.status_code in (401, 403):
        return PermissionError(f"{url} refuses us: {told}")
    return ConnectionLost(f"{url} refuses us: {told}")


def silent(url: str, seconds: float) -> ConnectionLost:
    """The error of a server that says nothing when we come."""
    return ConnectionLost(
        f"expected {url} to tell what it serves, as policy servers do at once, and got nothing in {seconds:g} s; "
        "correct the address and its path"
    )


def is_final(error: Exception) -> bool:
    """Whether the attempt to connect would fail again."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, (ConnectionLost, SSLCertVerificationError)) or (status is not None and 400 <= status < 500)
