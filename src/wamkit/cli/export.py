"""Copy a policy out of its training run: weights, codecs, statistics and card, without the state for resuming.

`--dtype bfloat16` halves the folder; the policy then computes with the rounded weights. The result is an ordinary
policy folder, whose training.json names the one it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit export`."""

    policy: Annotated[Path, tyro.conf.Positional]
    """Policy folder, or a training checkpoint."""
    output: Path
    """Folder to make."""
    dtype: Literal["float32", "bfloat16", "float16", "same"] = "same"
    """Type of the stored weights."""


def run(options: Options) -> int:
    """Write the folder."""
    import torch

    from wamkit.checkpoint import export_policy

    dtype = None if options.dtype == "same" else getattr(torch, options.dtype)
    folder = export_policy(options.policy, options.output, dtype=dtype)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"wrote {folder} ({size / 1e6:.1f} MB)")
    return 0
