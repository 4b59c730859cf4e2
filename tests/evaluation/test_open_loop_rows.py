"""Which rows an open-loop validation shows and compares, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wamkit.data.synthetic import synthetic_robot
from wamkit.evaluation.open_loop_protocol import make_protocol
from wamkit.evaluation.open_loop_rows import chunk_rows, future_rows
from wamkit.spec import PolicySpec

TRAINED = {"recipe": {"data": {"action_offset": 0}}}
LED = {"recipe": {"data": {"action_offset": 1}}}


def spec(
    num_context: int = 4, action_horizon: int = 36, execution_horizon: int = 8, context_stride: int | None = None
) -> PolicySpec:
    return PolicySpec(
        family="wav",
        robot=synthetic_robot(),
        num_context=num_context,
        action_horizon=action_horizon,
        execution_horizon=execution_horizon,
        normalization="minmax",
        context_stride=context_stride,
    )


def test_the_reference_spreads_memory_over_all_rows_before_a_chunk() -> None:
    """WAV 6.4: chunks of Ta rows from 0, memory linspace(0, start - 1, P) rounded, zeros for the first."""
    protocol = make_protocol("reference", spec(), TRAINED)
    chunks = chunk_rows(100, spec(), protocol)
    assert [chunk.context.tolist() for chunk in chunks] == [[0, 0, 0, 0], [0, 12, 23, 35], [0, 24, 47, 71]]
    assert [(int(chunk.action[0]), int(chunk.action[-1])) for chunk in chunks] == [(0, 35), (36, 71), (72, 107)]
    steps = tuple(range(4, 37, 4))
    assert future_rows(chunks[1], steps, protocol).tolist() == list(range(36, 72, 4))
    single = chunk_rows(100, spec(num_context=1), protocol)
    assert [chunk.current for chunk in single] == [0, 35, 71], "one memory frame is the newest, not row 0 for ever"


@pytest.mark.parametrize(("training", "offset", "last"), [(TRAINED, 0, 96), (LED, 1, 88)])
def test_a_policy_is_asked_as_the_control_loop_asks_it(training: dict[str, Any], offset: int, last: int) -> None:
    protocol = make_protocol("policy", spec(), training)
    chunks = chunk_rows(97, spec(), protocol)
    assert [chunk.current for chunk in chunks] == list(range(0, last + 1, 8)), "each call has a row to compare with"
    assert [chunk.context.tolist() for chunk in chunks[:5]] == [
        [0, 0, 0, 0],
        [0, 0, 0, 8],
        [0, 0, 8, 16],
        [0, 8, 16, 24],
        [8, 16, 24, 32],
    ]
    assert chunks[3].action.tolist() == list(range(24 + offset, 24 + offset + 36))
    assert future_rows(chunks[3], (4, 8), protocol).tolist() == [28, 32]


def test_memory_shifts_by_its_threshold() -> None:
    """WAV 6.5: the newest place is replaced until `threshold` actions were executed."""
    protocol = make_protocol("policy", spec(), TRAINED, execution_horizon=4, memory_threshold=8)
    contexts = [chunk.context.tolist() for chunk in chunk_rows(24, spec(), protocol)]
    # the first call leaves the counter at threshold - 1, so the second one shifts
    assert contexts == [[0, 0, 0, 0], [0, 0, 0, 4], [0, 0, 0, 8], [0, 0, 8, 12], [0, 0, 8, 16], [0, 8, 16, 20]]


def test_memory_is_known_as_far_as_the_episode_has_lasted() -> None:
    for name in ("policy", "reference"):
        chunks = chunk_rows(97, spec(), make_protocol(name, spec(), TRAINED))
        assert chunks[0].known.tolist() == [False, False, False, True] and chunks[-1].known.all()


@pytest.mark.parametrize(
    ("num_context", "stride", "horizon", "contexts"),
    [
        (2, 1, 5, [[0, 0], [4, 5], [9, 10], [14, 15]]),
        (2, 1, 1, [[0, 0], [0, 1], [1, 2], [2, 3]]),
        (3, 2, 4, [[0, 0, 0], [0, 2, 4], [4, 6, 8], [8, 10, 12]]),
        (3, 3, 4, [[0, 0, 0], [1, 1, 4], [2, 5, 8], [6, 9, 12]]),
        (3, 8, 5, [[0, 0, 0], [5, 5, 5], [2, 2, 10], [7, 7, 15]]),
    ],
)
def test_memory_with_a_stride_is_of_rows_so_far_apart(
    num_context: int, stride: int, horizon: int, contexts: list[list[int]]
) -> None:
    strided = spec(num_context=num_context, execution_horizon=horizon, context_stride=stride)
    protocol = make_protocol("policy", strided, TRAINED)
    chunks = chunk_rows(60, strided, protocol)
    assert [chunk.context.tolist() for chunk in chunks[:4]] == contexts
    for chunk in chunks:
        rows = chunk.current - stride * np.arange(num_context)[::-1]
        assert chunk.known.tolist() == (rows >= 0).tolist()
        assert (chunk.context[chunk.known] == rows[rows >= 0]).all()
    assert protocol.description.startswith(f"a call every {horizon} rows, memory of frames {stride} rows apart, first")


def test_settings_that_do_not_fit_a_stride_are_refused() -> None:
    strided = spec(context_stride=2)
    with pytest.raises(ValueError, match=r"this policy's frames are 2 rows apart; use protocol 'policy'"):
        make_protocol("reference", strided, TRAINED)
    assert make_protocol("reference", spec(num_context=1, context_stride=2), TRAINED).name == "reference"
    with pytest.raises(ValueError, match="memory_threshold: without effect on a policy that remembers frames 2 rows"):
        make_protocol("policy", strided, TRAINED, memory_threshold=1)


def test_every_row_is_executed_once() -> None:
    for horizon, length in ((8, 97), (5, 23), (36, 36), (1, 7)):
        protocol = make_protocol("policy", spec(), TRAINED, execution_horizon=horizon)
        executed = [chunk.action[:horizon] for chunk in chunk_rows(length, spec(), protocol)]
        rows = np.concatenate(executed)
        assert rows[rows < length].tolist() == list(range(length))


@pytest.mark.parametrize(
    ("name", "training", "options", "message"),
    [
        ("closed", TRAINED, {}, "expected the protocol 'policy' or 'reference', got 'closed'"),
        ("reference", TRAINED, {"memory_threshold": 2}, "memory_threshold: without effect on protocol 'reference'"),
        ("policy", {}, {}, "--action-offset 0 for the row of the observation, 1 for the next one"),
        ("policy", TRAINED, {"action_offset": 2}, "expected an action_offset of 0 or 1, got 2"),
        ("policy", TRAINED, {"memory_threshold": 0}, "expected memory_threshold >= 1, got 0"),
        ("policy", TRAINED, {"execution_horizon": 37}, "between 1 and the policy's action horizon 36, got 37"),
    ],
)
def test_wrong_settings_are_explained(name: str, training: dict[str, Any], options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_protocol(name, spec(), training, **options)
    assert make_protocol("policy", spec(), {}, action_offset=1).action_offset == 1


def test_one_row_is_too_short() -> None:
    with pytest.raises(ValueError, match="expected an episode of 2 or more rows, got 1"):
        chunk_rows(1, spec(), make_protocol("policy", spec(), TRAINED))
