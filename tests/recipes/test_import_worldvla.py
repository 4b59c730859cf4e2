"""Published WorldVLA weights, tokenisers and limits become a policy that acts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from wamkit import recipes
from wamkit.cli.main import main
from wamkit.codecs.action_bins import ActionBins
from wamkit.codecs.image_vq import VQImageTokenizer
from wamkit.codecs.image_vq_config import VQConfig
from wamkit.codecs.vocabulary import published_names
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.network import empty_network, initialized
from wamkit.models.worldvla.weights import write_published
from wamkit.policy import load_policy
from wamkit.recipes import worldvla_published
from wamkit.recipes.run import Run
from wamkit.recipes.worldvla_limits import LIMITS, published_statistics


def small_libero() -> Run:
    """`worldvla-libero` with a tiny network behind a narrow tokeniser of the published structure."""
    run = worldvla_published.worldvla_libero()
    network = dataclasses.replace(sizes.tiny().network, vocab_size=16400)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, network=network, image_size=64))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files, small, with random weights: checkpoint, tokeniser of images, tokenizer of text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tmp_path_factory.mktemp("published")
    model = small_libero().model
    assert isinstance(model, sizes.WorldVLAConfig)
    write_published(initialized(empty_network(model), 0), folder / "libero_goal", norm_rows=1)
    codecs = folder / "chameleon" / "tokenizer"
    codecs.mkdir(parents=True)
    frames = torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    VQImageTokenizer.fit(frames, VQConfig.tiny(), torch.Generator().manual_seed(0), steps=1).to_published(codecs)
    words = {word: 16005 + place for place, word in enumerate(("What", "action", "open", "the", "drawer"))}
    tokenizer = Tokenizer(WordLevel(published_names() | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(codecs / "text_tokenizer.json"))
    return folder


def arguments(published: Path, output: Path) -> list[str]:
    return [
        "import", str(published / "libero_goal"), "--like", "worldvla-libero",
        "--codecs", str(published / "chameleon" / "tokenizer"), "--statistics", "worldvla-libero",
        "--robot", "libero", "--cameras", "agentview", "--output", str(output), "--dtype", "float32",
    ]  # fmt: skip


def test_import_and_act(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.RECIPES, "worldvla-libero", small_libero)
    assert main(arguments(published, tmp_path / "policy")) == 0
    policy = load_policy(tmp_path / "policy")
    assert policy.spec.context_stride == 1 and policy.spec.robot.camera_names == ("agentview",)
    low, high = LIMITS["worldvla-libero"]["action"]
    policy.reset([0], seeds=[0])
    chunk = policy.act(
        [0],
        video=torch.zeros(1, 1, 256, 256, 3, dtype=torch.uint8),
        state=torch.zeros(1, 8),
        task=["open the drawer"],
        executed=[0],
    )
    assert chunk.actions.shape == (1, 5, 7)
    assert (chunk.actions >= torch.tensor(low) - 1e-6).all() and (chunk.actions <= torch.tensor(high) + 1e-6).all()


def test_a_vocabulary_that_is_not_the_weights(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_libero()
    network = dataclasses.replace(sizes.tiny().network, vocab_size=16000)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, network=network))
    monkeypatch.setitem(recipes.RECIPES, "worldvla-libero", lambda: other)
    assert main(arguments(published, tmp_path / "policy")) == 2
    assert "expected a vocabulary of at most 16000 ids, the weights'" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()


def test_tokenisers_that_are_not_there(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "worldvla-libero", small_libero)
    said = arguments(published, tmp_path / "policy")
    said[said.index("--codecs") + 1] = str(tmp_path)
    assert main(said) == 2
    assert "text_tokenizer.json" in capsys.readouterr().err


def test_limits_are_the_published_normalisation() -> None:
    """u = clip(2 (a - lo) / (hi - lo + 1e-8) - 1, -1, 1), and bins at both ends."""
    from wamkit.data.transforms import Normalizer

    for name in LIMITS:
        statistics = published_statistics(name)["action"]
        low, high = (torch.tensor(side, dtype=torch.float64) for side in LIMITS[name]["action"])
        numbers = torch.stack((low, high, (low + high) / 2, low + 0.3 * (high - low)))
        found = Normalizer.from_statistics("minmax", statistics).normalize(numbers)
        assert torch.allclose(
            found, 2 * (numbers - low) / (high - low + 1e-8) - 1, atol=3e-6
        )  # ours has another epsilon
        bins = ActionBins()
        places = bins.encode(found)
        assert (places[0] == 0).all() and (places[1] >= 254).all()
        assert int(bins.count_outside(found)) == 0
