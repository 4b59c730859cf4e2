"""What a planner maximises: one number from the predicted value curve of a candidate.

Source: WAV (arXiv 2604.14732), equation for the signal-to-noise score; public planner.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from wamkit.planning.config import Score


def score_values(values: Float[Tensor, "*b y"], score: Score, *, penalty: float = 1.0) -> Float[Tensor, "*b"]:
    """Score value curves over their tokens.

    Args:
        values: predicted total value per token; the last channel of the value tokens.
        score: `snr` mean/(std + 1e-6), `mean`, `lcb` mean - penalty · std, `last` the last token.
        penalty: weight of the spread in `lcb`.
    """
    if score == "last":
        return values[..., -1]
    mean = values.mean(-1)
    if score == "mean":
        return mean
    std = values.std(-1) if values.shape[-1] > 1 else values.new_zeros(mean.shape)
    if score == "snr":
        return mean / (std + 1e-6)
    return mean - penalty * std
