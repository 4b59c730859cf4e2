"""HTTP for robots without a WebSocket: `/predict` (WAV's form), `/act` (JSON) and `/reset`.

A session belongs to the client's address, or to what it calls itself in the header `X-Session`; several robots behind
one address name themselves. Sessions that ask nothing for long are closed; where there is no room for a new one, the
one that has rested longest makes it.

Source: WAV 6.7; `/act` of OpenVLA, OpenVLA-OFT and Cosmos Policy.
Differs: bad requests are answered with 400 and a busy server with 503, not with 500; images are resized with
    antialiasing, as in training; nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import numpy as np
import torch
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from wamkit_client.errors import BadRequest, Busy, ServerError
from wamkit_client.messages import MessageError, read_array

from wamkit.data.images import fit_images
from wamkit.serving.config import ServerConfig
from wamkit.serving.openpi import error_map
from wamkit.serving.service import Reply, Service, Session
from wamkit.spec import PolicySpec

logger = logging.getLogger(__name__)

DIALECT = "http"
STATUS: Final = {"bad_request": 400, "busy": 503, "deadline": 504, "not_ready": 503, "internal": 500}
REST_S: Final = 30.0
"""Seconds without a request after which a session may be ended for the sake of a new one."""
_SESSION: Final = re.compile(r"[\w.:-]{1,64}")
_NUMPY: Final = "__numpy__"  # of json-numpy
_UNUSED: Final = ("unnorm_key",)  # OpenVLA's name for statistics; ours travel with the weights
_REFERENCE_PARTS: Final = (("front_head", 240, 424), ("left_hand", 240, 320), ("right_hand", 240, 320))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of `/predict`'s form that holds one camera's raw pixels.

    Args:
        name: of the part.
        camera: of the policy.
        height: pixels of what is sent.
        width: pixels of what is sent.
    """

    name: str
    camera: str
    height: int
    width: int


def default_parts(spec: PolicySpec) -> tuple[Part, ...]:
    """For three cameras those of WAV's robot (head, left hand, right hand), else each camera under its own name."""
    cameras = spec.robot.cameras
    if len(cameras) == len(_REFERENCE_PARTS):
        return tuple(
            Part(name=name, camera=camera.name, height=height, width=width)
            for camera, (name, height, width) in zip(cameras, _REFERENCE_PARTS, strict=True)
        )
    return tuple(Part(name=each.name, camera=each.name, height=each.height, width=each.width) for each in cameras)


@dataclass
class _Open:
    """A session over HTTP; one request at a time."""

    session: Session
    lock: asyncio.Lock
    used: float
    requests: int = 0  # under way


class HttpDialect:
    """The routes and the sessions behind them.

    Args:
        service: answers.
        config: limits.
        parts: of `/predict`'s form.
        max_bytes: of a body.

    Raises:
        ValueError: parts that are not one for each camera.
    """

    def __init__(self, service: Service, config: ServerConfig, parts: tuple[Part, ...], max_bytes: int) -> None:
        names = service.spec.robot.camera_names
        if sorted(part.camera for part in parts) != sorted(names) or len({part.name for part in parts}) != len(parts):
            told = ", ".join(f"{part.name}={part.camera}" for part in parts)
            raise ValueError(f"expected one part of /predict's form for each of the cameras {list(names)}, got {told}")
        self.service = service
        self.config = config
        self.parts = parts
        self.max_bytes = max_bytes
        # Four images as nested lists for each camera: reading JSON keeps everything else in Python waiting.
        self._most_lists = 65536 + 4 * sum(each.height * (each.width + 1) for each in service.spec.robot.cameras)
        self._open: dict[str, _Open] = {}

    async def predict(self, request: HttpRequest) -> Response:
        """`POST /predict`: the whole chunk as little-endian float32, without a header."""
        try:
            message = await self._form(request)
            reply = await self._answer(request, message)
        except ServerError as error:
            return _told(request, error)
        actions = reply.actions
        if actions is None:  # frames that were only to be remembered
            actions = np.zeros((0, len(self.service.spec.robot.action)), np.float32)
        shape = ",".join(map(str, actions.shape))
        body = actions.astype("<f4").tobytes()
        return Response(body, media_type="application/octet-stream", headers={"X-Action-Shape": shape})

    async def act(self, request: HttpRequest) -> Response:
        """`POST /act`: JSON in, JSON out."""
        try:
            body = await read_body(request, self.max_bytes, self.config.transfer_s)
            message = await asyncio.to_thread(lambda: self._shaped(_from_json(body, self._most_lists)))
            reply = await self._answer(request, message)
        except ServerError as error:
            return _told(request, error)
        return JSONResponse(_plain(reply.to_map()))

    async def reset(self, request: HttpRequest) -> Response:
        """`POST /reset`: the next request begins an episode."""
        try:
            async with self._turn(request) as session:
                session.begin()
        except ServerError as error:
            return _told(request, error)
        return PlainTextResponse("Reset OK\n")

    def close_idle(self, *, now: float | None = None) -> None:
        """Close sessions that have not been used for `idle_s`; all of them when `now` is infinity."""
        now = time.monotonic() if now is None else now
        for key, opened in list(self._open.items()):
            if not opened.requests and now - opened.used > self.config.idle_s:
                self._close(key)

    def _close(self, key: str) -> None:
        self._open.pop(key).session.close()

    async def _answer(self, request: HttpRequest, message: Mapping[str, Any]) -> Reply:
        async with self._turn(request) as session:
            return await session.answer(message)

    @contextlib.asynccontextmanager
    async def _turn(self, request: HttpRequest) -> AsyncIterator[Session]:
        """The session of a request, once the requests before it are answered."""
        opened = self._session(request)
        opened.requests += 1
        try:
            async with opened.lock:
                yield opened.session
        finally:
            opened.requests -= 1
            opened.used = time.monotonic()

    def _session(self, request: HttpRequest) -> _Open:
        host = "unknown" if request.client is None else request.client.host
        name = request.headers.get("x-session")
        if name is not None and not _SESSION.fullmatch(name):
            raise BadRequest("expected X-Session of 1 to 64 letters, digits and _ . : -, got another; rename it")
        key = f"{host}/{name or ''}"
        if key not in self._open:
            self._make_room()
            session = self.service.open(DIALECT, key.rstrip("/"))
            self._open[key] = _Open(session=session, lock=asyncio.Lock(), used=time.monotonic())
        return self._open[key]

    def _make_room(self) -> None:
        """Close who has rested longest, if one more session were too many.

        Raises:
            Busy: nobody has rested for long.
        """
        self.close_idle()
        if len(self._open) < self.config.max_connections:
            return
        now = time.monotonic()
        resting = {key: now - opened.used for key, opened in self._open.items() if not opened.requests}
        longest = max(resting, key=resting.__getitem__, default=None)
        rested = 0.0 if longest is None else resting[longest]
        if longest is None or rested < REST_S:
            raise Busy(
                f"busy: {len(self._open)} sessions are open (--max-connections), and a request of each came within "
                f"{REST_S:g} s; ask again later",
                retry_after_s=REST_S - rested,
            )
        logger.info("%s is ended after a rest of %.0f s, to make room", longest, rested)
        self._close(longest)

    async def _form(self, request: HttpRequest) -> dict[str, Any]:
        """The request behind a form of raw parts."""
        kind = request.headers.get("content-type", "")
        wanted = [part.name for part in self.parts]
        if not kind.startswith("multipart/form-data"):
            raise BadRequest(f"expected multipart/form-data with the files {[*wanted, 'state', 'json']}, got {kind!r}")
        body = await read_body(request, self.max_bytes, self.config.transfer_s)
        files = await _files(request, body, self.max_bytes)
        missing = [name for name in (*wanted, "state", "json") if name not in files]
        unknown = sorted(set(files) - {*wanted, "state", "json"})
        if missing or unknown:
            raise BadRequest(
                f"expected the files {[*wanted, 'state', 'json']}, {missing} not found"
                + (f" and {[name[:40] for name in unknown[:5]]} unknown" if unknown else "")
            )
        told = await asyncio.to_thread(_from_json, files["json"], self._most_lists)
        state = np.frombuffer(_exactly(files["state"], 4 * len(self.service.spec.robot.state), "state"), "<f4")
        images = await asyncio.to_thread(self._images, files)
        return {**told, "images": images, "state": state.astype(np.float32)}

    def _images(self, files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
        sizes = {camera.name: camera for camera in self.service.spec.robot.cameras}
        images = {}
        for part in self.parts:
            shape = (part.height, part.width, 3)
            pixels = _padded(files[part.name], math.prod(shape), part.name)
            frame = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(1, *shape).copy())
            camera = sizes[part.camera]
            fitted = fit_images(frame, height=camera.height, width=camera.width, preprocess="resize")
            images[part.camera] = fitted[0].numpy()
        return images

    def _shaped(self, message: dict[str, Any]) -> dict[str, Any]:
        """Nested lists of JSON as the arrays that they stand for."""
        for key in _UNUSED:
            if message.pop(key, None) is not None:
                logger.info("/act: %s is not read, since statistics travel with the weights", key)
        images = message.get("images")
        if isinstance(images, dict):
            message["images"] = {key: _pixels(value, f"images.{key}") for key, value in images.items()}
        for key in list(message):
            if key in self.service.reader.cameras or key == "obs":
                message[key] = _pixels(message[key], key)
        return message


async def read_body(request: HttpRequest, max_bytes: int, seconds: float) -> bytes:
    """The body of a request, within limits.

    Raises:
        BadRequest: it is too large.
        HTTPException: it does not come in time (408), or not at all (400).
    """
    length = request.headers.get("content-length", "0")
    too_large = BadRequest(f"expected a body of at most {max_bytes} bytes (--max-message-mb), got more")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        raise HTTPException(408, f"expected the whole body within {seconds:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "expected a whole body, the client left before its end") from error
    return b"".join(parts)


def failure(error: ServerError) -> Response:
    """An error as HTTP tells it."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    told = error_map(error)
    return JSONResponse(
        {"error": told.pop("message"), **told}, status_code=STATUS.get(error.kind, 500), headers=headers
    )


def refusal(error: HTTPException) -> Response:
    """An answer that keeps a request out, in the same form."""
    status = HTTPStatus(error.status_code)
    kind = "not_ready" if status == HTTPStatus.SERVICE_UNAVAILABLE else status.phrase.lower().replace(" ", "_")
    return JSONResponse({"error": error.detail, "kind": kind}, status_code=status, headers=error.headers)


def _told(request: HttpRequest, error: ServerError) -> Response:
    """The error as an answer, and as one line of the log."""
    peer = "unknown" if request.client is None else request.client.host
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in f"{error}")
    logger.info("%s of %s: %s: %s", request.url.path, peer, error.kind, line)
    return failure(error)


async def _files(request: HttpRequest, body: bytes, max_bytes: int) -> dict[str, bytes]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=16, max_fields=16, max_part_size=max_bytes)
    parser.spool_max_size = max_bytes  # so that nothing is written to disk
    files: dict[str, bytes] = {}
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequest(f"expected multipart/form-data, got something else: {error.message}") from error
    try:
        for name, part in form.multi_items():
            if name in files:
                raise BadRequest(f"expected each part once, got {name[:40]!r} twice")
            files[name] = await part.read() if isinstance(part, UploadFile) else part.encode()
    finally:
        await form.close()
    return files


def _from_json(body: bytes, most_lists: int) -> dict[str, Any]:
    """A JSON object, with json-numpy's arrays in it; `encoded` may hold all of it as text."""
    if body.count(b"[") + body.count(b"{") > most_lists:
        raise BadRequest(f"expected a JSON object of at most {most_lists} lists and objects within, got more")
    try:
        message = json.loads(body, object_hook=_array)
        if isinstance(message, dict) and set(message) == {"encoded"} and isinstance(message["encoded"], str):
            message = json.loads(message["encoded"], object_hook=_array)
    except (ValueError, RecursionError) as error:
        reason = f"{error}"[:200]
        raise BadRequest(f"expected a JSON object, got none: {reason}") from error
    if not isinstance(message, dict):
        raise BadRequest(f"expected a JSON object, got {type(message).__name__}")
    return message


def _array(item: dict[str, Any]) -> Any:
    if _NUMPY not in item:
        return item
    try:
        data = base64.b64decode(item[_NUMPY], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise MessageError("expected the bytes of an array in base64, got others") from error
    return read_array(data, item.get("dtype"), item.get("shape"))


def _pixels(value: Any, key: str) -> Any:
    """Nested lists of numbers as an array, of whole ones of 0 to 255 as pixels; arrays are taken as they are."""
    if not isinstance(value, list):
        return value
    first: Any = value
    while isinstance(first, list) and first:
        first = first[0]
    try:
        # The type is named: left to itself, numpy would give every item of a list the room of its longest text.
        array = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest(f"expected {key!r} as an image, equally long rows of numbers, got others") from error
    if type(first) is int and array.size and array.min() >= 0 and array.max() <= 255:
        pixels = array.astype(np.uint8)
        return pixels if (pixels == array).all() else array
    return array


def _plain(value: Any) -> Any:
    """Arrays as nested lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _padded(data: bytes, size: int, name: str) -> bytes:
    """WAV's robot sends images that lack their last byte; it is repeated."""
    return _exactly(data + data[-1:] if len(data) == size - 1 else data, size, name)


def _exactly(data: bytes, size: int, name: str) -> bytes:
    if len(data) != size:
        raise BadRequest(f"expected {size} bytes as {name!r}, got {len(data)}")
    return data
