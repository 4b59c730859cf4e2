r"""Make a policy folder of weights that the public code of WAV trained.

    wamkit import step_30000 --like wav-libero --codecs LTX_video_part \
        --statistics stats.jsonl --domain libero --robot libero --output outputs/wav-libero

`--like` is the recipe, or the public YAML file, by which they were trained: it says the model's sizes and what numbers
mean. Weights in any published layout are read; every tensor has to be there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit import`."""

    weights: Annotated[Path, tyro.conf.Positional]
    """A safetensors file, an index of shards, or a folder with either."""
    like: str
    """Recipe of the weights, or a YAML file of the public trainer."""
    statistics: Path
    """Statistics file of the public code."""
    domain: str
    """X in the file's X_eef, X_state_eef, …"""
    space: Literal["eef", "joint"] = "eef"
    """Which of the domain's statistics."""
    robot: str
    """libero, a dataset of the robot, or a JSON file of its spec."""
    output: Path
    """Folder to make."""
    codecs: Path | None = None
    """Folder with vae/, text_encoder/ and tokenizer/ of LTX-Video; by default the recipe's."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the stored weights; the public trainer computes in bfloat16."""


def run(options: Options) -> int:
    """Write the folder."""
    from wamkit.recipes import RECIPES
    from wamkit.recipes.reference_yaml import read_reference_yaml

    if options.like.endswith((".yaml", ".yml")):
        recipe = read_reference_yaml(Path(options.like)).run
    elif options.like in RECIPES:
        recipe = RECIPES[options.like]()
    else:
        raise ValueError(
            f"unknown recipe {options.like!r}; choose one of {', '.join(RECIPES)}, or a YAML file of the public trainer"
        )

    import torch

    from wamkit.data.wav_statistics import read_wav_statistics
    from wamkit.recipes.import_weights import import_policy, read_robot

    if options.codecs is not None:
        recipe = dataclasses.replace(recipe, model=recipe.model.with_pretrained(str(options.codecs)))
    folder = import_policy(
        options.weights,
        options.output,
        run=recipe,
        robot=read_robot(options.robot),
        statistics=read_wav_statistics(options.statistics, domain=options.domain, space=options.space),
        dtype=getattr(torch, options.dtype),
    )
    print(f"wrote {folder}")
    return 0
