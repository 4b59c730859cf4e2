"""WorldVLA learns to act and to imagine (check 12, in its short form)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from wamkit.data.actions import ActionTransform
from wamkit.data.encode import encode_dataset
from wamkit.data.encoded import CachePurpose, EncodedDataset
from wamkit.data.features import ACTION, STATE
from wamkit.data.loader import WindowLoader
from wamkit.data.pushing import ROBOT, pushing_episodes
from wamkit.data.stats import feature_statistics
from wamkit.data.synthetic import MemoryDataset
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.draws import TrainingDraws
from wamkit.masks import action_mask
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.models.worldvla.family import WorldVLA
from wamkit.models.worldvla.objective import WorldVLAObjective, action_only, joint
from wamkit.models.worldvla.samples import action_sample
from wamkit.types import Batch

BATCH = 16


def config(mask: Literal["action", "causal"] = "action") -> WorldVLAConfig:
    """`tiny` with a small vocabulary and a fast tokeniser of images, which take most of its time."""
    tiny = sizes.tiny(action_dim=3, state_dim=3)
    return dataclasses.replace(
        tiny,
        mask=mask,
        text_length=32,
        codec=dataclasses.replace(tiny.codec, image="patch_vq", text="words", num_codes=128),
        network=dataclasses.replace(tiny.network, vocab_size=1180, dropout=0.0),
    )


WINDOWS = WindowConfig(
    context=2, chunk=1, action_horizon=5, pick="spaced", spacing=1, action_offset=0, future_stride=1, whole=True
)


def normalizer(rows: np.ndarray) -> Normalizer:
    return Normalizer.from_statistics("minmax", feature_statistics(rows))


@dataclass(frozen=True)
class World:
    """A dataset as codes, with the codecs that made them."""

    loader: WindowLoader
    codecs: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("cache"))


def make_world(folder: Path) -> World:
    dataset = MemoryDataset(pushing_episodes(3), ROBOT)
    columns = [dataset.columns(entry.index) for entry in dataset.episodes]
    settings: dict[str, Any] = {
        "action": ActionTransform(normalizer=normalizer(np.concatenate([column[ACTION] for column in columns]))),
        "state": normalizer(np.concatenate([column[STATE] for column in columns])),
        "batch_size": BATCH,
        "seed": 0,
    }
    frames = WindowLoader(dataset, WINDOWS, **settings)
    codecs = folder / "codecs"
    batches = [frames.batch(step) for step in range(8)]
    WorldVLA.fit_codecs(config(), batches, torch.Generator().manual_seed(0), codecs)
    purpose = CachePurpose.of(
        dataset="pushing",
        cameras=dataset.cameras,
        image_size=(config().image_size, config().image_size),
        preprocess="exact",
        windows=WINDOWS,
        codec=config().codec_record(),
        dtype="float32",
    )
    encode_dataset(dataset, folder, purpose, WINDOWS, encoder=WorldVLA.cache_encoder(config(), codecs, "cpu"))
    return World(WindowLoader(dataset, WINDOWS, encoded=EncodedDataset(folder, purpose), **settings), codecs)


def train(
    world: World,
    objective: WorldVLAObjective,
    *,
    steps: int,
    mask: Literal["action", "causal"] = "action",
) -> WorldVLA:
    model = WorldVLA.create(config(mask), world.codecs, seed=1)
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        draws = TrainingDraws(key=(0, step), rows=range(BATCH), num_rows=BATCH)
        loss, _ = model.loss(world.loader.batch(step, need_future=objective.needs_future), objective, draws)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.network.eval()
    return model


def measure(model: WorldVLA, world: World) -> dict[str, Any]:
    batches: Iterator[Batch] = (world.loader.reseeded(64, 99).batch(step) for step in range(2))
    parts = [model.validate(batch, streams=(), num_steps=1) for batch in batches]
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def test_the_loss_falls(world: World) -> None:
    before = measure(train(world, joint(), steps=1), world)
    after = measure(train(world, joint(), steps=60), world)
    assert after["action_loss"] < 0.5 * before["action_loss"]
    assert after["world_loss"] < 0.85 * before["world_loss"]
    assert after["action_accuracy"] > 0.5 > before["action_accuracy"]


@pytest.mark.slow
@pytest.mark.usefixtures("types_unchecked")
def test_learning(world: World) -> None:
    """Check 12: ids of actions and codes, joint training, and what a wrong first action does.

    A part of the specified steps, with a vocabulary that has room for these sequences alone;
    `runs/worldvla_learning.py` takes all of them with the whole.
    """
    together = measure(train(world, joint(), steps=800), world)
    assert together["action_accuracy"] >= 0.95
    assert together["code_accuracy"] >= 0.90
    alone = train(world, action_only(), steps=300)
    assert together["action_accuracy"] >= measure(alone, world)["action_accuracy"] - 0.02
    causal = train(world, action_only(), steps=300, mask="causal")
    assert change_by_a_wrong_action(alone, world) == 0
    assert change_by_a_wrong_action(causal, world) > 1e-3


def change_by_a_wrong_action(model: WorldVLA, world: World) -> float:
    """Largest change of a probability of later actions' ids when the first action of a chunk is another one."""
    encoded = model.encode(world.loader.batch(0))
    vocab, builder = model.vocabulary, model.builder
    samples = [action_sample(builder, encoded, row) for row in range(4)]
    batch = builder.batch(samples, torch.zeros(4, dtype=torch.bool))
    starts = [(row == vocab.begin_action).nonzero()[:, 0].tolist() for row in batch.ids]
    wrong = batch.ids.clone()
    for row, (first, *_) in enumerate(starts):
        wrong[row, first + 1] = vocab.action[0] if wrong[row, first + 1] != vocab.action[0] else vocab.action[-1]
    with torch.inference_mode():
        right, moved = (
            model.network.logits(model.network(ids, action_mask(batch.block))).softmax(dim=-1)
            for ids in (batch.ids, wrong)
        )
    changes = [(right[row, start:-1] - moved[row, start:-1]).abs() for row, (_, start, *_) in enumerate(starts)]
    behind = [change[: 4 * builder.config.block_length - 1].max() for change in changes]  # without the turn mark
    return float(torch.stack(behind).max())
