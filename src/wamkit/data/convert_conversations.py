"""Make a v3.0 dataset of the trajectories that WorldVLA's conversations speak of."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wamkit import __version__
from wamkit.data.conversations import ACTION_TEXT
from wamkit.data.conversion import NOTES, ConversionReport, new_dataset
from wamkit.data.task_names import TASK_FOLDER
from wamkit.data.trajectories import conversation_files, find_trajectories, read_trajectory
from wamkit.data.writer import LeRobotWriter
from wamkit.episode import Episode
from wamkit.spec import CameraSpec, RobotSpec

logger = logging.getLogger(__name__)

FORM = "WorldVLA conversations"


def convert_conversations(
    sources: Sequence[Path | str],
    output: Path | str,
    robot: RobotSpec,
    *,
    camera: str | None = None,
    root: Path | None = None,
    action_text: str = ACTION_TEXT,
    pictures: Literal["turn", "keep"] = "keep",
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Make a dataset of pictures and actions alone.

    Nothing says there what the robot felt or earned, so the dataset has no such columns, and its robot no state
    channels: a policy that needs a state cannot be trained on it. Readers take its episodes for demonstrations that end
    solved, as the published ones do.

    Args:
        sources: JSON lists of conversations, or folders of them; what several of them name is taken once.
        output: a folder that does not exist, or an empty one.
        robot: who recorded; its state channels and all cameras but one are left out, and that one has the pictures'
            size.
        camera: which of its cameras took the pictures; by default the first.
        root: where the files are (`find_trajectories`).
        action_text: question about actions in these lists.
        pictures: `turn` turns them by 180 degrees, for files that hold them upside down.
        progress: called with (trajectories done, trajectories).

    Raises:
        FileNotFoundError: no lists.
        FileExistsError: there is something at `output`.
        DatasetError: as `find_trajectories` and `read_trajectory`.
        ValueError: the robot has no such camera, or pictures have a size that cannot be encoded.
        OSError: writing failed.
    """
    files, output = conversation_files(sources), Path(output)
    if not robot.cameras:
        raise ValueError(f"expected a robot with a camera, that took the pictures, got {robot.name!r} without one")
    seen_by = robot.with_cameras((camera or robot.camera_names[0],))
    trajectories = find_trajectories(files, root=root, action_text=action_text)
    cut = sum(trajectory.cut for trajectory in trajectories)
    notes: dict[str, Any] = {
        "form": FORM,
        "files": [path.name for path in files],
        "turned": pictures == "turn",
        "cut_rows": cut,
        "wamkit": __version__,
    }
    if cut:
        logger.warning("%d rows at the ends of trajectories are left out: their frame or action is not there", cut)
    with new_dataset(output, files[0]) as folder, ExitStack() as stack:
        writer: LeRobotWriter | None = None
        size: tuple[int, int] | None = None
        for number, trajectory in enumerate(trajectories):
            actions, frames = read_trajectory(trajectory, width=len(robot.action), size=size)
            if pictures == "turn":
                frames = np.ascontiguousarray(frames[:, ::-1, ::-1])
            if writer is None:
                size = (frames.shape[1], frames.shape[2])
                recorded = _recorder(seen_by, *size)
                writer = stack.enter_context(LeRobotWriter(folder, recorded, has_outcome=False))
            writer.add(
                Episode(
                    actions=actions,
                    state=np.zeros((len(actions), 0), dtype=np.float32),
                    video={recorded.camera_names[0]: frames},
                    reward=None,
                    success=None,
                    task=trajectory.sentence,
                    metadata={TASK_FOLDER: trajectory.task, "trajectory": trajectory.number},
                )
            )
            if progress is not None:
                progress(number + 1, len(trajectories))
        assert writer is not None, "a list of conversations names a trajectory"
        writer.set_notes({NOTES: notes})
        return ConversionReport(
            output=output,
            source=FORM,
            episodes=writer.num_episodes,
            frames=writer.num_frames,
            encoded_videos=writer.num_episodes,
            notes=notes,
        )


def _recorder(robot: RobotSpec, height: int, width: int) -> RobotSpec:
    """The robot as far as frame folders know it."""
    (camera,) = robot.cameras
    if (camera.height, camera.width) != (height, width):
        # A matrix in pixels belongs to a size.
        camera = CameraSpec(name=camera.name, height=height, width=width, pose=camera.pose)
    return dataclasses.replace(robot, cameras=(camera,), state=())
