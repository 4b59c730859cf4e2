"""Who sees whom, beside tables drawn by hand."""

from __future__ import annotations

import torch

from wamkit.masks import action_blocks, action_mask, causal_mask

BEGIN, END, IMAGE = 7, 8, 9


def blocks(ids: list[list[int]], is_world: list[bool]) -> torch.Tensor:
    return action_blocks(torch.tensor(ids), begin=BEGIN, end=END, end_image=IMAGE, is_world=torch.tensor(is_world))


def test_causal() -> None:
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_blocks_of_action_samples_world_samples_and_padding() -> None:
    found = blocks(
        [
            [0, IMAGE, 5, BEGIN, 1, END, BEGIN, 2, END, 5, 0],
            [0, IMAGE, BEGIN, 1, END, 5, 3, IMAGE, 5, 0, 0],  # actions before the last image: a world sample's
            [0, BEGIN, 1, END, BEGIN, 2, END, 5, 0, 0, 0],  # no image at all
        ],
        [False, True, False],
    )
    assert found.tolist() == [
        [-1, -1, -1, 0, 0, 0, 1, 1, 1, -1, -1],
        [-1] * 11,
        [-1, 0, 0, 0, 1, 1, 1, -1, -1, -1, -1],
    ]


def test_actions_before_the_last_image_are_no_blocks() -> None:
    assert blocks([[IMAGE, BEGIN, 1, END, IMAGE, BEGIN, 2, END]], [False]).tolist() == [[-1, -1, -1, -1, -1, 0, 0, 0]]


def test_a_world_prompt_is_causal_also_before_its_image() -> None:
    assert (blocks([[IMAGE, BEGIN, 1, END, BEGIN, 1, END, 5]], [True]) == -1).all()


def test_action_mask_by_hand() -> None:
    mask = action_mask(torch.tensor([[-1, 0, 0, 1, 1, -1]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
