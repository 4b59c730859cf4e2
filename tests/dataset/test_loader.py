import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from wamkit.data.actions import ActionTransform
from wamkit.data.loader import WindowLoader
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.data.windows import WindowConfig, num_windows
from wamkit.episode import Episode
from wamkit.spec import SpecMismatch

CONFIG = WindowConfig(context=2, chunk=3, action_horizon=6, sample_n_frames=30)


def _normalizer(columns):
    values = np.concatenate(columns).astype(np.float64)
    return Normalizer(
        kind="minmax",
        q01=tuple(np.quantile(values, 0.01, axis=0)),
        q99=tuple(np.quantile(values, 0.99, axis=0)),
        mean=tuple(values.mean(0)),
        std=tuple(values.std(0)),
    )


@pytest.fixture
def episodes():
    short = synthetic_episodes(3, length=12, height=16, width=24, seed=1)
    return short + synthetic_episodes(1, length=30, height=16, width=24, seed=2)


@pytest.fixture
def robot():
    return synthetic_robot(height=16, width=24)


@pytest.fixture
def build(episodes, robot):
    def make(dataset=None, **settings):
        defaults = {
            "action": ActionTransform(normalizer=_normalizer([episode.actions for episode in episodes])),
            "state": _normalizer([episode.state for episode in episodes]),
            "batch_size": 8,
            "seed": 3,
        }
        dataset = MemoryDataset(episodes, robot) if dataset is None else dataset
        return WindowLoader(dataset, settings.pop("config", CONFIG), **(defaults | settings))

    return make


def _same(first, second):
    for key, item in vars(first).items():
        other = getattr(second, key)
        if isinstance(item, torch.Tensor):
            assert torch.equal(item, other), key
        else:
            assert item == other, key


def test_batch_holds_the_rows_it_names(build, episodes):
    loader = build()
    rows, batch = loader.rows(5), loader.batch(5)
    assert batch.context.shape == (8, 2, 2, 16, 24, 3)
    assert batch.future.shape == (8, 2, 3, 16, 24, 3)
    action, state = (_normalizer([getattr(e, name) for e in episodes]) for name in ("actions", "state"))
    for item in range(8):
        episode = episodes[int(batch.episode_index[item])]
        assert batch.task[item] == episode.task
        for view, camera in enumerate(("front", "wrist")):
            np.testing.assert_array_equal(batch.context[item, view], episode.video[camera][rows.context[item]])
            np.testing.assert_array_equal(batch.future[item, view], episode.video[camera][rows.future[item]])
        current = rows.context[item, -1]
        expected = state.normalize(torch.from_numpy(episode.state))
        torch.testing.assert_close(batch.state[item], expected[current], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.future_state[item], expected[rows.action[item]], atol=1e-5, rtol=1e-5)
        expected = action.normalize(torch.from_numpy(episode.actions))
        torch.testing.assert_close(batch.actions[item], expected[rows.action[item]], atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(batch.is_padded[item], current + 1 + np.arange(6) >= len(episode))
    assert batch.value_targets is None


def test_a_batch_is_a_function_of_seed_and_step(build):
    first, second, other = build(), build(), build(seed=4)
    straight = [first.batch(step) for step in range(4)]
    for step in (3, 0, 2):
        _same(second.batch(step), straight[step])
    assert not torch.equal(other.batch(0).actions, straight[0].actions)
    assert not torch.equal(straight[0].actions, straight[1].actions)


def test_reseeding_shares_the_data_and_changes_the_order(build):
    loader = build()
    other = loader.reseeded(batch_size=3, seed=9)
    assert len(other.batch(0).task) == 3 and len(loader.batch(0).task) != 3
    _same(loader.reseeded(loader.batch_size, loader.seed).batch(2), loader.batch(2))
    with pytest.raises(ValueError, match="batch_size >= 1"):
        loader.reseeded(batch_size=0, seed=0)


def test_a_broken_video_is_named(build, episodes, robot):
    class Broken(MemoryDataset):
        def frames(self, episode, camera, indices):
            if len(list(indices)) > 1:
                raise ValueError("video ends early")
            return super().frames(episode, camera, indices)

    loader = build(Broken(episodes, robot), cache_frames=0)
    with pytest.raises(ValueError, match="video ends early"):
        loader.batch(0)


def test_decoding_on_demand_gives_the_same_batches(build):
    decoded = []
    cached, lazy = build(progress=lambda done, total: decoded.append((done, total))), build(cache_frames=1000)
    assert cached.frames_in_memory
    assert not lazy.frames_in_memory
    assert decoded == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for step in range(3):
        _same(cached.batch(step), lazy.batch(step))


def test_future_can_be_left_out(build):
    loader = build()
    full, without = loader.batch(1), loader.batch(1, need_future=False)
    assert without.future is None
    _same(without, replace(full, future=None))


def test_sampling_is_uniform_over_windows(build, episodes):
    loader = build(batch_size=500)
    drawn = [loader.rows(step) for step in range(8)]
    keys = np.concatenate([rows.episode * 1000 + rows.context[:, -1] for rows in drawn])
    values, counts = np.unique(keys, return_counts=True)
    total = sum(num_windows(len(episode), CONFIG) for episode in episodes)
    assert len(values) == total == loader.num_windows
    expected = len(keys) / total
    assert ((counts - expected) ** 2 / expected).sum() < 1.6 * total  # chi-square, far above its 99.9 % point


def test_cameras_in_the_order_asked_for(build):
    both, turned, one = build(), build(cameras=("wrist", "front")), build(cameras=("wrist",))
    assert torch.equal(both.batch(0).context.flip(1), turned.batch(0).context)
    assert torch.equal(both.batch(0).context[:, 1:], one.batch(0).context)
    with pytest.raises(ValueError, match=r"among \['front', 'wrist'\], got \['top'\]"):
        build(cameras=("top",))


def test_a_robot_that_does_not_match_is_refused(build, robot, episodes):
    assert build(robot=robot.with_cameras(("wrist",))).cameras == ("wrist",)
    with pytest.raises(SpecMismatch, match="wanted 32x32 px, offered 16x24 px"):
        build(robot=synthetic_robot(height=32, width=32))
    with pytest.raises(SpecMismatch, match="'top' is wanted"):
        build(robot=synthetic_robot(height=16, width=24, cameras=("top",)))
    with pytest.raises(SpecMismatch, match="names its robot"):
        build(MemoryDataset(episodes, None), robot=robot)
    with pytest.raises(SpecMismatch, match="expected 32x32 px"):
        build(MemoryDataset(episodes, synthetic_robot()))


def test_a_subset_of_episodes(build):
    loader = build(episodes=(1, 3))
    drawn = {int(index) for step in range(5) for index in loader.batch(step).episode_index}
    assert drawn == {1, 3}
    with pytest.raises(ValueError, match=r"got \[9\]"):
        build(episodes=(1, 9))


def test_values_are_required_when_asked_for(build, episodes, robot):
    transform = ValueTransform(mean=(1.0, 2.0), std=(3.0, 4.0))
    with pytest.raises(ValueError, match="wamkit data values"):
        build(value=transform)
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(len(episode), 2)).astype(np.float32) for episode in episodes]
    loader = build(MemoryDataset(episodes, robot, values), value=transform)
    rows, batch = loader.rows(0), loader.batch(0)
    assert batch.value_targets.shape == (8, 6, 2)
    expected = transform.normalize(torch.from_numpy(values[int(rows.episode[0])][rows.action[0]]))
    torch.testing.assert_close(batch.value_targets[0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="expected 3 channels in column 'value'"):
        build(MemoryDataset(episodes, robot, values), value=ValueTransform(mean=(0.0,) * 3, std=(1.0,) * 3))


def test_a_row_that_is_not_finite_is_named(build, episodes, robot):
    damaged = copy.deepcopy(episodes)  # the statistics are those of sound rows
    damaged[2].actions[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"episode 2, row 7: .*'action'"):
        build(MemoryDataset(damaged, robot))


def test_short_episodes_are_never_drawn_and_alone_are_refused(build, episodes, robot):
    first = episodes[0]
    single = Episode(
        actions=first.actions[:1],
        state=first.state[:1],
        video={camera: frames[:1] for camera, frames in first.video.items()},
        reward=first.reward[:1],
        success=first.success[:1],
        task=first.task,
    )
    loader = build(MemoryDataset([single, *episodes], robot))
    assert all(0 not in loader.rows(step).episode for step in range(20))
    with pytest.raises(ValueError, match="2 or more rows"):
        build(MemoryDataset([single], robot))


def test_memory_before_the_episode_is_marked(build):
    """Memory rows repeat the first one; only those before it are marked, in the batch as in its rows."""
    config = WindowConfig(
        context=2, chunk=1, action_horizon=5, pick="spaced", spacing=1, action_offset=0, future_stride=1, whole=True
    )
    loader = build(config=config, batch_size=200)
    rows, batch = loader.rows(0), loader.batch(0)
    np.testing.assert_array_equal(batch.is_repeated, rows.is_repeated)
    np.testing.assert_array_equal(rows.is_repeated, np.stack([rows.current == 0, np.zeros(200, dtype=bool)], axis=1))
    assert 0 < batch.is_repeated[:, 0].sum() < 200
    first = batch.is_repeated[:, 0]
    assert torch.equal(batch.context[first, :, 0], batch.context[first, :, 1])
    assert not batch.is_padded.any()
    some = batch.rows([3, 1])
    assert torch.equal(some.is_repeated, batch.is_repeated[[3, 1]])
    assert torch.equal(some.to("cpu").is_repeated, some.is_repeated)
    untold = replace(batch, is_repeated=None)
    assert untold.rows([3, 1]).is_repeated is None and untold.to("cpu").is_repeated is None


def test_whole_windows_are_counted_and_shorter_episodes_left_out(build, episodes):
    config = WindowConfig(
        context=2, chunk=1, action_horizon=15, pick="spaced", action_offset=0, future_stride=1, whole=True
    )
    loader = build(config=config)
    assert [len(episode) for episode in episodes] == [12, 12, 12, 30]
    assert loader.num_windows == 16 and set(loader.rows(0).episode) == {3}
    message = r"episode of 15 or more rows \(whole windows of 15 actions\), got 3 episodes of at most 12"
    with pytest.raises(ValueError, match=message):
        build(config=config, episodes=(0, 1, 2))
