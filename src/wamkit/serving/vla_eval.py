"""The dialect of vla-eval: frames of `type`, `payload`, `seq` and `timestamp`; the client speaks first.

Its benchmarks run one action for each observation, so a chunk is handed out action by action, and the policy is asked
again when its execution horizon is over. Errors do not close the connection.

Source: the published client, vla-eval 0.8.0.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from starlette.websockets import WebSocket
from wamkit_client.errors import BadRequest, ServerError
from wamkit_client.messages import MessageError, pack, read_array

import wamkit
from wamkit.chunking import steps_to_tell
from wamkit.serving import openpi
from wamkit.serving.channel import Channel, Left
from wamkit.serving.service import PROTOCOL, Service, Session

logger = logging.getLogger(__name__)

DIALECT = "vla-eval"
VERSION = 1
UNUSED = ("controller_states",)
"""What its LIBERO benchmark sends beside the state; not read."""


async def converse(websocket: WebSocket, channel: Channel, service: Service) -> None:
    """One connection, from its first frame to its last.

    Args:
        websocket: accepted.
        channel: of it.
        service: answers.
    """
    talk = _Talk(service, channel)
    try:
        while True:
            data = await channel.receive()
            seq = 0
            try:
                message = openpi.read(data)
                seq = _seq(message)
                reply = await talk.answer(_frame(message))
            except ServerError as error:
                logger.info("%s: %s: %s", talk.session.name, error.kind, error)
                reply = ("error", {"error": str(error), "kind": error.kind})
            if reply is not None:
                kind, payload = reply
                told = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
                await channel.send(pack(told, text_keys=True))
    except Left:
        pass
    finally:
        talk.session.close()


class _Talk:
    """What is remembered of one connection: the chunk that is being handed out."""

    def __init__(self, service: Service, channel: Channel) -> None:
        self.service = service
        self.channel = channel
        self.session: Session = service.open(DIALECT, channel.peer)
        self.actions: np.ndarray | None = None
        self.next = 0
        self.told = 0  # actions of the chunk that were run when the policy was told of a frame last

    async def answer(self, frame: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        kind, payload = frame["type"], frame["payload"]
        if kind == "hello":
            theirs = payload.get("protocol_version", VERSION)
            if type(theirs) is not int or theirs != VERSION:
                theirs = theirs if isinstance(theirs, int) else type(theirs).__name__
                raise BadRequest(
                    f"expected protocol_version {VERSION}, got {theirs}; install a vla-eval that speaks it"
                )
            return "hello", self._hello()
        if kind == "observation":
            return "action", {"actions": await self._act(payload)}
        if kind == "episode_start":
            self.actions, self.next, self.told = None, 0, 0
            task = payload.get("task_description")
            self.session.begin(task=task if isinstance(task, str) else None)
        if kind == "error":
            told = payload.get("error")
            shown = told[:200] if isinstance(told, str) else type(told).__name__
            logger.warning("%s tells of an error: %r", self.session.name, shown)
        return None  # episode_start and episode_end get no reply

    async def _act(self, payload: Mapping[str, Any]) -> np.ndarray:
        observation = {key: value for key, value in payload.items() if key not in UNUSED}
        observation = await asyncio.to_thread(_with_images, observation, self.service)
        observation["executed"] = self.next - self.told
        told = self.service.reader.read(observation)  # what does not fit is refused at every step, not only when asked
        if told.video is None:
            raise BadRequest("expected an observation with images, which is answered with an action, got none")
        spec = self.service.spec
        horizon = spec.execution_horizon
        is_new = told.begins or (told.task is not None and told.task != self.session.task)
        if self.actions is None or is_new or self.next >= min(horizon, len(self.actions)):
            reply = await self.channel.during(self.session.answer(observation))
            if reply.actions is None:
                raise BadRequest("expected an observation that asks for actions, got one that is only remembered")
            self.actions, self.next, self.told = reply.actions, 0, 0
        elif self.next in steps_to_tell(
            min(horizon, len(self.actions)), horizon=horizon, num_context=spec.num_context, stride=spec.context_stride
        ):
            await self.channel.during(self.session.answer({**observation, "compute_kv_cache": True}))
            self.told = self.next
        self.next += 1
        return self.actions[self.next - 1]

    def _hello(self) -> dict[str, Any]:
        robot = self.service.spec.robot
        return {
            "harness_version": f"wamkit {wamkit.__version__}",
            "protocol_version": VERSION,
            "model_server": f"wamkit/{self.service.spec.family}",
            "capabilities": {"protocol": PROTOCOL, "metadata": self.service.metadata()},
            "observation_params": {"send_state": True, "send_wrist_image": len(robot.cameras) > 1},
        }


def _seq(message: Any) -> int:
    """The number that an answer repeats, an error too."""
    seq = message.get("seq", 0) if isinstance(message, dict) else 0
    if isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq < 2**63:
        raise BadRequest("expected 'seq' as a whole number of 0 or more, got another")
    return seq


def _frame(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRequest(f"expected a frame with type, payload, seq and timestamp, got {type(message).__name__}")
    missing = [key for key in ("type", "payload", "seq", "timestamp") if key not in message]
    if missing:
        raise BadRequest(f"expected a frame with type, payload, seq and timestamp, {missing} not found")
    kinds = ("hello", "observation", "episode_start", "episode_end", "error")
    kind = message["type"]
    if not isinstance(kind, str) or kind not in kinds:
        shown = repr(kind[:40]) if isinstance(kind, str) else type(kind).__name__
        raise BadRequest(f"expected a frame of type {', '.join(kinds)}, got {shown}")
    if not isinstance(message["payload"], dict):
        raise BadRequest(f"expected 'payload' as a map, got {type(message['payload']).__name__}")
    return message


def _with_images(observation: dict[str, Any], service: Service) -> dict[str, Any]:
    """The observation with its encoded images decoded."""
    images = observation.get("images")
    if not isinstance(images, dict):
        return observation
    most = max(camera.height * camera.width for camera in service.spec.robot.cameras)
    return {**observation, "images": {key: _image(value, most) for key, value in images.items()}}


def _image(value: Any, most: int) -> Any:
    if not isinstance(value, dict) or "__image__" not in value:
        return value
    kind, data, shape = value.get("format", "png"), value.get("data"), value.get("shape")
    if not isinstance(data, bytes):
        raise BadRequest(f"expected the bytes of an image as 'data', got {type(data).__name__}")
    if not isinstance(kind, str) or kind not in ("png", "jpeg", "raw"):
        shown = repr(kind[:20]) if isinstance(kind, str) else type(kind).__name__
        raise BadRequest(f"expected an image in the format png, jpeg or raw, got {shown}")
    if kind == "raw":
        try:
            return read_array(data, value.get("dtype", "|u1"), shape)
        except MessageError as error:
            raise BadRequest(f"image: {error}") from error
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as picture:
            width, height = picture.size
            if width * height > 4 * most:  # told before anything of that size is made
                raise BadRequest(f"expected an image of the camera's size, got {height}x{width} px")
            return np.asarray(picture.convert("RGB"))
    except BadRequest:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        raise BadRequest(f"expected the bytes of a {kind} image, got others ({f'{error}'[:100]})") from error
