"""Subsets and mixtures: episodes keep their numbers, windows are drawn in their shares, unlike datasets are refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.data.actions import ActionTransform
from wamkit.data.choices import choose_episodes, parse_episodes, ranges_of, require_tasks
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.loader import WindowLoader
from wamkit.data.mixture import Mixture
from wamkit.data.source import numeric_column
from wamkit.data.stats import WEIGHTED_METHOD, compute_statistics, feature_statistics
from wamkit.data.subset import Subset
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.value_labels import SparseValueSettings, label_values
from wamkit.data.windows import WindowConfig
from wamkit.data.writer import LeRobotWriter
from wamkit.spec import SpecMismatch

WINDOWS = WindowConfig(context=2, chunk=3, action_horizon=6, pick="spaced", spacing=2)


def memory(num: int, *, length: int = 12, seed: int = 0, **robot: object) -> MemoryDataset:
    episodes = synthetic_episodes(num, length=length, seed=seed)
    return MemoryDataset(episodes, dataclasses.replace(synthetic_robot(), **robot))


def loader(source: object, *, batch_size: int = 8, windows: WindowConfig = WINDOWS, **options: object) -> WindowLoader:
    statistics = compute_statistics(source)
    action = ActionTransform(normalizer=Normalizer.from_statistics("minmax", statistics["action"]))
    state = Normalizer.from_statistics("minmax", statistics["state"])
    return WindowLoader(source, windows, action=action, state=state, batch_size=batch_size, seed=3, **options)


def test_a_subset_gives_what_the_loader_gives_of_these_episodes() -> None:
    whole = memory(5)
    subset = Subset(whole, [3, 1])
    assert [entry.index for entry in subset.episodes] == [1, 3]
    part, same = loader(subset), loader(whole, episodes=[1, 3])
    for step in (0, 7):
        one, other = part.rows(step), same.rows(step)
        assert all(np.array_equal(getattr(one, key), getattr(other, key)) for key in vars(one))
    assert torch.equal(part.batch(2).context, same.batch(2).context)
    assert compute_statistics(subset) == compute_statistics(whole, episodes=[1, 3])
    with pytest.raises(ValueError, match=r"some of the dataset's 5 episodes, got \[9\]"):
        Subset(whole, [1, 9])
    with pytest.raises(ValueError, match="got none"):
        Subset(whole, [])


def test_a_mixture_numbers_episodes_through() -> None:
    one, other = memory(3), memory(2, length=20, seed=5)
    mixture = Mixture([Subset(one, [2]), other], names=["a", "b"])
    assert [entry.index for entry in mixture.episodes] == [2, 3, 4], "numbers do not depend on what is left out"
    assert (mixture.part_of(2), mixture.part_of(3), mixture.number(1, 1)) == (0, 1, 4)
    assert np.array_equal(mixture.columns(4)["action"], other.columns(1)["action"])
    assert np.array_equal(mixture.frames(2, "front", [5]), one.frames(2, "front", [5]))
    with pytest.raises(ValueError, match="from 0 to 4, got 5"):
        mixture.part_of(5)


def test_without_weights_every_window_is_as_likely() -> None:
    one, other = memory(3), memory(2, length=12, seed=5)
    mixed = loader(Mixture([one, other], names=["a", "b"]))
    joined = loader(MemoryDataset([*one._episodes, *other._episodes], one.robot))
    for step in range(3):
        assert np.array_equal(mixed.rows(step).episode, joined.rows(step).episode)
        assert np.array_equal(mixed.rows(step).action, joined.rows(step).action)
    assert compute_statistics(mixed.dataset) == compute_statistics(joined.dataset)


def test_windows_are_drawn_in_their_shares_and_again_the_same() -> None:
    mixture = Mixture([memory(4), memory(1, length=30, seed=5)], names=["a", "b"], weights=[3.0, 1.0])
    source = loader(mixture, batch_size=500)
    counts = Counter(int(index) for step in range(20) for index in source.rows(step).episode)
    share = counts[4] / 10_000
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 10_000) ** 0.5
    assert min(counts[index] for index in range(4)) > 1600, "evenly within a dataset"
    again = loader(mixture, batch_size=500)
    assert np.array_equal(source.rows(7).current, again.rows(7).current)
    assert not np.array_equal(source.rows(7).current, source.rows(8).current)
    lasts = {int(row) for step in range(20) for row in source.rows(step).current[source.rows(step).episode == 4]}
    assert lasts == set(range(29)), "every window of the dataset is drawn"


def test_datasets_without_chosen_episodes_are_left_out_of_the_draw() -> None:
    mixture = Mixture([memory(2), memory(2, seed=1), memory(2, seed=2)], names=["a", "b", "c"], weights=[1.0, 5.0, 1.0])
    source = loader(Subset(mixture, [0, 5]), batch_size=400)
    counts = Counter(source.rows(0).episode.tolist())
    assert set(counts) == {0, 5} and abs(counts[0] - 200) < 60


def test_a_dataset_without_a_window_is_named() -> None:
    mixture = Mixture([memory(2), memory(1, length=30)], names=["short", "long"], weights=[1.0, 1.0])
    whole = WindowConfig(action_horizon=20, chunk=1, future_stride=1, pick="spaced", action_offset=0, whole=True)
    message = r"20 or more rows \(whole windows of 20 actions\) in dataset 'short'; leave it out"
    with pytest.raises(ValueError, match=message):
        loader(mixture, windows=whole)


def test_rows_count_as_often_as_they_are_drawn() -> None:
    """Weights that are whole multiples give the statistics of rows repeated as often."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 3))
    times = rng.integers(1, 5, size=400)
    weighted, repeated = feature_statistics(rows, times / times.sum()), np.repeat(rows, times, axis=0)
    for name, level in (("q01", 0.01), ("q99", 0.99)):
        expected = np.quantile(repeated, level, axis=0, method="inverted_cdf")
        assert np.allclose(getattr(weighted, name), expected)
    inside = ((repeated >= weighted.q01) & (repeated <= weighted.q99)).all(axis=1)
    assert np.allclose(weighted.mean, repeated[inside].mean(axis=0))
    assert np.allclose(weighted.std, repeated[inside].std(axis=0))
    assert weighted.method == WEIGHTED_METHOD and weighted.count == 400


def test_statistics_of_a_mixture_follow_its_weights() -> None:
    one, other = memory(2), memory(2, length=40, seed=9)
    other._episodes = [dataclasses.replace(episode, state=episode.state + 1) for episode in other._episodes]
    means = [compute_statistics(source)["state"].mean[0] for source in (one, other)]
    for weights, near in (([99.0, 1.0], means[0]), ([1.0, 99.0], means[1])):
        mixed = compute_statistics(Mixture([one, other], names=["a", "b"], weights=weights))
        assert abs(mixed["state"].mean[0] - near) < 0.2 * abs(means[0] - means[1])
        assert list(mixed) == ["action", "action_delta", "state"]


def write(root: Path, *, seed: int = 0, num: int = 2, **robot: object) -> LeRobotDataset:
    spec = dataclasses.replace(synthetic_robot(), **robot)
    with LeRobotWriter(root, spec) as writer:
        for episode in synthetic_episodes(num, length=12, seed=seed):
            writer.add(episode)
    return LeRobotDataset(root)


def test_datasets_of_another_robot_are_refused() -> None:
    with pytest.raises(SpecMismatch, match=r"dataset 'a' and dataset 'b' do not fit:\n.*gripper_sign: wanted 'close"):
        Mixture([memory(1), memory(1, gripper_sign="open_positive")], names=["a", "b"])
    with pytest.raises(SpecMismatch, match=r"control_hz: wanted 20\.0, offered 10\.0"):
        Mixture([memory(1), memory(1, control_hz=10.0)], names=["a", "b"])
    nameless = memory(1)
    nameless.robot = None
    with pytest.raises(ValueError, match=r"'b' does not: .*wamkit data describe"):
        Mixture([memory(1), nameless], names=["a", "b"])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_are_positive_and_one_each(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"a positive weight for each of the 2 datasets \['a', 'b'\]"):
        Mixture([memory(1), memory(1)], names=["a", "b"], weights=weights)


def test_columns_on_disk_have_to_agree(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other", seed=4)
    fingerprint = Mixture([one, other], names=["one", "other"], weights=[1.0, 1.0]).fingerprint()
    assert fingerprint == Mixture([one, other], names=["x", "y"], weights=[2.0, 2.0]).fingerprint()
    assert fingerprint != Mixture([one, other], names=["x", "y"], weights=[2.0, 1.0]).fingerprint()
    label_values(one, SparseValueSettings())
    one = LeRobotDataset(one.root)
    with pytest.raises(SpecMismatch, match=r"(?s)'one' and 'other' cannot be mixed.*column 'value': \[1\] and none"):
        Mixture([one, other], names=["one", "other"])
    label_values(other, SparseValueSettings(gamma=0.5))
    with pytest.raises(SpecMismatch, match=r"(?s)value settings: .*'gamma'"):
        Mixture([one, LeRobotDataset(other.root)], names=["one", "other"])


def test_messages_name_the_dataset_and_its_own_episode(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    mixture = Subset(Mixture([one, other], names=["one", "other"]), [3])
    columns = mixture.columns(3)
    columns["action"] = columns["action"].copy()
    columns["action"][4, 1] = np.nan
    with pytest.raises(ValueError, match=r"other/data/.*: episode 1 of 'other', row 4: .*channel 1 'dy'"):
        numeric_column(columns, "action", mixture.episodes[0], source=mixture)


def test_episodes_as_users_write_them() -> None:
    ranges = parse_episodes([7, "0:3", "10:", "b=2:4"], setting="data.episodes")
    chosen = choose_episodes(ranges[:3], names=["a"], counts=[12], setting="data.episodes")
    assert chosen == [{0, 1, 2, 7, 10, 11}]
    assert choose_episodes(ranges[3:], names=["a", "b"], counts=[5, 5], setting="s") == [None, {2, 3}]
    assert ranges_of([0, 1, 2, 7, 10, 11]) == ["0:3", 7, 10, 11]
    require_tasks(["push"], ["pull", "push"], setting="data.tasks")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["x"], "expected episodes as 7, 0:40"),
        (["-3"], "expected episodes as 7, 0:40"),
        (["4:4"], "a range that holds episodes, got '4:4'"),
        (["0:40"], "some of the episodes 0 to 4 of dataset 'a', got '0:40'; 0: means all"),
        ([5], "some of the episodes 0 to 4 of dataset 'a', got '5'"),
        (["c=0:2"], r"the name of one of the datasets \['a', 'b'\], got 'c'"),
    ],
)
def test_episodes_that_there_are_not(items: list, message: str) -> None:
    with pytest.raises(ValueError, match=f"data.episodes: .*{message}"):
        ranges = parse_episodes(items, setting="data.episodes")
        choose_episodes(ranges, names=["a", "b"], counts=[5, 5], setting="data.episodes")


def test_an_unknown_sentence_names_what_is_near() -> None:
    with pytest.raises(ValueError, match=r"got 'push the reed square'; near to it: 'push the red square'"):
        require_tasks(["push the reed square"], ["push the red square", "open"], setting="data.tasks")
