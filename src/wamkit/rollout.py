"""Closed loop: one policy, batched over simulators that run in parallel.

Each worker runs whole chunks of actions; the policy is asked for all workers of a group at once. With two groups the
simulators of one run while the policy computes for the other. Every episode has its own slot memory and seed in the
policy, so it gets the same draws whatever runs beside it; with exact batching its course is the same to the last bit,
else up to the rounding of batched arithmetic, which may depend on the size of the batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wamkit.batching import ExactBatches
from wamkit.chunking import ObservationMemory, steps_to_tell
from wamkit.envs.base import ChunkOutcome, EpisodeRequest, Frame
from wamkit.envs.pool import SimulatorPool, WorkerError
from wamkit.spec import PolicySpec, require_match
from wamkit.trace import CallTrace, Trace
from wamkit.types import ActingPolicy, ActionChunk, Imagined, RememberingPolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PolicyCall:
    """One policy call as one robot saw it.

    Args:
        step: control steps the episode had run.
        seconds: wall time of the whole batch, what was seen since the last call included.
        batch_size: robots in that batch.
        timing: seconds by phase, as the policy told them.
    """

    step: int
    seconds: float
    batch_size: int
    timing: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EpisodeOutcome:
    """How one episode went.

    Args:
        index: position in the requests.
        request: what was asked for.
        sentence: the task sentence, empty when the simulator never answered.
        success: whether the task was solved; `False` when `error` is set.
        steps: control steps run.
        reward_sum: sum of the simulator's rewards.
        wall_seconds: from reset to end.
        calls: policy calls in order.
        digest: of every executed action and every reward, bit for bit; empty when `error` is set.
        attempts: 1, or more when it was retried.
        error: why the simulator could not finish the episode; it says nothing about the policy.
        trace: every frame and what the policy imagined, when recorded.
    """

    index: int
    request: EpisodeRequest
    sentence: str
    success: bool
    steps: int
    reward_sum: float
    wall_seconds: float
    calls: tuple[PolicyCall, ...]
    digest: str = ""
    attempts: int = 1
    error: str | None = None
    trace: Trace | None = None


def rollout(
    policy: ActingPolicy,
    pool: SimulatorPool,
    requests: Sequence[EpisodeRequest],
    *,
    max_steps: int | Callable[[EpisodeRequest], int],
    max_calls: Callable[[EpisodeRequest], int | None] | None = None,
    execution_horizon: int | None = None,
    record: Collection[int] = (),
    retries: int = 0,
    num_groups: int = 1,
    exact: ExactBatches | None = None,
    on_steps: Callable[[int], None] | None = None,
) -> Iterator[EpisodeOutcome]:
    """Run episodes in closed loop and give each outcome as it finishes, in no particular order.

    Args:
        policy: slot i of the policy is worker i of the pool.
        pool: idle workers. When the iteration is left early some of them are still busy: close the pool then.
        requests: episodes to run; equal requests get equal draws whatever runs beside them.
        max_steps: control steps after which an episode ends unsolved; a number, or one for each request.
        max_calls: policy calls after whose actions an episode ends unsolved, for each request; `None` is no limit.
        execution_horizon: actions of each chunk that are run; by default the policy's own.
        record: positions in `requests` to record frame by frame. Recorded robots are served by calls of their own,
            since decoding what was imagined takes time.
        retries: how often an episode is started again when its worker died.
        num_groups: groups of workers that are served in turn. With two, the simulation of one hides behind the
            inference of the other; that pays where the policy computes on an accelerator and its time grows with the
            batch. On shared cores the larger batch of one group is faster (`benchmarks/rollout_groups.py`).
        exact: serves robots together only in calls of sizes for which it finds that this changes nothing, so that equal
            requests have equal outcomes; its trial slots start behind the pool's. Without, calls are always shared.
        on_steps: told the number of control steps after each chunk.

    Raises:
        SpecMismatch: policy and environment differ; before the first step.
        ValueError: a horizon, limit or group count out of range, a policy that remembers moments between its calls and
            cannot be told of them, or the policy gave a malformed chunk.
        RuntimeError: simulators fail one after the other without finishing anything.
    """
    horizon = policy.spec.execution_horizon if execution_horizon is None else execution_horizon
    if not 1 <= horizon <= policy.spec.action_horizon:
        raise ValueError(
            f"expected 1 <= execution_horizon <= {policy.spec.action_horizon} (the policy's action horizon), "
            f"got {horizon}"
        )
    steps = [max_steps if isinstance(max_steps, int) else max_steps(request) for request in requests]
    calls = [None if max_calls is None else max_calls(request) for request in requests]
    for name, limits in (("max_steps", steps), ("max_calls", calls)):
        wrong = [limit for limit in limits if limit is not None and limit < 1]
        if wrong:
            raise ValueError(f"expected {name} >= 1, got {wrong[0]}")
    if not 1 <= num_groups <= len(pool):
        raise ValueError(f"expected 1 <= num_groups <= {len(pool)} (the number of workers), got {num_groups}")
    if policy.spec.context_reach and not isinstance(policy, RememberingPolicy):
        raise ValueError(
            f"expected a policy with `remember` (types.RememberingPolicy), since its frames are "
            f"{policy.spec.context_stride} control steps apart (context_stride), got {type(policy).__name__}"
        )
    require_match(policy.spec.robot, pool.robot, wanted_by="the policy", offered_by="the environment", in_order=True)
    return _Rollout(
        policy=policy,
        pool=pool,
        requests=requests,
        horizon=horizon,
        max_steps=steps,
        max_calls=calls,
        record=frozenset(record),
        retries=retries,
        groups=[list(range(first, len(pool), num_groups)) for first in range(num_groups)],
        exact=exact,
        on_steps=on_steps,
    ).run()


@dataclass(kw_only=True)
class _Episode:
    """An episode under way on one worker."""

    index: int
    request: EpisodeRequest
    attempts: int
    is_recorded: bool
    max_steps: int
    max_calls: int | None
    started: float = field(default_factory=time.perf_counter)
    frame: Frame | None = None  # the newest one while the worker waits for the policy, else None
    sentence: str = ""
    steps: int = 0
    executed: int = 0  # since the policy was told of a frame
    before: tuple[tuple[Frame, int], ...] = ()  # frames to tell the policy of first, see `ChunkOutcome`
    memory: ObservationMemory | None = None  # what the policy remembers then, of control steps instead of frames
    calls: list[PolicyCall] = field(default_factory=list)
    rewards: list[np.ndarray] = field(default_factory=list)
    success: list[np.ndarray] = field(default_factory=list)
    sent: np.ndarray | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    actions: list[np.ndarray] = field(default_factory=list)
    frames: list[dict[str, np.ndarray]] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    call_traces: list[CallTrace] = field(default_factory=list)


@dataclass(kw_only=True)
class _Rollout:
    """The state of one call of `rollout`."""

    policy: ActingPolicy
    pool: SimulatorPool
    requests: Sequence[EpisodeRequest]
    horizon: int
    max_steps: Sequence[int]
    max_calls: Sequence[int | None]
    record: frozenset[int]
    retries: int
    groups: list[list[int]]
    exact: ExactBatches | None
    on_steps: Callable[[int], None] | None
    running: dict[int, _Episode] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)
    failures_in_a_row: int = 0
    last_failure: str = ""

    def __post_init__(self) -> None:
        self.cameras = self.policy.spec.robot.camera_names
        self.waiting = deque((index, request, 1) for index, request in enumerate(self.requests))

    def run(self) -> Iterator[EpisodeOutcome]:
        self._start_idle()
        while self.running:
            # Take what has already arrived before choosing a group; block only when no group can be served.
            group = self._ready_group()
            for worker, answer in self.pool.wait(timeout=None if group is None else 0.0):
                outcome = self._receive(worker, answer)
                if outcome is not None:
                    yield outcome
            self._start_idle()  # an episode of a worker that was given up may wait while others have nothing to do
            group = self._ready_group()
            if group is not None:
                self._serve(group)
                # The group served last is looked at last, so that two groups take turns.
                self.groups.remove(group)
                self.groups.append(group)
        if self.waiting:
            raise RuntimeError(f"no simulator is left for {len(self.waiting)} episodes: {self.last_failure}")

    def _start_idle(self) -> None:
        for worker in range(len(self.pool)):
            if self.waiting and worker not in self.running and worker not in self.given_up:
                self._start(worker)

    def _start(self, worker: int) -> None:
        self.running.pop(worker, None)
        if self.waiting:
            index, request, attempts = self.waiting.popleft()
            self.running[worker] = _Episode(
                index=index,
                request=request,
                attempts=attempts,
                is_recorded=index in self.record,
                max_steps=self.max_steps[index],
                max_calls=self.max_calls[index],
            )
            try:
                self.pool.submit(worker, "reset", request)
            except RuntimeError as error:
                # The pool gave this worker up; the others take its episodes.
                logger.error("%s", error)
                self.last_failure = str(error)
                self.given_up.add(worker)
                self.waiting.appendleft((index, request, attempts))
                del self.running[worker]

    def _ready_group(self) -> list[int] | None:
        for group in self.groups:
            active = [self.running[worker] for worker in group if worker in self.running]
            if active and all(episode.frame is not None for episode in active):
                return group
        return None

    def _receive(self, worker: int, answer: Any) -> EpisodeOutcome | None:
        """Take a worker's answer in; give the episode's outcome when that ends it, and start the next one."""
        episode = self.running[worker]
        if isinstance(answer, WorkerError):
            return self._fail(worker, episode, str(answer))
        if isinstance(answer, ChunkOutcome):
            self._extend(episode, answer)
            is_over = answer.terminated or answer.truncated or episode.steps >= episode.max_steps
            is_over |= episode.max_calls is not None and len(episode.calls) >= episode.max_calls
            if is_over:
                self.failures_in_a_row = 0
                self._start(worker)
                return _outcome(episode, self.policy.spec)
            episode.frame = answer.frame
        else:
            episode.frame, episode.sentence = answer, answer.sentence
            if self.policy.spec.context_reach:
                memory = ObservationMemory(self.policy.spec.num_context, stride=self.policy.spec.context_stride)
                episode.memory = memory.added(torch.zeros(()), 0)
            if episode.is_recorded:
                episode.frames.append({camera: answer.video[camera][None] for camera in self.cameras})
                episode.states.append(answer.state[None])
        return None

    def _fail(self, worker: int, episode: _Episode, message: str) -> EpisodeOutcome | None:
        request = episode.request
        place = f"task {request.task}, layout {request.layout}, control step {episode.steps}"
        logger.warning("simulator %d lost an episode (%s): %s", worker, place, message)
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= max(8, 3 * len(self.pool)):
            raise RuntimeError(
                f"{self.failures_in_a_row} simulators failed in a row without finishing an episode; the last one "
                f"({place}): {message}"
            )
        if episode.attempts <= self.retries:
            self.waiting.appendleft((episode.index, request, episode.attempts + 1))
            self._start(worker)
            return None
        self._start(worker)
        return _outcome(episode, self.policy.spec, error=message)

    def _extend(self, episode: _Episode, chunk: ChunkOutcome) -> None:
        episode.steps += chunk.executed
        episode.executed, episode.before = chunk.executed_after, chunk.before
        for executed in (*(executed for _, executed in chunk.before), chunk.executed_after):
            if episode.memory is not None:
                episode.memory = episode.memory.added(torch.zeros(()), executed)
        episode.rewards.append(chunk.rewards)
        episode.success.append(chunk.success)
        assert episode.sent is not None
        run = episode.sent[: chunk.executed]
        episode.digest.update(run.tobytes() + chunk.rewards.tobytes())
        if chunk.recorded is not None:
            episode.actions.append(run)
            episode.frames.append({camera: chunk.recorded.video[camera] for camera in self.cameras})
            episode.states.append(chunk.recorded.state)
        if self.on_steps is not None:
            self.on_steps(chunk.executed)

    def _serve(self, group: list[int]) -> None:
        """Ask the policy for every robot of the group and set the simulators going."""
        members = [worker for worker in group if worker in self.running]
        fresh = [worker for worker in members if not self.running[worker].calls]
        if fresh:
            self.policy.reset(fresh, seeds=[self.running[worker].request.seed for worker in fresh])
        for is_recorded in (False, True):
            slots = [worker for worker in members if self.running[worker].is_recorded == is_recorded]
            if slots:
                self._act(slots, is_recorded)

    def _act(self, slots: list[int], is_recorded: bool) -> None:
        episodes = [self.running[slot] for slot in slots]
        frames = [episode.frame for episode in episodes if episode.frame is not None]
        video = self._video(frames)
        state = torch.from_numpy(np.stack([frame.state for frame in frames]))
        task = [frame.sentence for frame in frames]
        known = [episode.memory.num_known for episode in episodes if episode.memory is not None]
        if self.exact is None or self.exact.allows(video, state, task, is_recorded, known):
            parts = [slice(0, len(slots))]
        else:
            parts = [slice(row, row + 1) for row in range(len(slots))]
        for part in parts:
            begun = time.perf_counter()
            self._remember(slots[part])
            chunk = self.policy.act(
                slots[part],
                video=video[part],
                state=state[part],
                task=task[part],
                executed=[episode.executed for episode in episodes[part]],
                record=is_recorded,
            )
            # Fetching the actions waits for the device, so the time is the robot's, not the launch's.
            actions = chunk.actions.detach().to("cpu", torch.float32).numpy()
            self._send(slots[part], chunk, actions, time.perf_counter() - begun, is_recorded)

    def _remember(self, slots: list[int]) -> None:
        """Tell the policy what robots saw since its last call, a moment of each at a time."""
        for moments in itertools.zip_longest(*(self.running[slot].before for slot in slots)):
            told = [(slot, *moment) for slot, moment in zip(slots, moments, strict=True) if moment is not None]
            assert isinstance(self.policy, RememberingPolicy), "simulators are asked for moments on its account"
            self.policy.remember(
                [slot for slot, _, _ in told],
                video=self._video([frame for _, frame, _ in told]),
                executed=[executed for _, _, executed in told],
            )

    def _video(self, frames: Sequence[Frame]) -> Tensor:
        """Frames `b v h w c` of the policy's cameras."""
        return torch.from_numpy(np.stack([np.stack([frame.video[name] for name in self.cameras]) for frame in frames]))

    def _send(
        self, slots: list[int], chunk: ActionChunk, actions: np.ndarray, seconds: float, is_recorded: bool
    ) -> None:
        """Let the simulators of a call run what the policy wants."""
        episodes = [self.running[slot] for slot in slots]
        self._check(actions, episodes)
        for row, (slot, episode) in enumerate(zip(slots, episodes, strict=True)):
            call = PolicyCall(step=episode.steps, seconds=seconds, batch_size=len(slots), timing=dict(chunk.timing))
            episode.calls.append(call)
            if is_recorded:
                episode.call_traces.append(_call_trace(chunk, row, actions[row], episode.steps))
            episode.frame = None
            episode.sent = actions[row, : min(self.horizon, episode.max_steps - episode.steps)]
            self.pool.submit(slot, "run_chunk", episode.sent, is_recorded, self._tell(len(episode.sent)))

    def _tell(self, num_actions: int) -> tuple[int, ...]:
        """Moments of a chunk that the policy remembers besides its last one."""
        spec = self.policy.spec
        return steps_to_tell(
            num_actions, horizon=self.horizon, num_context=spec.num_context, stride=spec.context_stride
        )

    def _check(self, actions: np.ndarray, episodes: list[_Episode]) -> None:
        count, width = len(episodes), len(self.policy.spec.robot.action)
        if actions.ndim != 3 or actions.shape[::2] != (count, width) or actions.shape[1] < self.horizon:
            raise ValueError(
                f"expected a chunk of {count} x at least {self.horizon} x {width} numbers from the policy, "
                f"got {actions.shape}"
            )
        finite = np.isfinite(actions).all(axis=(1, 2))
        if not finite.all():
            episode = episodes[int(np.argmin(finite))]
            raise ValueError(
                f"the policy gave actions that are not finite numbers in task {episode.request.task}, layout "
                f"{episode.request.layout}, seed {episode.request.seed}, control step {episode.steps}; look at its "
                "weights and statistics"
            )


def _outcome(episode: _Episode, spec: PolicySpec, error: str | None = None) -> EpisodeOutcome:
    trace = None
    if episode.is_recorded and error is None:
        cameras = spec.robot.camera_names
        metadata = dataclasses.asdict(episode.request)
        if spec.preprocess != "exact":
            metadata["preprocess"] = spec.preprocess  # imagined frames are as the policy sees them
        trace = Trace(
            frames={camera: np.concatenate([part[camera] for part in episode.frames]) for camera in cameras},
            state=np.concatenate(episode.states),
            actions=np.concatenate(episode.actions),
            reward=np.concatenate(episode.rewards),
            success=np.concatenate(episode.success),
            calls=tuple(episode.call_traces),
            task=episode.sentence,
            metadata=metadata,
        )
    return EpisodeOutcome(
        index=episode.index,
        request=episode.request,
        sentence=episode.sentence,
        success=error is None and any(bool(part.any()) for part in episode.success),
        steps=episode.steps,
        reward_sum=float(sum(float(part.sum()) for part in episode.rewards)),
        wall_seconds=time.perf_counter() - episode.started,
        calls=tuple(episode.calls),
        digest="" if error else episode.digest.hexdigest()[:16],
        attempts=episode.attempts,
        error=error,
        trace=trace,
    )


def _call_trace(chunk: ActionChunk, row: int, actions: np.ndarray, step: int) -> CallTrace:
    imagined = chunk.imagined or Imagined()
    steps = imagined.video_steps
    return CallTrace(
        step=step,
        actions=actions,
        video=_row(imagined.video, row, torch.uint8),
        video_steps=None if steps is None else np.asarray(steps, dtype=np.int64),
        value=_row(imagined.value, row, torch.float32),
        scores=_row(imagined.scores, row, torch.float32),
    )


def _row(tensor: Tensor | None, row: int, dtype: torch.dtype) -> np.ndarray | None:
    return None if tensor is None else tensor[row].detach().to("cpu", dtype).numpy()
