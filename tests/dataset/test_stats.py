import json

import numpy as np
import pytest

from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.stats import (
    STATISTICS_PATH,
    compute_statistics,
    current_statistics,
    feature_statistics,
    read_statistics,
    write_statistics,
)
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.wav_statistics import read_wav_statistics, write_wav_statistics


@pytest.fixture
def episodes():
    return synthetic_episodes(6, length=40, height=8, width=8)


@pytest.fixture
def dataset(episodes):
    values = [np.full((len(episode), 2), (number, 1.0), dtype=np.float32) for number, episode in enumerate(episodes)]
    return MemoryDataset(episodes, synthetic_robot(height=8, width=8), values)


def _percentile(column, fraction):
    """Linear interpolation between order statistics, written out."""
    ordered = sorted(column)
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def test_mean_and_deviation_are_of_rows_inside_in_every_dimension():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 3)).astype(np.float32)
    rows[17, 1] = 1e4
    got = feature_statistics(rows)
    q01 = [_percentile(rows[:, c].astype(float).tolist(), 0.01) for c in range(3)]
    q99 = [_percentile(rows[:, c].astype(float).tolist(), 0.99) for c in range(3)]
    kept = [row for row in rows.astype(float) if all(q01[c] <= row[c] <= q99[c] for c in range(3))]
    np.testing.assert_allclose(got.q01, q01)
    np.testing.assert_allclose(got.q99, q99)
    np.testing.assert_allclose(got.mean, np.sum(kept, axis=0) / len(kept))
    variance = np.sum([(row - np.array(got.mean)) ** 2 for row in kept], axis=0) / len(kept)
    np.testing.assert_allclose(got.std, np.sqrt(variance))
    assert (got.count, got.num_kept) == (1000, len(kept))
    assert 940 <= len(kept) < 980
    assert got.max[1] == 1e4
    assert got.mean[1] < 1
    assert "within [q01, q99]" in got.method


def test_a_handful_of_rows_still_has_statistics():
    got = feature_statistics(np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert got.mean == (0.5, 0.5)
    assert got.num_kept == 2
    assert "all rows" in got.method


def test_features_of_a_dataset(dataset, episodes):
    seen = []
    got = compute_statistics(dataset, progress=lambda done, total: seen.append((done, total)))
    assert list(got) == ["action", "action_delta", "state", "value"]
    assert seen[-1] == (6, 6)
    actions = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_allclose(got["action"].q99, np.quantile(actions.astype(float), 0.99, axis=0))
    assert got["action"].count == got["state"].count == 240
    assert got["value"].mean[1] == 1.0
    assert Normalizer.from_statistics("meanstd", got["value"]).constant == (1,)


def test_deltas_stay_within_episodes(episodes):
    for number, episode in enumerate(episodes):
        episode.actions[:] = 100 * number + np.arange(40)[:, None]
    got = compute_statistics(MemoryDataset(episodes, synthetic_robot(height=8, width=8)))
    delta = got["action_delta"]
    assert delta.count == 6 * 39
    assert delta.min == delta.max == (1.0, 1.0, 1.0)
    assert "value" not in got


def test_a_subset_of_episodes(dataset, episodes):
    got = compute_statistics(dataset, episodes=[2])
    assert got["state"].max == tuple(episodes[2].state.max(axis=0).astype(float))
    with pytest.raises(ValueError, match="1 or more of 6 episodes"):
        compute_statistics(dataset, episodes=[])


def test_bad_rows_are_named(dataset, episodes):
    episodes[3].state[5, 1] = np.inf
    with pytest.raises(ValueError, match=r"episode 3, row 5: .*'observation.state'"):
        compute_statistics(dataset)


def test_wrong_width_and_missing_column_are_named(episodes):
    class Other(MemoryDataset):
        def columns(self, episode):
            columns = super().columns(episode)
            if episode == 4:
                columns["action"] = columns["action"][:, :2]
            return columns

    with pytest.raises(ValueError, match=r"episode 4, row 0: expected 3 channels in column 'action'.*got 2"):
        compute_statistics(Other(episodes, None))

    class Without(MemoryDataset):
        def columns(self, episode):
            columns = super().columns(episode)
            del columns["observation.state"]
            return columns

    with pytest.raises(ValueError, match=r"episode 0: expected a column 'observation.state'"):
        compute_statistics(Without(episodes, None))


def test_file_round_trip_and_staleness(dataset, tmp_path):
    statistics = compute_statistics(dataset)
    with pytest.raises(FileNotFoundError, match="wamkit data stats"):
        read_statistics(tmp_path)
    path = write_statistics(tmp_path, statistics, fingerprint="abc")
    assert path == tmp_path / STATISTICS_PATH
    assert read_statistics(tmp_path) == statistics
    assert read_statistics(tmp_path, fingerprint="abc") == statistics
    with pytest.raises(ValueError, match="before it was changed"):
        read_statistics(tmp_path, fingerprint="def")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    path.write_text('{"format": 7}')
    with pytest.raises(ValueError, match="format 7"):
        read_statistics(tmp_path)
    path.write_text('{"format": 1, "fea')
    with pytest.raises(ValueError, match="one JSON document"):
        read_statistics(tmp_path)


def test_statistics_that_cannot_be_kept_are_used_all_the_same(write_dataset, caplog):
    root, _ = write_dataset(1)
    dataset = LeRobotDataset(root)
    (root / STATISTICS_PATH).mkdir()  # whatever user runs this, nothing can be written there
    assert current_statistics(dataset) == compute_statistics(dataset)
    assert "cannot keep statistics in" in caplog.text and "computed anew each time" in caplog.text
    (root / STATISTICS_PATH).rmdir()
    assert current_statistics(dataset) == read_statistics(root, fingerprint=dataset.fingerprint())


def test_wav_file_form(dataset, tmp_path):
    statistics = compute_statistics(dataset)
    path = tmp_path / "stats.jsonl"
    write_wav_statistics(path, statistics, domain="square")
    write_wav_statistics(path, {k: v for k, v in statistics.items() if k != "value"}, domain="other", space="joint")
    document = json.loads(path.read_text())
    square = ["square_eef", "square_delta_eef", "square_state_eef", "square_value_eef"]
    assert list(document) == [*square, "other_joint", "other_delta_joint", "other_state_joint"]
    assert set(document["square_eef"]) == {"mean", "std", "q99", "q01"}
    back = read_wav_statistics(path, domain="square")
    assert list(back) == ["action", "action_delta", "state", "value"]
    for name, feature in back.items():
        for key in ("mean", "std", "q01", "q99"):
            assert getattr(feature, key) == getattr(statistics[name], key)
    assert "value" not in read_wav_statistics(path, domain="other", space="joint")
    with pytest.raises(ValueError, match="'square_joint'"):
        read_wav_statistics(path, domain="square", space="joint")
    del document["square_eef"]["q99"]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="q99"):
        read_wav_statistics(path, domain="square")
    with pytest.raises(ValueError, match=r"\['state'\] are missing"):
        write_wav_statistics(path, {k: v for k, v in statistics.items() if k != "state"}, domain="square")
