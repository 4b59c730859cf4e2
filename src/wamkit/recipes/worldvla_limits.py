"""What the published WorldVLA and RynnVLA-002 normalise with: one table of limits for all LIBERO suites, by recipe.

Importing this module loads no torch.

Source: the released code of WorldVLA (arXiv 2506.21539) and RynnVLA-002 (arXiv 2511.17502).
Differs: WorldVLA reads no state; a policy of ours has one, and takes the successor's limits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wamkit.data.stats import Statistics

_STATE = (
    (-0.4827807, -0.3309336, 0.00812818, 1.00279467, -3.63125079, -1.84273835, -0.00545302, -0.04201502),
    (0.210313803, 0.39042644, 1.47277813, 3.72486417, 3.56188956, 1.3863216, 0.0423214189, 0.00131260958),
)
LIMITS: Final[dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]]] = {
    "worldvla-libero": {
        "action": (
            (-0.9375, -0.9375, -0.9375, -0.32571429, -0.375, -0.375, -1.0),
            (0.9375, 0.9375, 0.9375, 0.375, 0.375, 0.375, 1.0),
        ),
        "state": _STATE,
    },
    "rynnvla-libero": {
        "action": (
            (-0.9375, -0.9375, -0.9375, -0.24214286, -0.375, -0.36428571, -1.0),
            (0.9375, 0.9375, 0.9375, 0.34821429, 0.375, 0.375, 1.0),
        ),
        "state": _STATE,
    },
}
"""Lowest and highest number of every channel: 3 position deltas, 3 rotation deltas, gripper; position 3, axis-angle 3,
gripper joints 2."""


def published_statistics(name: str) -> dict[str, Statistics]:
    """Limits as statistics whose quantiles they are, for `minmax`.

    Args:
        name: in `LIMITS`.
    """
    from wamkit.data.stats import Statistics

    found = {}
    for column, (low, high) in LIMITS[name].items():
        found[column] = Statistics(
            mean=tuple((a + b) / 2 for a, b in zip(low, high, strict=True)),
            std=tuple((b - a) / 2 for a, b in zip(low, high, strict=True)),
            q01=low,
            q99=high,
            min=low,
            max=high,
            count=0,
            num_kept=0,
            method="published limits",
        )
    return found
