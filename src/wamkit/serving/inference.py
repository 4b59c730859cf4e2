"""Where a served policy computes: one thread of its own, which shares calls among the robots that wait.

The event loop never computes and the thread never waits for a connection, so a slow policy cannot keep a connection
from being answered, nor a slow connection the policy.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from wamkit_client.errors import BadRequest, Busy, DeadlineMissed, NotReady, ServerError

from wamkit.batching import ExactBatches
from wamkit.policy import Decision, Policy
from wamkit.serving.requests import Settings
from wamkit.types import ActionChunk, Imagined, InputError

logger = logging.getLogger(__name__)

NUM_VARIANTS = 8  # settings that robots ask for, kept with what was found out about batches under them
MAX_REASON = 280  # characters of what a policy says of an input, which may hold all of a sentence


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How calls are shared.

    Args:
        max_batch: robots in one call of the policy; 1 shares none.
        max_wait_s: how long a call waits for company, and only for robots that have asked before.
        exact: share calls only where every robot gets what it would get alone, bit for bit.
        max_waiting: calls that may wait; further ones are told that the server is busy.
    """

    max_batch: int = 8
    max_wait_s: float = 0.002
    exact: bool = False
    max_waiting: int = 64

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_waiting < 1 or not 0 <= self.max_wait_s <= 1:
            raise ValueError(
                "expected max_batch and max_waiting of 1 or more and max_wait_s of 0 to 1 second, got "
                f"{self.max_batch}, {self.max_waiting} and {self.max_wait_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the policy gave one robot.

    Args:
        actions: physical units.
        imagined: values, frames and scores, as far as they were asked for.
        timing: seconds by phase of the whole call.
        waited_s: from the request's arrival to the beginning of the call.
        computed_s: of the call.
        batch_size: robots in it.
    """

    actions: Float32[np.ndarray, "p a"]
    imagined: Imagined | None
    timing: dict[str, float]
    waited_s: float
    computed_s: float
    batch_size: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """What one robot asks of the policy.

    Args:
        slot: its own in the policy.
        video: newest frame of every camera.
        state: physical units.
        task: sentence.
        executed: actions run since its previous call.
        seed: begins an episode with this seed first; `None` goes on.
        settings: how it decodes and plans.
        value: whether values are wanted.
        imagine: whether frames and scores are wanted.
        exact: see `Batching`.
        until: `time.monotonic()` after which beginning makes no sense.
        remember_only: take the frame into the memory and give no actions.
        arrived: `time.monotonic()` of the request.
        answer: filled by the thread.
    """

    slot: int
    video: UInt8[np.ndarray, "v h w 3"]
    state: Float32[np.ndarray, "s"]
    task: str
    executed: int
    settings: Settings
    seed: int | None = None
    value: bool = False
    imagine: bool = False
    exact: bool = False
    until: float | None = None
    remember_only: bool = False
    arrived: float = field(default_factory=time.monotonic)
    answer: Future[Answer] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Settings, bool, bool, bool, bool]:
        """Calls of one kind may share a batch."""
        return self.settings, self.value, self.imagine, self.exact, self.remember_only


class Inference:
    """A policy in a thread.

    Args:
        policy: computes; nobody else may use it while this runs.
        batching: how calls are shared.
        settings: those of calls that ask for no other.
        on_batch: told the size and the seconds of each call, in this thread.
        daydream: told after an answer which call was answered and what can be imagined beside it, in this thread, when
            `wants` says that it would.
        wants: whether a slot's next call is of interest to `daydream`; such a call gets a batch of its own.
    """

    def __init__(
        self,
        policy: Policy,
        batching: Batching,
        settings: Settings,
        *,
        on_batch: Callable[[int, float], None] | None = None,
        daydream: Callable[[Call, Decision], None] | None = None,
        wants: Callable[[int], bool] | None = None,
    ) -> None:
        self.batching = batching
        self._policy = policy
        self._settings = settings
        self._on_batch = on_batch
        self._daydream = daydream
        self._wants = wants or (lambda slot: False)
        self._condition = threading.Condition()
        self._waiting: deque[Call] = deque()
        self._forgotten: list[int] = []
        self._robots: set[int] = set()  # slots that have asked before: whoever waits may wait for them
        self._is_ready = False
        self._is_stopping = False
        self._variants: dict[Settings, tuple[Policy, ExactBatches]] = {}
        self._next_slot = batching.max_batch  # the first ones are for trials
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether calls are taken: warmed up and not stopping."""
        return self._is_ready and not self._is_stopping

    @property
    def num_waiting(self) -> int:
        """Calls that wait."""
        return len(self._waiting)

    def new_slot(self) -> int:
        """A slot of the policy for one robot, never used before."""
        with self._condition:
            self._next_slot += 1
            return self._next_slot - 1

    def forget(self, slot: int) -> None:
        """Give a slot back; a call of it that still waits is given up, or it would open the slot again."""
        with self._condition:
            self._robots.discard(slot)
            for call in [call for call in self._waiting if call.slot == slot]:
                self._waiting.remove(call)
                call.answer.cancel()
            self._forgotten.append(slot)
            self._condition.notify()

    def submit(self, call: Call) -> Future[Answer]:
        """Queue a call; its answer comes in a while.

        Raises:
            NotReady: not warmed up yet, or stopping.
            Busy: too many calls wait.
        """
        with self._condition:
            if self._is_stopping:
                raise NotReady("expected a server that runs, this one is shutting down; connect to another, or later")
            if not self._is_ready:
                raise NotReady(
                    "expected a warm policy, this one still warms up; ask again when GET /healthz answers OK",
                    retry_after_s=1.0,
                )
            if len(self._waiting) >= self.batching.max_waiting:
                raise Busy(
                    f"busy: {len(self._waiting)} requests wait already (--max-waiting); ask again in a moment",
                    retry_after_s=0.05,
                )
            self._waiting.append(call)
            self._condition.notify()
        return call.answer

    def expire(self, call: Call) -> None:
        """Give a call up that still waits: its deadline has passed."""
        with self._condition:
            if call not in self._waiting:
                return
            self._waiting.remove(call)
        if call.answer.set_running_or_notify_cancel():  # else its robot has left at the same moment
            call.answer.set_exception(
                DeadlineMissed("deadline: its turn did not come in time; ask again with a newer observation")
            )

    def start(self) -> None:
        """Warm up, then take calls; returns when the first request will be fast.

        Raises:
            Whatever the policy raises.
        """
        self._warm_up()
        self._is_ready = True
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Finish what waits, then end the thread.

        Args:
            timeout_s: how long to wait for a call that is being computed, which nothing can interrupt.

        Returns:
            Whether the thread has ended.
        """
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _warm_up(self) -> None:
        """Run every kind of call once: what is built, tried or allocated at first use is there afterwards."""
        spec = self._policy.spec
        state = self._policy.transforms.state.denormalize(torch.zeros(1, len(spec.robot.state)))[0].numpy()
        draws = np.random.default_rng(0)
        shape = (len(spec.robot.cameras), spec.robot.cameras[0].height, spec.robot.cameras[0].width, 3)
        sizes = range(1, self.batching.max_batch + 1) if self.batching.exact else {1, self.batching.max_batch}
        # A memory with a stride may be read in another way when it is full: fill it, and ask again.
        stride, more = spec.context_stride or 0, spec.num_context if spec.context_reach else 0
        for size, number in itertools.product(sizes, range(1 + more)):
            calls = [
                Call(
                    slot=self.batching.max_batch + row,  # trials use those before
                    video=draws.integers(0, 256, shape, np.uint8),
                    state=state,  # in the middle of what training saw
                    task=(spec.tasks or ("warm up",))[0],
                    executed=stride if number else 0,
                    settings=self._settings,
                    seed=None if number else row,
                    exact=self.batching.exact,
                    remember_only=0 < number < more,
                )
                for row in range(size)
            ]
            self._serve(calls)
            for call in calls:
                call.answer.result()
        self._policy.forget(range(2 * self.batching.max_batch))

    def _run(self) -> None:
        while True:
            calls = self._gather()
            if calls is None:
                return
            if calls:
                self._serve(calls)

    def _gather(self) -> list[Call] | None:
        """The calls to serve next, all of one kind; `None` at the end."""
        with self._condition:
            while not self._waiting and not self._forgotten and not self._is_stopping:
                self._condition.wait()
            if self._forgotten:
                self._policy.forget(self._forgotten)
                self._forgotten.clear()
            if not self._waiting:
                return None if self._is_stopping else []
            first = self._waiting[0]
            if not self._wants(first.slot):
                self._wait_for_company(first)
            # Nobody overtakes: a batch is what waits at the front, as far as it is of one kind.
            calls: list[Call] = []
            most = 1 if self._wants(first.slot) else self.batching.max_batch
            for call in list(self._waiting):
                if len(calls) < most and call.kind == first.kind and (not calls or not self._wants(call.slot)):
                    calls.append(call)
            for call in calls:
                self._waiting.remove(call)
            self._robots.update(call.slot for call in calls)
        now = time.monotonic()
        begun = []
        for call in calls:
            if not call.answer.set_running_or_notify_cancel():
                continue  # its robot has left
            if call.until is not None and now > call.until:
                late = round(1000 * (now - call.until))
                call.answer.set_exception(
                    DeadlineMissed(f"deadline: its turn came {late} ms too late; ask again with a newer observation")
                )
                continue
            begun.append(call)
        return begun

    def _wait_for_company(self, first: Call) -> None:
        until = first.arrived + self.batching.max_wait_s
        while not self._is_stopping:
            expected = min(self.batching.max_batch, len(self._robots | {call.slot for call in self._waiting}))
            left = until - time.monotonic()
            if len(self._waiting) >= expected or left <= 0:
                return
            self._condition.wait(left)

    def _serve(self, calls: list[Call]) -> None:
        """Answer calls of one kind; one that fails fails alone."""
        for part in self._parts(calls):
            try:
                self._answer(part)
            except Exception as error:
                if len(part) > 1:
                    reason = _short(f"{error}")
                    logger.warning("a call for %d robots failed (%s); each gets one of its own", len(part), reason)
                    self._serve_alone(part)
                else:
                    self._fail(part[0], error)

    def _serve_alone(self, calls: Sequence[Call]) -> None:
        for call in calls:
            try:
                self._answer([call])
            except Exception as error:
                self._fail(call, error)

    def _fail(self, call: Call, error: Exception) -> None:
        """Tell one robot why its own call failed."""
        if isinstance(error, InputError):
            reason = _short(f"{error}")
            logger.info("the policy refused what a robot sent: %s", reason)
            logger.debug("where it did", exc_info=error)
            error = BadRequest(reason)
        if isinstance(error, ServerError):
            call.answer.set_exception(error)
            return
        logger.error("a policy call failed", exc_info=error)
        call.answer.set_exception(
            ServerError("the policy failed on this request; the server's log says why, and other requests go on")
        )

    def _parts(self, calls: list[Call]) -> list[list[Call]]:
        """The policy calls that some calls may share."""
        if len(calls) == 1 or not calls[0].exact:
            return [calls]
        if calls[0].remember_only:
            return [[call] for call in calls]  # frames encoded together may round differently, and are soon encoded
        policy, batches = self._variant(calls[0].settings)
        known = [
            1 if call.seed is not None else policy.num_known([call.slot], executed=[call.executed])[0]
            for call in calls
            if policy.spec.context_reach
        ]
        video, state, task = _stacked(calls)
        try:
            is_exact = batches.allows(video, state, task, calls[0].imagine, known)
        except Exception as error:
            logger.warning("a trial of sharing calls failed: %s", _short(f"{error}"))
            is_exact = False
        finally:
            policy.forget(range(self.batching.max_batch))
        return [calls] if is_exact else [[call] for call in calls]

    def _variant(self, settings: Settings) -> tuple[Policy, ExactBatches]:
        if settings not in self._variants:
            while len(self._variants) >= NUM_VARIANTS:
                self._variants.pop(next(iter(self._variants)))
            policy = self._policy.varied(planner=settings.planner, num_steps=settings.num_steps)
            trial = ExactBatches(policy=policy, first_slot=0, executed=policy.spec.execution_horizon)
            self._variants[settings] = policy, trial
        return self._variants[settings]

    def _answer(self, calls: Sequence[Call]) -> None:
        begun = time.monotonic()
        policy, _ = self._variant(calls[0].settings)
        before = policy.episodes([call.slot for call in calls])
        try:
            chunk, decision = self._decided(policy, calls)
        except Exception:
            policy.restore(before)
            raise
        actions = chunk.actions.float().numpy()
        computed = time.monotonic() - begun
        for row, call in enumerate(calls):
            if not np.isfinite(actions[row]).all():
                policy.restore({call.slot: before[call.slot]})
                call.answer.set_exception(
                    ServerError(
                        "the policy gave actions that are no finite numbers; look at its weights and statistics"
                    )
                )
                continue
            call.answer.set_result(
                Answer(
                    actions=actions[row],
                    imagined=None if chunk.imagined is None else chunk.imagined.row(row),
                    timing=dict(chunk.timing),
                    waited_s=begun - call.arrived,
                    computed_s=computed,
                    batch_size=len(calls),
                )
            )
        if self._on_batch is not None:
            self._on_batch(len(calls), computed)
        if decision is not None and len(calls) == 1 and self._wants(calls[0].slot):
            self._dream(calls[0], decision)

    def _decided(self, policy: Policy, calls: Sequence[Call]) -> tuple[ActionChunk, Decision | None]:
        """The chunks of calls of one kind, and what can be imagined beside them."""
        fresh = [call for call in calls if call.seed is not None]
        policy.reset([call.slot for call in fresh], seeds=[call.seed for call in fresh if call.seed is not None])
        video, state, task = _stacked(calls)
        slots, executed = [call.slot for call in calls], [call.executed for call in calls]
        if calls[0].remember_only:
            policy.remember(slots, video=video, executed=executed)
            return ActionChunk(actions=torch.zeros(len(calls), 0, len(policy.spec.robot.action))), None
        if calls[0].imagine:
            return policy.act(slots, video=video, state=state, task=task, executed=executed, record=True), None
        decision = policy.decide(slots, video=video, state=state, task=task, executed=executed, value=calls[0].value)
        return decision.chunk, decision

    def _dream(self, call: Call, decision: Decision) -> None:
        """Imagine for whoever looks; its robot has been answered, so a failure is nobody's."""
        if self._daydream is None:
            return
        try:
            self._daydream(call, decision)
        except Exception:
            logger.exception("imagining for the live page failed; robots are served all the same")


def _stacked(calls: Sequence[Call]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Copies, since what came over the wire may not be written to."""
    video = torch.from_numpy(np.stack([call.video for call in calls]))
    state = torch.from_numpy(np.stack([call.state for call in calls]))
    return video, state, [call.task for call in calls]


def _short(reason: str) -> str:
    """A reason without its middle when it is long: what was expected comes first, and what to do last."""
    if len(reason) <= MAX_REASON:
        return reason
    return f"{reason[: MAX_REASON // 2]} … {reason[-MAX_REASON // 2 :]}"
