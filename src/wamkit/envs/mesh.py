"""Coarser triangle meshes for drawing, by merging vertices; MuJoCo's physics keeps the originals."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def with_coarse_meshes(model: Any, cells_m: Mapping[int, float]) -> Any:
    """A copy of a MuJoCo model whose named meshes have fewer triangles, for uploading to GL only.

    Args:
        model: a MuJoCo model; not changed.
        cells_m: mesh id -> edge of the cubes whose vertices merge, metres.
    """
    coarse = copy.copy(model)
    for mesh, cell_m in cells_m.items():
        first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
        start, vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        faces = model.mesh_face[first : first + count]
        kept, representative = merge_vertices(model.mesh_vert[start : start + vertices], faces, cell_m)
        normals = np.zeros(vertices, dtype=faces.dtype)
        normals[faces.ravel()] = model.mesh_facenormal[first : first + count].ravel()
        corners = representative[faces[kept]]
        rows = slice(first, first + len(kept))
        coarse.mesh_face[rows], coarse.mesh_facenormal[rows] = corners, normals[corners]
        coarse.mesh_facetexcoord[rows] = model.mesh_facetexcoord[first : first + count][kept]
        coarse.mesh_facenum[mesh] = len(kept)
    return coarse


def merge_vertices(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], cell_m: float
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "v"]]:
    """Merge the vertices in each cube of a grid into the one nearest to their mean.

    Args:
        vertices: positions, metres.
        faces: vertex numbers of each triangle.
        cell_m: edge of the cubes, metres.

    Returns:
        Which faces survive (three distinct vertices, none twice), in order, and the vertex that stands for each vertex.
    """
    cells = np.floor((vertices - vertices.min(axis=0)) / cell_m).astype(np.int64)
    _, cell = np.unique(_pack(cells), return_inverse=True)
    count = np.bincount(cell)
    mean = np.stack([np.bincount(cell, vertices[:, axis]) for axis in range(3)], axis=1) / count[:, None]
    distance = ((vertices - mean[cell]) ** 2).sum(axis=1)
    by_cell = np.lexsort((distance, cell))
    representative = by_cell[np.cumsum(count) - count][cell]
    corners = np.sort(representative[faces], axis=1)
    solid = np.flatnonzero((corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]))
    _, unique = np.unique(_pack(corners[solid]), return_index=True)
    return solid[np.sort(unique)], representative


def _pack(rows: np.ndarray) -> np.ndarray:
    """One number per row of three small numbers, distinct for distinct rows."""
    base = np.int64(rows.max(initial=0)) + 1
    return (rows[:, 0] * base + rows[:, 1]) * base + rows[:, 2]
