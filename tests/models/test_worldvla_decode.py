"""Masks at work, and decoding: blocks at once, id after id, freely; frames that always parse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wamkit.draws import SeededDraws
from wamkit.masks import action_mask, causal_mask
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.control import uniform
from wamkit.models.worldvla.decode import (
    MalformedActions,
    decode_actions,
    decode_blocks,
    decode_frame,
    decode_freely,
    decode_in_order,
    prefill,
    sampler,
)
from wamkit.models.worldvla.sequence import Prompts

from .worldvla_cases import TASK, Case, make_case


def action_prompts(case: Case, rows: int = 3) -> Prompts:
    """Prompts of different lengths."""
    made = [
        case.builder.action_prompt(TASK + " again" * row, case.codes(1 + row % 2, case.config.num_views, seed=row))
        for row in range(rows)
    ]
    return case.builder.prompts(made, case.config.action_prompt_length)


def world_prompts(case: Case, rows: int = 2) -> Prompts:
    made = [
        case.builder.world_prompt(case.codes(1, case.config.num_views, seed=row), case.actions(1, seed=row))
        for row in range(rows)
    ]
    return case.builder.prompts(made, case.config.world_prompt_length)


def sample(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, blocks and starts of the actions of an action sample."""
    question = case.builder.action_prompt(TASK, case.codes(2, 1))
    batch = case.builder.batch(
        [(question, case.builder.action_answer(case.actions(case.config.action_horizon)))], torch.tensor([False])
    )
    return batch.ids, batch.block, (batch.ids[0] == case.vocabulary.begin_action).nonzero()[:, 0]


def test_mask_cells() -> None:
    """Check 5: what the cells say."""
    case = make_case(action_horizon=3)
    ids, block, starts = sample(case)
    mask = action_mask(block)[0, 0]
    first, second, third = starts.tolist()
    turn = ids.shape[1] - 1
    for query in range(third, third + 9):  # begin and end ids included
        assert not mask[query, first : second + 9].any()
        assert mask[query, :first].all() and mask[query, third : query + 1].all()
        assert not mask[query, query + 1 :].any()
    assert mask[turn].all()
    assert torch.equal(mask[:first], causal_mask(ids.shape[1])[:first])


def test_a_world_sample_and_the_causal_model_are_causal() -> None:
    """Check 5: the pure triangle."""
    case = make_case()
    pair = (
        case.builder.world_prompt(case.codes(2, 1), case.actions(2)),
        case.builder.world_answer(case.codes(1)),
    )
    batch = case.builder.batch([pair], torch.tensor([True]))
    assert torch.equal(action_mask(batch.block)[0, 0], causal_mask(batch.ids.shape[1]))
    _, block, _ = sample(make_case(mask="causal"))
    assert torch.equal(action_mask(block)[0, 0], causal_mask(block.shape[1]))


@pytest.mark.parametrize("mask", ["action", "causal"])
def test_editing_the_first_action(mask: str) -> None:
    """Check 5: logits of later blocks do not change with the action mask, and do with the causal one."""
    case = make_case(action_horizon=3, mask=mask)
    ids, block, starts = sample(case)
    edited = ids.clone()
    edited[0, starts[0] + 2] = case.vocabulary.action[200]
    before, after = (case.network.logits(case.network(read, action_mask(block)))[0] for read in (ids, edited))
    later = slice(int(starts[1]), int(starts[2]) + 9)
    assert torch.equal(before[later], after[later]) == (mask == "action")
    assert not torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("horizon", [1, 5, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_at_once_are_blocks_one_by_one(horizon: int, seed: int) -> None:
    """Check 6, and its negative control."""
    case = make_case(action_horizon=horizon, seed=seed)
    prefix = prefill(case.network, action_prompts(case), room=case.config.action_horizon * case.config.block_length)
    at_once = decode_blocks(case.network, case.builder, prefix)
    assert torch.equal(at_once, decode_in_order(case.network, case.builder, prefix))
    alike = decode_blocks(case.network, case.builder, prefix, offset=0)
    assert torch.equal(alike, alike[:, :1].expand_as(alike))
    if horizon > 1:
        assert not torch.equal(at_once, at_once[:, :1].expand_as(at_once))


@pytest.mark.parametrize("mask", ["action", "causal"])
def test_decoding_is_what_a_whole_pass_says(mask: str) -> None:
    """Teacher-forced through the training mask, every decoded id is the likeliest of its place."""
    case = make_case(mask=mask)
    question = case.builder.action_prompt(TASK, case.codes(2, 1))
    prefix = prefill(case.network, case.builder.prompts([question], len(question)), room=45)
    found = decode_actions(case.network, case.builder, prefix)
    vocab = case.vocabulary
    answer = torch.cat([torch.tensor([vocab.begin_action, *block.tolist(), vocab.end_action]) for block in found[0]])
    batch = case.builder.batch([(question, answer)], torch.tensor([False]))
    logits = case.network.logits(case.network(batch.ids, action_mask(batch.block)))[0, :, vocab.id_of_bin]
    likeliest = vocab.id_of_bin[logits.argmax(dim=-1)]
    starts = (batch.ids[0] == vocab.begin_action).nonzero()[:, 0]
    for block, start in enumerate(starts.tolist()):
        assert torch.equal(likeliest[start : start + 7], found[0, block])


def test_rows_do_not_depend_on_each_other() -> None:
    case = make_case()
    prompts = action_prompts(case)
    together = decode_blocks(case.network, case.builder, prefill(case.network, prompts, room=45))
    for row in range(3):
        alone = Prompts(ids=prompts.ids[row : row + 1], lengths=prompts.lengths[row : row + 1])
        assert torch.equal(
            decode_blocks(case.network, case.builder, prefill(case.network, alone, room=45))[0], together[row]
        )


def test_a_prefix_can_be_decoded_again() -> None:
    case = make_case()
    prefix = prefill(case.network, action_prompts(case), room=45)
    first = decode_blocks(case.network, case.builder, prefix)
    decode_in_order(case.network, case.builder, prefix)
    assert torch.equal(first, decode_blocks(case.network, case.builder, prefix))


def seeded_sampler(rows: int, temperature: float, top_k: int = 0) -> Callable[..., Tensor]:
    return sampler(uniform(SeededDraws(keys=[(row,) for row in range(rows)])), temperature=temperature, top_k=top_k)


def test_drawn_ids_are_the_same_at_once_and_one_by_one() -> None:
    case = make_case()
    prefix = prefill(case.network, action_prompts(case), room=45)
    choose = seeded_sampler(3, 1.5)
    at_once = decode_blocks(case.network, case.builder, prefix, choose=choose)
    assert torch.equal(at_once, decode_in_order(case.network, case.builder, prefix, choose=choose))
    assert not torch.equal(at_once, decode_blocks(case.network, case.builder, prefix))


def test_draws_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([0.1, 0.2, 0.7])).expand(20_000, 3)
    draws = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    found = sampler(lambda step, shape: draws, temperature=1.0)(logits, "a")
    assert torch.bincount(found, minlength=3).div(20_000).sub(torch.tensor([0.1, 0.2, 0.7])).abs().max() < 0.015
    best = sampler(lambda step, shape: draws, temperature=1.0, top_k=2)(logits, "a")
    assert set(best.tolist()) == {1, 2}


def test_free_decoding_refuses_what_is_no_chunk() -> None:
    case = make_case()
    prefix = prefill(case.network, action_prompts(case, rows=1), room=300)
    with pytest.raises(MalformedActions, match="use constrained decoding"):
        decode_freely(case.network, case.builder, prefix)


def taught(case: Case, num_actions: int) -> Case:
    """The same case with a network that says `num_actions` actions of bin 5 and then the turn mark, by position.

    All that is left of the layers is the position: the output head reads it from the embedding of the id before.
    """
    vocab = case.vocabulary
    order = [vocab.begin_action, *[vocab.action[place] for place in range(7)], vocab.end_action]
    with torch.no_grad():
        for layer in case.network.model.layers:
            layer.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr]
            layer.mlp.down_proj.weight.zero_()  # type: ignore[union-attr]
        case.network.model.embed_tokens.weight.zero_()
        case.network.lm_head.weight.zero_()
        following = [vocab.begin_action, *order[1:], vocab.end_turn]
        for place, (before, after) in enumerate(zip([vocab.end_turn, *order], following, strict=False)):
            case.network.model.embed_tokens.weight[before, place] = 1
            case.network.lm_head.weight[after, place] = 1
        case.network.lm_head.weight[vocab.end_turn, 9] = 1 if num_actions == 1 else 0
        case.network.model.embed_tokens.weight[vocab.end_action, 9] = 1
    return case


def test_free_decoding_of_a_well_behaved_model() -> None:
    case = taught(make_case(action_horizon=1), 1)
    prompts = action_prompts(case, rows=2)
    prefix = prefill(case.network, prompts, room=300)
    for found in decode_freely(case.network, case.builder, prefix):
        assert found.tolist() == [list(case.vocabulary.action[:7])]
    assert torch.equal(
        decode_actions(case.network, case.builder, prefix)[0, 0], torch.tensor(case.vocabulary.action[:7])
    )


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_frames_always_parse(views: int, guidance: float) -> None:
    """Check 8: whatever the weights and however codes are chosen."""
    for seed, choose in (
        (0, sampler(uniform(SeededDraws(keys=[(0,), (1,)])), temperature=0.0)),
        (1, seeded_sampler(2, 5.0)),
    ):
        case = make_case(sizes.tiny(num_views=views), seed=seed)
        codes = decode_frame(case.network, case.builder, world_prompts(case), choose=choose, guidance=guidance)
        assert codes.shape == (2, views, 4, 4)
        ids = case.builder.image(codes)
        assert torch.equal(case.builder.codes_of(ids), codes)
        assert ((ids >= 4) & (ids <= 8195)).sum() == 2 * views * 16


@pytest.mark.parametrize("views", [1, 2])
def test_a_decoded_frame_is_what_a_whole_pass_says(views: int) -> None:
    case = make_case(sizes.tiny(num_views=views))
    prompts = world_prompts(case)
    codes = decode_frame(case.network, case.builder, prompts)
    for row in range(2):
        question = prompts.ids[row, : prompts.lengths[row]]
        batch = case.builder.batch([(question, case.builder.world_answer(codes[row]))], torch.tensor([True]))
        logits = case.network.logits(case.network(batch.ids, action_mask(batch.block)))[0, :-1]
        is_code = case.vocabulary.code_of_id[batch.labels[0, 1:].clamp(min=0)] >= 0
        is_code &= batch.labels[0, 1:] >= 0
        chosen = logits[is_code][:, case.vocabulary.id_of_code].argmax(dim=-1)
        assert torch.equal(chosen, codes[row].flatten())


def test_guidance_by_hand() -> None:
    """The first code: logits with the prompt against logits of an image that begins a sequence."""
    case = make_case()
    prompts = world_prompts(case, rows=1)
    vocab, head = case.vocabulary, torch.tensor([[8197, case.builder.grid_id, case.builder.grid_id]])

    def logits(ids: Tensor) -> Tensor:
        mask = causal_mask(ids.shape[1])[None, None]
        return case.network.logits(case.network(ids, mask))[0, -1, vocab.id_of_code]

    given, free = logits(torch.cat((prompts.ids[:, : prompts.lengths[0]], head), dim=1)), logits(head)
    codes = decode_frame(case.network, case.builder, prompts, guidance=3.0)
    assert codes.flatten()[0] == (free + 3 * (given - free)).argmax()


def test_sequences_longer_than_the_context_are_refused() -> None:
    case = make_case()
    network = dataclasses.replace(case.config.network, max_length=60)
    case.network.config = network
    with pytest.raises(ValueError, match=r"at most 60 ids \(network.max_length\), got \d+"):
        prefill(case.network, action_prompts(case), room=45)
