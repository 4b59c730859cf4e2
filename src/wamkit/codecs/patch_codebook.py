"""A codebook of image patches whose nearest code is found in whole numbers, so that it never depends on the machine.

A patch is projected on the directions in which patches vary most, and the nearest code there is taken. Projection,
coordinates and codes are whole numbers, small enough that every sum stays below 2^24, up to which float32 counts
without rounding: the order of a sum, the size of a batch and the device change nothing, and equal patches have equal
codes everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from wamkit.codecs.patch import principal_directions

_GREY = 128  # subtracted from grey levels, which halves the largest numbers
_FINENESS = 256  # whole numbers per unit of an orthonormal direction
_LONGEST = 2300  # of coordinates: three times its square, which bounds every sum of a distance, is below 2^24
_ROWS = 256  # patches per product: their scores stay in the cache

_POOL = 4  # patches looked at for each one that the fit draws
_COARSE = 8  # codes per code of the coarse codebook that tells which patches are hard
_COARSE_ROUNDS = 5
_RELOCATED = 0.15  # share of the codes that the first round puts elsewhere; the share falls to 0
_FLOOR = 1.0  # squared grey levels added to errors, so that flat images have chances to draw by


@dataclass(frozen=True, kw_only=True)
class PatchCodebook:
    """Directions and codes; make one with `fit_codebook`.

    Args:
        projection: orthonormal directions in units of 1/256, rounded; one column each.
        codes: coordinates along them, rounded; one row each.
    """

    projection: Float[Tensor, "d r"]
    codes: Float[Tensor, "k r"]

    def nearest(self, patches: UInt8[Tensor, "n d"]) -> Int[Tensor, "n"]:
        """The code nearest to each patch; the first of several equally near."""
        return _nearest(coordinates(patches, self.projection), self.codes)

    def decode(self) -> Float[Tensor, "k d"]:
        """The patch that each code stands for, in [-1, 1] (not clamped)."""
        levels = self.codes @ self.projection.T * (coarseness(len(self.projection)) / _FINENESS)
        return (levels + _GREY) / 127.5 - 1.0

    def to(self, device: torch.device | str) -> PatchCodebook:
        """The same codebook on `device`."""
        return PatchCodebook(projection=self.projection.to(device), codes=self.codes.to(device))


def coarseness(size: int) -> float:
    """Grey levels per unit of a coordinate: the power of two that keeps coordinates of `size` numbers short enough."""
    return 2.0 ** max(0, math.ceil(math.log2(_GREY * math.sqrt(size) / _LONGEST)))


def coordinates(patches: UInt8[Tensor, "n d"], projection: Float[Tensor, "d r"]) -> Float[Tensor, "n r"]:
    """Whole coordinates of patches along the directions of `projection`, as a `PatchCodebook` has it."""
    rows = torch.empty((len(patches), projection.shape[1]), device=patches.device)
    for start in range(0, len(patches), _ROWS):
        part = patches[start : start + _ROWS].to(torch.float32).sub_(_GREY) @ projection
        rows[start : start + _ROWS] = part.div_(_FINENESS * coarseness(len(projection))).round_()
    return rows


def fit_codebook(
    patches: UInt8[Tensor, "m d"],
    *,
    num_codes: int,
    num_directions: int,
    max_patches: int,
    rounds: int,
    generator: torch.Generator,
) -> PatchCodebook:
    """Weighted k-means on patches of which the hard ones are drawn more often, and weigh the less.

    Most patches of a fixed camera show the same background; drawn evenly, they would leave the moving parts few samples
    and few first codes.

    Args:
        patches: two or more.
        num_codes: size of the codebook; with fewer different patches, some codes are never used.
        num_directions: at most the numbers of a patch.
        max_patches: patches that the fit draws at most.
        rounds: of k-means.
        generator: draws; on the CPU.
    """
    pool = patches[torch.randperm(len(patches), generator=generator)[: _POOL * max_patches].to(patches.device)]
    directions, _, _ = principal_directions(pool[:max_patches].float(), num_directions)
    projection = (directions * _FINENESS).round()
    rows = coordinates(pool, projection)

    weights = torch.ones_like(rows[:, 0])
    first = rows[_drawn(weights, max(1, num_codes // _COARSE), generator)]
    some = max_patches // 2 + 1
    coarse = _lloyd(rows[:some], weights[:some], first, rounds=_COARSE_ROUNDS, generator=generator)
    error = (rows - coarse[_nearest(rows, coarse)]).square().sum(1) + _FLOOR
    if len(rows) > max_patches:
        chance = error.sqrt()
        drawn = _drawn(chance, max_patches, generator)
        rows, weights, error = rows[drawn], chance.mean() / chance[drawn], error[drawn]
    first = torch.cat([coarse, rows[_drawn(weights * error, num_codes - len(coarse), generator)]])
    codes = _lloyd(rows, weights, first, rounds=rounds, generator=generator)
    return PatchCodebook(projection=projection, codes=codes.round())


def _nearest(rows: Float[Tensor, "n r"], codes: Float[Tensor, "k r"]) -> Int[Tensor, "n"]:
    found = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    twice, minus_norm = 2.0 * codes.T, -codes.square().sum(1)
    for start in range(0, len(rows), _ROWS):
        found[start : start + _ROWS] = torch.addmm(minus_norm, rows[start : start + _ROWS], twice).argmax(1)
    return found


def _drawn(chances: Float[Tensor, "n"], count: int, generator: torch.Generator) -> Int[Tensor, "m"]:
    """Places drawn with replacement; in double precision, for the chances of many add up to 1."""
    cumulative = chances.to("cpu", torch.float64).cumsum(0)
    points = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, points, right=True).clamp_max(len(chances) - 1).to(chances.device)


def _lloyd(
    rows: Float[Tensor, "n r"],
    weights: Float[Tensor, "n"],
    codes: Float[Tensor, "k r"],
    *,
    rounds: int,
    generator: torch.Generator,
) -> Float[Tensor, "k r"]:
    """Codes after `rounds` of k-means, which also moves codes that save little to where errors are large."""
    for turn in range(rounds):
        nearest = _nearest(rows, codes)
        mass = torch.zeros_like(codes[:, 0]).index_add_(0, nearest, weights)
        sums = torch.zeros_like(codes).index_add_(0, nearest, rows * weights[:, None])
        codes = torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-9)[:, None], codes)
        # The last rounds let all codes settle; two places that were drawn are not improved on any more.
        moved = int(_RELOCATED * (1 - turn / rounds) * len(codes)) if turn < rounds - 2 else 0
        if moved:
            saved = mass * torch.cdist(codes, codes).fill_diagonal_(math.inf).amin(1).square()
            errors = weights * (rows - codes[nearest]).square().sum(1) + _FLOOR
            codes[saved.topk(moved, largest=False).indices] = rows[_drawn(errors, moved, generator)]
    return codes
