"""Runs on parts of datasets and on several: what is trained on, held out, recorded, resumed and cached."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from test_augmentation import tiny_run, write_dataset

from wamkit.cli.main import main
from wamkit.data.exclusions import write_exclusions
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.stats import STATISTICS_PATH, compute_statistics
from wamkit.data.subset import Subset
from wamkit.evaluation.open_loop_results import DatasetIdentity
from wamkit.policy import load_policy
from wamkit.recipes import execute as recipe
from wamkit.recipes.check import check_run
from wamkit.recipes.datasets import TrainingData, open_data, run_statistics
from wamkit.recipes.run import DataConfig, Run, ValidationConfig

FITTED = [*("--model.action-dim", "3", "--model.state-dim", "3", "--device", "cpu")]
for part, channels in (("value", "1"), ("action", "6")):
    names = ("num-heads", "2"), ("head-dim", "8"), ("channels", channels)
    FITTED += [f"model.network.{part}:expert-config"]
    FITTED += [word for name, value in names for word in (f"--model.network.{part}.{name}", value)]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("first") / "kitchen", num=5)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("second") / "workshop", num=3)


def mixed(kitchen: Path, workshop: Path, output: Path = Path(), **data: object) -> Run:
    return tiny_run(Path(), output, roots=(kitchen, workshop), weights=(0.75, 0.25), **data)


def numbers(subset: Subset) -> list[int]:
    return [entry.index for entry in subset.episodes]


def opened(run: Run, **validation: object) -> TrainingData:
    return open_data(dataclasses.replace(run, validation=ValidationConfig(every=1, **validation)))


def test_the_command_line_trains_on_a_mixture(kitchen: Path, workshop: Path, tmp_path: Path) -> None:
    """The debug recipe from end to end; the policy's record says of what it was made."""
    arguments = [
        "--data.roots",
        str(kitchen),
        str(workshop),
        "--data.weights",
        "3",
        "1",
        "--data.episodes",
        "kitchen=0:3",
    ]
    arguments += ["--validation.every", "4", "--validation.episodes", "kitchen=3", "workshop=2"]
    arguments += ["--output", str(tmp_path / "run")]
    assert main(["train", "debug", *arguments, "--validation.num-steps", "1", *FITTED]) == 0
    training = json.loads((tmp_path / "run" / "policy" / "training.json").read_text())
    found = training["recipe"]["datasets"]
    assert [(item["name"], item["episodes"], item["weight"]) for item in found] == [
        ("kitchen", ["0:3"], 0.75),
        ("workshop", ["0:3"], 0.25),
    ]
    assert found[0]["fingerprint"] == LeRobotDataset(kitchen).fingerprint() != training["data_fingerprint"]
    assert DatasetIdentity.of(LeRobotDataset(kitchen), training).was_trained_on, "open loop knows both datasets"
    assert training["recipe"]["data"]["roots"] == ["kitchen", "workshop"], "folders by name, not by place"
    policy = load_policy(tmp_path / "run" / "policy")
    sentences = {LeRobotDataset(kitchen).episodes[index].task for index in range(3)}
    assert set(policy.spec.tasks) == sentences | {entry.task for entry in LeRobotDataset(workshop).episodes}
    assert (tmp_path / "run" / "validation.jsonl").is_file()


def test_one_dataset_as_it_is_stays_what_it_was(kitchen: Path) -> None:
    """Its record and fingerprint do not know of choices, so that runs begun before there were any continue."""
    run = tiny_run(kitchen, Path())
    data = open_data(run)
    assert data.record() == {} and data.fingerprint == LeRobotDataset(kitchen).fingerprint()
    assert data.is_whole_dataset and numbers(data.training) == [0, 1, 2, 3, 4]
    record = recipe.data_record(run.data)
    assert not {"roots", "weights", "episodes", "tasks", "statistics", "statistics_entry"} & set(record)
    assert record["root"] == "kitchen"


def test_episodes_and_tasks_are_chosen(kitchen: Path) -> None:
    tasks = [entry.task for entry in LeRobotDataset(kitchen).episodes]
    some = open_data(tiny_run(kitchen, Path(), episodes=("1:4",)))
    assert numbers(some.training) == [1, 2, 3] and not some.is_whole_dataset
    assert some.fingerprint not in (
        some.content_fingerprint,
        open_data(tiny_run(kitchen, Path(), episodes=(1,))).fingerprint,
    )
    by_task = open_data(tiny_run(kitchen, Path(), tasks=(tasks[0],)))
    assert numbers(by_task.training) == [index for index, task in enumerate(tasks) if task == tasks[0]]
    assert by_task.record()["datasets"][0]["weight"] is None
    statistics, _ = run_statistics(tiny_run(kitchen, Path()).data, some)
    assert statistics == compute_statistics(LeRobotDataset(kitchen), episodes=[1, 2, 3])


def test_a_share_is_held_out_of_each_dataset_and_stays_the_same(kitchen: Path, workshop: Path) -> None:
    """Other datasets, choices of episodes and exclusions bring no held-out episode into training."""
    alone = set(opened(tiny_run(kitchen, Path()), fraction=0.4).held_out)
    both = opened(mixed(kitchen, workshop), fraction=0.4)
    assert len(alone) == 2 and alone == {index for index in both.held_out if index < 5}
    assert len(both.held_out) == 3 and not set(both.held_out) & set(numbers(both.training))
    assert numbers(both.validation) == list(both.held_out)
    for first in range(3):
        part = opened(tiny_run(kitchen, Path(), episodes=(f"{first}:{first + 3}",)), fraction=0.4)
        assert part.held_out
        if alone & set(numbers(part.chosen)):
            assert set(part.held_out) == alone & set(numbers(part.chosen))


def test_named_episodes_may_lie_outside_the_choice(kitchen: Path, workshop: Path) -> None:
    data = opened(mixed(kitchen, workshop, episodes=("kitchen=0:2",)), episodes=("kitchen=4", "workshop=0"))
    assert numbers(data.training) == [0, 1, 6, 7] and data.held_out == (4, 5)
    assert numbers(data.wanted) == [0, 1, 4, 5, 6, 7]
    assert opened(tiny_run(kitchen, Path()), episodes=(1, "3:")).held_out == (1, 3, 4)


def test_excluded_episodes_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="wamkit")
    root = write_dataset(tmp_path / "shed", num=4)
    write_exclusions(root, {1: "black"})
    data = open_data(tiny_run(root, Path()))
    assert numbers(data.training) == [0, 2, 3] and data.is_whole_dataset
    assert "1 of 4 episodes are left out by meta/wamkit_exclude.json: 1 (black)" in caplog.text
    statistics, _ = run_statistics(DataConfig(root=root), data)
    assert statistics == compute_statistics(LeRobotDataset(root), episodes=[0, 2, 3])
    stored = json.loads((root / STATISTICS_PATH).read_text())
    assert stored["fingerprint"] == data.fingerprint
    with pytest.raises(ValueError, match=r"got \[1\] of dataset 'shed', which its meta/wamkit_exclude.json leaves out"):
        opened(tiny_run(root, Path()), episodes=(1,))
    with pytest.raises(ValueError, match=r"none of its 4 is left by data.episodes \[1\]"):
        open_data(tiny_run(root, Path(), episodes=(1,)))


def test_resuming_compares_the_choice(
    kitchen: Path, workshop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = mixed(kitchen, workshop, tmp_path / "run", episodes=("kitchen=0:3",))
    caplog.set_level(logging.INFO, "wamkit")
    assert recipe.execute(run).steps == 6
    assert "reading the frames" in caplog.text
    assert recipe.execute(run).steps == 0
    for change in ({"weights": (1.0, 1.0)}, {"episodes": ("kitchen=0:2",)}, {"roots": (kitchen,), "weights": ()}):
        other = dataclasses.replace(run, data=dataclasses.replace(run.data, **change))
        caplog.clear()
        with pytest.raises(
            ValueError, match=rf"(?s)started with another recipe:.*data\.{min(change)}.*data_fingerprint"
        ):
            recipe.execute(other)
        assert "reading the frames" not in caplog.text, "that may take long"
    cached = dataclasses.replace(run.data, cache=tmp_path / "cache")
    recipe.encode(dataclasses.replace(run, data=cached))
    run = dataclasses.replace(run, data=cached, output=tmp_path / "cached")
    recipe.execute(run)
    even = dataclasses.replace(cached, weights=(1.0, 1.0))
    with pytest.raises(
        ValueError, match=r"(?s)data.weights\[0\]: saved 0.75, now 1.0.*datasets\[0\].weight: saved 0.75"
    ):
        recipe.execute(dataclasses.replace(run, data=even))


def test_a_cache_serves_every_choice_of_its_datasets(kitchen: Path, workshop: Path, tmp_path: Path) -> None:
    """Encoded for some episodes, it takes the others when it is asked again; weights do not matter to it."""
    some = mixed(kitchen, workshop, tmp_path / "run", cache=tmp_path / "cache", episodes=("kitchen=0:2", "workshop=1"))
    assert recipe.encode(some).encoded == 3
    assert recipe.execute(some).steps == 6
    every = mixed(kitchen, workshop, tmp_path / "all", cache=tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"latents of episode 2 and 4 others .* it adds them"):
        recipe.execute(every)
    report = recipe.encode(every)
    assert (report.encoded, report.episodes) == (5, 8)
    again = recipe.encode(some)
    assert (again.encoded, again.episodes) == (0, 8)
    even = dataclasses.replace(every, data=dataclasses.replace(every.data, weights=()))
    assert recipe.execute(even).steps == 6
    other_order = mixed(workshop, kitchen, tmp_path / "turned", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="dataset: the cache has"):
        recipe.execute(other_order)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"root": Path("a"), "roots": (Path("b"),)}, "either data.root or data.roots"),
        ({"roots": (Path("a"), Path("x/../a"))}, "data.roots: expected different datasets"),
        (
            {"roots": (Path("a"), Path("b")), "weights": (1.0,)},
            "data.weights: expected a positive number for each of the 2",
        ),
        ({"roots": (Path("a"), Path("b")), "weights": (1.0, 0.0)}, r"data.weights: .* got \[1.0, 0.0\]"),
        ({"root": Path("a"), "weights": (1.0,)}, "data.weights: expected a positive number for each of the 0"),
        ({"root": Path("a"), "episodes": ("first",)}, "data.episodes: expected episodes as 7, 0:40"),
        ({"root": Path("a"), "statistics_entry": "x_eef"}, "data.statistics_entry is without effect"),
    ],
)
def test_settings_that_contradict_each_other(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_run(dataclasses.replace(tiny_run(Path("a"), Path("out")), data=DataConfig(**data)))


def test_the_command_line_explains(kitchen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["train", "debug", "--output", str(tmp_path / "run"), "--data.root", str(kitchen)]
    assert main([*start, "--data.tasks", "push the red squrae into the corner"]) == 2
    assert "data.tasks: expected a sentence of the data, got 'push the red squrae into the corner'; near" in (
        capsys.readouterr().err
    )
    assert main([*start, "--data.episodes", "3:9"]) == 2
    assert (
        "data.episodes: expected some of the episodes 0 to 4 of dataset 'kitchen', got '3:9'" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_run_normalizes_with_given_statistics(kitchen: Path, tmp_path: Path) -> None:
    """The file's numbers reach the policy; values, which openpi's lacks, are of the data; the file is recorded."""
    file = tmp_path / "norm_stats.json"
    arguments = ["data", "stats", str(kitchen), "--format", "openpi", "--output", str(file), "--width", "32"]
    assert main(arguments) == 0
    document = json.loads(file.read_text())
    document["norm_stats"]["actions"]["q99"][0] = 7.5
    file.write_text(json.dumps(document))
    run = tiny_run(kitchen, tmp_path / "run", statistics=file)
    recipe.execute(run)
    policy = load_policy(run.output / "policy")
    assert policy.transforms.action.normalizer.q99[0] == 7.5 and policy.transforms.value is not None
    recorded = json.loads((run.output / "policy" / "training.json").read_text())["recipe"]["statistics"]
    assert recorded["name"] == "norm_stats.json"
    document["norm_stats"]["actions"]["q99"][0] = 8.5
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"statistics\.sha256: saved"):
        recipe.execute(run)
