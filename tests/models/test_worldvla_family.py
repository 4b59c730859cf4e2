"""WorldVLA as a policy and as a world model, behind tokenisers of its own."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wamkit.checkpoint import export_policy
from wamkit.data.synthetic import synthetic_robot
from wamkit.draws import SeededDraws, TrainingDraws
from wamkit.imagination import imagine
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.models.worldvla.family import WorldVLA
from wamkit.models.worldvla.objective import action_only, joint, world_only
from wamkit.models.worldvla.samples import token_batch
from wamkit.policy import Policy, load_policy
from wamkit.types import Batch, Clips, InputError, Observation
from wamkit.untrained import untrained_policy

ROBOT = synthetic_robot(height=64, width=64)
FRAMES = torch.randint(256, (6, 2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def config_of(kind: str) -> WorldVLAConfig:
    """`tiny` for two cameras: WorldVLA's, or RynnVLA-002's with state and continuous head."""
    tiny = sizes.tiny(num_views=2, action_dim=3, state_dim=3, has_head=kind == "rynnvla")
    return dataclasses.replace(tiny, codec=dataclasses.replace(tiny.codec, fit_steps=2))


@pytest.fixture(scope="module", params=["worldvla", "rynnvla"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return untrained_policy(config_of(request.param), ROBOT, execution_horizon=5)


def family(policy: Policy) -> WorldVLA:
    assert isinstance(policy.model, WorldVLA)
    return policy.model


def act(policy: Policy, slots: list[int], row: int, executed: int, *, record: bool = False) -> torch.Tensor:
    count = len(slots)
    return policy.act(
        slots,
        video=FRAMES[row : row + 1].expand(count, -1, -1, -1, -1),
        state=torch.zeros(count, 3),
        task=["push"] * count,
        executed=[executed] * count,
        record=record,
    ).actions


def test_the_frame_before_changes_what_is_done(policy: Policy) -> None:
    """History is the frame of the step before; one that is farther back is not shown."""
    policy.reset([0, 1, 2], seeds=[0, 0, 0])
    first = act(policy, [0], 0, 0)
    policy.remember([1, 2], video=FRAMES[3:4].expand(2, -1, -1, -1, -1), executed=[0, 0])
    with_history = act(policy, [1], 0, 1)
    too_far = act(policy, [2], 0, 4)
    assert torch.equal(first, too_far)
    assert not torch.equal(first, with_history)


def test_robots_do_not_depend_on_each_other(policy: Policy) -> None:
    policy.reset([0, 1, 2], seeds=[0, 1, 2])
    alone = act(policy, [0], 2, 0)
    together = act(policy, [1, 2], 2, 0)
    assert torch.allclose(alone.expand(2, -1, -1), together, atol=1e-5)


def test_saved_and_loaded(policy: Policy, tmp_path: Path) -> None:
    model = family(policy)
    policy.save(tmp_path / "policy", config=model.config.to_dict(), training={})
    loaded = load_policy(tmp_path / "policy")
    for each in (policy, loaded):
        each.reset([0], seeds=[1])
    assert torch.equal(act(policy, [0], 1, 0), act(loaded, [0], 1, 0))
    assert torch.equal(
        policy.reconstruct(FRAMES[None, :1].transpose(1, 2)), loaded.reconstruct(FRAMES[None, :1].transpose(1, 2))
    )


def test_codecs_of_another_policy_of_the_same_sizes_are_refused(policy: Policy, tmp_path: Path) -> None:
    model, folder = family(policy), tmp_path / "policy"
    policy.save(folder, config=model.config.to_dict(), training={})
    other = dataclasses.replace(model.config, codec=dataclasses.replace(model.config.codec, fit_steps=3))
    untrained = untrained_policy(other, ROBOT, execution_horizon=5)
    untrained.save(tmp_path / "other", config=other.to_dict(), training={})
    assert load_policy(export_policy(folder, tmp_path / "copy")).spec == policy.spec
    shutil.rmtree(folder / "codecs")
    shutil.copytree(tmp_path / "other" / "codecs", folder / "codecs")
    with pytest.raises(ValueError, match=r"codecs: expected the codecs that the weights were trained behind .*again"):
        load_policy(folder)


def test_a_frame_is_imagined_behind_every_action(policy: Policy) -> None:
    policy.reset([0], seeds=[1])
    chunk = policy.act([0], video=FRAMES[:1], state=torch.zeros(1, 3), task=["push"], executed=[0], record=True)
    assert chunk.imagined is not None and chunk.imagined.video is not None
    assert chunk.imagined.video.shape == (1, 2, 5, 64, 64, 3)
    assert chunk.imagined.video_steps == (1, 2, 3, 4, 5)


def observation(rows: int = 1) -> Observation:
    video = FRAMES[None, :2].transpose(1, 2).expand(rows, -1, -1, -1, -1, -1)
    return Observation(video=video, state=torch.zeros(rows, 3), task=["push"] * rows)


def test_imagining_along_actions(policy: Policy) -> None:
    """Step by step is all at once; the actions matter; rows and micro-batches do not depend on each other."""
    draws = torch.Generator().manual_seed(0)
    actions = torch.rand(3, 4, 3, generator=draws) * 0.4 - 0.2
    keys = [(row,) for row in range(3)]
    film = policy.imagine_along(observation(3), actions, keys=keys)
    assert film.shape == (3, 2, 4, 64, 64, 3) and film.dtype == torch.uint8
    assert torch.equal(film[1:2], policy.imagine_along(observation(), actions[1:2], keys=keys[1:2]))
    model = family(policy)
    memory = model.encode_frames(observation(3).video)
    normalized = policy.transforms.action.normalize_chunk(actions, torch.zeros(3, 3))
    parts = model.imagine_along(memory, normalized, SeededDraws(keys=keys), max_rows=2)
    assert torch.equal(parts, film)


def test_longer_imagination_of_its_own(policy: Policy) -> None:
    if family(policy).config.reads_state:
        with pytest.raises(ValueError, match=r"reads the robot's state and predicts none.*--chunks 1"):
            imagine(policy, observation(), num_chunks=2, keys=[(0,)])
        return
    seen = imagine(policy, observation(), num_chunks=2, keys=[(0,)])
    assert seen.video.shape[2] == 10 and seen.starts == (0, 5) and seen.states is None


def test_inputs_that_do_not_fit(policy: Policy) -> None:
    policy.reset([0], seeds=[0])
    with pytest.raises(ValueError, match="expected video of shape"):
        policy.act([0], video=FRAMES[:1, :, :32], state=torch.zeros(1, 3), task=["push"], executed=[0])
    with pytest.raises(ValueError, match="expected finite actions"):
        policy.imagine_along(observation(), torch.full((1, 2, 3), torch.nan), keys=[(0,)])
    for shape in ((1, 2, 4), (1, 0, 3), (2, 2, 3)):
        with pytest.raises(ValueError, match=r"expected actions of shape \(1, one or more, 3\)"):
            policy.imagine_along(observation(), torch.zeros(shape), keys=[(0,)])
    with pytest.raises(InputError, match="text_length"):
        policy.act([0], video=FRAMES[:1], state=torch.zeros(1, 3), task=["push " * 60], executed=[0])
    with pytest.raises(InputError, match="expected sentences of Unicode text, got"):
        policy.act([0], video=FRAMES[:1], state=torch.zeros(1, 3), task=["\ud800 push"], executed=[0])
    narrow = dataclasses.replace(policy.transforms.state, q01=(0.0,) * 3, q99=(1e-3,) * 3, constant=(), widened=())
    narrow = dataclasses.replace(narrow, kind="minmax")
    strict = Policy(policy.model, policy.spec, dataclasses.replace(policy.transforms, state=narrow))
    strict.reset([0], seeds=[0])
    with pytest.raises(InputError, match="expected states near those of training, got numbers beyond all bounds"):
        strict.act([0], video=FRAMES[:1], state=torch.full((1, 3), 3e38), task=["push"], executed=[0])


@pytest.mark.usefixtures("types_unchecked")
def test_inputs_that_are_no_floating_point_tensors(policy: Policy) -> None:
    policy.reset([0], seeds=[0])
    asked: dict[str, Any] = {"task": ["push"], "executed": [0]}
    whole = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"expected state in floating point, got torch\.int64"):
        policy.act([0], video=FRAMES[:1], state=whole, **asked)
    with pytest.raises(ValueError, match="expected video as a torch tensor, got ndarray"):
        policy.act([0], video=FRAMES[:1].numpy(), state=whole.float(), **asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected state as a torch tensor, got NoneType"):
        policy.act([0], video=FRAMES[:1], state=None, **asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected actions in floating point, got torch\.int64"):
        policy.imagine_along(observation(), whole[None], keys=[(0,)])


def batch_of(rows: int, *, horizon: int = 5, scale: float = 1.0, repeated: bool = False) -> Batch:
    draws = torch.Generator().manual_seed(0)
    return Batch(
        context=FRAMES[:2].transpose(0, 1)[None].expand(rows, -1, -1, -1, -1, -1),
        future=FRAMES[2:3].transpose(0, 1)[None].expand(rows, -1, -1, -1, -1, -1),
        state=torch.zeros(rows, 3),
        actions=scale * (torch.rand(rows, horizon, 3, generator=draws) * 2 - 1),
        future_state=torch.zeros(rows, horizon, 3),
        is_padded=torch.zeros(rows, horizon, dtype=torch.bool),
        value_targets=None,
        task=["push"] * rows,
        episode_index=torch.zeros(rows, dtype=torch.long),
        is_repeated=torch.tensor([[repeated, False]] * rows),
    )


def draws_of(rows: int, key: int = 0) -> TrainingDraws:
    return TrainingDraws(key=(key,), rows=range(rows), num_rows=rows)


def test_what_is_clipped_outside_training_is_counted(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    """A robot that sends millimetres for metres is told so; actions to imagine along are counted too."""
    model = dataclasses.replace(family(policy))  # with counters of its own
    memory = model.encode_frames(FRAMES[:2].transpose(0, 1)[None])
    for _ in range(6):
        model.control_step(memory.expand(3, -1, -1, -1, -1, -1), torch.tensor([[0.5, 9.0, 1.0]] * 3), ["push"] * 3, 1)
    states = model.clipped["states"]
    assert (states.num_seen, states.num_clipped) == ((54, 18) if model.reads_state else (0, 0))
    assert ("states: 18 of the last 18 numbers of channel 1 (from 0) lay outside" in caplog.text) == model.reads_state
    model.imagine_along(memory, torch.tensor([[[0.1, -1.5, 0.0]]]), SeededDraws(keys=[(0,)]))
    assert isinstance(model, Clips)
    assert (model.clipped["actions"].num_seen, model.clipped["actions"].num_clipped) == (3, 1)


@pytest.mark.parametrize("scale", [0.9, 2.0])
def test_actions_outside_the_bins_are_counted(policy: Policy, scale: float) -> None:
    batch = batch_of(4, scale=scale)
    _, parts = family(policy).loss(batch, joint(), draws_of(4))
    expected = float((batch.actions.abs() > 1).float().mean())
    assert float(parts["clipped_actions"]) == pytest.approx(expected)
    assert (expected > 0) == (scale > 1)


def test_which_rows_imagine(policy: Policy) -> None:
    """A share of the global batch, whichever process holds a row."""
    model = family(policy)
    encoded = model.encode(batch_of(4))
    for objective, expected in ((action_only(), 0), (joint(), 2), (world_only(), 4)):
        whole = token_batch(model.builder, encoded, objective, draws_of(4))
        assert int(whole.is_world.sum()) == expected
    part = TrainingDraws(key=(0,), rows=[1, 3], num_rows=4)
    halves = token_batch(model.builder, model.encode(batch_of(2)), joint(), part)
    assert halves.is_world.tolist() == [True, False]
    with pytest.raises(ValueError, match="set needs_future"):
        token_batch(model.builder, dataclasses.replace(encoded, future=None), joint(), draws_of(4))


def test_history_in_training(policy: Policy) -> None:
    """Frames before the episode are left out of a prompt, and the frame before now and then by the objective."""
    model = family(policy)
    length = {}
    for repeated in (False, True):
        tokens = token_batch(model.builder, model.encode(batch_of(2, repeated=repeated)), action_only(), draws_of(2))
        length[repeated] = int(tokens.lengths[0])
    assert length[False] - length[True] == model.config.frame_length
    always = dataclasses.replace(action_only(), history_dropout=1.0)
    assert int(token_batch(model.builder, model.encode(batch_of(2)), always, draws_of(2)).lengths[0]) == length[True]


def test_world_samples_of_several_pairs() -> None:
    config = dataclasses.replace(config_of("worldvla"), num_future=2, num_views=1)
    robot = synthetic_robot(height=64, width=64, cameras=("front",))
    policy = untrained_policy(config, robot, execution_horizon=5)
    model = family(policy)
    batch = dataclasses.replace(
        batch_of(8),
        context=FRAMES[None, :2, :1].transpose(1, 2).expand(8, -1, -1, -1, -1, -1),
        future=FRAMES[None, 2:4, :1].transpose(1, 2).expand(8, -1, -1, -1, -1, -1),
    )
    tokens = token_batch(model.builder, model.encode(batch), world_only(), draws_of(8))
    pairs = [(row == model.vocabulary.begin_action).sum().item() for row in tokens.ids]
    assert set(pairs) == {1, 2}
    video = FRAMES[None, :2, :1].transpose(1, 2)
    seen = Observation(video=video, state=torch.zeros(1, 3), task=["push"])
    assert policy.imagine_along(seen, torch.zeros(1, 3, 3), keys=[(0,)]).shape[2] == 3


def test_tokenisers_that_do_not_fit(policy: Policy, tmp_path: Path) -> None:
    model = family(policy)
    model.save_codecs(tmp_path)
    other = dataclasses.replace(model.config, codec=dataclasses.replace(model.config.codec, num_codes=4096))
    with pytest.raises(ValueError, match=r"expected an image tokeniser with \(spatial, num_codes\) = \(16, 4096\)"):
        WorldVLA.create(other, tmp_path, seed=0)
    small = dataclasses.replace(model.config, network=dataclasses.replace(model.config.network, vocab_size=16000))
    with pytest.raises(ValueError, match="at most 16000 ids"):
        WorldVLA.create(small, tmp_path, seed=0)
    with pytest.raises(ValueError, match="no module of WorldVLA may have another shape"):
        WorldVLA.create(model.config, tmp_path, seed=0, may_resize=["lm_head"])
    with pytest.raises(ValueError, match="at most 16000 ids"):
        WorldVLA.fit_codecs(small, [batch_of(1)], torch.Generator(), tmp_path / "small")
    with pytest.raises(ValueError, match="text_length"):
        WorldVLA.fit_codecs(
            dataclasses.replace(model.config, text_length=20), [batch_of(1)], torch.Generator(), tmp_path / "short"
        )
    assert not (tmp_path / "small").exists() and not (tmp_path / "short").exists()
    with pytest.raises(ValueError, match=r"set model\.codec\.pretrained"):
        WorldVLA.fit_codecs(sizes.libero(), [], torch.Generator(), tmp_path / "libero")


def test_validation_tells_of_actions_and_frames(policy: Policy) -> None:
    model = family(policy)
    found = model.validate(batch_of(3), streams=(), num_steps=1, rows_at_once=2)
    names = {"action_loss", "action_accuracy", "action_mae", "world_loss", "code_accuracy"}
    assert set(found) == names | ({"head_mae"} if model.config.network.head else set())
    assert all(np.isfinite(number) for number in found.values())
