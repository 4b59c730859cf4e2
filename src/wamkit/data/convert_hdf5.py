"""Make a v3.0 dataset of demonstrations in HDF5 files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from wamkit import __version__
from wamkit.data.conversion import NOTES, ConversionReport, new_dataset
from wamkit.data.hdf5 import (
    SUFFIXES,
    BrokenDemonstration,
    Demonstration,
    Hdf5Settings,
    demonstration_names,
    hdf5_files,
    read_demonstration,
)
from wamkit.data.layout import DatasetError
from wamkit.data.writer import LeRobotWriter
from wamkit.robots import LIBERO_CAMERAS, libero_robot

logger = logging.getLogger(__name__)

CLOCK = "rows in which the robot was told to do nothing are left out: the time between two rows is not always 1/fps"


def convert_hdf5(
    source: Path | str,
    output: Path | str,
    settings: Hdf5Settings | None = None,
    *,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Make a dataset of one file, or of all files in a folder; its robot is LIBERO's.

    Args:
        source: a file, or a folder.
        output: a folder that does not exist, or an empty one.
        settings: how.
        skip_broken: leave out demonstrations that cannot be read, hold numbers that are not finite, or never move the
            robot: a warning gives the reason of each, the notes of the dataset their number.
        progress: called with (demonstrations done, demonstrations).

    Raises:
        FileNotFoundError: no file.
        FileExistsError: there is something at `output`.
        DatasetError: a file is damaged, or holds something else than `wamkit.data.hdf5` describes; or no demonstration
            is left.
        ModuleNotFoundError: h5py is not installed.
        ValueError: pictures have a size that cannot be encoded.
        OSError: writing failed.
    """
    source, output, settings = Path(source), Path(output), settings or Hdf5Settings()
    paths = hdf5_files(source)
    if not paths:
        raise FileNotFoundError(f"expected HDF5 files ({', '.join(SUFFIXES)}) at {source}, found none; check the path")
    wanted = [(path, name) for path in paths for name in demonstration_names(path)]
    counts: Counter[str] = Counter()
    broken: list[BrokenDemonstration] = []
    forms: dict[str, None] = {}
    with new_dataset(output, source) as folder, ExitStack() as stack:
        writer: LeRobotWriter | None = None
        for number, (path, name) in enumerate(wanted):
            demo = _read(path, name, settings, broken if skip_broken else None)
            if demo is not None:
                size = next(iter(demo.episode.video.values())).shape[1:3]
                if writer is None:
                    writer = stack.enter_context(LeRobotWriter(folder, libero_robot(*size)))
                _require_size(path, name, size, writer)
                writer.add(demo.episode)
                forms[demo.form] = None
                counts += Counter(dropped_rows=demo.dropped_rows, late=demo.is_late, turned=demo.is_turned)
            if progress is not None:
                progress(number + 1, len(wanted))
        if writer is None:
            raise DatasetError(
                f"{source}: expected a demonstration that is not broken, got none of {len(wanted)}; the first: "
                f"{broken[0]}"
            )
        form = f"{' and '.join(forms)} HDF5"
        notes: dict[str, Any] = {
            "form": form,
            "files": [path.name for path in paths],
            "dropped_rows": counts["dropped_rows"],
            "skipped_demonstrations": len(broken),
            "turned_episodes": counts["turned"],
            "episodes_paired_with_the_next_action": counts["late"],
            "wamkit": __version__,
        }
        writer.set_notes({NOTES: notes | ({"clock": CLOCK} if counts["dropped_rows"] else {})})
        return ConversionReport(
            output=output,
            source=form,
            episodes=writer.num_episodes,
            frames=writer.num_frames,
            left_out=len(broken),
            encoded_videos=writer.num_episodes * len(LIBERO_CAMERAS),
            dropped_rows=counts["dropped_rows"],
            notes=writer.notes[NOTES],
        )


def _read(
    path: Path, name: str, settings: Hdf5Settings, broken: list[BrokenDemonstration] | None
) -> Demonstration | None:
    """A demonstration; `None` for one that is broken, of which `broken` then knows.

    Raises:
        DatasetError: as `read_demonstration`; of a broken one only if there is no list.
    """
    try:
        return read_demonstration(path, name, settings)
    except BrokenDemonstration as error:
        if broken is None:
            raise DatasetError(f"{error}; --skip-broken leaves such demonstrations out") from error
        logger.warning("%s of %s is left out: %s", name, path.name, error)
        broken.append(error)
        return None


def _require_size(path: Path, name: str, size: tuple[int, ...], writer: LeRobotWriter) -> None:
    camera = writer.robot.cameras[0]
    if size != (camera.height, camera.width):
        raise DatasetError(
            f"{path}, {name}: expected pictures of {camera.height}x{camera.width} as in the first demonstration, got "
            f"{size[0]}x{size[1]}; convert the files apart"
        )
