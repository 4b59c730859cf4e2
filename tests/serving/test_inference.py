"""The policy's thread: shared calls, turns, deadlines, back-pressure, and failures that stay where they are."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest
import torch
from wamkit_client import BadRequest, Busy, DeadlineMissed, NotReady, ServerError

from wamkit.policy import Policy
from wamkit.serving.inference import MAX_REASON, Answer, Batching, Call, Inference
from wamkit.serving.requests import Settings
from wamkit.types import InputError

from ..policies import EPISODE, PLANNER, VIDEO, make_policy, watched
from .conftest import TASK, alone

SETTINGS = Settings(num_steps=3, planner=None)


class Gate(Policy):
    """The policy, held up until it is let go, and breaking when it is told to."""

    gate: threading.Event
    calls: list[int]

    def decide(self, slots: Any, **inputs: Any) -> Any:
        self.gate.wait()
        self.calls.append(len(slots))
        if "break" in inputs["task"]:
            raise RuntimeError("secret path /root")
        if "defect" in inputs["task"]:
            raise ValueError("secret path /root")
        if "refuse" in inputs["task"]:
            raise InputError(f"expected fewer words, got {'go ' * 2000}; shorten it")
        decision = super().decide(slots, **inputs)
        if "nan" in inputs["task"]:
            actions = decision.chunk.actions.clone()
            actions[inputs["task"].index("nan")] = torch.nan
            decision = dataclasses.replace(decision, chunk=dataclasses.replace(decision.chunk, actions=actions))
        return decision

    def varied(self, **settings: Any) -> Gate:
        return self  # one object sees every call


def gated() -> Gate:
    policy = make_policy()
    policy.__class__ = Gate
    assert isinstance(policy, Gate)
    policy.gate, policy.calls = threading.Event(), []
    policy.gate.set()
    return policy


@pytest.fixture
def gate() -> Gate:
    return gated()


@pytest.fixture
def inference(gate: Gate) -> Iterator[Inference]:
    running = Inference(gate, Batching(max_batch=4, max_wait_s=0.05, max_waiting=6), SETTINGS)
    running.start()
    gate.calls.clear()
    yield running
    gate.gate.set()
    running.stop()


def call(inference: Inference, slot: int, row: int = 0, **more: Any) -> Call:
    inputs = {"video": VIDEO[row].numpy(), "state": EPISODE.state[row], "task": TASK, "executed": 4, **more}
    return Call(slot=slot, settings=SETTINGS, **inputs)


def ask(inference: Inference, slot: int, row: int = 0, **more: Any) -> Future[Answer]:
    return inference.submit(call(inference, slot, row, **more))


def hold(inference: Inference, gate: Gate) -> Future[Answer]:
    """A call that the policy is busy with until the gate opens."""
    gate.gate.clear()
    begun = ask(inference, inference.new_slot(), seed=0)
    while inference.num_waiting:
        time.sleep(0.001)
    return begun


def test_who_waits_shares_a_call(inference: Inference, gate: Gate) -> None:
    first = hold(inference, gate)
    slots = [inference.new_slot() for _ in range(6)]
    answers = [ask(inference, slot, row=slot % 5, seed=slot) for slot in slots]
    gate.gate.set()
    wait([first, *answers], timeout=60)
    assert gate.calls == [1, 4, 2]
    for slot, answer in zip(slots, answers, strict=True):
        wanted = alone([slot % 5], seed=slot, executed=4)[0]
        np.testing.assert_allclose(answer.result().actions, wanted, atol=1e-5)
        assert answer.result().waited_s > 0 and answer.result().batch_size in (2, 4)


def test_a_lone_robot_waits_for_nobody_and_two_wait_for_each_other(gate: Gate) -> None:
    inference = Inference(gate, Batching(max_batch=4, max_wait_s=1.0), SETTINGS)
    inference.start()
    one, other = inference.new_slot(), inference.new_slot()
    begun = time.monotonic()
    ask(inference, one, seed=1).result()
    assert time.monotonic() - begun < 0.8
    first = ask(inference, one)
    time.sleep(0.05)
    second = ask(inference, other, seed=2)  # the first one has not asked in vain: it is served with it or before
    assert {first.result().batch_size, second.result().batch_size} <= {1, 2}
    together = ask(inference, one), ask(inference, other)
    assert [answer.result().batch_size for answer in together] == [2, 2]
    inference.forget(other)
    begun = time.monotonic()
    assert ask(inference, one).result().batch_size == 1 and time.monotonic() - begun < 0.8
    inference.stop()


def test_exact_calls_are_those_of_a_robot_alone(gate: Gate) -> None:
    inference = Inference(gate, Batching(max_batch=3, exact=True), SETTINGS)
    inference.start()
    slots = [inference.new_slot() for _ in range(3)]
    chunks: dict[int, list[np.ndarray]] = {slot: [] for slot in slots}
    for number, row in enumerate((0, 4, 8)):
        answers = {slot: ask(inference, slot, row, seed=slot if number == 0 else None, exact=True) for slot in slots}
        for slot, answer in answers.items():
            chunks[slot].append(answer.result().actions)
    for slot in slots:
        for chunk, wanted in zip(chunks[slot], alone([0, 4, 8], seed=slot, executed=4), strict=True):
            assert np.array_equal(chunk, wanted)
    inference.stop()


def test_calls_of_different_kinds_keep_apart() -> None:
    inference = Inference(make_policy(), Batching(max_batch=4, max_wait_s=0.05), SETTINGS)
    inference.start()
    planned = Settings(num_steps=3, planner=PLANNER)
    slots = [inference.new_slot() for _ in range(3)]
    calls = [
        call(inference, slots[0], seed=1),
        Call(
            slot=slots[1],
            settings=planned,
            seed=1,
            task=TASK,
            executed=0,
            video=VIDEO[0].numpy(),
            state=EPISODE.state[0],
        ),
        call(inference, slots[2], seed=1, value=True),
    ]
    drawn, searched, valued = (each.result() for each in [inference.submit(item) for item in calls])
    assert np.array_equal(drawn.actions, valued.actions) and not np.array_equal(drawn.actions, searched.actions)
    assert np.array_equal(searched.actions, alone([0], seed=1, executed=0, planner=PLANNER)[0])
    assert drawn.imagined is None and valued.imagined is not None and valued.imagined.value is not None
    inference.stop()


@pytest.mark.parametrize("broken", ["break", "defect", "nan", "refuse"])
def test_one_that_fails_fails_alone(
    inference: Inference, gate: Gate, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slots = [inference.new_slot() for _ in range(3)]
    for slot in slots:
        ask(inference, slot, 0, seed=slot).result()
    first = hold(inference, gate)
    answers = [ask(inference, slot, 4, task=broken if slot == slots[1] else TASK) for slot in slots]
    gate.gate.set()
    first.result()
    with pytest.raises(ServerError) as error:
        answers[1].result()
    assert "secret" not in str(error.value) and "/root" not in str(error.value)
    assert isinstance(error.value, BadRequest) == (broken == "refuse")
    if broken == "refuse":
        assert re.fullmatch("expected fewer words, got (go )+.*… .*(go )+; shorten it", str(error.value))
        said = [record.getMessage() for record in caplog.records]
        assert len(str(error.value)) <= MAX_REASON + 3 and all(len(line) < 2 * MAX_REASON for line in said)
        assert any("the policy refused" in line for line in said)
    for slot in (slots[0], slots[2]):
        wanted = alone([0, 4], seed=slot, executed=4)[1]
        position = slots.index(slot)
        np.testing.assert_allclose(answers[position].result().actions, wanted, atol=1e-5)
    if broken in ("break", "defect"):
        assert "secret path" in caplog.text, "the log says why"
    if broken != "nan":
        again = ask(inference, slots[1], 4).result().actions  # its episode is as before the call that failed
        np.testing.assert_allclose(again, alone([0, 4], seed=slots[1], executed=4)[1], atol=1e-5)


def test_too_many_are_told_to_come_again(inference: Inference, gate: Gate) -> None:
    first = hold(inference, gate)
    answers = [ask(inference, inference.new_slot(), seed=0) for _ in range(6)]
    with pytest.raises(Busy, match="6 requests wait already") as busy:
        ask(inference, inference.new_slot(), seed=0)
    assert busy.value.retry_after_s is not None and busy.value.retry_after_s > 0
    gate.gate.set()
    assert all(answer.result() for answer in [first, *answers])
    assert ask(inference, inference.new_slot(), seed=0).result()


def test_a_deadline_that_has_passed_costs_nothing(inference: Inference, gate: Gate) -> None:
    slot = inference.new_slot()
    ask(inference, slot, 0, seed=3).result()
    first = hold(inference, gate)
    late = ask(inference, slot, 4, until=time.monotonic() + 0.01)
    time.sleep(0.03)
    gate.gate.set()
    first.result()
    with pytest.raises(DeadlineMissed, match="ms too late"):
        late.result()
    in_time = ask(inference, slot, 4, until=time.monotonic() + 30).result()
    np.testing.assert_allclose(in_time.actions, alone([0, 4], seed=3, executed=4)[1], atol=1e-5)


def test_a_call_that_still_waits_at_its_deadline_is_told_then(inference: Inference, gate: Gate) -> None:
    first = hold(inference, gate)
    late = call(inference, inference.new_slot(), seed=1)
    told = inference.submit(late)
    inference.expire(late)
    with pytest.raises(DeadlineMissed, match="did not come in time"):
        told.result(timeout=1)
    gone = call(inference, inference.new_slot(), seed=1)
    assert inference.submit(gone).cancel()
    inference.expire(gone)  # its robot has left at the same moment
    gate.gate.set()
    assert first.result() and inference.num_waiting == 0
    inference.expire(late)  # its answer is there: nothing to do
    assert gate.calls == [1]


@pytest.mark.parametrize("task", ["break", "nan", "refuse"])
def test_a_beginning_that_fails_leaves_the_episode_before(inference: Inference, task: str) -> None:
    slot = inference.new_slot()
    ask(inference, slot, 0, seed=3).result()
    with pytest.raises(ServerError):
        ask(inference, slot, 8, seed=9, task=task).result()
    went_on = ask(inference, slot, 4).result()
    np.testing.assert_allclose(went_on.actions, alone([0, 4], seed=3, executed=4)[1], atol=1e-5)


def test_the_end_waits_no_longer_than_it_is_told_to(inference: Inference, gate: Gate) -> None:
    first = hold(inference, gate)
    begun = time.monotonic()
    assert not inference.stop(0.05) and time.monotonic() - begun < 5
    gate.gate.set()
    assert inference.stop(20.0) and first.result()


def test_a_robot_that_has_left_is_not_computed_for(inference: Inference, gate: Gate) -> None:
    first = hold(inference, gate)
    gone, stays = ask(inference, inference.new_slot(), seed=1), ask(inference, inference.new_slot(), seed=2)
    assert gone.cancel()
    gate.gate.set()
    assert stays.result() and first.result() and gate.calls == [1, 1]


def test_a_call_of_a_slot_that_was_given_back_does_not_open_it_again(inference: Inference, gate: Gate) -> None:
    first, slot = hold(inference, gate), inference.new_slot()
    gone = ask(inference, slot, seed=1)
    inference.forget(slot)  # its robot has left, and the news that its call was cancelled is still on its way
    gate.gate.set()
    first.result()
    ask(inference, inference.new_slot(), seed=0).result()
    assert gone.cancelled() and slot not in gate._slots


def test_slots_given_back_leave_nothing(inference: Inference, gate: Gate) -> None:
    slots = [inference.new_slot() for _ in range(20)]
    for slot in slots:
        ask(inference, slot, seed=0).result()
        inference.forget(slot)
    ask(inference, inference.new_slot(), seed=0).result()
    assert len(gate._slots) <= 2


def test_before_and_after_its_time_it_says_so(gate: Gate) -> None:
    inference = Inference(gate, Batching(max_batch=2), SETTINGS)
    with pytest.raises(NotReady, match="still warms up"):
        ask(inference, inference.new_slot(), seed=0)
    inference.start()
    assert sorted(gate.calls) == [1, 2], "warm-up runs what will be asked"
    assert not gate._slots
    first = hold(inference, gate)
    stopping = threading.Thread(target=inference.stop)
    stopping.start()
    while inference.is_ready:
        time.sleep(0.001)
    with pytest.raises(NotReady, match="shutting down"):
        ask(inference, inference.new_slot(), seed=0)
    gate.gate.set()
    stopping.join()
    assert first.result().actions.shape == (9, 3), "what was under way is finished"


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_waiting": 0}, {"max_wait_s": -1.0}, {"max_wait_s": 2.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected max_batch and max_waiting of 1 or more"):
        Batching(**wrong)


def test_variants_are_bounded() -> None:
    inference = Inference(make_policy(), Batching(max_batch=1), SETTINGS)
    inference.start()
    slot = inference.new_slot()
    for steps in range(1, 13):
        request = Call(
            slot=slot,
            settings=Settings(num_steps=steps, planner=None),
            seed=1,
            task=TASK,
            executed=0,
            video=VIDEO[0].numpy(),
            state=EPISODE.state[0],
        )
        inference.submit(request).result()
    assert len(inference._variants) <= 8
    inference.stop()


class Counted(Policy):
    """A policy that notes how many robots each of its calls is for."""

    sizes: list[tuple[str, int]]

    def remember(self, slots: Any, **inputs: Any) -> None:
        self.sizes.append(("remember", len(slots)))
        super().remember(slots, **inputs)

    def decide(self, slots: Any, **inputs: Any) -> Any:
        self.sizes.append(("decide", len(slots)))
        return super().decide(slots, **inputs)

    def varied(self, **settings: Any) -> Counted:
        return self


@pytest.mark.parametrize("exact", [False, True])
def test_a_memory_with_a_stride_is_warm_full_and_empty_and_exact_where_asked(exact: bool) -> None:
    plain, model = watched(2)
    policy = Counted(model, plain.spec, plain.transforms, num_steps=1)
    policy.sizes = []
    inference = Inference(policy, Batching(max_batch=2, max_wait_s=0.5, exact=exact), SETTINGS)
    inference.start()
    try:
        warm = [row for call in model.known for row in call or ()]
        assert [False, True] in warm and [True, True] in warm
        model.known.clear()
        policy.sizes.clear()
        options = {"executed": 0, "exact": exact}
        wait([ask(inference, slot, seed=slot, **options) for slot in (5, 6)])
        policy.sizes.clear()
        model.known.clear()
        model.memories.clear()
        wait([ask(inference, slot, row=2, remember_only=True, exact=exact, executed=2) for slot in (5, 6)])
        assert policy.sizes == ([("remember", 1)] * 2 if exact else [("remember", 2)])
        wait([ask(inference, slot, row=slot, exact=exact, executed=slot - 3) for slot in (5, 6)])
        assert [row for call in model.known for row in call or ()][-2:] == [[True, True], [False, True]]
        assert torch.equal(torch.cat(model.memories)[-2:], VIDEO[torch.tensor([[2, 5], [6, 6]])])
    finally:
        inference.stop()
