"""The routes of a server, and the door in front of them.

| path | what |
|---|---|
| `/` | WebSocket: openpi's dialect; HTTP: the live page |
| `/vla-eval` | WebSocket: vla-eval's dialect |
| `/healthz` | 200 and `OK` when the next request will be fast, else 503 |
| `/health`, `/config` | the same for vla-eval, as JSON |
| `/predict`, `/act`, `/reset` | POST: see `http` |
| `/metrics` | counters for Prometheus |
| `/live`, `/page/…` | what the live page reads |

An answer above 399 is JSON, `{"error": sentence, "kind": …}`; a handshake for a WebSocket is refused with a sentence.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from wamkit.serving import openpi, vla_eval
from wamkit.serving.channel import Channel, Left
from wamkit.serving.config import ServerConfig
from wamkit.serving.http import HttpDialect, refusal
from wamkit.serving.live import LiveView
from wamkit.serving.service import Service

logger = logging.getLogger(__name__)

Converse = Callable[[WebSocket, Channel, Service], Awaitable[None]]

_TALKS: Final[dict[str, Converse]] = {"/": openpi.converse, "/vla-eval": vla_eval.converse}
_OPEN_TO_ALL: Final = ("/healthz", "/health", "/", "/page/live.js", "/page/charts.js", "/page/live.css")
"""Over HTTP these tell nothing of robots, so they need no token."""
_PAGE: Final = {"live.js": "text/javascript", "charts.js": "text/javascript", "live.css": "text/css"}
_CONTENT_POLICY: Final = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"


class App:
    """An ASGI application that serves one policy.

    Args:
        service: answers.
        config: limits.
        http: routes without a WebSocket.
        live: what the page shows.
    """

    def __init__(self, service: Service, config: ServerConfig, http: HttpDialect, live: LiveView) -> None:
        self.service = service
        self.config = config
        self.http = http
        self.live = live
        self._channels: set[Channel] = set()
        self._requests = 0  # over HTTP, under way
        self._is_draining = False
        routes = [
            *(WebSocketRoute(path, self._talking(converse)) for path, converse in _TALKS.items()),
            Route("/healthz", self._healthz),
            Route("/health", self._health),
            Route("/config", self._config),
            Route("/metrics", self._metrics),
            Route("/live", self._live),
            Route("/", self._page),
            Route("/page/{name}", self._page),
            Route("/predict", self._counted(http.predict), methods=["POST"]),
            Route("/act", self._counted(http.act), methods=["POST"]),
            Route("/reset", self._counted(http.reset), methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
        self._app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in who may come in."""
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(scope)
            except HTTPException as error:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def drain(self) -> None:
        """Answer what is under way, for at most `grace_s`, and let every connection end after its answer."""
        self._is_draining = True
        for channel in self._channels:
            channel.stop()
        try:
            async with asyncio.timeout(self.config.grace_s):
                while self._channels or self._requests:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            logger.warning("%d connections did not end in %g s", len(self._channels), self.config.grace_s)
        self.http.close_idle(now=float("inf"))

    def _check(self, scope: Scope) -> None:
        """Refuse who may not come in.

        Raises:
            HTTPException: with the status and the sentence that say why.
        """
        headers, path = Headers(scope=scope), scope["path"]
        is_websocket = scope["type"] == "websocket"
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        # A link to the live page may be anywhere; it shows nothing to the page that has the link.
        is_foreign = headers.get("sec-fetch-site") == "cross-site" and (is_websocket or path != "/")
        if is_foreign or (origin is not None and _host(origin) != host):
            # A page of another site in some user's browser may not talk to a server that only they can reach.
            raise HTTPException(403, "expected a request of this server's own page or of no page")
        if self._is_private and not self._is_own(host):
            # Nor may a page whose own name was made to mean this machine.
            raise HTTPException(
                403, f"expected a request for localhost, got one for {host[:80]!r}; ask for that, or set a token"
            )
        needs_token = is_websocket or path not in _OPEN_TO_ALL
        if self.config.token is not None and needs_token and not self._knows(headers):
            told = "expected the header 'Authorization: Bearer TOKEN' with this server's token"
            raise HTTPException(401, told, {"WWW-Authenticate": "Bearer"})
        if is_websocket and path not in _TALKS:
            told = f"expected a WebSocket at {' or '.join(_TALKS)}, got {path[:80]!r}; correct the path"
            raise HTTPException(404, told)
        if self._is_draining:
            raise HTTPException(503, "the server is stopping", {"Retry-After": "1"})
        if is_websocket and len(self._channels) >= self.config.max_connections:
            told = f"busy: {len(self._channels)} robots are connected (--max-connections); try again later"
            raise HTTPException(503, told, {"Retry-After": "1"})

    @property
    def _is_private(self) -> bool:
        """Whether being on this machine is all that a client needs."""
        return self.config.token is None and (_is_local(self.config.host) or _is_loopback(self.config.host))

    def _is_own(self, host: str) -> bool:
        """Whether no other site can be meant by the `Host` of a request; browsers always send one."""
        name = _name(host)
        return not name or _is_local(name) or _is_address(name) or name == self.config.host.lower()

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        wanted = (self.config.token or "").encode()
        # "Api-Key" is what openpi's clients say.
        return scheme.lower() in ("bearer", "api-key") and hmac.compare_digest(given.strip().encode(), wanted)

    def _talking(self, converse: Converse) -> Callable[[WebSocket], Awaitable[None]]:
        async def talk(websocket: WebSocket) -> None:
            channel = Channel(websocket, self.config)
            self._channels.add(channel)
            try:
                await channel.accept()
                await converse(websocket, channel, self.service)
            except Left:
                pass
            except Exception:
                logger.exception("a connection from %s ended with a defect of the server", channel.peer)
                await channel.close(1011, "internal error; the server's log says why")
            finally:
                self._channels.discard(channel)

        return talk

    def _counted(
        self, answer: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def counted(request: HttpRequest) -> Response:
            self._requests += 1
            try:
                return await answer(request)
            finally:
                self._requests -= 1

        return counted

    async def _healthz(self, request: HttpRequest) -> Response:
        self._check_ready()
        return PlainTextResponse("OK\n")

    async def _health(self, request: HttpRequest) -> Response:
        self._check_ready()
        return JSONResponse({"status": "ok"})

    def _check_ready(self) -> None:
        if not self.service.inference.is_ready:
            told = "expected a warm policy, this one still warms up; ask again"
            raise HTTPException(503, told, {"Retry-After": "1"})

    async def _config(self, request: HttpRequest) -> Response:
        batching = self.service.inference.batching
        told: dict[str, Any] = {
            "applied": {},
            "config": {"max_batch_size": batching.max_batch, "max_wait_time": batching.max_wait_s},
        }
        if request.query_params:
            told["errors"] = ["this server's settings are those of its command line, and are not changed by a request"]
        return JSONResponse(told)

    async def _metrics(self, request: HttpRequest) -> Response:
        metrics = self.service.metrics
        metrics.waiting.set(self.service.inference.num_waiting)
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    async def _live(self, request: HttpRequest) -> Response:
        query, num_waiting = request.query_params, self.service.inference.num_waiting

        def look() -> Response:
            state = self.live.look(
                query.get("session"), num_waiting=num_waiting, observed=query.get("observed"), film=query.get("film")
            )
            return JSONResponse(state, headers={"Cache-Control": "no-store"})

        return await asyncio.to_thread(look)  # encoding pictures takes a while

    async def _page(self, request: HttpRequest) -> Response:
        name = request.path_params.get("name", "index.html")
        kind = "text/html" if name == "index.html" else _PAGE.get(name)
        if kind is None:
            raise HTTPException(404)
        text = resources.files("wamkit.serving").joinpath("page", name).read_text(encoding="utf-8")
        return Response(text, media_type=kind, headers={"Content-Security-Policy": _CONTENT_POLICY})


def _host(origin: str) -> str:
    """Host and port of a page's address; one that is none belongs to no host."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return "?"


def _name(host: str) -> str:
    """The name in a `Host` header, without its port; one that is none is nobody's."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return "?"


def _is_local(name: str) -> bool:
    return name.rstrip(".") == "localhost" or name.rstrip(".").endswith(".localhost")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


async def refuse(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or a WebSocket's handshake, without letting it in."""
    if scope["type"] == "websocket":
        await receive()
        response = PlainTextResponse(f"{error.detail}\n", error.status_code, headers=error.headers)
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await refusal(error)(scope, receive, send)


async def _refused(request: HttpRequest, error: HTTPException) -> Response:
    """No such path or method, or a body that did not come."""
    if error.status_code == 404:
        error.detail = f"expected a path of this server, got {request.url.path[:80]!r}; correct it"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        error.detail = f"expected {allowed} at {request.url.path}, got {request.method[:20]!r}"
    return refusal(error)


async def _failed(request: HttpRequest, error: Exception) -> Response:
    """What nobody foresaw; starlette logs the traceback, and clients get none."""
    return JSONResponse({"error": "internal error; the server's log says why", "kind": "internal"}, 500)
