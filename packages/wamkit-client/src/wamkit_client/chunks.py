"""From chunks of actions to the one action that the robot runs now.

`ChunkBroker` asks when a chunk has been run: the robot waits for every answer. `RealTimeChunks` asks while the chunk
is being run, so that the next one is there in time. Where the server's metadata says that the policy remembers frames
some control steps apart (`context_stride`), both keep what the robot saw then, and tell the server before they ask.

Source: the broker of openpi's client; real-time chunking (Black, Galliker and Levine 2025, arXiv 2506.07339), whose
    setting it is: what runs while the answer is computed is settled, and the new chunk continues it.
Differs: the seam is blended here instead of inpainted by the denoiser, so that it works with every policy.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np

__all__ = ["ChunkBroker", "ChunkCounts", "RealTimeChunks"]


_OF_A_QUESTION = frozenset(
    {"prompt", "task_description", "instruction", "task", "reset", "seed", "deadline_ms", "value", "imagine"}
)
"""Keys of an observation that are about the actions it asks for; what is only remembered goes without them."""


class Infers(Protocol):
    """What answers an observation with `actions` `[T, a]`; `Client`, or anything alike."""

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]: ...


@dataclass
class ChunkCounts:
    """What a broker has done since its last reset.

    Args:
        steps: actions given.
        requests: observations sent to be answered with a chunk.
        waits: steps for whose action the robot had to wait.
        waited_s: for how long in all.
        dropped: actions that came too late to be run.
    """

    steps: int = 0
    requests: int = 0
    waits: int = 0
    waited_s: float = 0.0
    dropped: int = 0


class ChunkBroker:
    """One action at a time; a new chunk is asked for when `execution_horizon` actions of the last one were given.

    Args:
        client: answers observations.
        execution_horizon: actions of each chunk to run; by default what the server's metadata says.

    Raises:
        ValueError: a horizon below 1, or none at all.
        TypeError: a client whose answers must be awaited.
    """

    def __init__(self, client: Infers, *, execution_horizon: int | None = None) -> None:
        self.client = _synchronous(client)
        self.execution_horizon = _horizon(client, execution_horizon)
        self.counts = ChunkCounts()
        self.last: Mapping[str, Any] = {}
        self._actions: np.ndarray[Any, Any] = np.zeros((0, 0))
        self._next = 0
        self._seen: list[tuple[int, Mapping[str, Any]]] = []  # to tell before asking, with the actions run before it
        self._told = 0  # actions run when the server was told of an observation last

    def act(self, observation: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """The action `[a]` to run now.

        Args:
            observation: what the robot sees now; it is sent when a chunk is over, with `executed` added, after those
                of the steps before that the policy remembers.

        Raises:
            What `client.infer` raises.
        """
        if self._next >= min(self.execution_horizon, len(self._actions)):
            begun = time.perf_counter()
            while self._seen:
                count, seen = self._seen[0]
                self.client.infer(_remembered(seen, count - self._told))
                self._told = count
                del self._seen[0]
            self.last = self.client.infer({**observation, "executed": self._next - self._told})
            self._actions, self._next, self._told = _actions(self.last), 0, 0
            self.counts.requests += 1
            self.counts.waits += 1
            self.counts.waited_s += time.perf_counter() - begun
        elif self._next in self._moments():
            self._seen.append((self._next, _copy(observation)))  # cameras may write into the same memory again
        action: np.ndarray[Any, Any] = self._actions[self._next].copy()  # what arrived is read only
        self._next += 1
        self.counts.steps += 1
        return action

    def reset(self) -> None:
        """Forget the chunk, at the start of an episode; the server is told by the client's own `reset`."""
        self._actions, self._next = np.zeros((0, 0)), 0
        self._seen, self._told = [], 0
        self.counts = ChunkCounts()

    def _moments(self) -> set[int]:
        """Numbers of actions after which the policy remembers what is seen, here or in one of the next chunks."""
        stride, reach = _memory(self.client)
        length = min(self.execution_horizon, len(self._actions))
        ends = range(length, length + reach, length)
        return {end - back for end in ends for back in range(stride, reach + 1, stride)}


class RealTimeChunks:
    """One action at a time; the next chunk is computed while the current one runs.

    After `ask_after` actions the robot's observation is sent, and actions go on from the old chunk. When the new chunk
    arrives, those of its actions whose time has passed are dropped: the robot has run the old chunk's in their place.
    Over the next `blend` actions the old chunk fades out and the new one in, gripper commands excepted. The robot waits
    only when the old chunk ends before the new one is there: when an answer takes longer than half of the action
    horizon lasts. Use `ChunkBroker` then: here the far ends of chunks are run, which were decided on long before.

    A policy that remembers frames some control steps apart is told of those since the last request alone, so with an
    `ask_after` that is no multiple of their distance it remembers less than it could.

    Args:
        client: answers observations; it is asked from a thread of its own, one request at a time.
        ask_after: actions run after an observation until the next one is sent; by default half of what the server's
            metadata names as the execution horizon. Ask earlier when answers take longer.
        blend: actions over which the seam is blended; 0 switches at once.
        sudden: channels that are not blended; by default the grippers that the server's metadata names.

    Raises:
        ValueError: a number out of range.
        TypeError: a client whose answers must be awaited.
    """

    def __init__(
        self,
        client: Infers,
        *,
        ask_after: int | None = None,
        blend: int = 2,
        sudden: Sequence[int] | None = None,
    ) -> None:
        self.client = _synchronous(client)
        if ask_after is None:
            ask_after = max(1, _horizon(client, None) // 2)
        if ask_after < 1 or blend < 0:
            raise ValueError(f"expected ask_after of 1 or more and blend of 0 or more, got {ask_after} and {blend}")
        self.ask_after = ask_after
        self.blend = blend
        self.sudden = tuple(_metadata(client).get("gripper_channels", ()) if sudden is None else sudden)
        self.counts = ChunkCounts()
        self.last: Mapping[str, Any] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="chunks")
        self._pending: Future[Mapping[str, Any]] | None = None
        self._plan: np.ndarray[Any, Any] = np.zeros((0, 0))  # actions to come
        self._since = 0  # actions run since the newest observation that was sent
        self._asked_at = 0  # and how many those were when it was sent
        self._told = 0  # and how many of those before an observation that the server was told of before that one
        self._seen: deque[tuple[int, Mapping[str, Any]]] = deque()  # with the actions run before it, of this episode

    def act(self, observation: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """The action `[a]` to run now; waits when there is none yet.

        Args:
            observation: what the robot sees now; it is sent when the time for that has come.

        Raises:
            What `client.infer` raises, for this observation or an earlier one.
        """
        action = self.poll(observation)
        if action is not None:
            return action
        begun = time.perf_counter()
        while action is None:
            self.wait()
            action = self.poll(observation)
        self.counts.waits += 1
        self.counts.waited_s += time.perf_counter() - begun
        return action

    def poll(self, observation: Mapping[str, Any]) -> np.ndarray[Any, Any] | None:
        """The action `[a]` to run now, or `None` while there is none: the robot holds still. Never waits.

        Args:
            observation: what the robot sees now; it is sent when the time for that has come.

        Raises:
            What `client.infer` raises, for an earlier observation.
        """
        if self._pending is not None and self._pending.done():
            self._take(self._pending)
        if self._pending is None and (not len(self._plan) or self._since >= self.ask_after):
            self._ask(observation)
        if not len(self._plan):
            return None
        self._keep(observation)
        action: np.ndarray[Any, Any] = self._plan[0].copy()  # what arrived is read only
        self._plan = self._plan[1:]
        self._since += 1
        self.counts.steps += 1
        return action

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the answer under way; the next `poll` goes on with it.

        Args:
            timeout_s: for how long at most.

        Returns:
            Whether none is under way any more.
        """
        return self._pending is None or not wait([self._pending], timeout_s).not_done

    def reset(self) -> None:
        """Forget everything, at the start of an episode; waits for an answer under way and drops it."""
        self.wait()
        self._pending = None
        self._plan = np.zeros((0, 0))
        self._since = self._asked_at = self._told = 0
        self._seen.clear()
        self.counts = ChunkCounts()

    def close(self) -> None:
        """End the thread, once an answer under way has come or the client was closed; neither is waited for."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> RealTimeChunks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, observation: Mapping[str, Any]) -> None:
        stride, reach = _memory(self.client)
        before, last = [], 0
        for index, seen in self._seen:
            back = self.counts.steps - index
            run = self._since - back  # since the newest observation that was sent
            if run > 0 and back in range(stride, reach + 1, stride):
                before.append(_remembered(seen, run - last))
                last = run
        request = _copy({**observation, "executed": self._since - last})  # cameras may write into the same memory again
        self._asked_at, self._since, self._told = self._since, 0, 0
        self.counts.requests += 1
        self._pending = self._worker.submit(self._infer, before, request)

    def _infer(self, before: Sequence[dict[str, Any]], request: Mapping[str, Any]) -> Mapping[str, Any]:
        for seen in before:
            self.client.infer(seen)
            self._told += seen["executed"]
        return self.client.infer(request)

    def _keep(self, observation: Mapping[str, Any]) -> None:
        """Keep what is seen before an action, as long as the policy may want to remember it."""
        _, reach = _memory(self.client)
        while self._seen and self._seen[0][0] <= self.counts.steps - reach:
            self._seen.popleft()
        if reach:
            self._seen.append((self.counts.steps, _copy(observation)))

    def _take(self, pending: Future[Mapping[str, Any]]) -> None:
        """Continue with a new chunk."""
        self._pending = None
        try:
            self.last = pending.result()
        except BaseException:
            self._since += self._asked_at - self._told  # the server counts from the last request that it answered
            raise
        chunk = _actions(self.last)
        self.counts.dropped += min(self._since, len(chunk))
        new, old = chunk[self._since :], self._plan
        if not len(new):
            return  # too late altogether; what is left of the old chunk still holds
        count = min(self.blend, len(old), len(new))
        if count:
            share = (np.arange(1, count + 1) / (count + 1))[:, None]
            seam = (1 - share) * old[:count] + share * new[:count]
            seam[:, list(self.sudden)] = new[:count, list(self.sudden)]
            new = np.concatenate((seam.astype(new.dtype), new[count:]))
        self._plan = new


def _actions(reply: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    actions = np.asarray(reply.get("actions"))
    if actions.ndim != 2 or not len(actions):
        raise ValueError(
            f"expected 'actions' of shape (steps, channels) in the server's answer, got {sorted(map(str, reply))}"
        )
    return actions


def _remembered(observation: Mapping[str, Any], executed: int) -> dict[str, Any]:
    """The request that tells of an observation and asks for nothing."""
    seen = {key: value for key, value in observation.items() if key not in _OF_A_QUESTION}
    return {**seen, "executed": executed, "compute_kv_cache": True}


def _memory(client: Any) -> tuple[int, int]:
    """Control steps between two frames that the policy remembers, and from the first to the newest; 1 and 0: none."""
    metadata = _metadata(client)
    stride, places = metadata.get("context_stride"), metadata.get("num_context")
    if not isinstance(stride, int) or not isinstance(places, int) or stride < 1 or places < 1:
        return 1, 0
    return stride, (places - 1) * stride


def _copy(value: Any) -> Any:
    """Maps and lists of arrays, with arrays of their own."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, (list, tuple)) else value


def _synchronous(client: Infers) -> Infers:
    if inspect.iscoroutinefunction(client.infer):
        raise TypeError(
            f"expected a client that waits for its answers, such as Client, got {type(client).__name__}; make a Client "
            "for the broker, and call it in a thread (asyncio.to_thread) if the program runs on asyncio"
        )
    return client


def _metadata(client: Any) -> Mapping[str, Any]:
    metadata = getattr(client, "metadata", {})
    return metadata if isinstance(metadata, Mapping) else {}


def _horizon(client: Any, given: int | None) -> int:
    horizon = _metadata(client).get("execution_horizon") if given is None else given
    if not isinstance(horizon, int):
        raise ValueError("the server does not say how many actions of a chunk to run; name execution_horizon")
    if horizon < 1:
        raise ValueError(f"expected execution_horizon of 1 or more, got {horizon}")
    return horizon
