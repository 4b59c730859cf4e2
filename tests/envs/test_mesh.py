from __future__ import annotations

import numpy as np
import pytest

from wamkit.envs.mesh import merge_vertices


def sheet(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A flat square of `size` by `size` cells of 1 cm, two triangles each."""
    rows, columns = np.mgrid[0 : size + 1, 0 : size + 1]
    vertices = np.stack([columns.ravel() * 0.01, rows.ravel() * 0.01, np.zeros(rows.size)], axis=1)
    corner = (np.arange(size)[:, None] * (size + 1) + np.arange(size)).ravel()
    first = np.stack([corner, corner + 1, corner + size + 1], axis=1)
    second = np.stack([corner + 1, corner + size + 2, corner + size + 1], axis=1)
    return vertices, np.concatenate([first, second]).astype(np.int64)


def area(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def test_cells_smaller_than_the_mesh_change_nothing() -> None:
    vertices, faces = sheet(12)
    kept, representative = merge_vertices(vertices, faces, 0.004)
    np.testing.assert_array_equal(kept, np.arange(len(faces)))
    np.testing.assert_array_equal(representative, np.arange(len(vertices)))


def test_larger_cells_merge_neighbours_and_keep_the_shape() -> None:
    vertices, faces = sheet(60)
    kept, representative = merge_vertices(vertices, faces, 0.035)
    merged = representative[faces[kept]]
    assert len(kept) < len(faces) / 5
    assert (merged[:, 0] != merged[:, 1]).all() and (merged[:, 1] != merged[:, 2]).all()
    assert np.linalg.norm(vertices - vertices[representative], axis=1).max() < 0.035 * np.sqrt(2)
    assert area(vertices, merged) == pytest.approx(area(vertices, faces), rel=0.15)
    # Orientation survives, so that back faces stay hidden.
    a, b, c = (vertices[merged[:, corner]] for corner in range(3))
    assert (np.cross(b - a, c - a)[:, 2] > 0).all()
    assert len(np.unique(np.sort(merged, axis=1), axis=0)) == len(merged)
