"""A run that starts from a policy sees through that policy's codecs: its weights know no others."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest

from wamkit.checkpoint import export_policy
from wamkit.data.encoded import codecs_digest
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.value_labels import SparseValueSettings, label_values
from wamkit.data.writer import LeRobotWriter
from wamkit.models.wav import config as wav
from wamkit.models.worldvla import config as worldvla
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.policy import load_policy
from wamkit.recipes import RECIPES
from wamkit.recipes.codecs import initial_codecs
from wamkit.recipes.execute import encode, execute
from wamkit.recipes.run import InitialWeights, Run

SEEN = "so that they see other numbers than they know; --data.statistics "
FAMILIES = {"debug": "wav", "worldvla-debug": "worldvla"}


def write_dataset(root: Path, seed: int) -> Path:
    with LeRobotWriter(root, synthetic_robot()) as writer:
        for episode in synthetic_episodes(2, length=24, seed=seed):
            writer.add(episode)
    label_values(LeRobotDataset(root), SparseValueSettings())
    return root


def smoke_run(recipe: str, root: Path, output: Path) -> Run:
    """A recipe of few steps for the synthetic robot."""
    run = RECIPES[recipe]()
    if FAMILIES[recipe] == "wav":
        model = wav.tiny(action_dim=3, state_dim=3, value_channels=1)
    else:
        tiny = worldvla.tiny(num_views=2, action_dim=3, state_dim=3)
        codec = dataclasses.replace(tiny.codec, fit_steps=5)
        model = dataclasses.replace(tiny, image_size=32, codec=codec)
    data = dataclasses.replace(run.data, root=root, cameras=())
    return dataclasses.replace(run, model=model, data=data, output=output, device="cpu")


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Recipe, a policy that it made, and another dataset of the same robot."""
    folder = tmp_path_factory.mktemp(request.param)
    run = smoke_run(request.param, write_dataset(folder / "first", 0), folder / "run")
    execute(run)
    return request.param, run.output / "policy", write_dataset(folder / "second", 1)


def published_worldvla() -> WorldVLAConfig:
    model = worldvla.libero()
    return dataclasses.replace(model, codec=dataclasses.replace(model.codec, pretrained="somewhere"))


def finer(trained: tuple[str, Path, Path], output: Path) -> Run:
    recipe, policy, dataset = trained
    return dataclasses.replace(smoke_run(recipe, dataset, output), initial=InitialWeights(path=policy))


def test_they_come_with_the_policy(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    recipe, policy, dataset = trained
    run = finer(trained, tmp_path / "finer")
    execute(run)
    assert codecs_digest(run.output / "policy" / "codecs") == codecs_digest(policy / "codecs")
    load_policy(run.output / "policy")
    alone = smoke_run(recipe, dataset, tmp_path / "alone")
    execute(alone)
    assert codecs_digest(alone.output / "policy" / "codecs") != codecs_digest(policy / "codecs")


def test_its_statistics_can_come_too(
    trained: tuple[str, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = trained[1]
    run = finer(trained, tmp_path / "finer")
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, statistics=policy))
    execute(run)
    assert "other statistics" not in caplog.text
    before, after = load_policy(policy), load_policy(run.output / "policy")
    assert after.transforms.state == before.transforms.state
    assert after.transforms.action == before.transforms.action
    own = dataclasses.replace(run, output=tmp_path / "own", data=dataclasses.replace(run.data, statistics=Path()))
    execute(own)
    assert f"behind other statistics of state and action than this run normalizes with, {SEEN}{policy}" in caplog.text
    assert load_policy(own.output / "policy").transforms.state != before.transforms.state


def test_an_interrupted_run_does_without_the_policy(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    recipe, policy, dataset = trained
    moved = tmp_path / "policy"
    shutil.copytree(policy, moved)
    run = finer((recipe, moved, dataset), tmp_path / "finer")
    execute(run)
    for change in (lambda: (moved / "training.json").write_text("{}"), lambda: shutil.rmtree(moved)):
        change()
        shutil.rmtree(run.output / "policy")
        assert execute(run).steps == 0
    assert codecs_digest(run.output / "policy" / "codecs") == codecs_digest(policy / "codecs")


def test_a_folder_begun_with_other_codecs(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    recipe, _, dataset = trained
    fitted = smoke_run(recipe, dataset, tmp_path / "run")
    execute(fitted)
    shutil.rmtree(fitted.output / "checkpoints")
    with pytest.raises(
        ValueError, match=r"were fitted to the dataset, those of .*policy are asked for now; start from"
    ):
        execute(finer(trained, fitted.output))
    begun = finer(trained, tmp_path / "begun")
    execute(begun)
    shutil.rmtree(begun.output / "checkpoints")
    with pytest.raises(ValueError, match=r"are those of a policy .* fitted ones are asked for now"):
        execute(dataclasses.replace(begun, initial=InitialWeights()))


def test_a_cache_is_made_with_the_policys_or_refused(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    recipe, policy, dataset = trained
    run = finer(trained, tmp_path / "finer")
    own, others = tmp_path / "own", tmp_path / "others"

    def cached(run: Run, cache: Path) -> Run:
        return dataclasses.replace(run, data=dataclasses.replace(run.data, cache=cache))

    encode(cached(smoke_run(recipe, dataset, Path()), others))
    with pytest.raises(ValueError, match=r"made with other codecs than .*codecs, .* with --initial\.path"):
        execute(cached(run, others))
    assert not (run.output / "codecs").exists()
    encode(cached(run, own))
    assert encode(cached(smoke_run(recipe, dataset, Path()), own)).encoded == 0, "it has its codecs"
    with pytest.raises(ValueError, match=r"were fitted to the dataset, those of .*policy are asked for now"):
        encode(cached(run, others))
    execute(cached(run, own))
    assert codecs_digest(run.output / "policy" / "codecs") == codecs_digest(policy / "codecs")


def test_a_policy_behind_exchanged_codecs_is_refused(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    recipe, policy, dataset = trained
    mixed = tmp_path / "mixed"
    shutil.copytree(policy, mixed)
    settings = next(path for path in sorted((mixed / "codecs").glob("*/config.json")))
    settings.write_text(json.dumps(json.loads(settings.read_text()), indent=1))
    message = "expected the codecs that the weights were trained behind"
    with pytest.raises(ValueError, match=message):
        execute(finer((recipe, mixed, dataset), tmp_path / "finer"))
    assert not (tmp_path / "finer" / "codecs").exists()
    with pytest.raises(ValueError, match=message):
        export_policy(mixed, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_policy_with_broken_or_lost_codecs_is_refused(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    """Before anything is written, and by the name of the policy: nothing of it is found in the run's folder later."""
    recipe, policy, dataset = trained
    broken = tmp_path / "broken"
    shutil.copytree(policy, broken)
    training = json.loads((broken / "training.json").read_text())
    del training["codecs_sha256"]  # as an older version wrote it
    (broken / "training.json").write_text(json.dumps(training))
    file = next(iter(sorted((broken / "codecs").rglob("*.safetensors"))))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    run = finer((recipe, broken, dataset), tmp_path / "finer")
    with pytest.raises(ValueError, match=f"{file} is damaged or cut short"):
        execute(run)
    assert not (run.output / "codecs").exists()
    file.write_bytes(whole)
    shutil.move(broken / "codecs", tmp_path / "codecs")
    with pytest.raises(ValueError, match=rf"trained behind in {broken}/codecs, found nothing; copy the whole folder"):
        execute(run)
    shutil.move(tmp_path / "codecs", broken / "codecs")
    execute(run)


def test_a_runs_folder_in_place_of_its_policys(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    recipe, policy, dataset = trained
    run = finer((recipe, policy.parent, dataset), tmp_path / "finer")
    with pytest.raises(FileNotFoundError, match=rf"expected weights .* in {policy.parent}.*did you mean {policy}\?"):
        execute(run)
    run = smoke_run(recipe, dataset, tmp_path / "finer")
    with pytest.raises(FileNotFoundError, match=rf"at {policy.parent}, found none; did you mean {policy}\?"):
        execute(dataclasses.replace(run, data=dataclasses.replace(run.data, statistics=policy.parent)))


def test_the_file_of_a_policys_weights_brings_them_too(
    trained: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a bare name, from a folder that may not be written to, with a file that a file manager left there."""
    recipe, policy, dataset = trained
    shutil.copytree(policy, tmp_path / "policy")
    next((tmp_path / "policy" / "codecs").iterdir()).joinpath(".DS_Store").write_bytes(b"x")
    for path in (tmp_path / "policy" / "codecs").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.chdir(tmp_path / "policy")
    run = finer((recipe, Path("model.safetensors"), dataset), tmp_path / "finer")
    execute(run)
    assert codecs_digest(run.output / "policy" / "codecs") == codecs_digest(policy / "codecs")
    assert all(path.stat().st_mode & 0o200 for path in (run.output / "codecs").rglob("*"))
    assert not list((run.output / "codecs").rglob(".DS_Store"))


def test_codecs_that_the_recipe_describes_otherwise(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    recipe, policy, _ = trained
    run = finer(trained, tmp_path / "finer")
    changed = {"text_length": 9} if FAMILIES[recipe] == "wav" else {"text": "words"}
    model = dataclasses.replace(run.model, codec=dataclasses.replace(run.model.codec, **changed))
    with pytest.raises(ValueError, match=rf"codecs of the policy .*policy, .* have {next(iter(changed))} .*, not "):
        execute(dataclasses.replace(run, model=model))
    assert not (run.output / "codecs").exists()
    published = wav.libero() if FAMILIES[recipe] == "wav" else published_worldvla()
    pretrained = dataclasses.replace(run, model=published)
    with pytest.raises(ValueError, match=r"have .*are pretrained False, not True"):
        initial_codecs(pretrained)
    shutil.copytree(policy, tmp_path / "policy")
    config = json.loads((policy / "config.json").read_text())
    config["codec"] = dataclasses.asdict(published.codec) | changed
    (tmp_path / "policy" / "config.json").write_text(json.dumps(config))
    again = dataclasses.replace(pretrained, initial=InitialWeights(path=tmp_path / "policy"))
    assert initial_codecs(again) is None, "the recipe names its pretrained codecs"


def test_encoding_without_the_policy_it_names(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    recipe, _, dataset = trained
    run = finer((recipe, tmp_path / "none", dataset), Path())
    with pytest.raises(FileNotFoundError, match=r"expected the initial weights' policy at .*none, found nothing"):
        encode(dataclasses.replace(run, data=dataclasses.replace(run.data, cache=tmp_path / "cache")))
    assert not (tmp_path / "cache" / "codecs").exists()


def test_weights_without_codecs_are_told_of(
    trained: tuple[str, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, policy, dataset = trained
    bare = tmp_path / "weights" / "model.safetensors"
    bare.parent.mkdir()
    shutil.copy(policy / "model.safetensors", bare)
    with caplog.at_level(logging.WARNING):
        execute(finer((recipe, bare, dataset), tmp_path / "finer"))
    assert "bring no codecs with them" in caplog.text
