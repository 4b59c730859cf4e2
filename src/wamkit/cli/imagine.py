"""Imagine several chunks from a recorded row on, beside what was recorded; nothing is executed.

After each chunk, its last imagined frame becomes the newest of the policy's memory, and the state predicted for it the
current one. The output folder holds imagined.mp4 (real frames above imagined ones), frames/CAMERA.png (the same as one
picture) and imagined.json (PSNR of every frame, values, actions and states by control step). Equal options give equal
numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from wamkit.cli.policy import PolicyOptions, warn_unless_imagining_was_learned

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit imagine`."""

    policy: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """Policy folder, or a training checkpoint."""
    data: Path
    """LeRobot dataset of the policy's robot."""
    output: Path
    """Folder to make."""
    episode: int = 0
    """Episode, counted from 0."""
    row: int = 0
    """Row of the episode from which to imagine."""
    chunks: int = 3
    """How many chunks to imagine, one after the other."""
    seed: int = 0
    """Seed of the policy's draws."""
    guidance: float = 1.0
    """Classifier-free guidance of the video by the sentence: 1 is off, more follows the sentence more closely (for
    policies trained with dropped captions)."""
    action_offset: int | None = None
    """Rows from the observation to the first action; by default what the policy was trained with."""
    running: Annotated[PolicyOptions, tyro.conf.arg(name="")] = field(default_factory=PolicyOptions)
    """How the policy runs."""
    fresh: bool = False
    """Replace an earlier result in the output folder."""
    json: bool = False
    """Print imagined.json instead of a table."""


def run(options: Options) -> int:
    """Imagine and print how close it was."""
    if options.chunks < 1:
        raise ValueError(f"expected chunks >= 1, got {options.chunks}")
    options.running.check()

    from wamkit.checkpoint import read_policy
    from wamkit.data.exclusions import open_usable, require_usable
    from wamkit.evaluation.imagined import imagine_episode
    from wamkit.evaluation.open_loop_protocol import make_protocol
    from wamkit.evaluation.open_loop_results import DatasetIdentity

    files = read_policy(options.policy)
    offset = make_protocol("policy", files.spec, files.training, action_offset=options.action_offset).action_offset
    warn_unless_imagining_was_learned(files.training)
    dataset = open_usable(options.data)
    require_usable(options.data, [options.episode])
    policy = options.running.load(options.policy, video_guidance=options.guidance)
    results = imagine_episode(
        policy,
        dataset,
        identity=options.running.identity(options.policy, policy, video_guidance=options.guidance),
        source=DatasetIdentity.of(dataset, files.training),
        out=options.output,
        episode=options.episode,
        row=options.row,
        num_chunks=options.chunks,
        seed=options.seed,
        action_offset=offset,
        fresh=options.fresh,
    )
    if options.json:
        print(json.dumps(results, indent=2))
        return 0
    from rich.console import Console

    Console().print(_table(results))
    print(f"{options.output}: imagined.mp4, imagined.json, frames/")
    return 0


def _table(results: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"episode {results['episode']} from row {results['row']}")
    for name in ("chunk", "imagined frames", "mean PSNR (dB)", "of copying the last real frame"):
        table.add_column(name, justify="right")
    starts = [chunk["step"] for chunk in results["chunks"]]
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else float("inf")
        frames = [frame for frame in results["frames"] if start < frame["step"] <= end]
        means = [_mean(frames, key) for key in ("psnr", "copy_psnr")]
        table.add_row(str(number), f"steps {frames[0]['step']} to {frames[-1]['step']}", *means)
    return table


def _mean(frames: list[dict[str, Any]], key: str) -> str:
    numbers = [number for frame in frames if frame[key] for number in frame[key].values() if number is not None]
    return f"{sum(numbers) / len(numbers):.2f}" if numbers else "–"
