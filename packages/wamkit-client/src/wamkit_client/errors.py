"""What can go wrong between a robot and a policy server."""

from __future__ import annotations

from typing import Any, ClassVar


class ServerError(RuntimeError):
    """The server could not answer; its message says what it expected, what came and what to do.

    Args:
        message: the server's own words.
        retry_after_s: when asking again may help, or `None`.
    """

    kind: ClassVar[str] = "internal"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadRequest(ServerError):
    """The request does not fit the policy; the same one will be refused again."""

    kind = "bad_request"


class Busy(ServerError):
    """More requests are waiting than the server takes; nothing was computed."""

    kind = "busy"


class DeadlineMissed(ServerError):
    """The request's deadline passed before its turn came; nothing was computed."""

    kind = "deadline"


class NotReady(ServerError):
    """The server still warms up, or is shutting down."""

    kind = "not_ready"


class ConnectionLost(ConnectionError):
    """No server, or none any more, and none came back in time."""


class PolicyChanged(ConnectionLost):
    """A server came back that serves another policy than the one that this client began with."""


_KINDS: dict[str, type[ServerError]] = {
    error.kind: error for error in (ServerError, BadRequest, Busy, DeadlineMissed, NotReady)
}


def server_error(reply: Any) -> ServerError | None:
    """The error that a reply stands for, or `None` for a reply with results."""
    if isinstance(reply, str):  # a text frame is always an error
        return ServerError(reply)
    error = reply.get("error") if isinstance(reply, dict) else None
    if not isinstance(error, dict):
        return None
    after = error.get("retry_after_ms")
    seconds = after / 1000 if isinstance(after, (int, float)) else None
    return _KINDS.get(str(error.get("kind")), ServerError)(str(error.get("message")), retry_after_s=seconds)
