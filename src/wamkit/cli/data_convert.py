"""`wamkit data convert`: bring older LeRobot datasets and HDF5 demonstrations to LeRobot v3.0."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wamkit.progress import ProgressBar


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Make a LeRobot v3.0 dataset of one in v2.0 or v2.1, or of HDF5 demonstrations of LIBERO or robomimic.

    Episodes listed in meta/wamkit_exclude.json are left out. An interrupted command leaves nothing at the output.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Dataset folder, HDF5 file, or folder of HDF5 files."""
    output: Path
    """Folder to make."""
    robot: str | None = None
    """LeRobot: what was recorded, which training needs to know: libero, a dataset of it, or a JSON file of its spec.
    Its cameras have the dataset's sizes; with libero, image and wrist_image are read as the simulator's cameras."""
    rename: tuple[str, ...] | None = None
    """LeRobot: cameras to read under other names, each as OLD=NEW with OLD as the files have it, image=agentview."""
    task: str | None = None
    """HDF5: the sentence of every episode, where the files have none."""
    idle: Literal["drop", "keep"] | None = None
    """HDF5: rows in which the robot was told to do nothing; by default LIBERO's are dropped."""
    pictures: Literal["turn", "keep"] | None = None
    """HDF5: turned by 180 degrees or as stored; by default LIBERO's are turned, they are stored upside down."""
    observed: Literal["auto", "before", "after"] | None = None
    """HDF5: was row t seen before action t, or after it? By default the joints tell."""
    skip_broken: bool = False
    """HDF5: leave out demonstrations that cannot be read, hold numbers that are not finite or never move the robot,
    with a warning each. A file that cannot be opened is refused still."""
    json: bool = False
    """Print what was done as JSON."""


def run(options: Convert) -> int:
    """Convert and say what was done."""
    from wamkit.data.hdf5 import is_hdf5

    report = _hdf5(options) if is_hdf5(options.source) else _lerobot(options)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
        return 0
    print(f"{report.output} holds {report.episodes} episodes and {report.frames} rows of {report.source}")
    if report.left_out:
        print(f"{report.left_out} episodes of it were left out, the others are numbered anew")
    if report.copied_videos:
        print(f"{report.copied_videos} videos were copied as they are, {report.encoded_videos} encoded anew")
    if report.dropped_rows:
        print(f"{report.dropped_rows} rows that do nothing were left out, so rows are not evenly spaced in time")
    return 0


def _hdf5(options: Convert) -> Any:
    from wamkit.data.convert_hdf5 import convert_hdf5
    from wamkit.data.hdf5 import Hdf5Settings

    _refuse(options, ("robot", "rename"), "a LeRobot dataset")
    names = [field.name for field in dataclasses.fields(Hdf5Settings)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    with ProgressBar(f"converting {options.source}", unit="episodes") as bar:
        return convert_hdf5(
            *(options.source, options.output, Hdf5Settings(**given)),
            skip_broken=options.skip_broken,
            progress=bar.show,
        )


def _lerobot(options: Convert) -> Any:
    from wamkit.data.convert_v2 import convert_v2

    _refuse(options, ("task", "idle", "pictures", "observed", "skip_broken"), "HDF5 files")
    from wamkit.recipes.published_datasets import choose_renames, describe_as

    renamed = choose_renames(options.source, given=options.rename, robot=options.robot)
    robot = None
    if options.robot is not None:
        from wamkit.data.exclusions import read_exclusions
        from wamkit.data.lerobot import LeRobotDataset

        excluded = read_exclusions(options.source).episodes
        dataset = LeRobotDataset(options.source, renamed=renamed, ignored=excluded)
        robot = describe_as(dataset, options.robot).robot
    if renamed and not options.json:
        print("cameras are read under other names: " + ", ".join(f"{old} as {new}" for old, new in renamed.items()))
    with ProgressBar(f"converting {options.source}", unit="episodes") as bar:
        return convert_v2(options.source, options.output, robot=robot, renamed=renamed, progress=bar.show)


def _refuse(options: Convert, names: tuple[str, ...], meant_for: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False)]
    if given:
        raise ValueError(f"{', '.join(given)}: without effect on {options.source}, meant for {meant_for}; leave it out")
