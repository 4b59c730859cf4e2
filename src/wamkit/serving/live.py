"""What the live page shows: who is connected, how fast the answers are, and what the policy saw and imagined last.

Pictures are encoded when somebody looks. The future is imagined only while somebody looks, after the robot has its
answer and when no other waits, so that looking costs robots little; no action depends on it.
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from PIL import Image

from wamkit.policy import Decision
from wamkit.serving.inference import Answer, Call
from wamkit.serving.service import Session
from wamkit.spec import PolicySpec
from wamkit.types import Imagined

LOOKS_FOR_S: Final = 3.0
"""A page that asked so recently is still looking."""
NUM_LATENCIES: Final = 240
NUM_VALUES: Final = 500
NUM_CANDIDATES: Final = 4096


@dataclass
class _Dream:
    """What was imagined at one call."""

    call: int
    imagined: Imagined


@dataclass
class _Robot:
    """One session as the page shows it."""

    session: Session
    calls: int = 0
    steps: int = 0
    last: float = field(default_factory=time.monotonic)
    call: Call | None = None
    answer: Answer | None = None
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_LATENCIES))
    values: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=NUM_VALUES))
    dream: _Dream | None = None


class LiveView:
    """A `Watcher` of a service, and what the page asks for.

    Args:
        spec: of the policy.
        interval_s: least time between two imaginations for the page; 0 imagines none.
    """

    def __init__(self, spec: PolicySpec, *, interval_s: float = 1.0) -> None:
        if not 0 <= interval_s < 3600:
            raise ValueError(f"expected seconds between imaginations of 0 or more, got {interval_s}")
        self.spec = spec
        self.interval_s = interval_s
        self._robots: dict[int, _Robot] = {}
        self._lock = threading.Lock()  # the policy's thread brings what it imagined
        self._watched: int | None = None  # slot that the page shows
        self._looked = -LOOKS_FOR_S  # when a page last asked
        self._dreamt = 0.0
        self._started = time.monotonic()

    # In the event loop.

    def began(self, session: Session) -> None:
        """An episode begins."""
        robot = self._robots.setdefault(session.slot, _Robot(session=session))
        with self._lock:
            robot.steps, robot.dream = 0, None
            robot.values.clear()

    def answered(self, session: Session, call: Call, answer: Answer) -> None:
        """A robot got its actions."""
        robot = self._robots.setdefault(session.slot, _Robot(session=session))
        robot.calls += 1
        robot.steps += call.executed if call.seed is None else 0
        robot.last = time.monotonic()
        robot.call, robot.answer = call, answer
        robot.latencies.append(1000 * (robot.last - call.arrived))
        if answer.imagined is not None and answer.imagined.value is not None:
            with self._lock:
                robot.values.append((robot.steps, float(answer.imagined.value[0, 0])))
                if answer.imagined.video is not None:
                    robot.dream = _Dream(robot.calls, answer.imagined)

    def ended(self, session: Session) -> None:
        """A robot left."""
        self._robots.pop(session.slot, None)

    # In the policy's thread.

    def wants(self, slot: int) -> bool:
        """Whether what is imagined at this slot's next call is to be shown."""
        now = time.monotonic()
        return (
            slot == self._watched
            and self.interval_s > 0
            and now - self._looked < LOOKS_FOR_S
            and now - self._dreamt >= self.interval_s
        )

    def daydream(self, call: Call, decision: Decision) -> None:
        """Imagine what goes with the actions that a robot has already got."""
        imagined = decision.imagine()
        self._dreamt = time.monotonic()
        with self._lock:
            robot = self._robots.get(call.slot)
            if robot is None:
                return
            robot.dream = _Dream(robot.calls, imagined)
            if imagined.value is not None and call.value is False:
                robot.values.append((robot.steps, float(imagined.value[0, 0])))

    # For the page.

    def look(self, name: str | None, metadata: dict[str, Any], num_waiting: int) -> dict[str, Any]:
        """What the page shows, JSON-ready.

        Args:
            name: of the session to show in full; the one that acted last when `None` or gone.
            metadata: of the service.
            num_waiting: requests that wait for the policy.
        """
        self._looked = time.monotonic()
        robots = sorted(self._robots.values(), key=lambda robot: -robot.last)
        named = [robot for robot in robots if robot.session.name == name]
        active = [robot for robot in robots if robot.call is not None]
        chosen = next(iter(named or active or robots), None)
        self._watched = None if chosen is None else chosen.session.slot
        every = [latency for robot in robots for latency in robot.latencies]
        return {
            "policy": metadata["identity"].get("name", ""),
            "family": self.spec.family,
            "robot": self.spec.robot.name,
            "planner": metadata["planner"],
            "uptime_s": self._looked - self._started,
            "waiting": num_waiting,
            "latency_ms": _summary(every),
            "sessions": [self._row(robot) for robot in robots],
            "shown": None if chosen is None else self._detail(chosen),
        }

    def _row(self, robot: _Robot) -> dict[str, Any]:
        return {
            "name": robot.session.name,
            "peer": robot.session.peer,
            "task": robot.session.task or "",
            "calls": robot.calls,
            "steps": robot.steps,
            "idle_s": time.monotonic() - robot.last,
            "latency_ms": _summary(robot.latencies),
        }

    def _detail(self, robot: _Robot) -> dict[str, Any]:
        names = self.spec.robot.camera_names
        call, answer, dream = robot.call, robot.answer, robot.dream
        with self._lock:
            values = list(robot.values)
        detail: dict[str, Any] = {
            **self._row(robot),
            "latencies_ms": list(robot.latencies),
            "values": values,
            "observation": None,
            "imagined": None,
        }
        if call is not None and answer is not None:
            detail["observation"] = {name: picture(frame) for name, frame in zip(names, call.video, strict=True)}
            detail["state"] = _numbers(call.state)
            detail["actions"] = [_numbers(row) for row in answer.actions]
            detail["action_names"] = [channel.name for channel in self.spec.robot.action]
            detail["batch_size"] = answer.batch_size
        if dream is not None:
            detail["imagined"] = _dreamt(dream, names)
        return detail


def picture(frame: np.ndarray) -> str:
    """An image `[h, w, 3]` as a data address."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _dreamt(dream: _Dream, names: Sequence[str]) -> dict[str, Any]:
    imagined = dream.imagined
    told: dict[str, Any] = {"call": dream.call, "frames": None, "steps": [], "value": None, "scores": None}
    if imagined.video is not None:
        told["frames"] = {
            name: [picture(frame) for frame in view.numpy()]
            for name, view in zip(names, imagined.video[0], strict=True)
        }
        told["steps"] = list(imagined.video_steps or ())
    if imagined.value is not None:
        told["value"] = _numbers(imagined.value[0].float().numpy())
    if imagined.scores is not None:
        told["scores"] = [_numbers(row[:NUM_CANDIDATES]) for row in imagined.scores[0].float().numpy()]
    return told


def _numbers(row: np.ndarray) -> list[float]:
    return [round(float(number), 5) for number in row]


def _summary(latencies: Sequence[float] | deque[float]) -> dict[str, float] | None:
    if not latencies:
        return None
    median, high = np.quantile(np.asarray(latencies), [0.5, 0.95])
    return {"median": float(median), "p95": float(high)}
