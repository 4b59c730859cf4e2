"""Segments and sequences to the number (WorldVLA 2.4 and 2.5 of the specification)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.sequence import IGNORED, SequenceBuilder

from .worldvla_cases import TASK, make_builder, make_case, published_layout


def text_length(builder: SequenceBuilder, sentence: str) -> int:
    return len(builder.text(sentence, torch.device("cpu")))


@pytest.mark.parametrize(("size", "length", "grid"), [(256, 276, 8812), (512, 1060, 8820)])
def test_image_segment(size: int, length: int, grid: int) -> None:
    """Check 1."""
    config = published_layout(size)
    builder = make_builder(config)
    side = size // 16
    ids = builder.image(torch.randint(8192, (side, side)))
    assert len(ids) == length == config.image_length
    assert ids[:3].tolist() == [8197, grid, grid]
    assert ids[-1] == 8196
    ends = (ids == 8803).nonzero()[:, 0].tolist()
    assert ends == [3 + side + row * (side + 1) for row in range(side)]


def test_image_segments_come_back_as_codes() -> None:
    case = make_case()
    codes = case.codes(2, 3)
    assert torch.equal(case.builder.codes_of(case.builder.image(codes)), codes)


def test_damaged_image_segments_are_refused() -> None:
    case = make_case()
    ids = case.builder.image(case.codes())
    for place, wrong in ((0, 5), (7, 4), (9, 8803), (23, 4)):
        broken = ids.clone()
        broken[place] = wrong
        with pytest.raises(ValueError, match=f"id number {place} is {wrong}"):
            case.builder.codes_of(broken)
    with pytest.raises(ValueError, match="of 24 ids, got 23"):
        case.builder.codes_of(ids[:-1])
    with pytest.raises(ValueError, match=r"4x4 codes \(64 px\), got 5x4"):
        case.builder.image(torch.zeros(5, 4, dtype=torch.long))


@pytest.mark.parametrize(("size", "horizon", "more"), [(256, 5, 600), (512, 5, 2168), (256, 10, 645), (512, 10, 2213)])
def test_layout_of_an_action_sample(size: int, horizon: int, more: int) -> None:
    """Check 4, action."""
    config = published_layout(size, horizon)
    builder = make_builder(config)
    side = config.grid
    question = builder.action_prompt(TASK, torch.randint(8192, (2, 1, side, side)))
    answer = builder.action_answer(torch.rand(horizon, 7))
    batch = builder.batch([(question, answer)], torch.tensor([False]))
    sentence = f"What action should the robot take to {TASK}?"
    assert batch.ids.shape[1] == text_length(builder, sentence) + more
    labels = batch.labels[0][batch.labels[0] != IGNORED]
    assert len(labels) == 9 * horizon + 1
    assert (labels[0], labels[-1]) == (10004, 8710)
    assert batch.ids[0, len(question) - 1] == 8710
    assert (batch.ids[0, 0], batch.ids[0, -1]) == (0, 8710)


@pytest.mark.parametrize(("size", "more", "labelled"), [(256, 564, 277), (512, 2132, 1061)])
def test_layout_of_a_world_sample(size: int, more: int, labelled: int) -> None:
    """Check 4, world."""
    config = published_layout(size)
    builder = make_builder(config)
    side = config.grid
    question = builder.world_prompt(torch.randint(8192, (1, 1, side, side)), torch.rand(1, 7))
    batch = builder.batch(
        [(question, builder.world_answer(torch.randint(8192, (1, side, side))))], torch.tensor([True])
    )
    assert batch.ids.shape[1] == text_length(builder, config.world_prompt) + more
    labels = batch.labels[0][batch.labels[0] != IGNORED]
    assert len(labels) == labelled
    assert (labels[0], labels[-2], labels[-1]) == (8197, 8196, 8710)


def test_the_first_frame_of_an_episode_stands_alone() -> None:
    case = make_case()
    both = case.builder.action_prompt(TASK, case.codes(2, 1))
    first = case.builder.action_prompt(TASK, case.codes(1, 1))
    assert len(both) - len(first) == case.config.image_length


def test_rynnvla_has_state_and_two_cameras() -> None:
    config = dataclasses.replace(sizes.tiny(num_views=2), reads_state=True)
    case = make_case(config)
    prompt = case.builder.action_prompt(TASK, case.codes(2, 2), case.state())
    state = (prompt == 15504).nonzero().item()
    assert prompt[state + 9] == 16004
    assert ((prompt[state + 1 : state + 9] >= 15506) & (prompt[state + 1 : state + 9] <= 15761)).all()
    assert (prompt == 8196).sum() == 4
    assert case.builder.world_answer(case.codes(2)).shape == (2 * 24 + 1,)
    with pytest.raises(ValueError, match="expected a state"):
        case.builder.action_prompt(TASK, case.codes(2, 2))


def test_world_prompts_with_a_history() -> None:
    case = make_case(num_future=3)
    prompt = case.builder.world_prompt(case.codes(3, 1), case.actions(3))
    assert (prompt == 10004).sum() == 3 and (prompt == 8197).sum() == 3
    assert len(prompt) <= case.config.world_prompt_length


def test_sign_channels() -> None:
    case = make_case(sign_channels=(6,))
    ids = case.builder.action(torch.tensor([0.1, 0, 0, 0, 0, 0, 0.3]))
    assert case.builder.actions_of(ids[1:-1])[-1] == 1
    plain = make_case()
    assert 0.9 < plain.builder.actions_of(plain.builder.action(torch.ones(7))[1:-1])[-1] < 1
    with pytest.raises(ValueError, match="ids of action bins"):
        plain.builder.actions_of(torch.tensor([10004]))


def test_padded_prompts_keep_their_ids() -> None:
    case = make_case()
    rows = [case.builder.action_prompt(TASK, case.codes(count, 1)) for count in (1, 2)]
    prompts = case.builder.prompts(rows, case.config.action_prompt_length)
    assert prompts.lengths.tolist() == [len(row) for row in rows]
    assert torch.equal(prompts.ids[0, : len(rows[0])], rows[0])
    assert (prompts.ids[0, len(rows[0]) :] == case.vocabulary.pad).all()


def test_sentences_that_are_too_long() -> None:
    case = make_case(text_length=64)
    with pytest.raises(ValueError, match=r"at most text_length = 64 ids, got \d+"):
        case.builder.action_prompt("open the drawer that is the farthest from the window", case.codes(1, 1))
    with pytest.raises(ValueError, match="text_length = 64") as error:
        case.builder.check_sentences(["push", "push " * 500])
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 72}, "multiple of 32 px"),
        ({"num_context": 60}, "network.max_length = 1024"),
        ({"num_future": 6}, "at most action_horizon = 5"),
        ({"acts_by": "head"}, "set network.head"),
        ({"action_prompt": "Go!"}, r"action_prompt with one \{task\}"),
        ({"action_prompt": "{task} {place}"}, "no other braces"),
        ({"action_prompt": "{task"}, "no other braces"),
        ({"sign_channels": (7,)}, r"among the 7 actions, got \[7\]"),
        ({"state_dim": 0, "reads_state": True}, "needs a state"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(sizes.tiny(), **changes)


def test_configurations_survive_json() -> None:
    for make in sizes.SIZES.values():
        config = make()
        assert sizes.WorldVLAConfig.from_dict(config.to_dict()) == config
