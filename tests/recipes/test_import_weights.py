"""Weights of the public trainer become a policy that acts: random ones, written as it writes a step."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wamkit.cli.main import main
from wamkit.data.stats import feature_statistics, write_statistics_file
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.wav_statistics import read_wav_statistics, write_wav_statistics
from wamkit.models.wav.initial import empty_network, initialized
from wamkit.policy import load_policy
from wamkit.recipes.import_weights import read_robot
from wamkit.recipes.published_robots import libero_robot
from wamkit.recipes.reference_yaml import read_reference_yaml

from ..codecs.test_text_t5 import random_encoder, write_tokenizer
from ..codecs.test_video_ltx import TINY, random_vae
from .test_reference_yaml import tiny_action, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a lab has: codecs, a configuration, a step's weights, the statistics, and a robot's spec."""
    root = tmp_path_factory.mktemp("published")
    random_vae(TINY).save_pretrained(root / "ltx" / "vae")
    write_tokenizer(root / "ltx" / "tokenizer")
    random_encoder().save_pretrained(root / "ltx" / "text_encoder")
    config = write(root, tiny_action(root / "ltx", root / "run"), "model.yaml")
    network = initialized(empty_network(read_reference_yaml(config).run.model.network), seed=4)
    (root / "step_30000").mkdir()
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in network.state_dict().items()}
    save_file(tensors, root / "step_30000" / "diffusion_pytorch_model.safetensors")
    episode = synthetic_episodes(1, length=40)[0]
    statistics = {
        "action": feature_statistics(episode.actions),
        "action_delta": feature_statistics(episode.actions[1:] - episode.actions[:-1]),
        "state": feature_statistics(episode.state),
        "value": feature_statistics(torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).numpy()),
    }
    write_wav_statistics(root / "stats.jsonl", statistics, domain="square", space="joint")
    robot = synthetic_robot(height=64, width=64)
    (root / "robot.json").write_text(json.dumps(robot.to_dict()), encoding="utf-8")
    return root


def arguments(published: Path, output: Path, **changes: str) -> list[str]:
    options = {
        "like": str(published / "model.yaml"),
        "statistics": str(published / "stats.jsonl"),
        "domain": "square",
        "space": "joint",
        "robot": str(published / "robot.json"),
        "output": str(output),
    } | changes
    given = [word for key, value in options.items() for word in (f"--{key}", value)]
    return ["import", str(published / "step_30000"), *given]


def test_published_weights_become_a_policy(published: Path, tmp_path: Path) -> None:
    assert main(arguments(published, tmp_path / "policy")) == 0
    policy = load_policy(tmp_path / "policy", num_steps=2)
    stored = initialized(empty_network(policy.model.network.config), seed=4).state_dict()
    for name, tensor in policy.model.network.state_dict().items():
        assert torch.equal(tensor, stored[name].to(torch.bfloat16).float()), name
    policy.reset([0], seeds=[3])
    video = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
    chunk = policy.act([0], video=video, state=torch.zeros(1, 3), task=["push the red square"], executed=[0])
    assert chunk.actions.shape == (1, 9, 3) and chunk.actions.isfinite().all()
    assert policy.transforms.action.normalizer.kind == "meanstd" and policy.transforms.value is not None


def test_statistics_may_be_of_any_form(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The only domain of the public code's file, or a file of wamkit's own."""
    said = arguments(published, tmp_path / "policy")
    chosen = [said.index(option) for option in ("--domain", "--space")]
    plain = [word for place, word in enumerate(said) if not {place, place - 1} & set(chosen)]
    assert main([*plain, "--space", "joint"]) == 2
    assert "space joint is without effect without a domain; set --domain" in capsys.readouterr().err
    assert main(plain) == 0
    assert main(arguments(published, tmp_path / "named")) == 0
    statistics = [(tmp_path / name / "statistics.json").read_text() for name in ("policy", "named")]
    assert statistics[0] == statistics[1]
    found = read_wav_statistics(published / "stats.jsonl", domain="square", space="joint")
    write_statistics_file(tmp_path / "stats.json", found, fingerprint="")
    given = [*plain, "--statistics", str(tmp_path / "stats.json"), "--output", str(tmp_path / "own")]
    assert main(given) == 0
    assert load_policy(tmp_path / "own").transforms.to_dict() == load_policy(tmp_path / "named").transforms.to_dict()


def test_codecs_may_lie_elsewhere_later(published: Path, tmp_path: Path) -> None:
    assert main(arguments(published, tmp_path / "policy", codecs=str(published / "ltx"))) == 0
    (published / "ltx").rename(published / "moved")
    try:
        with pytest.raises(FileNotFoundError, match="ltx"):
            load_policy(tmp_path / "policy")
        loaded = load_policy(tmp_path / "policy", pretrained=published / "moved", dtype=torch.bfloat16)
        assert loaded.model.network.proj_in.weight.dtype == torch.bfloat16
        loaded.reset([0], seeds=[3])
        video = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
        chunk = loaded.act([0], video=video, state=torch.zeros(1, 3), task=["push the red square"], executed=[0])
        assert chunk.actions.isfinite().all()
    finally:
        (published / "moved").rename(published / "ltx")


def test_what_does_not_belong_together_is_refused(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = dataclasses.replace(synthetic_robot(height=64, width=64), state=synthetic_robot().state[:2])
    (tmp_path / "narrow.json").write_text(json.dumps(narrow.to_dict()), encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    for change, message in (
        ({"domain": "libero"}, "expected the entry 'libero_joint'"),
        ({"robot": str(tmp_path / "narrow.json")}, "choose domain, space and robot that belong to the weights"),
        ({"robot": str(tmp_path / "broken.json")}, "expected JSON"),
        ({"robot": "libera"}, "expected a robot's name (libero)"),
        ({"like": "wav-libera"}, "unknown recipe 'wav-libera'"),
        ({"like": "wav-libero", "robot": "libero"}, "statistics of {'action': 3, 'state': 3, 'value': 10}"),
        ({"like": "debug", "robot": "libero"}, "got statistics of"),
        ({"codecs": str(tmp_path)}, "autoencoder"),
    ):
        assert main(arguments(published, tmp_path / "policy", **change)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "policy").exists()
    (tmp_path / "there").mkdir()
    assert main(arguments(published, tmp_path / "there")) == 2
    assert "expected a new folder" in capsys.readouterr().err


def test_the_published_robot_has_the_published_widths() -> None:
    robot = read_robot("libero")
    assert robot == libero_robot() and (len(robot.action), len(robot.state), len(robot.cameras)) == (7, 8, 2)
