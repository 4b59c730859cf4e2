"""How a server listens and what it allows; importing this module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wamkit.spec import PolicySpec
from wamkit.typed import check_least

CAMERA_BYTES: Final = 3 * 1280 * 720
"""Of a picture as many robots' cameras give it."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where a server listens, whom it lets in, and how much of it one of them may take.

    Args:
        host: address to bind; the default is this machine alone.
        port: 0 takes a free one.
        token: clients must name it; `None` asks for none.
        certificate: PEM file for TLS, with `key`.
        key: its private key.
        max_message_bytes: of one request; by default a few times what the policy's images take.
        max_connections: WebSockets at once, and sessions over HTTP.
        idle_s: a connection that asks nothing for so long is closed.
        transfer_s: time for a request to arrive or an answer to leave once it has begun.
        grace_s: time to finish what is under way when the server is asked to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    max_message_bytes: int | None = None
    max_connections: int = 64
    idle_s: float = 600.0
    transfer_s: float = 10.0
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        check_least(self, "server", 1, "max_message_bytes", "max_connections")
        check_least(self, "server", 0, "port", "grace_s")
        if self.port > 65535:
            raise ValueError(f"server: expected a port of 0 to 65535, got {self.port}")
        if min(self.idle_s, self.transfer_s) <= 0:
            raise ValueError(f"server: expected times above 0 seconds, got {self.idle_s} and {self.transfer_s}")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("server: expected a certificate and its key for TLS, got one of them; name both")
        if self.token is not None and (not self.token or not self.token.isascii() or not self.token.isprintable()):
            raise ValueError("server: expected a token of printable ASCII characters, got another or an empty one")

    def message_limit(self, spec: PolicySpec) -> int:
        """Bytes of the largest request.

        By default eight times the policy's images, as float64 ones take, or cameras' own pictures if those take more,
        so that who sends them is told of the size that the policy wants; and 1 MiB.
        """
        robot = spec.robot
        pixels = sum(camera.height * camera.width for camera in robot.cameras)
        return self.max_message_bytes or max(8 * 3 * pixels, len(robot.cameras) * CAMERA_BYTES) + 2**20
