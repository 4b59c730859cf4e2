"""WAV behind the LTX autoencoder and T5: tiny random weights in the published layout, from codecs to a policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wamkit.data.actions import ActionTransform
from wamkit.data.synthetic import synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.vectors import Transforms
from wamkit.draws import TrainingDraws
from wamkit.models.wav import config as wav
from wamkit.models.wav import objective as stages
from wamkit.models.wav.config import CodecConfig
from wamkit.models.wav.family import WAV
from wamkit.policy import Policy, load_policy
from wamkit.recipes.execute import encode, execute
from wamkit.spec import PolicySpec
from wamkit.training.log import read_metrics
from wamkit.types import Batch

from ..codecs.test_text_t5 import random_encoder, write_tokenizer
from ..codecs.test_video_ltx import TINY, random_vae
from ..recipes.test_augmentation import tiny_run, write_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like LTX-Video's: `vae/`, `text_encoder/`, `tokenizer/`."""
    root = tmp_path_factory.mktemp("ltx-video")
    random_vae(TINY).save_pretrained(root / "vae")
    write_tokenizer(root / "tokenizer")
    random_encoder().save_pretrained(root / "text_encoder")
    return root


def config(pretrained: Path | str) -> wav.WAVConfig:
    codec = CodecConfig(video="ltx", spatial=32, temporal=8, text="t5", text_length=12, pretrained=str(pretrained))
    return dataclasses.replace(wav.tiny(action_dim=3, state_dim=3), codec=codec, image_size=64)


def batch(settings: wav.WAVConfig) -> Batch:
    rng = torch.Generator().manual_seed(0)
    size = (settings.image_size, settings.image_size, 3)

    def frames(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (2, settings.num_views, count, *size), dtype=torch.uint8, generator=rng)

    horizon = settings.action_horizon
    return Batch(
        context=frames(settings.num_context),
        future=frames(settings.num_future),
        state=torch.randn(2, 3, generator=rng),
        actions=torch.randn(2, horizon, 3, generator=rng),
        future_state=torch.randn(2, horizon, 3, generator=rng),
        is_padded=torch.zeros(2, horizon, dtype=torch.bool),
        value_targets=torch.randn(2, horizon, 10, generator=rng),
        task=["open the drawer", "push the green button"],
        episode_index=torch.zeros(2, dtype=torch.int64),
    )


def test_wav_trains_saves_and_acts_behind_pretrained_codecs(pretrained: Path, tmp_path: Path) -> None:
    settings = config(pretrained)
    WAV.fit_codecs(settings, [], torch.Generator(), tmp_path / "codecs")
    model = WAV.create(settings, tmp_path / "codecs", seed=0)
    encoded = model.encode(batch(settings))
    assert encoded.memory.shape == (2, 2, 8, 2, 2, 2)
    assert encoded.future is not None and encoded.future.shape == (2, 2, 8, 2, 2, 2)
    # every memory frame is encoded on its own: the current frame does not depend on the one before it
    alone = model.encode_frames(batch(settings).context[:, :, -1:])
    torch.testing.assert_close(encoded.memory[:, :, :, -1:], alone, atol=1e-5, rtol=1e-5)
    drawn = model.encode(
        batch(settings), TrainingDraws(key=(1,), rows=range(2), num_rows=2)
    )  # training draws from the posterior
    assert not torch.allclose(drawn.memory, encoded.memory)
    for objective in (stages.video_only(), stages.value_only(), stages.action_full()):
        loss, _ = model.loss(batch(settings), objective, TrainingDraws(key=(0,), rows=range(2), num_rows=2))
        loss.backward()
        assert torch.isfinite(loss)

    unit = Normalizer(kind="minmax", q01=(-1.0,) * 3, q99=(1.0,) * 3, mean=(0.0,) * 3, std=(1.0,) * 3)
    spec = PolicySpec(
        family="wav",
        robot=synthetic_robot(height=64, width=64),
        num_context=2,
        action_horizon=settings.action_horizon,
        execution_horizon=4,
        normalization="minmax",
    )
    model.network.eval()
    policy = Policy(
        model, spec, Transforms(state=unit, action=ActionTransform(normalizer=unit), value=None), num_steps=2
    )
    policy.save(tmp_path / "policy", config=settings.to_dict(), training={})
    assert not list((tmp_path / "policy" / "codecs").rglob("*.safetensors")), "pretrained codecs are named, not copied"
    actions = []
    for each in (policy, load_policy(tmp_path / "policy", num_steps=2)):
        each.reset([0], seeds=[1])
        chunk = each.act(
            [0],
            video=batch(settings).context[:1, :, 0],
            state=torch.zeros(1, 3),
            task=["open the drawer"],
            executed=[0],
            record=True,
        )
        assert chunk.imagined is not None and chunk.imagined.video is not None
        assert chunk.imagined.video.shape == (1, 2, 9, 64, 64, 3)
        actions.append(chunk.actions)
    torch.testing.assert_close(actions[0], actions[1], atol=1e-5, rtol=1e-5)


def test_training_from_their_latents_draws_from_the_same_posterior(pretrained: Path, tmp_path: Path) -> None:
    """The cache keeps mean and spread, so that noise on latents is that of training from pictures."""
    dataset = write_dataset(tmp_path / "dataset", height=64, width=64, num=2)
    pixels = tiny_run(dataset, tmp_path / "pixels")
    model = dataclasses.replace(pixels.model, codec=config(pretrained).codec, image_size=64)
    pixels = dataclasses.replace(pixels, model=model)
    data = dataclasses.replace(pixels.data, cache=tmp_path / "cache")
    cached = dataclasses.replace(pixels, output=tmp_path / "cached", data=data)
    encode(cached)
    stored = load_file(tmp_path / "cache" / "episodes" / "episode_000000.safetensors")
    assert stored["frames"].shape == (20, 2, 2, 8, 2, 2) and (stored["frames"][:, :, 1] > 0).all()
    losses = []
    for run in (pixels, cached):
        execute(run)
        losses.append([row["loss"] for row in read_metrics(run.output / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    moved = dataclasses.replace(model.codec, pretrained="elsewhere")  # where weights lie is no part of what they are
    elsewhere = dataclasses.replace(cached, model=dataclasses.replace(model, codec=moved), output=tmp_path / "moved")
    assert execute(elsewhere).steps == 6


def test_pretrained_codecs_need_their_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.codec\.pretrained"):
        WAV.fit_codecs(config(""), [], torch.Generator(), tmp_path / "codecs")
    with pytest.raises(FileNotFoundError):
        WAV.fit_codecs(config(tmp_path / "nowhere"), [], torch.Generator(), tmp_path / "codecs")
