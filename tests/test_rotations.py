"""Rotations in the conventions of robots' data."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.rotations import axis_angle_of_quaternion


def test_known_rotations() -> None:
    quarter = np.sqrt(0.5)
    quaternions = np.array(
        [[0, 0, 0, 1], [quarter, 0, 0, quarter], [0, 1, 0, 0], [0, 0, quarter, -quarter]], dtype=float
    )
    expected = np.array([[0, 0, 0], [np.pi / 2, 0, 0], [0, np.pi, 0], [0, 0, 1.5 * np.pi]])
    np.testing.assert_allclose(axis_angle_of_quaternion(quaternions), expected, atol=1e-12)
    np.testing.assert_allclose(axis_angle_of_quaternion(quaternions[1]), expected[1], atol=1e-12)


def test_the_angle_is_the_length_whatever_the_axis() -> None:
    random = np.random.default_rng(0)
    axis = random.standard_normal((50, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = random.uniform(0.01, 2 * np.pi - 0.01, (50, 1))
    quaternions = np.concatenate([axis * np.sin(angle / 2), np.cos(angle / 2)], axis=1)
    np.testing.assert_allclose(axis_angle_of_quaternion(quaternions), axis * angle, atol=1e-7)


@pytest.mark.parametrize("w", [1.0 + 1e-9, -1.0 - 1e-9])
def test_rounding_beyond_one_gives_no_nan(w: float) -> None:
    np.testing.assert_array_equal(axis_angle_of_quaternion(np.array([0.0, 0.0, 0.0, w])), np.zeros(3))
