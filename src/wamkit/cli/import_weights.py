r"""Make a policy folder of weights that a paper's public code trained.

    wamkit import step_30000 --like wav-libero --codecs LTX_video_part \
        --statistics stats.jsonl --domain libero --robot libero --output outputs/wav-libero
    wamkit import model_256/libero_goal --like worldvla-libero --codecs chameleon/tokenizer \
        --statistics worldvla-libero --robot libero --cameras agentview --output outputs/worldvla-libero-goal

`--like` is the recipe, or WAV's public YAML file, by which they were trained: it says the model's family and sizes and
what numbers mean. Weights in any layout that the family reads are taken; every tensor has to be there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from wamkit.data.stats import Statistics
    from wamkit.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit import`."""

    weights: Annotated[Path, tyro.conf.Positional]
    """A safetensors file, an index of shards, or a folder with either."""
    like: str
    """Recipe of the weights, or a YAML file of WAV's public trainer."""
    statistics: Path
    """What states and actions were normalized with: statistics of wamkit, of openpi or of WAV's public code, or
    worldvla-libero or rynnvla-libero for the limits that these were published with."""
    domain: str | None = None
    """X in the X_eef, X_state_eef, … of a file of WAV's public code; by default the only one."""
    space: Literal["eef", "joint"] | None = None
    """Which of the domain's statistics; by default eef."""
    robot: str
    """libero, a dataset of the robot, or a JSON file of its spec."""
    cameras: tuple[str, ...] = ()
    """Cameras of the robot that the policy sees, in view order; by default all."""
    output: Path
    """Folder to make."""
    codecs: Path | None = None
    """Folder of the pretrained codecs (WAV: LTX-Video's vae/, text_encoder/, tokenizer/); by default the recipe's."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the stored weights; public trainers compute in bfloat16."""


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

    from wamkit.recipes.import_weights import import_policy, read_robot

    if options.codecs is not None:
        recipe = dataclasses.replace(recipe, model=recipe.model.with_pretrained(str(options.codecs)))
    robot = read_robot(options.robot)
    folder = import_policy(
        options.weights,
        options.output,
        run=recipe,
        robot=robot.with_cameras(options.cameras) if options.cameras else robot,
        statistics=_statistics(options, recipe.model),
        dtype=getattr(torch, options.dtype),
    )
    print(f"wrote {folder}")
    return 0


def _statistics(options: Options, model: ModelConfig) -> dict[str, Statistics]:
    """Those of the file, or published ones by their name; with a domain it has to be one of WAV's public code."""
    from wamkit.data.given_statistics import read_given_statistics
    from wamkit.data.wav_statistics import read_wav_statistics
    from wamkit.recipes.worldvla_limits import LIMITS, published_statistics

    if str(options.statistics) in LIMITS:
        return published_statistics(str(options.statistics))
    if options.domain is not None:
        return read_wav_statistics(options.statistics, domain=options.domain, space=options.space or "eef")
    if options.space is not None:
        raise ValueError(f"space {options.space} is without effect without a domain; set --domain, or leave it out")
    widths = {"action": model.action_dim, "state": model.state_dim}
    if model.value_channels:
        widths["value"] = model.value_channels
    return read_given_statistics(options.statistics, widths=widths, option="--domain and --space")
