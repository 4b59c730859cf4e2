"""Look into a LeRobot dataset, describe or split it, compute statistics, write value targets, encode or convert it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wamkit.cli import data_conversations, data_convert, data_describe, data_inspect, data_split, data_stats
from wamkit.cli.data_conversations import Conversations
from wamkit.cli.data_convert import Convert
from wamkit.cli.data_describe import Describe
from wamkit.cli.data_inspect import Inspect
from wamkit.cli.data_split import Split
from wamkit.cli.data_stats import Stats
from wamkit.launcher import is_first_process
from wamkit.progress import ProgressBar
from wamkit.recipes.run import Run

Root = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]


@dataclass(frozen=True, kw_only=True)
class Values:
    """Write value targets into the dataset as its column `value`; an earlier column is replaced.

    Statistics are computed anew, because values are among them. Nothing is done where the column has these settings and
    neither the recording nor the list of excluded episodes has changed since.
    """

    root: Root
    """Dataset folder."""
    kind: Literal["dense", "sparse"] = "dense"
    """Reward: likeness to the end of the demonstration, or -1 until the task is solved."""
    gamma: float | None = None
    """Discount per step."""
    horizon: int | None = None
    """Further steps that a return counts; by default all up to the end of the episode."""
    components: Literal["returns", "rewards"] | None = None
    """Dense: what the component channels hold."""
    image_size: int | None = None
    """Dense: pixels that images are resized to before they are compared; 0 compares them as they are."""
    order: Literal["table", "arms"] | None = None
    """Dense: order of the components, row by row of the reward table or arm by arm."""
    pixel_range: float | None = None
    """Dense: largest pixel value in the squared error."""
    mse_rate: float | None = None
    """Dense: factor of the squared error in the exponent."""
    ssim_window: int | None = None
    """Dense: side of structural similarity's window in pixels."""
    ssim_sigma: float | None = None
    """Dense: standard deviation of that window in pixels."""
    likeness_weight: float | None = None
    """Dense: weight of images and proximity, before division by the number of components."""
    state_weight: float | None = None
    """Dense: the same of the state's velocity and acceleration."""
    action_weight: float | None = None
    """Dense: the same of the action's."""
    component_weights: tuple[float, ...] | None = None
    """Dense: weight of each component, in their order, in place of the three above and undivided."""
    third_person: str | None = None
    """Dense: camera of the third-person terms; by default the first that is not an arm's."""
    failure: Literal["endless", "ends"] | None = None
    """Sparse: what follows the last row of an episode that was never solved."""
    json: bool = False
    """Print the settings as JSON."""


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Keep what a recipe's frozen codecs make of a dataset, so that training need not compute it again.

    wamkit data encode RECIPE --data.root DATASET --data.cache FOLDER [the settings of wamkit train]. Then train with
    the same settings. An interrupted command continues; under torchrun each process takes some of the episodes.
    """

    recipe: Annotated[str, tyro.conf.Positional]
    """Recipe, or a YAML file of WAV's public trainer."""


Options = Inspect | Stats | Values | Encode | Convert | Describe | Split | Conversations


def parse(arguments: list[str]) -> tuple[Any, Any, list[str]]:
    """What the arguments are settings of; those of `encode` are a training run's."""
    if arguments[:1] != ["encode"]:
        return Options, None, arguments
    from wamkit.cli import train

    return train.parse(arguments[1:])


def run(options: Options | Run) -> int:
    """Run the chosen sub-command."""
    if isinstance(options, Run):
        return _encode(options)
    if isinstance(options, Inspect):
        return data_inspect.run(options)
    if isinstance(options, Values):
        return _values(options)
    if isinstance(options, Convert):
        return data_convert.run(options)
    if isinstance(options, Describe):
        return data_describe.run(options)
    if isinstance(options, Split):
        return data_split.run(options)
    if isinstance(options, Conversations):
        return data_conversations.run(options)
    assert isinstance(options, Stats), "parse turns the arguments of encode into those of a run"
    return data_stats.run(options)


def _encode(options: Run) -> int:
    from wamkit.recipes.execute import encode

    report = encode(options)
    if is_first_process():
        print(
            f"{report.folder} holds {report.episodes} episodes in {report.num_bytes / 1e6:.1f} MB, {report.encoded} of "
            "them encoded now; train with the same settings"
        )
    return 0


def _values(options: Values) -> int:
    from wamkit.data.exclusions import open_usable, without_excluded
    from wamkit.data.value_labels import is_labelled, label_values

    dataset = open_usable(options.root)
    settings = _value_settings(options, dataset.robot)
    if is_labelled(dataset, settings):
        print(f"{options.root} already has these {options.kind} values; nothing to do")
        return 0
    with ProgressBar(f"{options.kind} values", unit="episodes") as bar:
        label_values(dataset, settings, progress=bar.show)
    data_stats.write_statistics_of(options.root)
    if options.json:
        print(json.dumps(settings.to_dict(), indent=2))
    else:
        channels = ", ".join(settings.channel_names)
        count = len(without_excluded(dataset).episodes)
        print(f"wrote {options.kind} values of {count} episodes ({channels}) and new statistics")
    return 0


def _value_settings(options: Values, robot: Any) -> Any:
    """The settings with their own defaults where no option was given; an option without effect is refused."""
    from wamkit.data.value_labels import DenseValueSettings, SparseValueSettings

    chosen = DenseValueSettings if options.kind == "dense" else SparseValueSettings
    known = {item.name for item in dataclasses.fields(chosen)}
    names = [item.name for item in dataclasses.fields(options) if item.name not in ("root", "kind", "json")]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    unused = [name for name in given if name not in known]
    if unused:
        raise ValueError(f"{', '.join(unused)}: without effect on {options.kind} values; leave it out")
    if given.get("image_size") == 0:
        given["image_size"] = None
    if options.kind == "sparse":
        return SparseValueSettings(**given)
    if robot is None:
        raise ValueError(
            f"{options.root} has no robot spec, so dense values cannot tell which camera is whose; choose "
            "--kind sparse, or call wamkit.data.value_labels.label_values with settings of your own"
        )
    return DenseValueSettings.from_robot(robot, **given)
