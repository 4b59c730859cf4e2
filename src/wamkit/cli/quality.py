"""Measure a policy's world model on recorded episodes: frames imagined along recorded actions, beside what came.

Roll-outs start at an episode's first frame and feed imagined frames back (PSNR, SSIM, LPIPS, FVD over the first frames
and over all of them); single steps start at every recorded frame (PSNR, on all frames and on those that move). Beside
every number stand what copying a frame gives and what the model's codec gives for recorded frames. LPIPS and FVD need
published weights that you name; without them the rest is measured. The output folder holds quality.json, and films and
pictures of some episodes. Equal options give equal numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from wamkit.cli.policy import PolicyOptions, warn_unless_imagining_was_learned

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from wamkit.data.lerobot import LeRobotDataset
    from wamkit.data.source import EpisodeEntry
    from wamkit.evaluation.world_quality import WorldQuality
    from wamkit.evaluation.world_scores import ClipQuality, Estimate, RolloutQuality

SHOWN = {"model": "model", "copy": "copying", "ceiling": "codec"}
GAIN = "gain [95 %]"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit quality`."""

    policy: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """Policy folder, or a training checkpoint."""
    data: Path
    """LeRobot dataset of the policy's robot."""
    output: Path
    """Folder to make."""
    split: Literal["val_ind", "val_ood", "train", "all"] = "val_ind"
    """Part of the dataset, see `wamkit data split`; the policy should not have been trained on it."""
    legacy_lexicographic: bool = False
    """Split as WorldVLA's published files do, see `wamkit data split`."""
    episodes: tuple[str, ...] = ()
    """Episodes in place of a part: 7, 0:40 (0 to 39), 40: (to the end)."""
    vgg: Path | None = None
    """torchvision's VGG16 (.pth or .safetensors), for LPIPS."""
    lpips: Path | None = None
    """Heads of LPIPS 0.1 for VGG16 (.pth or .safetensors)."""
    i3d: Path | None = None
    """I3D in the layout of pytorch-i3d, RGB with 400 classes (.pt or .safetensors), for FVD."""
    horizons: tuple[int, ...] = (10, 50)
    """Numbers of first imagined frames that roll-outs are measured over, beside all of them."""
    min_frames: int = 22
    """Frames below which an episode is too short for roll-outs."""
    motion: float = 2.0
    """Mean absolute change from the frame before, in levels of 0 to 255, from which on a frame moves."""
    seed: int = 0
    """Seed of the policy's draws and of the intervals."""
    batch_size: int = 16
    """Episodes, or frames of one, imagined at once."""
    films: int = 2
    """Episodes that are filmed, the first ones."""
    running: Annotated[PolicyOptions, tyro.conf.arg(name="")] = field(default_factory=PolicyOptions)
    """How the policy runs."""
    fresh: bool = False
    """Replace an earlier measurement in the output folder."""
    json: bool = False
    """Print quality.json instead of tables."""


def run(options: Options) -> int:
    """Measure and print the numbers."""
    if options.batch_size < 1 or options.films < 0:
        raise ValueError(
            f"expected batch_size of 1 or more and films of 0 or more, got {options.batch_size} and {options.films}"
        )
    options.running.check()

    from wamkit.checkpoint import read_policy
    from wamkit.data.exclusions import open_usable
    from wamkit.device import choose_device
    from wamkit.evaluation.open_loop import require_robot
    from wamkit.evaluation.open_loop_results import DatasetIdentity
    from wamkit.evaluation.own_folder import require_own_folder
    from wamkit.evaluation.world_quality import OWN_FILES, MetricNetworks, QualitySettings, measure_world
    from wamkit.evaluation.world_rollouts import world_of

    settings = QualitySettings(
        horizons=options.horizons, min_frames=options.min_frames, motion=options.motion, seed=options.seed
    )
    require_own_folder(options.output, OWN_FILES, command="quality", fresh=options.fresh)
    dataset = open_usable(options.data)
    entries, part = _chosen(options, dataset)
    training = read_policy(options.policy).training
    warn_unless_imagining_was_learned(training)
    device = choose_device(options.running.device)
    networks = MetricNetworks.load(vgg=options.vgg, lpips=options.lpips, i3d=options.i3d, device=device)
    policy = options.running.load(options.policy)
    identity = options.running.identity(options.policy, policy)
    source = DatasetIdentity.of(dataset, training)
    require_robot(policy, dataset, identity, source)
    results = measure_world(
        world_of(policy, max_rows=options.batch_size, device=device),
        dataset,
        entries,
        settings,
        networks,
        identity=identity,
        source=source,
        split=part,
        out=options.output,
        num_films=options.films,
        fresh=options.fresh,
    )
    if options.json:
        print(json.dumps(results.to_dict(), indent=2))
        return 0
    from rich.console import Console

    console = Console()
    for line in describe(results):
        console.print(line)
    print(f"results are in {options.output}")
    return 0


def describe(results: WorldQuality) -> Iterator[RenderableType]:
    """The numbers as lines and tables for a terminal."""
    shown = f"{len(results.episodes)} episodes ({results.split})"
    yield f"{results.policy.name} on {results.dataset.name}, {shown}"
    if results.dataset.was_trained_on:
        yield "The policy was trained on this dataset: the numbers count only where it left these episodes out."
    if results.short_episodes:
        short = len(results.short_episodes)
        yield f"{short} of them have fewer than {results.settings.min_frames} frames: no roll-outs of these"
    yield _step_table(results)
    every = results.steps[0]
    if every.copy is not None and every.copy.num_equal:
        equal, number, cap = every.copy.num_equal, every.num_frames, results.psnr_cap
        yield f"{equal} of {number} frames equal the one before: there, copying counts as {cap:g} dB"
    for rollouts in _by_length(results.rollouts):
        if rollouts[0].num_clips:
            yield _rollout_table(results, rollouts)
    if results.clipped_actions:
        share = f"{results.clipped_actions:.2%}"
        yield f"{share} of the actions' numbers lay outside what the model was trained on, and were clipped"
    for what, why in results.not_measured.items():
        yield f"not measured: {what}: {why}"


def _step_table(results: WorldQuality) -> RenderableType:
    """A line for each camera and choice of frames."""
    title = f"next frame from recorded ones, PSNR in dB (moving: by {results.settings.motion:g} of 255 or more)"
    table = _table(title, ("camera", "frames"), ("number", *SHOWN.values(), GAIN))
    for step in results.steps:
        shown = [getattr(step, name) for name in SHOWN]
        means = ["–" if closeness is None else _decibels(closeness.psnr, results.psnr_cap) for closeness in shown]
        gain = None if step.model is None else step.model.psnr_gain
        table.add_row(step.camera, step.frames, str(step.num_frames), *means, _with_interval(gain))
    return table


def _rollout_table(results: WorldQuality, rollouts: Sequence[RolloutQuality]) -> RenderableType:
    """Roll-outs of one length: a line for each camera and what was shown."""
    first = rollouts[0]
    length = f"{first.min_frames} to {first.max_frames}" if first.max_frames > first.min_frames else first.min_frames
    extra = tuple(
        name for name in ("lpips", "fvd") if any(getattr(item.model, name) for item in rollouts if item.model)
    )
    heads = {"lpips": "LPIPS", "fvd": "FVD (clips)"}
    title = f"roll-outs of {length} frames from the first one, {first.num_episodes} episodes"
    table = _table(title, ("camera", "shown"), ("PSNR", GAIN, "SSIM", *(heads[name] for name in extra)))
    for rollout in rollouts:
        for which, name in SHOWN.items():
            quality: ClipQuality | None = getattr(rollout, which)
            if quality is None:
                continue
            lpips = "–" if quality.lpips is None else f"{quality.lpips.mean:.2f}"
            fvd = "–" if quality.fvd is None else f"{quality.fvd.value:.1f} ({quality.fvd.num_clips})"
            numbers = {"lpips": lpips, "fvd": fvd}
            gain = _with_interval(quality.psnr_gain) if which == "model" else ""
            cells = (
                _decibels(quality.psnr, results.psnr_cap),
                gain,
                f"{quality.ssim.mean:.2f}",
                *(numbers[key] for key in extra),
            )
            table.add_row(rollout.camera, name, *cells)
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _by_length(rollouts: Sequence[RolloutQuality]) -> list[list[RolloutQuality]]:
    lengths = dict.fromkeys(item.frames for item in rollouts)
    return [[item for item in rollouts if item.frames == length] for length in lengths]


def _decibels(psnr: Estimate, cap: float) -> str:
    return "exact" if psnr.mean >= cap else f"{psnr.mean:.2f}"


def _with_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    low, high = estimate.interval or (None, None)
    return f"{estimate.mean:+.2f}" + ("" if low is None else f" [{low:+.2f}, {high:+.2f}]")


def _chosen(options: Options, dataset: LeRobotDataset) -> tuple[list[EpisodeEntry], str]:
    """The episodes to measure on, and what they are called."""
    from wamkit.data.choices import choose_episodes, parse_episodes
    from wamkit.data.exclusions import require_usable, without_excluded
    from wamkit.data.splits import split_episodes

    name = dataset.root.resolve().name
    if options.episodes:
        ranges = parse_episodes(options.episodes, setting="--episodes")
        wanted = choose_episodes(ranges, names=[name], counts=[len(dataset.episodes)], setting="--episodes")[0] or set()
        require_usable(options.data, sorted(wanted))
        return [entry for entry in dataset.episodes if entry.index in wanted], " ".join(options.episodes)
    usable = without_excluded(dataset).episodes
    held = split_episodes(usable, legacy_lexicographic=options.legacy_lexicographic).part(options.split)
    if not held:
        raise ValueError(
            f"the part {options.split!r} of {name} is empty (`wamkit data split {options.data}` shows the parts); "
            "choose another with --split, or name --episodes"
        )
    return [entry for entry in usable if entry.index in held], options.split
