"""What cannot be carried out is refused from the settings alone: nothing is read, fitted or written before."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_augmentation import tiny_run, write_dataset

from wamkit.cli.main import main
from wamkit.models.wav import config as wav
from wamkit.models.wav.objective import FlowWeighting
from wamkit.recipes import RECIPES
from wamkit.recipes.check import check_run
from wamkit.recipes.execute import encode, execute
from wamkit.recipes.run import DataConfig, InitialWeights, Run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("square") / "dataset")


def with_stage(run: Run, number: int, **changes: Any) -> Run:
    stages = list(run.stages)
    stages[number] = dataclasses.replace(stages[number], **changes)
    return dataclasses.replace(run, stages=tuple(stages))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_right(name: str) -> None:
    check_run(RECIPES[name]())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed: expected 0 or more, got -1; correct --seed"),
        ({"save_every": 0}, "save_every: expected 1 or more steps, got 0; correct --save-every"),
        ({"keep_policy_every": 3}, "keep_policy_every: expected 0, or a multiple of save_every=2, got 3; correct"),
        ({"execution_horizon": 0}, "execution_horizon: expected 1 to 9 (the model's action_horizon), got 0; correct"),
        ({"execution_horizon": 10}, "execution_horizon: expected 1 to 9 (the model's action_horizon), got 10; correct"),
        ({"data": DataConfig(sample_n_frames=0)}, "data.sample_n_frames: expected 1 or more rows, got 0; correct"),
        (
            {"data": DataConfig(workers=-1)},
            "data.workers: expected 0 or more processes, got -1; correct --data.workers",
        ),
        ({"data": DataConfig(action_targets=("foo",))}, "data.action_targets ['foo'] are without effect on absolute"),
        ({"stages": ()}, "expected one or more stages with distinct names, got []"),
    ],
)
def test_numbers_out_of_range_and_settings_without_effect(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_run(dataclasses.replace(RECIPES["debug"](), **changes))


def test_parts_are_those_that_the_model_has() -> None:
    run = with_stage(RECIPES["debug"](), 2, train=("video", "hands"))
    with pytest.raises(ValueError, match=r"stages\.2\.train of stage 'action_full': .*'action'\], got \['hands'\]"):
        check_run(run)
    without = dataclasses.replace(wav.tiny(), network=dataclasses.replace(wav.tiny().network, value=None))
    with pytest.raises(ValueError, match=r"stages\.1\.train .* parts \['video', 'action'\], got \['value'\]"):
        check_run(dataclasses.replace(RECIPES["debug"](), model=without))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_loss_weights_are_finite(weight: float) -> None:
    run = RECIPES["debug"]()
    objective = dataclasses.replace(run.stages[0].objective, video_weight=weight)
    with pytest.raises(
        ValueError, match=r"stages\.0\.objective\.video_weight: expected a finite number, got (nan|inf)"
    ):
        check_run(with_stage(run, 0, objective=objective))


def test_numbers_within_an_objective_are_finite_too() -> None:
    run = RECIPES["debug"]()
    objective = dataclasses.replace(run.stages[0].objective, weighting=FlowWeighting(logit_mean=float("nan")))
    with pytest.raises(
        ValueError, match=r"stages\.0\.objective\.weighting\.logit_mean: expected a finite number, got nan"
    ):
        check_run(with_stage(run, 0, objective=objective))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepwise(wav.WAVConfig):
    """A model whose memory frames are two control steps apart, however they were picked."""

    context_stride = 2


def test_memory_frames_are_picked_as_far_apart_as_the_model_says() -> None:
    config = {item.name: getattr(wav.tiny(), item.name) for item in dataclasses.fields(wav.WAVConfig)}
    run = dataclasses.replace(RECIPES["debug"](), model=Stepwise(**config))
    check_run(run)
    picked = dataclasses.replace(run, data=DataConfig(pick="random"))
    with pytest.raises(ValueError, match=r"data\.pick: expected spaced, .* are 2 control steps apart, got random"):
        check_run(picked)
    check_run(dataclasses.replace(picked, model=dataclasses.replace(picked.model, num_context=1)))


def test_a_refused_command_leaves_nothing_behind(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(dataset, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="found nothing"):
        execute(dataclasses.replace(run, initial=InitialWeights(path=tmp_path / "none")))
    with pytest.raises(ValueError, match=r"parts .* got \['hands'\]"):
        execute(with_stage(run, 2, train=("hands",)))
    given = ["train", "debug", "--data.root", str(dataset), "--output", str(run.output)]
    assert main([*given, "--save-every", "0"]) == 2
    assert "save_every: expected 1 or more steps, got 0; correct --save-every" in capsys.readouterr().err
    assert not run.output.exists()


def test_neither_a_run_nor_a_cache_is_written_into_the_dataset(dataset: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in dataset.rglob("*"))
    for folder in (dataset, dataset / "run"):
        with pytest.raises(
            ValueError, match=r"expected output to be a folder of its own, .* the dataset or lies inside"
        ):
            execute(tiny_run(dataset, folder))
        with pytest.raises(ValueError, match=r"expected data\.cache to be a folder of its own"):
            encode(tiny_run(dataset, tmp_path / "run", cache=folder))
    assert sorted(path.name for path in dataset.rglob("*")) == before


def test_neither_is_written_among_other_things(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(FileExistsError, match=r"expected output to be a new or empty folder, .* \(thesis\.tex\)"):
        execute(tiny_run(dataset, tmp_path))
    with pytest.raises(FileExistsError, match=r"expected data\.cache to be a new or empty folder"):
        encode(tiny_run(dataset, Path(), cache=tmp_path))
    with pytest.raises(FileExistsError, match=r"thesis\.tex is a file; choose another name"):
        execute(tiny_run(dataset, tmp_path / "thesis.tex"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_an_interrupted_command_leaves_is_continued(dataset: Path, tmp_path: Path) -> None:
    """Locks, parts of codecs, and logs beside them; then a finished run and a finished cache."""
    run = tiny_run(dataset, tmp_path / "run", cache=tmp_path / "cache")
    for folder in (run.output, run.data.cache):
        (folder / ".codecs.partial").mkdir(parents=True)
        (folder / ".lock").touch()
        (folder / "command.log").touch()
    encode(run)
    assert execute(run).steps == 6
    shutil.rmtree(run.output / "policy")
    shutil.rmtree(run.output / "checkpoints" / "action_full-step_2")
    assert execute(run).steps == 2 and (run.output / "policy").is_dir()
    assert encode(run).encoded == 0
