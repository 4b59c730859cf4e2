"""Policy folders: what is written is read back, what is damaged is named, and nothing is ever half written."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wamkit
from wamkit.checkpoint import PolicyFiles, export_policy, fingerprint_folder, read_policy, write_policy
from wamkit.spec import CameraSpec, ChannelSpec, PolicySpec, RobotSpec
from wamkit.weight_files import load_state

ROBOT = RobotSpec(
    name="arm/bench",
    cameras=(CameraSpec(name="front", height=32, width=48), CameraSpec(name="wrist", height=32, width=48)),
    state=(ChannelSpec(name="x", unit="m"), ChannelSpec(name="opening")),
    action=(ChannelSpec(name="dx", unit="m"), ChannelSpec(name="gripper")),
    action_kind="delta",
    gripper_channels=(1,),
    gripper_sign="close_positive",
    control_hz=20.0,
)
SPEC = PolicySpec(
    family="wav",
    robot=ROBOT,
    num_context=4,
    action_horizon=8,
    execution_horizon=4,
    normalization="minmax",
    tasks=("push the square", "pull | the square"),
    extra={"sizes": [1, 2]},
)
TRAINING = {
    "recipe": {"stages": [{"name": "video", "train": ["video"], "steps": 7, "batch_size": 2, "learning_rate": 3e-4}]},
    "seed": 5,
    "stage": "video",
    "step": 7,
    "data_fingerprint": "abc",
    "commit": None,
    "versions": {"torch": "2"},
}


def network(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def save(path: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "family": "wav",
        "network": network(),
        "config": {"width": 6, "views": [0, 1]},
        "spec": SPEC,
        "statistics": {"action": {"mean": [0.5, 1.0], "epsilon": 1e-8}},
        "training": TRAINING,
        "write_codecs": lambda folder: (folder / "codec.json").write_text("{}") and None,
    }
    return write_policy(path, **{**settings, **changes})


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_policy_comes_back_as_it_was(tmp_path: Path) -> None:
    policy = read_policy(save(tmp_path / "policy"))
    assert (policy.family, policy.config) == ("wav", {"width": 6, "views": [0, 1]})
    assert policy.spec == SPEC
    assert policy.statistics == {"action": {"mean": [0.5, 1.0], "epsilon": 1e-8}}
    assert policy.training.pop("codecs_sha256") == fingerprint_folder(policy.codecs)
    assert policy.training == TRAINING
    policy.check_codecs()
    assert os.listdir(policy.codecs) == ["codec.json"]
    assert same(policy.load_weights(), network().state_dict())
    other = network(seed=1)
    load_state(other, policy.load_weights(), policy.folder)
    assert same(dict(other.state_dict()), network().state_dict())
    assert sorted(os.listdir(tmp_path)) == ["policy"]
    expected = [
        "README.md",
        "codecs",
        "config.json",
        "model.safetensors",
        "spec.json",
        "statistics.json",
        "training.json",
    ]
    assert sorted(os.listdir(policy.folder)) == expected
    assert json.loads((policy.folder / "config.json").read_text())["type"] == "wav"


def test_the_card_says_what_the_policy_needs_and_how_it_was_trained(tmp_path: Path) -> None:
    folder = save(tmp_path / "policy", card={"Results": "18 of 20"})
    card = (folder / "README.md").read_text()
    for text in ("front 32x48, wrist 32x48", "dx [m], gripper", "20 Hz", "minmax", "push the square"):
        assert text in card
    assert "| video | video | 7 | 2 | 0.0003 |" in card and "after step 7 of stage video" in card
    assert "## Results\n\n18 of 20" in card
    assert card.startswith("---\nlibrary_name: wamkit\n")
    assert "| frames remembered | 4 |" in card
    for stride, words in ((1, "4, 1 control step apart"), (2, "4, 2 control steps apart")):
        strided = save(tmp_path / f"policy-{stride}", spec=dataclasses.replace(SPEC, context_stride=stride))
        assert f"| frames remembered | {words} |" in (strided / "README.md").read_text()


def test_saving_in_another_type_rounds_and_loads_into_full_precision(tmp_path: Path) -> None:
    policy = read_policy(save(tmp_path / "policy", dtype=torch.bfloat16))
    weights = policy.load_weights()
    assert weights["0.weight"].dtype == torch.bfloat16
    assert weights["1.num_batches_tracked"].dtype == torch.int64, "counters stay whole numbers"
    loaded = network(seed=1)
    load_state(loaded, weights, policy.folder)
    assert loaded[0].weight.dtype == torch.float32
    assert torch.equal(loaded[0].weight, network()[0].weight.bfloat16().float())


@pytest.mark.parametrize("size", [0, 4, 200, -1])
def test_a_truncated_weight_file_is_named(tmp_path: Path, size: int) -> None:
    file = save(tmp_path / "policy") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short.*again"):
        read_policy(tmp_path / "policy")


@pytest.mark.parametrize("name", ["config.json", "spec.json", "statistics.json", "training.json"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    file = save(tmp_path / "policy") / name
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        read_policy(tmp_path / "policy")
    for deep_or_long in ("[" * 100_000, '{"number": ' + "1" * 5000 + "}"):
        file.write_text(deep_or_long)
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            read_policy(tmp_path / "policy")
    file.write_text("[1]")
    with pytest.raises(ValueError, match=rf"{name}: expected a JSON object, got list"):
        read_policy(tmp_path / "policy")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"not a complete policy folder: {name} not found"):
        read_policy(tmp_path / "policy")


def test_missing_weights_and_wrong_paths_are_explained(tmp_path: Path) -> None:
    folder = save(tmp_path / "policy")
    with pytest.raises(FileNotFoundError, match=r"found nothing; policy folders beside it: \['policy'\]"):
        read_policy(tmp_path / "polciy")
    with pytest.raises(NotADirectoryError, match="give the folder"):
        read_policy(folder / "config.json")
    with pytest.raises(FileNotFoundError, match="not a complete policy folder"):
        read_policy(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="expected weights"):
        read_policy(folder)


def test_files_of_two_policies_do_not_mix(tmp_path: Path) -> None:
    folder = save(tmp_path / "policy")
    other = dataclasses.replace(SPEC, family="aim")
    (folder / "spec.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(ValueError, match=r"'wav'.*'aim'"):
        read_policy(folder)
    (folder / "spec.json").write_text(json.dumps({**SPEC.to_dict(), "colour": "red"}))
    with pytest.raises(ValueError, match=r"spec\.json: policy spec: expected the keys"):
        read_policy(folder)
    with pytest.raises(ValueError, match="expected one family name"):
        save(tmp_path / "mixed", spec=other)
    with pytest.raises(ValueError, match="expected one family name"):
        save(tmp_path / "mixed", config={"type": "aim"})
    assert not (tmp_path / "mixed").exists()


def test_what_json_cannot_hold_is_refused_and_the_old_policy_stays(tmp_path: Path) -> None:
    before = read_policy(save(tmp_path / "policy")).fingerprint
    for statistics in ({"mean": float("nan")}, {"mean": torch.zeros(2)}):
        with pytest.raises(ValueError, match=r"statistics\.json: expected plain finite"):
            save(tmp_path / "policy", statistics=statistics)
    assert read_policy(tmp_path / "policy").fingerprint == before
    assert os.listdir(tmp_path) == ["policy"]


def test_the_fingerprint_follows_what_the_policy_does(tmp_path: Path) -> None:
    first = read_policy(save(tmp_path / "first"))
    assert len(first.fingerprint) == 64 and first.fingerprint == fingerprint_folder(first.folder)
    assert read_policy(save(tmp_path / "again")).fingerprint == first.fingerprint, "equal content, equal fingerprint"
    for number, changes in enumerate(
        (
            {"network": network(seed=1)},
            {"statistics": {"action": {"mean": [0.5, 1.0], "epsilon": 1e-6}}},
            {"write_codecs": None},
            {"training": {**TRAINING, "step": 8}},
        )
    ):
        assert read_policy(save(tmp_path / str(number), **changes)).fingerprint != first.fingerprint
    (first.folder / "README.md").write_text("my notes")
    (first.folder / ".gitattributes").write_text("hub")
    (first.folder / ".cache").mkdir()
    (first.folder / ".cache" / "lock").write_text("hub")
    (first.folder / "training_state").mkdir()
    (first.folder / "training_state" / "state.json").write_text("{}")
    assert fingerprint_folder(first.folder) == first.fingerprint, "notes, downloads and resuming change nothing"


def test_a_replacement_is_whole_and_readable_in_the_middle_of_it(tmp_path: Path) -> None:
    save(tmp_path / "policy")
    save(tmp_path / "next", network=network(seed=1))
    # The state between the two renames of a replacement.
    os.rename(tmp_path / "policy", tmp_path / ".policy.old")
    os.rename(tmp_path / "next", tmp_path / ".policy.new")
    assert same(read_policy(tmp_path / "policy").load_weights(), network(seed=1).state_dict())
    save(tmp_path / "policy", network=network(seed=2))
    assert same(read_policy(tmp_path / "policy").load_weights(), network(seed=2).state_dict())
    assert os.listdir(tmp_path) == ["policy"]


def test_a_disk_without_room_leaves_the_old_policy(tmp_path: Path) -> None:
    """The weight file meets a limit on the size of files, in the writer that reports errors its own way."""
    save(tmp_path / "policy")
    before = read_policy(tmp_path / "policy").fingerprint
    code = """
import resource, sys
import torch
from wamkit.atomic import DiskFull
from wamkit.checkpoint import read_policy, write_policy
old = read_policy(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_policy(sys.argv[1], family="wav", network={"a": torch.zeros(200, 200)}, config=old.config, spec=old.spec,
                 statistics=old.statistics, training=old.training)
except DiskFull as error:
    sys.exit(str(error))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(wamkit.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "policy")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "untouched" in result.stderr, result.stderr
    assert read_policy(tmp_path / "policy").fingerprint == before
    assert os.listdir(tmp_path) == ["policy"]


def test_a_policy_folder_moves_anywhere(tmp_path: Path) -> None:
    folder = save(tmp_path / "policy")
    shutil.move(folder, tmp_path / "deep" / "elsewhere")
    policy = read_policy(str(tmp_path / "deep" / "elsewhere"))
    assert isinstance(policy, PolicyFiles) and same(policy.load_weights(), network().state_dict())


def test_an_exported_policy_holds_the_rounded_weights_and_nothing_of_training(tmp_path: Path) -> None:
    def write_codecs(folder: Path) -> None:
        (folder / "video").mkdir()
        (folder / "video" / "codec.json").write_text("{}")

    source = save(tmp_path / "run", write_codecs=write_codecs)
    (source / "training_state").mkdir()
    (source / "training_state" / "moments.bin").write_bytes(b"0" * 100)
    output = export_policy(source, tmp_path / "bf16", dtype=torch.bfloat16)
    before, after = read_policy(source), read_policy(output)
    assert not (output / "training_state").exists() and (output / "codecs" / "video" / "codec.json").is_file()
    for name, tensor in before.load_weights().items():
        expected = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert torch.equal(after.load_weights()[name], expected)
    assert after.training["exported_from"] == before.fingerprint and after.training["seed"] == 5
    assert (after.spec, after.config, after.statistics) == (before.spec, before.config, before.statistics)
    with pytest.raises(FileExistsError, match="choose another"):
        export_policy(source, output)


def test_results_beside_a_policy_do_not_change_its_fingerprint(tmp_path: Path) -> None:
    folder = save(tmp_path / "policy")
    before = fingerprint_folder(folder)
    (folder / "results.json").write_text("{}")
    assert fingerprint_folder(folder) == before
