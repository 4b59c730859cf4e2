"""What synchronous and asynchronous clients share: addresses, headers, the first message, and waiting times."""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from ssl import SSLCertVerificationError, SSLContext
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from websockets.exceptions import InvalidMessage

from wamkit_client.errors import BadRequest, Busy, ConnectionLost, PolicyChanged, server_error
from wamkit_client.messages import MessageError, pack, unpack

CLOSED = "this client was closed; make another"

_SCHEMES = {"ws": "ws", "http": "ws", "": "ws", "wss": "wss", "https": "wss"}
_LASTING = (
    *("family", "robot", "cameras", "state", "action", "action_kind", "gripper_channels", "gripper_sign"),
    *("control_hz", "num_context", "context_stride", "action_horizon", "execution_horizon"),
)
"""What a robot's program relies on from one connection to the next, among what servers tell."""


def address(url: str) -> str:
    """A server's address in full.

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
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, parts.path or "/", parts.query, ""))


def endpoint(address: str) -> str:
    """Where to connect, with what we ask of the connection: errors as messages, so that one does not end an episode."""
    parts = urlsplit(address)
    query = "&".join(filter(None, (parts.query, urlencode({"errors": "reply"}))))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def check_times(timeout_s: float, reconnect_s: float) -> None:
    """What a client is told of time.

    Raises:
        ValueError: no seconds, or out of range.
    """
    times: tuple[Any, ...] = (timeout_s, reconnect_s)
    are_seconds = all(isinstance(given, Real) and math.isfinite(given) for given in times)
    if not are_seconds or timeout_s <= 0 or reconnect_s < 0:
        raise ValueError(
            f"expected seconds, timeout_s above 0 and reconnect_s of 0 or more, got {timeout_s!r} and {reconnect_s!r}"
        )


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
    """A request's bytes.

    Raises:
        MessageError: no map, or something in it that no message may hold.
    """
    if not isinstance(request, Mapping):
        raise MessageError(
            f"expected an observation as a map, such as {{'images': …, 'state': …, 'prompt': …}}, "
            f"got {type(request).__name__}"
        )
    return pack(dict(request))


def check_size(request: bytes, metadata: Mapping[str, Any]) -> None:
    """Refuse what the server would hang up on.

    Raises:
        BadRequest: more bytes than the server said that it takes.
    """
    limit = metadata.get("max_message_bytes")
    if not isinstance(limit, int) or not 0 < limit < len(request):
        return
    cameras = metadata.get("cameras")
    sizes = [
        f"{camera.get('name')} {camera.get('height')} x {camera.get('width')}"
        for camera in (cameras if isinstance(cameras, list) else [])
        if isinstance(camera, Mapping)
    ]
    remedy = f"send images of the policy's height x width: {', '.join(sizes)}" if sizes else "send less"
    raise BadRequest(f"expected a request of at most {limit} bytes, got {len(request)}; {remedy}")


def check_same(url: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Whether a server that was found again serves what it did; one that had told nothing may serve anything.

    Raises:
        PolicyChanged: it serves another policy, or to another robot.
    """
    pairs = {key: (before.get(key), now.get(key)) for key in _LASTING} | {
        "fingerprint": (_fingerprint(before), _fingerprint(now))
    }
    changes = [
        f"{key} is {reprlib.repr(new)} and was {reprlib.repr(old)}" for key, (old, new) in pairs.items() if old != new
    ]
    if before and changes:
        raise PolicyChanged(
            f"expected {url} to serve the policy that it served before, got another: {'; '.join(changes)}; "
            "make a new client, and new brokers"
        )


def _fingerprint(metadata: Mapping[str, Any]) -> Any:
    identity = metadata.get("identity")
    return identity.get("fingerprint") if isinstance(identity, Mapping) else None


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
        is_other = url.startswith("ws:") and isinstance(error, (InvalidMessage, EOFError))
        hint = "; if it speaks TLS, ask for wss://" if is_other else ""
        return ConnectionLost(f"no policy server answers at {url}: {error}{hint}")
    status, body = response.status_code, (response.body or b"").decode("utf-8", "replace").strip()
    if status == 404 or (status == 403 and not body):  # the second is how starlette says the first to WebSockets
        path = urlsplit(url).path
        return ConnectionLost(f"{url} serves nothing at {path!r} (HTTP {status}); correct the path, most often to '/'")
    told = f"{url} refuses us: {body or error}"
    if status in (401, 403):
        return PermissionError(told)
    if status == 503 and body.startswith("busy"):
        after = response.headers.get("Retry-After", "")
        return Busy(told, retry_after_s=float(after) if after.isdecimal() else None)
    return ConnectionLost(told)


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
