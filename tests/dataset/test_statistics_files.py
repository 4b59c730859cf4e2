"""Statistics in the files of other programs: round trips, padding, bad input, and training with them."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.cli.main import main
from wamkit.data.exclusions import write_exclusions
from wamkit.data.given_statistics import read_given_statistics
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.norm_stats import read_norm_stats, write_norm_stats
from wamkit.data.stats import (
    STATISTICS_PATH,
    Statistics,
    compute_statistics,
    feature_statistics,
    read_statistics,
    write_statistics,
)
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import FORMULAS, Normalizer
from wamkit.data.wav_statistics import write_wav_statistics

WIDTHS = {"action": 3, "state": 3}
COLUMNS = ("mean", "std", "q01", "q99")


@pytest.fixture(scope="module")
def statistics() -> dict[str, Statistics]:
    dataset = MemoryDataset(synthetic_episodes(4, length=30), synthetic_robot())
    return compute_statistics(dataset, is_trimmed=False)


@pytest.mark.parametrize("width", [None, 32])
def test_openpi_round_trip(statistics: dict[str, Statistics], tmp_path: Path, width: int | None) -> None:
    path = tmp_path / "norm_stats.json"
    write_norm_stats(path, statistics, width=width)
    document = json.loads(path.read_text())
    assert set(document["norm_stats"]) == {"state", "actions"}
    assert {len(column) for column in document["norm_stats"]["actions"].values()} == {width or 3}
    assert document["wamkit"]["formulas"] == {**FORMULAS, "epsilon": 1e-6}
    back = read_norm_stats(path, widths=WIDTHS)
    for name in ("state", "action"):
        assert all(getattr(back[name], key) == getattr(statistics[name], key) for key in COLUMNS)
    assert read_norm_stats(path)["state"].width == (width or 3)
    if width is None:
        with pytest.raises(ValueError, match="a width of 3 or more, the channels of state, got 2"):
            write_norm_stats(path, statistics, width=2)


def test_openpi_normalizes_as_its_formulas_say(statistics: dict[str, Statistics], tmp_path: Path) -> None:
    write_norm_stats(tmp_path / "norm_stats.json", statistics)
    feature = read_norm_stats(tmp_path / "norm_stats.json")["state"]
    x = torch.tensor([[0.3, 0.7, 0.5]], dtype=torch.float64)
    mean, std, q01, q99 = (torch.tensor(getattr(feature, key), dtype=torch.float64) for key in COLUMNS)
    expected = {"meanstd": (x - mean) / (std + 1e-6), "minmax": (x - q01) / (q99 - q01 + 1e-6) * 2 - 1}
    for kind, wanted in expected.items():
        torch.testing.assert_close(Normalizer.from_statistics(kind, feature).normalize(x), wanted)


def test_openpi_counts_every_row() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 2))
    every = feature_statistics(rows, is_trimmed=False)
    assert np.allclose(every.mean, rows.mean(axis=0)) and np.allclose(every.std, rows.std(axis=0))
    assert every.num_kept == 500 > feature_statistics(rows).num_kept


def test_a_gripper_that_is_hardly_used_is_not_constant(tmp_path: Path) -> None:
    """With two values the other one follows from mean and deviation; a channel that never varies stays constant."""
    rows = np.zeros((1000, 3))
    rows[:, 0] = np.linspace(-1, 1, 1000)
    rows[:, 1] = -1.0
    rows[::200, 1] = 1.0
    rows[:, 2] = 4.0
    feature = feature_statistics(rows, is_trimmed=False)
    write_norm_stats(tmp_path / "n.json", {"state": feature, "action": feature})
    read = read_norm_stats(tmp_path / "n.json")["action"]
    assert (read.q01[1], read.q99[1]) == (-1.0, -1.0)
    assert (read.min[1], read.max[1]) == (-1.0, pytest.approx(1.0))
    normalizer = Normalizer.from_statistics("minmax", read)
    assert normalizer.constant == (2,) and normalizer.widened == (1,)


def changed(document: dict, key: str, column: str, value: object) -> dict:
    other = copy.deepcopy(document)
    other["norm_stats"][key][column] = value
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"norm_stats": {"state": d["norm_stats"]["state"]}}, r"keys state and actions, got \['state'\]"),
        (lambda d: changed(d, "state", "q01", None), r"lists mean, std, q01 and q99 in 'state', \['q01'\] are not"),
        (
            lambda d: changed(d, "state", "mean", [0.0, "x", 0.0]),
            "state: statistics: expected a list of finite numbers",
        ),
        (lambda d: changed(d, "actions", "std", [0.0, float("nan"), 1.0]), "actions: .* finite numbers as std"),
        (lambda d: changed(d, "actions", "std", [0.0]), "actions: statistics: expected as many channels"),
    ],
)
def test_damaged_openpi_files(
    statistics: dict[str, Statistics], tmp_path: Path, change: Callable[[dict], dict], message: str
) -> None:
    path = tmp_path / "norm_stats.json"
    write_norm_stats(path, statistics)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as caught:
        read_norm_stats(path, widths=WIDTHS)
    assert str(path) in str(caught.value)


def test_what_is_cut_off_has_to_be_padding(statistics: dict[str, Statistics], tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    write_norm_stats(path, statistics, width=4)
    with pytest.raises(ValueError, match=r"expected 2 channels and zeros to fill up, got 4 channels of which \[2\]"):
        read_norm_stats(path, widths={"action": 3, "state": 2})
    with pytest.raises(ValueError, match="expected 7 channels, got 4; use the statistics of the same robot"):
        read_norm_stats(path, widths={"action": 7, "state": 3})


def test_every_form_is_recognised(statistics: dict[str, Statistics], tmp_path: Path) -> None:
    own = write_statistics(tmp_path, statistics, fingerprint="x")
    assert json.loads(own.read_text())["formulas"]["epsilon"] == 1e-6
    write_norm_stats(tmp_path / "openpi.json", statistics, width=8)
    write_wav_statistics(tmp_path / "wav.json", statistics, domain="square")
    assert read_given_statistics(own, widths=WIDTHS) == statistics
    for name in ("openpi.json", "wav.json"):
        found = read_given_statistics(tmp_path / name, widths=WIDTHS)
        assert all(getattr(found["action"], key) == getattr(statistics["action"], key) for key in COLUMNS)
    write_wav_statistics(tmp_path / "wav.json", statistics, domain="other", space="joint")
    with pytest.raises(ValueError, match=r"holds several: choose one of \['other_joint', 'square_eef'\]"):
        read_given_statistics(tmp_path / "wav.json", widths=WIDTHS)
    assert "action_delta" in read_given_statistics(tmp_path / "wav.json", widths=WIDTHS, entry="other_joint")
    with pytest.raises(ValueError, match="got 'third_eef'"):
        read_given_statistics(tmp_path / "wav.json", widths=WIDTHS, entry="third_eef")
    with pytest.raises(ValueError, match=r"data\.statistics_entry 'square_eef' chooses among those of a WAV file"):
        read_given_statistics(own, widths=WIDTHS, entry="square_eef")
    with pytest.raises(ValueError, match="expected 7 channels of action, as in the data, got 3"):
        read_given_statistics(own, widths={"action": 7, "state": 3})
    with pytest.raises(FileNotFoundError, match=r"found none; correct data\.statistics"):
        read_given_statistics(tmp_path / "none.json", widths=WIDTHS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected one JSON document"),
        ("[]", "expected a JSON object, got list"),
        ('{"observation.state": {"mean": [0]}}', r"of openpi \(norm_stats\) or of WAV .* \['observation.state'\]"),
        ('{"format": 1, "features": {"action": {"mean": [0]}}}', "expected the keys"),
        ('{"format": 1, "features": {}}', r"\['action', 'state'\] are missing"),
        ('{"a_eef": {"mean": [0]}, "a_state_eef": {}}', "expected lists mean, std, q01 and q99 in 'a_eef'"),
        ('{"a_eef": 3, "a_state_eef": {}}', "expected lists mean, std, q01 and q99 in 'a_eef'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_given_statistics(tmp_path / "file.json", widths=WIDTHS)


def test_the_command_line_exports(write_dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = write_dataset(3)
    write_exclusions(root, {1: "bad"})
    openpi, wav, own = (tmp_path / name for name in ("norm_stats.json", "stats.jsonl", "own.json"))
    stats = ["data", "stats", str(root)]
    assert main([*stats, "--format", "openpi", "--output", str(openpi), "--width", "32"]) == 0
    assert main([*stats, "--format", "wav", "--output", str(wav), "--domain", "square", "--space", "joint"]) == 0
    assert main([*stats, "--output", str(own)]) == 0
    assert f"wrote {own}" in capsys.readouterr().out
    assert not (root / STATISTICS_PATH).exists()
    expected = compute_statistics(LeRobotDataset(root), episodes=[0, 2])
    assert read_given_statistics(own, widths=WIDTHS) == expected
    assert read_given_statistics(wav, widths=WIDTHS)["state"].std == expected["state"].std
    assert read_norm_stats(openpi, widths=WIDTHS)["state"].q99 == expected["state"].q99
    assert main(stats) == 0
    assert read_statistics(root) == expected


FORMATS = {"wamkit": [], "openpi": ["--format", "openpi"], "wav": ["--format", "wav", "--domain", "libero"]}


@pytest.mark.parametrize("wanted", FORMATS)
def test_only_a_file_of_the_same_form_is_written_over(
    write_dataset, statistics: dict[str, Statistics], tmp_path: Path, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = write_dataset(1)
    write_statistics(tmp_path, statistics, fingerprint="x")
    files = {"wamkit": tmp_path / STATISTICS_PATH, "openpi": tmp_path / "openpi.json", "wav": tmp_path / "wav.json"}
    write_norm_stats(files["openpi"], statistics)
    write_wav_statistics(files["wav"], statistics, domain="other")
    info = shutil.copy(root / "meta/info.json", tmp_path / "info.json")
    (tmp_path / "damaged.json").write_text('{"features": ')
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    mixed = {key: value for path in files.values() for key, value in json.loads(path.read_text()).items()}
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    refused = {path: f"it holds statistics of {form};" for form, path in files.items() if form != wanted}
    refused |= {tmp_path / "damaged.json": "it cannot be read", tmp_path / "latin.json": "it cannot be read"}
    refused |= {info: "it holds the keys ['", tmp_path / "mixed.json": "statistics of openpi and wav and wamkit;"}
    for path, message in refused.items():
        before = Path(path).read_bytes()
        assert main(["data", "stats", str(root), *FORMATS[wanted], "--output", str(path)]) == 2
        shown = capsys.readouterr().err
        assert f"or one of statistics of {wanted}, " in shown and message in shown and "another --output" in shown
        assert Path(path).read_bytes() == before
    own = files[wanted]
    for _ in range(2):  # over another's, and over its own
        assert main(["data", "stats", str(root), *FORMATS[wanted], "--output", str(own)]) == 0
        found = read_given_statistics(own, widths=WIDTHS, entry="libero_eef" if wanted == "wav" else "")
        assert found["state"].q01 == compute_statistics(LeRobotDataset(root))["state"].q01
    if wanted == "wav":
        kept = read_given_statistics(own, widths=WIDTHS, entry="other_eef")
        assert kept["state"].q01 == statistics["state"].q01


def test_a_file_of_two_forms_is_not_read(statistics: dict[str, Statistics], tmp_path: Path) -> None:
    path = tmp_path / "mixed.json"
    write_norm_stats(path, statistics)
    write_wav_statistics(tmp_path / "wav.json", statistics, domain="square")
    path.write_text(json.dumps(json.loads(path.read_text()) | json.loads((tmp_path / "wav.json").read_text())))
    with pytest.raises(ValueError, match=r"mixed\.json: expected statistics of one form, got those of openpi and wav"):
        read_given_statistics(path, widths=WIDTHS)


def test_each_command_names_its_own_option(
    write_dataset, statistics: dict[str, Statistics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = write_dataset(1)
    path = tmp_path / "wav.json"
    for domain in ("one", "two"):
        write_wav_statistics(path, statistics, domain=domain)
    assert main(["data", "inspect", str(root), "--against", str(path)]) == 2
    assert "choose one of ['one_eef', 'two_eef'] as --entry" in capsys.readouterr().err
    assert main(["data", "inspect", str(root), "--against", str(path), "--entry", "three"]) == 2
    assert "expected one of ['one_eef', 'two_eef'] as --entry, got 'three'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"choose one of .* as data\.statistics_entry"):
        read_given_statistics(path, widths=WIDTHS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "openpi"], "--format openpi: expected --output too"),
        (["--format", "wav", "--output", "x"], "--format wav: expected --domain too"),
        (["--width", "32"], "--width: without effect with --format wamkit"),
        (["--format", "openpi", "--output", "x", "--domain", "a"], "--domain: without effect with --format openpi"),
    ],
)
def test_options_without_sense(
    write_dataset, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = write_dataset(1)
    assert main(["data", "stats", str(root), *arguments]) == 2
    assert message in capsys.readouterr().err
