"""A server in this process: its socket, its life, and its end.

The port is taken at once, so that one at which somebody listens is told before a policy is loaded, and opened when the
policy is warm. Of two servers that load at once for one port, the one that is warm later is told then.
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
from wamkit.serving.connections import Loop, TimedHttp, TimedWebSocket
from wamkit.serving.http import HttpDialect, Part, default_parts
from wamkit.serving.inference import Batching, Inference
from wamkit.serving.live import LiveView
from wamkit.serving.metrics import Metrics
from wamkit.serving.requests import MAX_SEARCH_WORK, RequestReader, Settings
from wamkit.serving.service import Service

logger = logging.getLogger(__name__)

HTTP_CONNECTIONS = 64
"""Connections at once beside WebSockets."""


def bind(config: ServerConfig) -> socket.socket:
    """Take the port without opening it: clients are refused until the server runs.

    Raises:
        OSError: somebody listens at the address, or it is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # inherited by connections
        taken.bind((config.host, config.port))
    except OSError as error:
        taken.close()
        raise _cannot_listen(error, config.host, config.port) from error
    return taken


def tls(config: ServerConfig) -> ssl.SSLContext | None:
    """The context for TLS, or `None` without.

    Raises:
        FileNotFoundError: no such file.
        PermissionError: a file that this user may not read.
        ValueError: files that are no certificate and its key, or a key behind a pass phrase.
    """
    if config.certificate is None or config.key is None:
        return None
    for path in (config.certificate, config.key):
        if not path.is_file():
            raise FileNotFoundError(f"expected a PEM file at {path}, found none; correct the path")
        path.open("rb").close()  # what OpenSSL says of a file that may not be read does not name it
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def ask() -> str:
        raise ValueError(
            f"expected a key without a pass phrase at {config.key}, it is encrypted; write it out in the clear with "
            "'openssl pkey -in KEY -out NEW', for this user alone"
        )

    try:
        context.load_cert_chain(config.certificate, config.key, password=ask)
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
    max_search_work: int = MAX_SEARCH_WORK,
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
        max_search_work: see `RequestReader`.
    """
    settings = Settings(num_steps=policy.num_steps, planner=policy.planner)
    reader = RequestReader(
        spec=policy.spec,
        settings=settings,
        camera_keys=camera_keys or {},
        state_keys=state_keys,
        ignored=ignored,
        max_search_work=max_search_work,
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

        Raises:
            OSError: somebody else has begun to listen at the port.
        """
        with _quick_switches(), _more_files():
            logger.info("warming up; the port opens then")
            self.app.service.inference.start()
            try:
                with asyncio.Runner(loop_factory=lambda: Loop(self.app.config.transfer_s)) as runner:
                    runner.run(self._serve(on_open))
            finally:
                self.app.service.inference.stop(self.app.config.grace_s)
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
        try:
            await super().startup(sockets)
        except OSError as error:
            raise _cannot_listen(error, self._app.config.host, self._app.config.port) from error
        if self.on_open is not None:
            self.on_open()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        logger.info("stopping: what is under way has %g s", self._app.config.grace_s)
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
        timeout_graceful_shutdown=1,  # after `App.drain` has waited for what was under way
        h11_max_incomplete_event_size=16384,
        limit_concurrency=app.config.max_connections + HTTP_CONNECTIONS,
    )
    if context is not None:
        settings.ssl_certfile = str(app.config.certificate)
        settings.ssl_keyfile = str(app.config.key)
    return settings


def _cannot_listen(error: OSError, host: str, port: int) -> OSError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return OSError(f"expected a free port, {where} is in use; stop what runs there or name another --port")
    return OSError(f"cannot listen at {where}: {error.strerror or error}; name another --host or --port")


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


@contextlib.contextmanager
def _more_files() -> Iterator[None]:
    """Have as many files open as this user may: every connection is one."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where "no limit" is more than the system takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
