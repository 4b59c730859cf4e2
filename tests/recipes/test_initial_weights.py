"""Runs that start from weights: published layouts, another run's policy, and sources that do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wamkit.cli.main import main
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.writer import LeRobotWriter
from wamkit.models.wav import config as wav
from wamkit.models.wav.initial import empty_network, initialized
from wamkit.models.wav.load_policy import group_of
from wamkit.recipes import RECIPES
from wamkit.recipes.execute import execute
from wamkit.recipes.run import DataConfig, InitialWeights, Run
from wamkit.training.trainer import TrainReport
from wamkit.weight_files import read_weights

MODEL = wav.tiny(action_dim=3, state_dim=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("square") / "dataset"
    with LeRobotWriter(root, synthetic_robot()) as writer:
        for episode in synthetic_episodes(2, length=24):
            writer.add(episode)
    return root


@pytest.fixture(scope="module")
def ge_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video stream of several views, as GE-base has it, with values that initialisation never gives."""
    state = initialized(empty_network(MODEL.network), seed=9).state_dict()
    tensors = {name: tensor + 0.01 for name, tensor in state.items() if group_of(name) in ("video", "view")}
    path = tmp_path_factory.mktemp("pretrained") / "GE_base_fast_v0.1.safetensors"
    save_file(tensors, path)
    return path


def action_run(dataset: Path, output: Path, initial: InitialWeights, steps: int = 2) -> Run:
    """One stage that leaves the video stream alone, so that what was loaded can be found again in its policy."""
    base = RECIPES["debug"]()
    stage = dataclasses.replace(base.stages[2], name="actions", train=("action",), steps=steps, ema_decay=None)
    model = dataclasses.replace(MODEL, network=dataclasses.replace(MODEL.network, value=None))
    objective = dataclasses.replace(stage.objective, pure_value=False)
    return dataclasses.replace(
        base,
        model=model,
        data=DataConfig(root=dataset),
        initial=initial,
        stages=(dataclasses.replace(stage, objective=objective),),
        output=output,
        device="cpu",
    )


def video_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in read_weights(folder).items() if group_of(name) in ("video", "view")}


def test_a_run_starts_from_published_weights_and_a_run_from_its_policy(
    dataset: Path, ge_base: Path, tmp_path: Path
) -> None:
    run = action_run(dataset, tmp_path / "first", InitialWeights(path=ge_base, profile="ge_base"))
    execute(run)
    expected = read_weights(ge_base)
    found = video_of(run.output / "policy")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    training = json.loads((run.output / "policy" / "training.json").read_text())
    assert training["recipe"]["initial"] == {"name": ge_base.name, "profile": "ge_base", "may_resize": []}

    second = action_run(dataset, tmp_path / "second", InitialWeights(path=run.output / "policy"))
    assert execute(second).steps == 2
    found = video_of(second.output / "policy")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_is_continued_without_its_initial_weights(
    dataset: Path, ge_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint holds all there is; but the same run has to be meant."""
    moved = tmp_path / ge_base.name
    shutil.copy(ge_base, moved)
    initial = InitialWeights(path=moved, profile="ge_base")
    run = dataclasses.replace(action_run(dataset, tmp_path / "run", initial, steps=4), save_every=2)
    straight = dataclasses.replace(run, output=tmp_path / "straight")
    execute(straight)
    shutil.copytree(straight.output, run.output)
    shutil.rmtree(run.output / "policy")
    shutil.rmtree(run.output / "checkpoints" / "actions-step_4")
    moved.unlink()
    report: TrainReport = execute(run)
    assert report.steps == 2
    a, b = (read_weights(folder / "policy") for folder in (straight.output, run.output))
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = dataclasses.replace(run, initial=InitialWeights(path=tmp_path / "other", profile="ge_base"))
    with pytest.raises(ValueError, match=r"initial\.name: saved 'GE_base_fast_v0\.1\.safetensors', now 'other'"):
        execute(other)


def test_sources_that_do_not_fit_are_refused_before_anything_is_trained(
    dataset: Path, ge_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for initial, message in (
        (InitialWeights(path=ge_base), "looks like 'ge_base'"),
        (InitialWeights(path=ge_base, profile="ge_act"), "missing .* tensors of action"),
        (InitialWeights(path=ge_base, profile="ge-base"), "unknown profile 'ge-base' .* among exact, ltx, ge_base"),
    ):
        with pytest.raises(ValueError, match=message):
            execute(action_run(dataset, tmp_path / "run", initial))
    with pytest.raises(FileNotFoundError, match="found nothing"):
        execute(action_run(dataset, tmp_path / "run", InitialWeights(path=tmp_path / "none")))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_verify_weights_says_what_they_are(ge_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "weights", str(ge_base), "--model", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "as ge_base (GE-base" in said and "new: value expert" in said and said.endswith("fits\n")
    assert main(["verify", "weights", str(ge_base), "--model", "libero"]) == 1
    assert "proj_in.weight: expected shape (2048, 128), got (32, 8)" in capsys.readouterr().out
    assert main(["verify", "weights", str(ge_base), "--model", "tiny", "--profile", "exact", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["groups"] == {"video": 65, "view": 3} and "looks like 'ge_base'" in found["problem"]
    tensors = read_weights(ge_base)
    save_file({**tensors, "proj_in.bias": tensors["proj_in.bias"] / 0}, tmp_path / "spoilt.safetensors")
    assert main(["verify", "weights", str(tmp_path / "spoilt.safetensors"), "--model", "tiny"]) == 0
    assert main(["verify", "weights", str(tmp_path / "spoilt.safetensors"), "--model", "tiny", "--read"]) == 1
    assert "NaN or infinity in 1 tensors: ['proj_in.bias']" in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(ge_base.read_bytes()[:1000])
    assert main(["verify", "weights", str(tmp_path / "cut.safetensors"), "--model", "tiny"]) == 2
    assert "damaged or cut short" in capsys.readouterr().err
    assert main(["verify", "weights", str(ge_base), "--model", str(tmp_path)]) == 2
    assert "not a complete policy folder" in capsys.readouterr().err


def test_verify_weights_asks_the_family(ge_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A size is the named family's, the published one by default; a policy folder says its own."""
    assert main(["verify", "weights", str(ge_base)]) == 1
    assert "held against libero (2420 tensors, 2 305 605 785 parameters)" in capsys.readouterr().out
    policy = Path(__file__).parents[2] / "zoo" / "wav-metaworld-small"
    assert main(["verify", "weights", str(policy), "--model", str(policy), "--family", "wav"]) == 0
    said = capsys.readouterr().out
    assert f"held against {policy} (" in said and "as exact (every tensor of the network)" in said
    other = policy.with_name("worldvla-metaworld-small")
    assert main(["verify", "weights", str(other), "--model", "small"]) == 0, "the family is told by the names"
    assert "names of Chameleon; transformer 81" in capsys.readouterr().out
    assert main(["verify", "weights", str(other)]) == 0, "a policy is held against itself"
    assert f"held against {other} (81 tensors" in capsys.readouterr().out
    assert main(["verify", "weights", str(other / "model.safetensors")]) == 1
    assert "held against libero-256 (419 tensors" in capsys.readouterr().out
    save_file({"strange": torch.zeros(1)}, tmp_path / "strange.safetensors")
    assert main(["verify", "weights", str(tmp_path / "strange.safetensors")]) == 2
    assert "none of its tensors has a name that one of them knows" in capsys.readouterr().err
    assert main(["verify", "weights", str(other), "--family", "wav"]) == 1
    assert "held against libero (2420 tensors" in capsys.readouterr().out
    for wrong, message in (
        (["--model", "huge"], "expected a size (wav: libero, dualarm, small, tiny; worldvla: libero-256, "),
        (["--model", "huge", "--family", "wav"], "(wav: libero, dualarm, small, tiny) or a policy folder, got 'huge'"),
        (["--family", "wave"], "unknown model family 'wave'; known families are ['wav'"),
        (["--profile", "ge-base"], "unknown profile 'ge-base' of weights for a WAV; choose among exact, ltx, ge_base"),
        (["--may-resize", "proj_in"], "unknown load policy ['proj_in']"),
    ):
        assert main(["verify", "weights", str(ge_base), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_published_recipes_are_the_papers() -> None:
    for name, horizon, noise, rate in (("wav-libero", 36, 0.01, 5e-5), ("wav-dualarm", 54, 0.1, 3e-4)):
        run = RECIPES[name]()
        assert [stage.steps for stage in run.stages] == [40_000, 30_000, 30_000]
        assert [stage.learning_rate for stage in run.stages] == [3e-4, 5e-5, rate]
        assert [stage.objective.memory_noise for stage in run.stages] == [0.1, noise, noise]
        assert [stage.objective.caption_dropout for stage in run.stages] == [0.06, 0, 0]
        assert {stage.batch_size for stage in run.stages} == {128} and {stage.warmup_steps for stage in run.stages} == {
            1000
        }
        assert run.model.action_horizon == horizon and run.initial.profile == "ge_base"
        assert (run.data.pick, run.data.action_offset, run.data.normalization) == ("random", 1, "minmax")
