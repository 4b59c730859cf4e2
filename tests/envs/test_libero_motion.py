"""The geometry of LIBERO's scripts, without a simulator."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wamkit.envs.libero_demonstrator import unscripted
from wamkit.envs.libero_motion import MAX_GRASP_M, _best_grasp, pointing_down, rotation_vector

NOTHING = np.empty((0, 3))


def block(x: float, y: float, height: float, turn: float = 0.0) -> np.ndarray:
    """Points of a block of half sizes x and y on the floor, turned about the vertical."""
    grid = np.stack(
        np.meshgrid(np.linspace(-x, x, 9), np.linspace(-y, y, 9), np.linspace(0, height, 9), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    return grid @ rotation.T + [0.1, -0.2, 0.0]


@pytest.mark.parametrize("yaw", [-1.2, 0.0, 0.7])
@pytest.mark.parametrize("tilt", [-1.1, 0.0, 0.5])
def test_a_hand_is_a_rotation_and_turns_as_told(yaw: float, tilt: float) -> None:
    hand = pointing_down(yaw, tilt)
    np.testing.assert_allclose(hand @ hand.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(hand) == pytest.approx(1.0)
    np.testing.assert_allclose(hand[:, 0], [math.cos(yaw), math.sin(yaw), 0.0], atol=1e-12)
    assert hand[2, 2] == pytest.approx(-math.cos(tilt))


def test_the_rotation_vector_takes_one_hand_to_another() -> None:
    np.testing.assert_array_equal(rotation_vector(np.eye(3)), np.zeros(3))
    turn = rotation_vector(pointing_down(0.6) @ pointing_down(0.1).T)
    np.testing.assert_allclose(turn, [0.0, 0.0, 0.5], atol=1e-9)


@pytest.mark.parametrize("turn", [0.0, math.radians(30), math.radians(-50)])
def test_a_block_is_taken_by_its_narrow_side(turn: float) -> None:
    grasp = _best_grasp(block(0.05, 0.02, 0.1, turn), 0.065, NOTHING)
    assert grasp.yaw == pytest.approx(turn, abs=0.01) and grasp.top == pytest.approx(0.1)
    np.testing.assert_allclose(grasp.point, [0.1, -0.2, 0.065], atol=1e-9)


def test_a_neighbour_makes_the_hand_turn() -> None:
    points = block(0.02, 0.02, 0.05)
    assert _best_grasp(points, 0.02, NOTHING).yaw == 0.0
    beside = np.array([[0.1, -0.1, 0.08]])  # where the hand, wider than its fingers reach, would be
    assert abs(_best_grasp(points, 0.02, beside).yaw) > 0.3


def test_what_is_too_wide_is_taken_by_the_rim() -> None:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    bowl = np.concatenate(
        [np.stack([r * np.cos(angles), r * np.sin(angles), np.full(60, z)], 1) for r, z in ((0.03, 0.0), (0.053, 0.05))]
    )
    assert MAX_GRASP_M < 2 * 0.053
    grasp = _best_grasp(bowl, 0.03, NOTHING)
    assert np.linalg.norm(grasp.point[:2]) == pytest.approx(0.048, abs=0.003)
    across = np.array([-math.sin(grasp.yaw), math.cos(grasp.yaw)])
    assert abs(grasp.point[:2] @ across) == pytest.approx(np.linalg.norm(grasp.point[:2]), abs=1e-6)


def test_goals_without_a_script_are_named() -> None:
    known = [["in", "milk_1", "basket_1_contain_region"], ["open", "wooden_cabinet_1_top_region"], ["on", "a_1", "b_1"]]
    assert unscripted([*known, ["turnon", "flat_stove_1"]]) == []
    assert unscripted([*known, ["close", "microwave_1"], ["in", "mug_1", "microwave_1_heating_region"]]) == [
        "close microwave_1",
        "in mug_1 microwave_1_heating_region",
    ]
