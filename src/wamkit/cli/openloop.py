"""Compare what a policy predicts along recorded episodes with what was recorded; nothing is executed.

The output folder holds openloop.json (errors in physical units, and in the network's range over stretches of the
chunk), plots of every action and state channel and of the value, films of real frames above imagined ones, and all
predicted numbers; `wamkit report --openloop FOLDER` turns it into a page. Equal options give equal numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from wamkit.cli.policy import PolicyOptions

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from wamkit.evaluation.open_loop_errors import ChannelErrors, Errors
    from wamkit.evaluation.open_loop_results import OpenLoopResults


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit openloop`."""

    policy: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """Policy folder, or a training checkpoint."""
    data: Path
    """LeRobot dataset of the policy's robot; one that it was not trained on tells more."""
    output: Path
    """Folder to make."""
    episodes: tuple[int, ...] = (1,)
    """Episodes, counted from 0."""
    protocol: Literal["policy", "reference"] = "policy"
    """policy: ask as the control loop does, with its memory and the alignment of actions in training. reference: as the
    public code of WAV, chunks side by side from row 0 with memory spread over all rows before."""
    execution_horizon: int | None = None
    """Protocol policy: rows between two calls; by default the policy's own number."""
    memory_threshold: int | None = None
    """Protocol policy: executed actions per shift of the observation memory; by default 1."""
    action_offset: int | None = None
    """Protocol policy: rows from the observation to the first action; by default what the policy was trained with."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the policy's draws, each a pass over all calls; plots and films show the first."""
    running: Annotated[PolicyOptions, tyro.conf.arg(name="")] = field(default_factory=PolicyOptions)
    """How the policy runs."""
    batch_size: int = 16
    """Calls computed at once."""
    no_values: bool = False
    """Leave values out; otherwise the dataset of a policy with values needs a value column."""
    no_video: bool = False
    """Leave imagined frames out: no films, no PSNR."""
    fresh: bool = False
    """Replace an earlier validation in the output folder."""
    json: bool = False
    """Print openloop.json instead of a table."""


def run(options: Options) -> int:
    """Validate and print the numbers."""
    if options.batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {options.batch_size}")
    options.running.check()

    from wamkit.checkpoint import read_policy
    from wamkit.data.exclusions import open_usable, require_usable
    from wamkit.evaluation.open_loop import open_loop
    from wamkit.evaluation.open_loop_protocol import make_protocol
    from wamkit.evaluation.open_loop_results import DatasetIdentity

    files = read_policy(options.policy)
    protocol = make_protocol(
        options.protocol,
        files.spec,
        files.training,
        execution_horizon=options.execution_horizon,
        memory_threshold=options.memory_threshold,
        action_offset=options.action_offset,
    )
    dataset = open_usable(options.data)
    require_usable(options.data, options.episodes)
    policy = options.running.load(options.policy)
    results = open_loop(
        policy,
        dataset,
        protocol,
        identity=options.running.identity(options.policy, policy),
        source=DatasetIdentity.of(dataset, files.training),
        out=options.output,
        episodes=options.episodes,
        seeds=options.seeds,
        batch_size=options.batch_size,
        with_values=not options.no_values,
        with_video=not options.no_video,
        fresh=options.fresh,
    )
    if options.json:
        print(json.dumps(results.to_dict(), indent=2))
        return 0
    from rich.console import Console

    console = Console()
    for part in describe(results):
        console.print(part)
    print(f"results are in {options.output}")
    return 0


def describe(results: OpenLoopResults) -> list[RenderableType]:
    """The numbers over all episodes, as lines and tables for a terminal."""
    total = results.total
    planner = "without planning" if results.policy.planner is None else results.policy.planner["name"]
    names = ", ".join(str(item.episode) for item in results.episodes)
    parts: list[RenderableType] = [
        f"{results.policy.name} on {results.dataset.name}, {planner}",
        f"episodes {names}: {total.num_chunks} calls, {total.num_rows} rows; protocol {results.protocol.name}: "
        f"{results.protocol.description}",
    ]
    if results.dataset.was_trained_on:
        parts.append("The policy was trained on this dataset: expect larger errors on new episodes.")
    parts.append(_channel_table("action", total.actions))
    if total.states:
        parts.append(_channel_table("state", total.states))
    if total.value is not None:
        parts.append(_channel_table("value", [total.value]))
    parts.append(_window_table(total))
    if total.video:
        parts.append(_frame_table(total))
    return parts


def _channel_table(kind: str, channels: Sequence[ChannelErrors]) -> RenderableType:
    table = _table(kind, "unit", "MAE", "MSE", "MSE of the best constant", "normalised MSE")
    for channel in channels:
        numbers = (channel.mae, channel.mse, channel.constant_mse, channel.normalized_mse)
        table.add_row(channel.name, channel.unit, *(f"{number:.4g}" for number in numbers))
    return table


def _window_table(errors: Errors) -> RenderableType:
    table = _table("place in the chunk", "action MSE", "state MSE", "value MSE")
    for window in errors.windows:
        numbers = (window.action_mse, window.state_mse, window.value_mse)
        place = f"{window.first} to {window.last - 1}" if window.last > window.first + 1 else str(window.first)
        table.add_row(place, *("–" if number is None else f"{number:.4g}" for number in numbers))
    return table


def _frame_table(errors: Errors) -> RenderableType:
    table = _table("imagined frames", "PSNR (dB)", "PSNR of copying the last frame", "frames")
    for item in errors.video:
        shown = ("exact" if number is None else f"{number:.2f}" for number in (item.psnr, item.copy_psnr))
        table.add_row(item.name, *shown, str(item.num_frames))
    return table


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name == "unit" else "right")
    return table
