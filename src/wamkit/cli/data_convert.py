"""`wamkit data convert`: bring older LeRobot datasets, HDF5 demonstrations and frame folders to LeRobot v3.0."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wamkit.progress import ProgressBar

_OF_CONVERSATIONS = ("camera", "root", "action_text")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Make a LeRobot v3.0 dataset of one in v2.0 or v2.1, of HDF5 demonstrations of LIBERO or robomimic, or of the
    frame folders that WorldVLA's conversations name.

    Episodes listed in meta/wamkit_exclude.json are left out. An interrupted command leaves nothing at the output.
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Dataset folder, HDF5 file, or folder of HDF5 files; or JSON lists of conversations, or folders of them."""
    output: Path
    """Folder to make."""
    robot: str | None = None
    """LeRobot and conversations: what was recorded, which training needs to know: libero, a dataset of it, or a JSON
    file of its spec. Its cameras have the dataset's sizes; with libero, image and wrist_image are read as the
    simulator's cameras. Conversations need it; of its state channels, which they do not have, none is kept."""
    rename: tuple[str, ...] | None = None
    """LeRobot: cameras to read under other names, each as OLD=NEW with OLD as the files have it, image=agentview."""
    task: str | None = None
    """HDF5: the sentence of every episode, where the files have none."""
    idle: Literal["drop", "keep"] | None = None
    """HDF5: rows in which the robot was told to do nothing; by default LIBERO's are dropped."""
    pictures: Literal["turn", "keep"] | None = None
    """HDF5 and conversations: turned by 180 degrees or as stored; by default those of LIBERO's HDF5 files are turned,
    which are stored upside down."""
    observed: Literal["auto", "before", "after"] | None = None
    """HDF5: was row t seen before action t, or after it? By default the joints tell."""
    skip_broken: bool = False
    """HDF5: leave out demonstrations that cannot be read, hold numbers that are not finite or never move the robot,
    with a warning each. A file that cannot be opened is refused still."""
    camera: str | None = None
    """Conversations: which of the robot's cameras took the pictures; by default its first."""
    root: Path | None = None
    """Conversations: folder that holds <task>/trj_<i>/…, where the paths are absolute and of another machine, or do not
    start from the lists' own folder."""
    action_text: str | None = None
    """Conversations: the question about actions, with {task} in the place of the sentence, where it is another one."""
    json: bool = False
    """Print what was done as JSON."""


def run(options: Convert) -> int:
    """Convert and say what was done."""
    from wamkit.data.hdf5 import is_hdf5
    from wamkit.data.trajectories import is_conversations

    if not options.sources:
        raise ValueError("expected something to convert, got nothing; name a dataset, HDF5 files or JSON lists")
    is_demonstrations = is_hdf5(options.sources[0])
    if not is_demonstrations and is_conversations(options.sources[0]):
        report = _conversations(options)
    elif len(options.sources) > 1:
        raise ValueError(
            f"expected one dataset or folder of HDF5 files, got {len(options.sources)} things, the first of them "
            f"{options.sources[0]}; convert them one by one (only lists of conversations may be several)"
        )
    else:
        report = _hdf5(options) if is_demonstrations else _lerobot(options)
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
    if report.notes.get("cut_rows"):
        print(f"{report.notes['cut_rows']} rows at the ends were left out, their frame or action is not there")
    return 0


def _hdf5(options: Convert) -> Any:
    from wamkit.data.convert_hdf5 import convert_hdf5
    from wamkit.data.hdf5 import Hdf5Settings

    _refuse(options, ("robot", "rename"), "a LeRobot dataset")
    _refuse(options, _OF_CONVERSATIONS, "conversations")
    (source,) = options.sources
    names = [field.name for field in dataclasses.fields(Hdf5Settings)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    with ProgressBar(f"converting {source}", unit="episodes") as bar:
        return convert_hdf5(
            *(source, options.output, Hdf5Settings(**given)),
            skip_broken=options.skip_broken,
            progress=bar.show,
        )


def _lerobot(options: Convert) -> Any:
    from wamkit.data.convert_v2 import convert_v2

    _refuse(options, ("task", "idle", "pictures", "observed", "skip_broken"), "HDF5 files")
    _refuse(options, _OF_CONVERSATIONS, "conversations")
    (source,) = options.sources
    from wamkit.recipes.published_datasets import choose_renames, describe_as

    renamed = choose_renames(source, given=options.rename, robot=options.robot)
    robot = None
    if options.robot is not None:
        from wamkit.data.exclusions import read_exclusions
        from wamkit.data.lerobot import LeRobotDataset

        excluded = read_exclusions(source).episodes
        dataset = LeRobotDataset(source, renamed=renamed, ignored=excluded)
        robot = describe_as(dataset, options.robot).robot
    if renamed and not options.json:
        print("cameras are read under other names: " + ", ".join(f"{old} as {new}" for old, new in renamed.items()))
    with ProgressBar(f"converting {source}", unit="episodes") as bar:
        return convert_v2(source, options.output, robot=robot, renamed=renamed, progress=bar.show)


def _conversations(options: Convert) -> Any:
    from wamkit.data.conversations import ACTION_TEXT
    from wamkit.data.convert_conversations import convert_conversations
    from wamkit.recipes.import_weights import read_robot

    _refuse(options, ("rename",), "a LeRobot dataset")
    _refuse(options, ("task", "idle", "observed", "skip_broken"), "HDF5 files")
    if options.robot is None:
        raise ValueError(
            "conversations do not say which robot they are of; expected it as --robot (libero, a dataset of it, or a "
            "JSON file of its spec), got nothing"
        )
    with ProgressBar(f"converting {options.sources[0]}", unit="trajectories") as bar:
        return convert_conversations(
            *(options.sources, options.output, read_robot(options.robot)),
            camera=options.camera,
            root=options.root,
            action_text=options.action_text or ACTION_TEXT,
            pictures=options.pictures or "keep",
            progress=bar.show,
        )


def _refuse(options: Convert, names: tuple[str, ...], meant_for: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False)]
    if given:
        raise ValueError(
            f"{', '.join(given)}: without effect on {options.sources[0]}, meant for {meant_for}; leave it out"
        )
