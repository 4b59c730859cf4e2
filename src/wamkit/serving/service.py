"""A policy at the service of many robots: sessions, which remember each robot's episode, and what they share."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from wamkit_client.errors import BadRequest, ServerError

import wamkit
from wamkit.policy import Policy
from wamkit.serving.inference import Answer, Call, Inference
from wamkit.serving.metrics import Metrics
from wamkit.serving.requests import Request, RequestReader
from wamkit.types import Imagined

logger = logging.getLogger(__name__)

PROTOCOL = 1


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a robot is told.

    Args:
        actions: physical units; `None` when only an episode began or frames were remembered.
        imagined: what was asked for beside them.
        chunk_id: counts the chunks of the session.
        server_timing: milliseconds.
        policy_timing: milliseconds by phase.
    """

    actions: Float32[np.ndarray, "t a"] | None = None
    imagined: Imagined | None = None
    chunk_id: int = 0
    server_timing: dict[str, float] = field(default_factory=dict)
    policy_timing: dict[str, float] = field(default_factory=dict)

    def to_map(self) -> dict[str, Any]:
        """As a map of arrays and numbers, under the names that clients look for; empty without actions."""
        if self.actions is None:
            return {}
        reply: dict[str, Any] = {
            "actions": self.actions,
            "chunk_id": self.chunk_id,
            "server_timing": self.server_timing,
            "policy_timing": self.policy_timing,
        }
        imagined = self.imagined or Imagined()
        if imagined.value is not None:
            reply["value"] = imagined.value[0].float().numpy()
        if imagined.video is not None:
            reply["predicted_video"] = imagined.video[0].numpy()
            reply["video_steps"] = list(imagined.video_steps or ())
        if imagined.scores is not None:
            reply["scores"] = imagined.scores[0].float().numpy()
        return reply


@runtime_checkable
class Watcher(Protocol):
    """Who looks at what robots and policy do; told in the event loop."""

    def opened(self, session: Session) -> None: ...

    def began(self, session: Session) -> None: ...

    def answered(self, session: Session, call: Call, answer: Answer) -> None: ...

    def refused(self, session: Session, error: ServerError) -> None: ...

    def ended(self, session: Session) -> None: ...


class Service:
    """What all connections of a server share.

    Args:
        policy: what is served.
        reader: understands requests.
        inference: computes.
        metrics: counts.
        identity: what clients are told of the policy beside its spec: name, fingerprint, planner, details.
        values: whether values come with every answer, where the policy has them.
        seed: of the episodes whose robots name none.
        max_message_bytes: told to clients.
        watcher: see `Watcher`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        reader: RequestReader,
        inference: Inference,
        metrics: Metrics,
        identity: Mapping[str, Any],
        values: bool = False,
        seed: int = 0,
        max_message_bytes: int = 0,
        watcher: Watcher | None = None,
    ) -> None:
        self.spec = policy.spec
        self.reader = reader
        self.inference = inference
        self.metrics = metrics
        self.identity = dict(identity)
        self.values = values
        self.watcher = watcher
        self.sessions: set[Session] = set()
        self.max_message_bytes = max_message_bytes
        self.memory_threshold = policy.memory_threshold
        self._draws = np.random.default_rng(seed)
        self._numbers = itertools.count(1)

    def open(self, dialect: str, peer: str) -> Session:
        """A session for one robot."""
        session = Session(self, dialect, peer, f"{dialect}-{next(self._numbers)}")
        self.sessions.add(session)
        self.metrics.connections.labels(dialect).inc()
        logger.info("%s: %s is connected", session.name, peer)
        if self.watcher is not None:
            self.watcher.opened(session)
        return session

    def new_seed(self) -> int:
        """For an episode whose robot names none."""
        return int(self._draws.integers(0, 2**63))

    def metadata(self) -> dict[str, Any]:
        """What clients are told before they ask: what to send, what comes back, and who computes it."""
        spec, robot = self.spec, self.spec.robot
        settings = self.reader.settings
        cameras = [{"name": each.name, "height": each.height, "width": each.width} for each in robot.cameras]
        return {
            "server": "wamkit",
            "server_version": wamkit.__version__,
            "protocol_version": PROTOCOL,
            "family": spec.family,
            "robot": robot.name,
            "cameras": cameras,
            "image_size": None if spec.image_size is None else list(spec.image_size),
            "state": [channel.name for channel in robot.state],
            "action": [channel.name for channel in robot.action],
            "state_dim": len(robot.state),
            "action_dim": len(robot.action),
            "action_kind": robot.action_kind,
            "gripper_channels": list(robot.gripper_channels),
            "gripper_sign": robot.gripper_sign,
            "control_hz": robot.control_hz,
            "num_context": spec.num_context,
            "context_stride": spec.context_stride,
            "action_horizon": spec.action_horizon,
            "execution_horizon": spec.execution_horizon,
            "memory_threshold": self.memory_threshold,
            "normalization": spec.normalization,
            "num_inference_steps": settings.num_steps,
            "planner": None if settings.planner is None else asdict(settings.planner),
            "tasks": list(spec.tasks),
            "send": self.reader.wanted + self.reader.wanted_before,
            "max_message_bytes": self.max_message_bytes,
            "policy_spec": spec.to_dict(),
            "identity": self.identity,
        }


@dataclass(frozen=True, kw_only=True)
class _Episode:
    """What a session remembers of a robot's episode.

    Args:
        task: sentence.
        seed: of an episode that begins with the next call.
        last: the last answer.
        has_begun: whether there is one.
    """

    task: str | None = None
    seed: int | None = None
    last: Reply | None = None
    has_begun: bool = False


class Session:
    """One robot's connection: its slot in the policy, its episode, and what it was told last.

    Args:
        service: what it shares with the others.
        dialect: for counters.
        peer: who is there.
        name: for people.
    """

    def __init__(self, service: Service, dialect: str, peer: str, name: str) -> None:
        self.service = service
        self.dialect = dialect
        self.peer = peer
        self.name = name
        self.slot = service.inference.new_slot()
        self.calls = 0
        self._episode = _Episode()
        self._last_total_ms: float | None = None

    @property
    def task(self) -> str | None:
        """The sentence of the episode."""
        return self._episode.task

    async def answer(self, message: Any, *, arrived: float | None = None) -> Reply:
        """The answer to one message.

        Args:
            message: a map, of whatever dialect.
            arrived: `time.monotonic()` of its arrival.

        Raises:
            ServerError: `BadRequest`, `Busy`, `DeadlineMissed`, `NotReady`, or what the policy failed with.
        """
        arrived = time.monotonic() if arrived is None else arrived
        outcome = "cancelled"
        try:
            reply = await self._answer(self.service.reader.read(message), arrived)
            outcome = "ok"
        except ServerError as error:
            outcome = error.kind
            if self.service.watcher is not None:
                self.service.watcher.refused(self, error)
            raise
        finally:
            self._last_total_ms = 1000 * (time.monotonic() - arrived)
            self.service.metrics.requests.labels(self.dialect, outcome).inc()
            self.service.metrics.latency.labels(self.dialect).observe(self._last_total_ms / 1000)
        return reply

    def begin(self, *, seed: int | None = None, task: str | None = None) -> None:
        """Let the next call begin an episode.

        Args:
            seed: of its draws; the service's choice when `None`.
            task: its sentence.
        """
        self._enter(self._next(seed, task))

    def close(self) -> None:
        """End the session and its episode."""
        if self in self.service.sessions:
            self.service.sessions.remove(self)
            self.service.metrics.connections.labels(self.dialect).dec()
            self.service.inference.forget(self.slot)
            logger.info("%s: %s has left after %d chunks", self.name, self.peer, self.calls)
            if self.service.watcher is not None:
                self.service.watcher.ended(self)

    async def _answer(self, request: Request, arrived: float) -> Reply:
        """The episode goes on, or begins, only with an answer: a request that fails changes nothing."""
        episode, begins = self._episode, request.begins or not self._episode.has_begun
        if begins:
            episode = self._next(request.seed, None)
        elif request.seed is not None and episode.seed is not None:  # it begins with this call
            episode = dataclasses.replace(episode, seed=request.seed)
        elif request.seed is not None:
            raise BadRequest("expected a 'seed' where an episode begins, got one within an episode; send 'reset' too")
        if request.task is not None:
            episode = dataclasses.replace(episode, task=request.task)
        if request.video is None:
            self._enter(episode)
            return Reply()
        if request.rows == 0 and not request.feeds_back:
            if episode.last is None:
                raise BadRequest(
                    "expected an execution_step of 1 or more in an episode's first request: there are no last actions "
                    "to return again"
                )
            self._episode = episode
            return episode.last
        if episode.task is None and not request.feeds_back:
            raise BadRequest("expected a 'prompt' that says what to do, got none so far; send it with the observation")
        call = self._call(request, episode, request.video, arrived)
        answer = await self._computed(call)
        episode = dataclasses.replace(episode, seed=None)
        if begins:
            self._enter(episode)
        self._episode = episode
        if request.feeds_back:
            return Reply()
        self.calls += 1
        if self.service.watcher is not None:
            self.service.watcher.answered(self, call, answer)
        reply = self._reply(answer, request.rows)
        self._episode = dataclasses.replace(episode, last=reply)
        return reply

    def _next(self, seed: int | None, task: str | None) -> _Episode:
        """An episode that begins with the next call."""
        seed = self.service.new_seed() if seed is None else seed
        return _Episode(seed=seed, task=self.task if task is None else task, has_begun=True)

    def _enter(self, episode: _Episode) -> None:
        self._episode = episode
        known = self.service.spec.tasks
        if known and episode.task is not None and episode.task not in known:
            logger.warning("%s asks for %.80r, which is none of the sentences of training", self.name, episode.task)
        self.service.metrics.episodes.labels(self.dialect).inc()
        if self.service.watcher is not None:
            self.service.watcher.began(self)

    async def _computed(self, call: Call) -> Answer:
        """The answer to a call, which is told at its deadline if it is not being computed by then."""
        inference = self.service.inference
        future = inference.submit(call)
        expiry = None
        if call.until is not None:
            delay = max(0.0, call.until - time.monotonic())
            expiry = asyncio.get_running_loop().call_later(delay, inference.expire, call)
        try:
            return await asyncio.wrap_future(future)
        finally:
            if expiry is not None:
                expiry.cancel()

    def _call(self, request: Request, episode: _Episode, video: np.ndarray, arrived: float) -> Call:
        state = request.state
        if state is None:  # only remembered, so never read
            state = np.zeros(len(self.service.spec.robot.state), np.float32)
        exact = self.service.inference.batching.exact if request.exact is None else request.exact
        return Call(
            slot=self.slot,
            video=video,
            state=state,
            task=episode.task or "",
            executed=request.executed,
            seed=episode.seed,
            settings=request.settings,
            value=self.service.values if request.value is None else request.value,
            imagine=request.imagine,
            exact=exact,
            until=None if request.deadline_s is None else arrived + request.deadline_s,
            remember_only=request.feeds_back,
            arrived=arrived,
        )

    def _reply(self, answer: Answer, rows: int | None) -> Reply:
        timing = {
            "infer_ms": 1000 * answer.computed_s,
            "wait_ms": 1000 * answer.waited_s,
            "batch_size": float(answer.batch_size),
        }
        if self._last_total_ms is not None:
            timing["prev_total_ms"] = self._last_total_ms
        return Reply(
            actions=answer.actions if rows is None else answer.actions[:rows],
            imagined=answer.imagined,
            chunk_id=self.calls,
            server_timing=timing,
            policy_timing={f"{phase}_ms": 1000 * seconds for phase, seconds in answer.timing.items()},
        )
