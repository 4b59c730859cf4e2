"""What the live page shows: who is connected, how fast the answers are, which requests were refused, and what the
policy saw and imagined last.

Pictures are encoded when somebody looks, in a thread of their own. The future is imagined only while somebody looks,
after the robot has its answer and for a small share of the policy's time; no action depends on it.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from wamkit_client.errors import ServerError

from wamkit.policy import Decision
from wamkit.serving.inference import Answer, Call
from wamkit.serving.service import Session
from wamkit.spec import PolicySpec
from wamkit.types import Imagined

LOOKS_FOR_S: Final = 3.0
"""A page that asked so recently is still looking; one in the background asks nothing."""
REST: Final = 4.0
"""After imagining the policy serves robots alone for this many times as long, however long it took."""
NUM_LATENCIES: Final = 240
NUM_VALUES: Final = 500
NUM_REFUSALS: Final = 4
LARGEST_PICTURE: Final = 640
LONGEST_ERROR: Final = 500
NUM_SCORES: Final = 160
"""Scores that are told of each planning iteration; of more, so many from the lowest to the highest."""


@dataclass
class _Thought:
    """What was imagined at one call."""

    call: int  # counted in its session
    imagined: Imagined
    frames: dict[str, list[str]] | None = None  # encoded when first looked at


@dataclass
class _Robot:
    """One session as the page shows it."""

    session: Session
    opened: float
    episodes: int = 0
    calls: int = 0
    steps: int = 0  # of the episode, executed before the last call
    last: float | None = None  # when it got its last answer
    looked: float = -math.inf  # when a page last showed it
    call: Call | None = None
    answer: Answer | None = None
    latencies: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=NUM_LATENCIES))
    values: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=NUM_VALUES))
    film: _Thought | None = None  # the newest with frames
    search: _Thought | None = None  # the newest with values or scores

    def think(self, call: int, step: int, imagined: Imagined) -> None:
        """Take in what was imagined at a call, of which a page shows the newest."""
        thought = _Thought(call, imagined)
        if imagined.video is not None:
            self.film = thought
        if imagined.value is not None or imagined.scores is not None:
            self.search = thought
        if imagined.value is not None and (not self.values or self.values[-1][0] != step):
            self.values.append((step, float(imagined.value[0, 0])))


@dataclass(frozen=True)
class _Refusal:
    """What a robot was told in place of actions."""

    time: float
    session: str
    peer: str
    told: str


class LiveView:
    """A `Watcher` of a service, and what the page asks for.

    Args:
        spec: of the policy.
        name: of the policy.
        planner: its settings, for people.
        interval_s: least time between two imaginations for the page, see `REST` too; 0 imagines none.

    Raises:
        ValueError: an interval out of range.
    """

    def __init__(
        self, spec: PolicySpec, *, name: str = "", planner: Mapping[str, Any] | None = None, interval_s: float = 1.0
    ) -> None:
        if not 0 <= interval_s < 3600:
            raise ValueError(f"expected 0 to 3600 seconds between imaginations, got {interval_s}")
        self.spec = spec
        self.name = name
        self.planner = planner
        self.interval_s = interval_s
        self._robots: dict[int, _Robot] = {}  # by slot, in the order they came
        self._refusals: deque[_Refusal] = deque(maxlen=NUM_REFUSALS)
        self._lock = threading.Lock()  # the event loop, the policy's thread and those of pages meet here
        self._rests_until = -math.inf  # before then nothing is imagined
        self._started = time.monotonic()

    # In the event loop.

    def opened(self, session: Session) -> None:
        """A robot connected."""
        with self._lock:
            self._robots[session.slot] = _Robot(session=session, opened=time.monotonic())

    def began(self, session: Session) -> None:
        """An episode begins."""
        with self._lock:
            robot = self._robots.get(session.slot)
            if robot is None:  # it left
                return
            robot.episodes += 1
            robot.steps, robot.film, robot.search = 0, None, None
            robot.values.clear()

    def answered(self, session: Session, call: Call, answer: Answer) -> None:
        """A robot got its actions."""
        with self._lock:
            robot = self._robots.get(session.slot)
            if robot is None:  # it left while the policy computed
                return
            robot.steps = _steps(robot, call)
            robot.calls += 1
            robot.last = time.monotonic()
            robot.call, robot.answer = call, answer
            robot.latencies.append((1000 * (robot.last - call.arrived), 1000 * answer.computed_s))
            if answer.imagined is not None:
                robot.think(robot.calls, robot.steps, answer.imagined)

    def refused(self, session: Session, error: ServerError) -> None:
        """A robot got an error in place of its actions; over some dialects it is gone by now."""
        with self._lock:
            self._refusals.append(_Refusal(time.monotonic(), session.name, session.peer, f"{error}"[:LONGEST_ERROR]))

    def ended(self, session: Session) -> None:
        """A robot left."""
        with self._lock:
            self._robots.pop(session.slot, None)

    # In the policy's thread.

    def wants(self, slot: int) -> bool:
        """Whether what is imagined at this slot's next call is to be shown."""
        if self.interval_s == 0:
            return False
        now = time.monotonic()
        with self._lock:
            robot = self._robots.get(slot)
            return robot is not None and now - robot.looked < LOOKS_FOR_S and now >= self._rests_until

    def daydream(self, call: Call, decision: Decision) -> None:
        """Imagine what goes with the actions that a robot has already got."""
        begun = time.monotonic()
        try:
            imagined = decision.imagine()
        finally:
            now = time.monotonic()
            self._rests_until = now + max(self.interval_s, REST * (now - begun))
        with self._lock:
            robot = self._robots.get(call.slot)
            if robot is None:
                return
            # The event loop may not have come to `answered` yet.
            is_told = robot.call is call
            robot.think(
                robot.calls if is_told else robot.calls + 1, robot.steps if is_told else _steps(robot, call), imagined
            )

    # For the page, in threads of its own.

    def look(
        self, name: str | None = None, *, num_waiting: int = 0, observed: str | None = None, film: str | None = None
    ) -> dict[str, Any]:
        """What the page shows, JSON-ready: numbers that are not finite are `None`.

        Args:
            name: of the session to show in full; the one that acted last when `None` or gone.
            num_waiting: requests that wait for the policy.
            observed: number of the call in that session whose pictures the page has already.
            film: the same of the imagined future.
        """
        now = time.monotonic()
        with self._lock:
            named = [robot for robot in self._robots.values() if robot.session.name == name]
            chosen = next(iter(named), None) or max(
                self._robots.values(), key=lambda robot: robot.last or -math.inf, default=None
            )
            if chosen is not None:
                chosen.looked = now
            refusals = [
                {"session": each.session, "peer": each.peer, "told": each.told, "ago_s": now - each.time}
                for each in reversed(self._refusals)
            ]
            robots = [
                dataclasses.replace(robot, latencies=robot.latencies.copy(), values=robot.values.copy())
                for robot in self._robots.values()
            ]
        shown = next((robot for robot in robots if chosen is not None and robot.session is chosen.session), None)
        if not named:
            observed = film = None
        return {
            "policy": self.name,
            "family": self.spec.family,
            "robot": self.spec.robot.name,
            "planner": None if self.planner is None else dict(self.planner),
            "imagine_every_s": self.interval_s,
            "control_hz": self.spec.robot.control_hz,
            "action_horizon": self.spec.action_horizon,
            "execution_horizon": self.spec.execution_horizon,
            "uptime_s": now - self._started,
            "waiting": num_waiting,
            "latency_ms": _summary([latency for robot in robots for latency in robot.latencies]),
            "sessions": [_row(robot, now) for robot in robots],
            "refused": refusals,
            "shown": None if shown is None else self._detail(shown, now, observed, film),
        }

    def _detail(self, robot: _Robot, now: float, observed: str | None, film: str | None) -> dict[str, Any]:
        call, answer, cameras = robot.call, robot.answer, self.spec.robot.camera_names
        detail: dict[str, Any] = {
            **_row(robot, now),
            "latencies_ms": [_numbers(pair) for pair in robot.latencies],
            "values": [[step, _number(value)] for step, value in robot.values],
            "observation": None,
            "film": None if robot.film is None else _film(robot.film, cameras, film),
            "search": None if robot.search is None else _search(robot.search),
        }
        if call is not None and answer is not None:
            if observed != str(robot.calls):
                detail["observation"] = {name: picture(frame) for name, frame in zip(cameras, call.video, strict=True)}
            channels = self.spec.robot.state
            detail["state"] = [
                [channel.name, channel.unit, _number(value)]
                for channel, value in zip(channels, call.state, strict=True)
            ]
            detail["actions"] = [_numbers(row) for row in answer.actions]
            detail["action_names"] = [channel.name for channel in self.spec.robot.action]
            phases = {"wait": answer.waited_s, **answer.timing}
            detail["timing_ms"] = {phase: _number(1000 * seconds) for phase, seconds in phases.items()}
            detail["batch_size"] = answer.batch_size
        return detail


def picture(frame: np.ndarray) -> str:
    """An image `[h, w, 3]` as a data address; a large one is made smaller."""
    out, image = io.BytesIO(), Image.fromarray(frame)
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    image.save(out, format="JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _steps(robot: _Robot, call: Call) -> int:
    """Actions of the episode that were executed before a call, which is the robot's newest."""
    return robot.steps + (call.executed if call.seed is None else 0)


def _row(robot: _Robot, now: float) -> dict[str, Any]:
    return {
        "name": robot.session.name,
        "peer": robot.session.peer,
        "task": robot.session.task or "",
        "episodes": robot.episodes,
        "calls": robot.calls,
        "steps": robot.steps,
        "connected_s": now - robot.opened,
        "idle_s": None if robot.last is None else now - robot.last,
        "latency_ms": _summary(list(robot.latencies)),
    }


def _film(film: _Thought, cameras: Sequence[str], seen: str | None) -> dict[str, Any]:
    told: dict[str, Any] = {"call": film.call, "steps": list(film.imagined.video_steps or ()), "frames": None}
    video = film.imagined.video
    if video is not None and seen != str(film.call):
        if film.frames is None:
            film.frames = {
                name: [picture(frame) for frame in view.numpy()] for name, view in zip(cameras, video[0], strict=True)
            }
        told["frames"] = film.frames
    return told


def _search(search: _Thought) -> dict[str, Any]:
    """Values of the actions to come, and of each planning iteration the scores of its candidates, sorted."""
    value, scores = search.imagined.value, search.imagined.scores
    told: dict[str, Any] = {
        "call": search.call,
        "value": None if value is None else _numbers(value[0].float().tolist()),
        "scores": None,
    }
    if scores is not None:
        told["scores"] = [_spread(row) for row in scores[0].float()]
        told["candidates"] = scores.shape[2]
        told["not_finite"] = int((~torch.isfinite(scores[0])).sum())
    return told


def _spread(row: torch.Tensor) -> list[float | None]:
    finite = np.sort(row[torch.isfinite(row)].numpy())
    if len(finite) > NUM_SCORES:
        finite = finite[np.linspace(0, len(finite) - 1, NUM_SCORES).round().astype(int)]
    return _numbers(finite)


def _number(value: float | np.floating[Any]) -> float | None:
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def _numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]


def _summary(latencies: Sequence[tuple[float, float]]) -> dict[str, float] | None:
    """Of whole answers."""
    if not latencies:
        return None
    median, high = np.quantile(np.asarray(latencies)[:, 0], [0.5, 0.95])
    return {"median": float(median), "p95": float(high)}
