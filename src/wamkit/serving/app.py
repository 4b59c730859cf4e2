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
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from wamkit.serving import openpi, vla_eval
from wamkit.serving.channel import Channel, Left
from wamkit.serving.config import ServerConfig
from wamkit.serving.http import HttpDialect
from wamkit.serving.live import LiveView
from wamkit.serving.service import Service

logger = logging.getLogger(__name__)

Converse = Callable[[WebSocket, Channel, Service], Awaitable[None]]

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
            WebSocketRoute("/", self._talking(openpi.converse)),
            WebSocketRoute("/vla-eval", self._talking(vla_eval.converse)),
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
        self._app: ASGIApp = Starlette(routes=routes, exception_handlers={Exception: _failed})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in who may come in."""
        if scope["type"] in ("http", "websocket"):
            refusal = self._refusal(scope)
            if refusal is not None:
                await refuse(refusal, scope, receive, send)
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

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        is_websocket = scope["type"] == "websocket"
        origin = headers.get("origin")
        if origin is not None and _host(origin) != headers.get("host", "").lower():
            # A page of another site in some user's browser may not talk to a server that only they can reach.
            return PlainTextResponse("expected a request of this server's own page or of no page\n", 403)
        needs_token = is_websocket or scope["path"] not in _OPEN_TO_ALL
        if self.config.token is not None and needs_token and not self._knows(headers):
            told = "expected the header 'Authorization: Bearer TOKEN' with this server's token\n"
            return PlainTextResponse(told, 401, headers={"WWW-Authenticate": "Bearer"})
        if self._is_draining:
            return PlainTextResponse("the server is stopping\n", 503)
        if is_websocket and len(self._channels) >= self.config.max_connections:
            told = f"busy: {len(self._channels)} robots are connected (--max-connections); try again later\n"
            return PlainTextResponse(told, 503, headers={"Retry-After": "1"})
        return None

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
        is_ready = self.service.inference.is_ready and not self._is_draining
        return PlainTextResponse("OK\n" if is_ready else "not ready\n", 200 if is_ready else 503)

    async def _health(self, request: HttpRequest) -> Response:
        is_ready = self.service.inference.is_ready and not self._is_draining
        return JSONResponse({"status": "ok" if is_ready else "not ready"}, 200 if is_ready else 503)

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
            return PlainTextResponse("no such page\n", 404)
        text = resources.files("wamkit.serving").joinpath("page", name).read_text(encoding="utf-8")
        return Response(text, media_type=kind, headers={"Content-Security-Policy": _CONTENT_POLICY})


def _host(origin: str) -> str:
    """Host and port of a page's address; one that is none belongs to no host."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return "?"


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or a WebSocket's handshake, without letting it in."""
    if scope["type"] == "websocket":
        await receive()
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await response(scope, receive, send)


async def _failed(request: HttpRequest, error: Exception) -> Response:
    """What nobody foresaw; starlette logs the traceback, and clients get none."""
    return JSONResponse({"error": "internal error; the server's log says why", "kind": "internal"}, 500)
