"""A server in this process: its socket, its life, and its end.

The port is taken at once, so that one in use is told before a policy is loaded, and opened when the policy is warm.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import uvicorn

from wamkit.policy import Policy
from wamkit.serving.app import App
from wamkit.serving.config import ServerConfig
from wamkit.serving.connections import TimedHttp, TimedWebSocket
from wamkit.serving.http import HttpDialect, Part, default_parts
from wamkit.serving.inference import Batching, Inference
from wamkit.serving.live import LiveView
from wamkit.serving.metrics import Metrics
from wamkit.serving.requests import RequestReader, Settings
from wamkit.serving.service import Service

logger = logging.getLogger(__name__)

HTTP_CONNECTIONS = 64
"""Connections at once beside WebSockets."""


def bind(config: ServerConfig) -> socket.socket:
    """Take the port without opening it: clients are refused until the server runs.

    Raises:
        OSError: the address is in use, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # inherited by connections
        taken.bind((config.host, config.port))
    except OSError as error:
        taken.close()
        where = f"{config.host}:{config.port}"
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"expected a free port, {where} is in use; stop what runs there or name another --port"
            ) from error
        raise OSError(f"cannot listen at {where}: {error.strerror or error}; name another --host or --port") from error
    return taken


def tls(config: ServerConfig) -> ssl.SSLContext | None:
    """The context for TLS, or `None` without.

    Raises:
        FileNotFoundError: no such file.
        ValueError: files that are no certificate and its key.
    """
    if config.certificate is None or config.key is None:
        return None
    for path in (config.certificate, config.key):
        if not path.is_file():
            raise FileNotFoundError(f"expected a PEM file at {path}, found none; correct the path")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.certificate, config.key)
    except ssl.SSLError as error:
        raise ValueError(
            f"expected a PEM certificate at {config.certificate} and its key at {config.key}, got others ({error})"
        ) from error
    return context


def build(
    policy: Policy,
    config: ServerConfig,
    *,
    identity: Mapping[str, Any],
    batching: Batching | None = None,
    camera_keys: Mapping[str, str] | None = None,
    state_keys: tuple[str, ...] = (),
    ignored: frozenset[str] = frozenset(),
    parts: tuple[Part, ...] | None = None,
    values: bool = False,
    seed: int = 0,
    imagine_every_s: float = 1.0,
) -> App:
    """The application that serves a policy; its inference is not started yet.

    Args:
        policy: loaded.
        config: limits.
        identity: what clients are told of it: `name`, `fingerprint`, `planner`, `details`.
        batching: how calls are shared.
        camera_keys: see `RequestReader`.
        state_keys: see `RequestReader`.
        ignored: see `RequestReader`.
        parts: see `HttpDialect`.
        values: see `Service`.
        seed: see `Service`.
        imagine_every_s: see `LiveView`.
    """
    settings = Settings(num_steps=policy.num_steps, planner=policy.planner)
    reader = RequestReader(
        spec=policy.spec, settings=settings, camera_keys=camera_keys or {}, state_keys=state_keys, ignored=ignored
    )
    metrics = Metrics()
    live = LiveView(
        policy.spec,
        name=str(identity.get("name", "")),
        planner=None if policy.planner is None else asdict(policy.planner),
        interval_s=imagine_every_s,
    )

    def count(size: int, seconds: float) -> None:
        metrics.batch.observe(size)
        metrics.policy.observe(seconds)

    inference = Inference(
        policy, batching or Batching(), settings, on_batch=count, daydream=live.daydream, wants=live.wants
    )
    max_bytes = config.message_limit(policy.spec)
    service = Service(
        policy,
        reader=reader,
        inference=inference,
        metrics=metrics,
        identity=identity,
        values=values,
        seed=seed,
        max_message_bytes=max_bytes,
        watcher=live,
    )
    http = HttpDialect(service, config, default_parts(policy.spec) if parts is None else parts, max_bytes)
    return App(service, config, http, live)


class Server:
    """An application at a socket.

    Args:
        app: from `build`.
        listening: from `bind`.

    Raises:
        FileNotFoundError: a file for TLS is missing.
        ValueError: or is none.
    """

    def __init__(self, app: App, listening: socket.socket) -> None:
        self.app = app
        self._listening = listening
        context = tls(app.config)
        self.url = f"{'ws' if context is None else 'wss'}://{_host(app.config.host)}:{listening.getsockname()[1]}"
        self._uvicorn = _Uvicorn(_settings(app, context), app)

    @property
    def address(self) -> str:
        """Where the page is."""
        return self.url.replace("ws", "http", 1)

    def run(self, *, on_open: Callable[[], None] | None = None) -> None:
        """Warm up, open the port, and serve until told to stop (SIGINT, SIGTERM or `stop`).

        Args:
            on_open: told when the port is open.
        """
        with _quick_switches():
            self.app.service.inference.start()
            try:
                asyncio.run(self._serve(on_open))
            finally:
                self.app.service.inference.stop()
                self._listening.close()

    def stop(self) -> None:
        """Ask the server to finish what is under way and end; from any thread."""
        self._uvicorn.should_exit = True

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """The server in a thread of its own, while the block runs."""
        thread = threading.Thread(target=self.run, name="server", daemon=True)
        thread.start()
        try:
            while not self._uvicorn.started:
                thread.join(0.01)
                if not thread.is_alive():
                    raise RuntimeError("the server ended before it had begun; its log says why")
            yield self
        finally:
            self.stop()
            thread.join()

    async def _serve(self, on_open: Callable[[], None] | None) -> None:
        self._uvicorn.on_open = on_open
        keeper = asyncio.create_task(self._close_idle())
        try:
            await self._uvicorn.serve(sockets=[self._listening])
        finally:
            keeper.cancel()

    async def _close_idle(self) -> None:
        while True:
            await asyncio.sleep(min(10.0, self.app.config.idle_s))
            self.app.http.close_idle()


class _Uvicorn(uvicorn.Server):
    """uvicorn, which lets robots have their answers before it ends."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app
        self.on_open: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.on_open is not None:
            self.on_open()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        await self._app.drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # In a thread other than the main one there are no signals to take.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in taken.items():
                signal.signal(number, handler)


def _settings(app: App, context: ssl.SSLContext | None) -> uvicorn.Config:
    limits = {"transfer_s": app.config.transfer_s}
    settings = uvicorn.Config(
        app,
        http=type("Http", (TimedHttp,), limits),
        ws=type("WebSocket", (TimedWebSocket,), limits),
        ws_max_size=app.http.max_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # a robot that computes may leave a ping unanswered; TCP notices one that is gone
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=16384,
        limit_concurrency=app.config.max_connections + HTTP_CONNECTIONS,
    )
    if context is not None:
        settings.ssl_certfile = str(app.config.certificate)
        settings.ssl_keyfile = str(app.config.key)
    return settings


def _host(host: str) -> str:
    shown = {"0.0.0.0": "localhost", "::": "localhost", "": "localhost"}.get(host, host)
    return f"[{shown}]" if ":" in shown else shown


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    """Let the event loop have its turn soon while the policy's thread runs Python."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
