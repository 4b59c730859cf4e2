import logging

import numpy as np
import pytest

from wamkit.data.windows import (
    WindowConfig,
    num_windows,
    select_rows,
    window_ends,
)


@pytest.mark.parametrize("first_row", [0, 1])
@pytest.mark.parametrize(
    ("pick", "context", "chunk", "horizon", "stretch"),
    [
        ("random", 4, 9, 36, 500),
        ("random", 4, 9, 36, 39),
        ("uniform", 4, 9, 36, 60),
        ("uniform", 1, 3, 6, 7),
        ("random", 1, 9, 9, 20),
        ("random", 2, 1, 4, 5),
        ("spaced", 3, 9, 18, 500),
    ],
)
def test_check_11_index_selection(pick, context, chunk, horizon, stretch, first_row):
    config = WindowConfig(
        context=context,
        chunk=chunk,
        action_horizon=horizon,
        sample_n_frames=stretch,
        pick=pick,
        spacing=4 if pick == "spaced" else 1,
        first_row=first_row,
    )
    for length in range(2, 61):
        for end in range(horizon, length + horizon + 1):
            rows = select_rows(length, end, config, np.random.default_rng(end))
            assert rows.context.shape == (context,)
            assert rows.future.shape == (chunk,)
            assert rows.action.shape == rows.is_padded.shape == (horizon,)
            assert (rows.context[1:] >= rows.context[:-1]).all()
            assert rows.context[-1] == min(max(end - horizon - 1, first_row), length - 1)
            every = np.concatenate([rows.context, rows.future, rows.action])
            assert first_row <= every.min() <= every.max() <= length - 1
            # Before clipping: the last A rows below `end`, and every stride-th of them.
            action = range(end - horizon, end)
            future = action[config.stride - 1 :: config.stride]
            assert rows.action.tolist() == [min(max(row, first_row), length - 1) for row in action]
            assert rows.future.tolist() == [min(max(row, first_row), length - 1) for row in future]
            assert rows.is_padded.tolist() == [row >= length for row in action]


def test_reference_window_by_hand():
    """T=10, A=6, chunk 3, current row 4: targets 5 … 10, of which row 10 does not exist."""
    config = WindowConfig(context=3, chunk=3, action_horizon=6, sample_n_frames=9, pick="uniform", first_row=1)
    rows = select_rows(10, 11, config, np.random.default_rng(0))
    np.testing.assert_array_equal(rows.action, [5, 6, 7, 8, 9, 9])
    np.testing.assert_array_equal(rows.is_padded, [False] * 5 + [True])
    np.testing.assert_array_equal(rows.future, [6, 8, 9])
    np.testing.assert_array_equal(rows.context, [2, 3, 4])  # candidates 2, 3, 4 of the stretch 2 … 10


def test_memory_is_made_up_with_the_first_row_when_the_stretch_is_short():
    config = WindowConfig(context=4, chunk=3, action_horizon=6, sample_n_frames=8, pick="random", first_row=1)
    rows = select_rows(30, 20, config, np.random.default_rng(0))  # candidates 12 and 13
    assert rows.context[-1] == 13
    assert set(rows.context[:-1]) <= {1, 12}
    assert (rows.context[:-1] == 1).sum() >= 2


def test_action_offset_zero_pairs_the_observation_with_its_action():
    config = WindowConfig(context=2, chunk=3, action_horizon=6, sample_n_frames=20, action_offset=0)
    rows = select_rows(40, 10 + config.action_horizon + 1, config, np.random.default_rng(0))
    np.testing.assert_array_equal(rows.action, np.arange(10, 16))
    np.testing.assert_array_equal(rows.future, [12, 14, 16])
    assert rows.context[-1] == 10


def test_random_memory_is_distinct_and_covers_every_candidate():
    config = WindowConfig(context=3, chunk=3, action_horizon=3, sample_n_frames=9)
    rng = np.random.default_rng(0)
    seen = np.stack([select_rows(50, 33, config, rng).context for _ in range(400)])
    assert (np.diff(seen, axis=1) > 0).all()
    assert set(seen[:, :-1].ravel()) == set(range(24, 29))
    assert set(seen[:, -1]) == {29}
    counts = np.bincount(seen[:, :-1].ravel() - 24)
    assert counts.min() > 120  # expectation 160 each


def test_spaced_memory_is_the_closed_loops():
    config = WindowConfig(context=4, chunk=3, action_horizon=6, pick="spaced", spacing=5)
    for current, expected in [(0, [0, 0, 0, 0]), (5, [0, 0, 0, 5]), (12, [0, 2, 7, 12]), (17, [2, 7, 12, 17])]:
        rows = select_rows(40, current + config.action_horizon + 1, config, np.random.default_rng(0))
        np.testing.assert_array_equal(rows.context, expected)


@pytest.mark.parametrize("offset", [0, 1])
def test_corrected_windows_have_a_current_row_and_an_action_inside(offset):
    config = WindowConfig(context=2, chunk=3, action_horizon=6, action_offset=offset)
    for length in range(1, 20):
        ends = window_ends(length, config)
        assert num_windows(length, config) == length - offset
        for end in ends:
            rows = select_rows(length, end, config, np.random.default_rng(0))
            assert rows.context[-1] == end - 7
            assert not rows.is_padded[0]


NEXT = {"context": 2, "chunk": 1, "future_stride": 1, "pick": "spaced", "action_offset": 0, "whole": True}


@pytest.mark.parametrize(
    ("settings", "fewer"),
    [
        ({"action_horizon": 5}, 4),  # T - K + 1: the next frame is well inside
        ({"action_horizon": 2}, 1),
        ({"action_horizon": 1}, 1),  # T - 1: the last row has no next frame
        ({"action_horizon": 5, "future_stride": None}, 5),  # the frame after the last action
        ({"action_horizon": 5, "future_stride": 7}, 7),
        ({"action_horizon": 5, "chunk": 3, "future_stride": 2}, 6),
        ({"action_horizon": 5, "action_offset": 1}, 5),
        ({"action_horizon": 5, "first_row": 1}, 5),
    ],
)
def test_whole_windows_lie_inside_the_episode(settings, fewer):
    config = WindowConfig(**(NEXT | settings))
    assert config.min_length == fewer + 1
    for length in range(1, 20):
        ends = window_ends(length, config)
        assert num_windows(length, config) == max(0, length - fewer)
        for end in ends:
            rows = select_rows(length, end, config, np.random.default_rng(0))
            # nothing was clipped: these are the rows that the rule names
            assert rows.current == rows.context[-1] >= config.first_row
            assert rows.action.tolist() == [
                rows.current + config.action_offset + step for step in range(config.action_horizon)
            ]
            assert rows.future.tolist() == [rows.current + config.stride * (k + 1) for k in range(config.chunk)]
            assert max(rows.action[-1], rows.future[-1]) <= length - 1
            assert not rows.is_padded.any()
        if ends:  # and the window after the last would not fit
            rows = select_rows(length, ends[-1] + 1, config, np.random.default_rng(0))
            assert rows.is_padded.any() or rows.current + config.stride * config.chunk > length - 1


def test_windows_that_are_not_whole_have_the_shortest_episode_that_they_say():
    for settings in ({"action_offset": 0}, {"action_offset": 1}, {"first_row": 1}):
        config = WindowConfig(**settings)
        assert num_windows(config.min_length, config) > 0 == num_windows(config.min_length - 1, config)


def test_one_future_frame_one_row_ahead_of_a_chunk():
    config = WindowConfig(**(NEXT | {"action_horizon": 5, "whole": False}))
    rows = select_rows(10, 3 + 5 + 1, config, np.random.default_rng(0))
    assert (rows.future.tolist(), rows.action.tolist(), rows.context.tolist()) == ([4], [3, 4, 5, 6, 7], [2, 3])
    assert (
        WindowConfig(chunk=3, action_horizon=6, future_stride=2).stride
        == WindowConfig(chunk=3, action_horizon=6).stride
    )


@pytest.mark.parametrize(
    ("settings", "current", "repeated"),
    [
        ({"spacing": 5}, 12, [True, False, False, False]),  # rows -3, 2, 7, 12
        ({"spacing": 5}, 0, [True, True, True, False]),
        ({"spacing": 5}, 15, [False, False, False, False]),  # rows 0, 5, 10, 15
        ({"spacing": 5, "first_row": 1}, 15, [True, False, False, False]),
        ({"pick": "uniform", "first_row": 1}, 3, [True, True, True, False]),  # candidates -4 ... 3: -4, -2, 0, 3
    ],
)
def test_memory_before_the_episode_is_told(settings, current, repeated):
    config = WindowConfig(**({"context": 4, "chunk": 3, "action_horizon": 6, "pick": "spaced"} | settings))
    rows = select_rows(40, current + config.action_horizon + 1, config, np.random.default_rng(0))
    assert rows.is_repeated.tolist() == repeated
    assert (rows.context[rows.is_repeated] == config.first_row).all()


def test_reference_windows_are_the_published_range():
    config = WindowConfig(first_row=1)
    assert list(window_ends(3, config)) == [36, 37, 38, 39]
    assert num_windows(1, config) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action_horizon": 20}, "multiple of chunk = 9, got 20; the next one is 27, or set future_stride"),
        ({"future_stride": 0}, "expected future_stride of 1 or more rows"),
        ({"sample_n_frames": 36}, "sample_n_frames above"),
        ({"context": 0}, "context of 1 or more"),
        ({"action_offset": 2}, "0 or 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WindowConfig(**settings)


def test_a_setting_without_effect_warns(caplog):
    with caplog.at_level(logging.WARNING):
        WindowConfig(pick="random", spacing=3)
    assert "no effect" in caplog.text


def test_out_of_range_is_refused():
    config = WindowConfig()
    with pytest.raises(ValueError, match="expected end between 36 and 46"):
        select_rows(10, 47, config, np.random.default_rng(0))
    with pytest.raises(ValueError, match="more than 0 rows"):
        select_rows(0, 36, config, np.random.default_rng(0))
