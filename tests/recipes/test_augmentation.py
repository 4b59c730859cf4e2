"""Training on changed pictures: what a recipe's image settings do to a run, and what a policy remembers of them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.cli.main import main
from wamkit.data import frames
from wamkit.data.batches import StageBatches
from wamkit.data.image_settings import ColorJitter
from wamkit.data.images import fit_images
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.value_labels import SparseValueSettings, label_values
from wamkit.data.writer import LeRobotWriter
from wamkit.models.wav import config as wav
from wamkit.policy import Policy, load_policy
from wamkit.recipes import RECIPES
from wamkit.recipes.execute import execute
from wamkit.recipes.run import DataConfig, Run
from wamkit.spec import PolicySpec
from wamkit.training.log import read_metrics
from wamkit.types import Batch


def write_dataset(root: Path, *, height: int = 32, width: int = 32, num: int = 3) -> Path:
    """Demonstrations of a pushed square with sparse values."""
    with LeRobotWriter(root, synthetic_robot(height=height, width=width)) as writer:
        for episode in synthetic_episodes(num, length=20, height=height, width=width):
            writer.add(episode)
    label_values(LeRobotDataset(root), SparseValueSettings())
    return root


def tiny_run(dataset: Path, output: Path, **data: object) -> Run:
    """The debug recipe, two steps a stage, for the square."""
    base = RECIPES["debug"]()
    return dataclasses.replace(
        base,
        model=wav.tiny(action_dim=3, state_dim=3, value_channels=1),
        data=dataclasses.replace(DataConfig(root=dataset), **data),
        output=output,
        stages=tuple(dataclasses.replace(stage, steps=2) for stage in base.stages),
        device="cpu",
    )


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in read_metrics(run.output / "metrics.jsonl")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("square") / "dataset")


def test_color_jitter_changes_what_is_learnt_and_repeats(dataset: Path, tmp_path: Path) -> None:
    jitter = ColorJitter.published()
    runs = [
        tiny_run(dataset, tmp_path / "plain"),
        tiny_run(dataset, tmp_path / "first", color_jitter=jitter),
        tiny_run(dataset, tmp_path / "second", color_jitter=jitter),
    ]
    for run in runs:
        execute(run)
    plain, first, second = map(losses, runs)
    assert first == second
    assert all(one != other for one, other in zip(plain, first, strict=True)), "every stage sees the changed pictures"
    with pytest.raises(ValueError, match=r"data.color_jitter.hue: saved 0.1, now 0.0"):
        execute(dataclasses.replace(runs[0], output=runs[1].output))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_processes_that_read_change_no_number(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, finished = StageBatches.finish, set()

    def noted(self: StageBatches, step: int, drawn: Batch) -> Batch:
        assert drawn.context is not None
        finished.add((self.num_processes, drawn.context.is_shared()))
        return finish(self, step, drawn)

    monkeypatch.setattr(StageBatches, "finish", noted)
    monkeypatch.setattr(frames, "_free_memory", lambda: 0)
    settings = {"color_jitter": ColorJitter.published()}
    alone = tiny_run(dataset, tmp_path / "alone", workers=0, **settings)
    beside = tiny_run(dataset, tmp_path / "beside", workers=2, **settings)
    execute(alone)
    assert finished == {(0, False)}
    execute(beside)
    assert finished == {(0, False), (2, True)}, "drawn in other processes, and sent through shared memory"
    assert losses(alone) == losses(beside)
    execute(dataclasses.replace(beside, data=alone.data))  # the same run, which is finished


def test_recipes_leave_pictures_alone_except_the_published() -> None:
    for name, recipe in RECIPES.items():
        data = recipe().data
        if name in ("wav-libero", "wav-dualarm"):
            published = (data.color_jitter, data.preprocess, data.random_crop)
            assert published == (ColorJitter.published(), "resize", False), name
        else:
            assert not data.color_jitter.is_on and not data.random_crop, name
            assert data.preprocess == ("resize" if name in ("worldvla-libero", "rynnvla-libero") else "exact"), name


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose pictures are not of the model's size."""
    return write_dataset(tmp_path_factory.mktemp("wide") / "dataset", height=48, width=64)


def test_pictures_of_another_size_are_refused_with_the_ways_out(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset \[\(48, 64\)\](.|\n)*'resize' or 'center_crop_resize'"):
        execute(tiny_run(wide, tmp_path / "run"))


@pytest.mark.parametrize("preprocess", ["resize", "center_crop_resize"])
def test_a_policy_treats_the_robot_s_pictures_as_in_training(wide: Path, tmp_path: Path, preprocess: str) -> None:
    """Its spec wants the robot's camera sizes; what the network gets is what it was trained on."""
    run = tiny_run(wide, tmp_path / "run", preprocess=preprocess, random_crop=preprocess == "resize")
    execute(run)
    policy = load_policy(run.output / "policy", num_steps=2)
    assert (policy.spec.image_size, policy.spec.preprocess) == ((32, 32), preprocess)
    assert [(camera.height, camera.width) for camera in policy.spec.robot.cameras] == [(48, 64)] * 2
    dataset = LeRobotDataset(wide)
    recorded = torch.from_numpy(np.stack([dataset.frames(0, camera, [4])[0] for camera in ("front", "wrist")]))

    def act(policy: Policy, video: torch.Tensor) -> torch.Tensor:
        policy.reset([0], seeds=[3])
        inputs = {"state": torch.zeros(1, 3), "task": ["push"], "executed": [0]}
        return policy.act([0], video=video[None], **inputs, record=True)

    chunk = act(policy, recorded)
    fitted = fit_images(recorded, height=32, width=32, preprocess=preprocess)
    own = dataclasses.replace(policy.spec, image_size=None, preprocess="exact", robot=synthetic_robot())
    exact = Policy(policy.model, own, policy.transforms, num_steps=2)
    assert torch.equal(act(exact, fitted).actions, chunk.actions)
    assert chunk.imagined.video.shape == (1, 2, 9, 32, 32, 3)
    with pytest.raises(ValueError, match=r"= \(1, 2, 48, 64, 3\)"):
        act(policy, fitted)

    # Recorded pictures are compared with imagined ones as the policy sees them.
    out = tmp_path / "openloop"
    arguments = ["--data", str(wide), "--output", str(out), "--num-steps", "1", "--device", "cpu"]
    assert main(["openloop", str(run.output / "policy"), *arguments]) == 0
    assert json.loads((out / "openloop.json").read_text())["total"]["video"]


def test_old_policies_want_their_robot_s_sizes(dataset: Path) -> None:
    robot = LeRobotDataset(dataset).robot
    spec = PolicySpec(
        family="wav", robot=robot, num_context=1, action_horizon=4, execution_horizon=2, normalization="minmax"
    )
    older = {key: item for key, item in spec.to_dict().items() if key not in ("image_size", "preprocess")}
    assert PolicySpec.from_dict(older) == spec and spec.image_size is None
    fitted = dataclasses.replace(spec, image_size=(32, 48), preprocess="resize")
    assert PolicySpec.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
