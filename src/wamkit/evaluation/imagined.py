"""Several chunks imagined from one recorded row, beside what was recorded.

imagined.json          frames with their PSNR, values and predicted numbers, by control step
imagined.mp4           real frames above imagined ones, cameras side by side; the bar lights up where a chunk starts
frames/CAMERA.png      the same as one picture: a pair of lines for each chunk, real above imagined
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from wamkit.atomic import atomic_folder
from wamkit.data.features import ACTION, STATE
from wamkit.data.source import VALUE, EpisodeEntry, EpisodeSource, numeric_column
from wamkit.evaluation.media import encode_comparison, enlarge, peak_signal_to_noise
from wamkit.evaluation.open_loop import choose_episodes, require_robot
from wamkit.evaluation.open_loop_films import MAX_FPS
from wamkit.evaluation.open_loop_results import DatasetIdentity
from wamkit.evaluation.own_folder import require_own_folder
from wamkit.evaluation.protocol import EPISODE_SEED_STRIDE
from wamkit.evaluation.results import PolicyIdentity, write_json
from wamkit.imagination import Imagination, imagine
from wamkit.policy import Policy
from wamkit.spec import PolicySpec
from wamkit.types import Observation

FORMAT = "wamkit-imagined/1"
RESULTS_FILE, FILM_FILE, FRAMES_FOLDER = "imagined.json", "imagined.mp4", "frames"
OWN_FILES = (RESULTS_FILE, FILM_FILE, FRAMES_FOLDER)
SHOWN_HEIGHT, SEAM = 96, 2  # of a picture in the sheet; pixels between two


def imagine_episode(
    policy: Policy,
    dataset: EpisodeSource,
    *,
    identity: PolicyIdentity,
    source: DatasetIdentity,
    out: Path,
    episode: int = 0,
    row: int = 0,
    num_chunks: int = 3,
    seed: int = 0,
    action_offset: int = 0,
    fresh: bool = False,
) -> dict[str, Any]:
    """Imagine from one row of an episode on, and write what came of it beside what was recorded.

    The memory before that row is the closed loop's: rows one execution horizon apart, or as far apart as the policy's
    spec says (`context_stride`), and the first of them where there are none. Past the end of the episode there is
    nothing to compare with, and the film is black.

    Args:
        policy: what imagines.
        dataset: recorded episodes of its robot.
        identity: who imagines, for the record.
        source: what from, for the record.
        out: folder to make.
        episode: index.
        row: from which to imagine.
        num_chunks: how far.
        seed: of the policy's draws.
        action_offset: see `imagination.imagine`.
        fresh: replace an earlier result in the folder.

    Returns:
        The content of `imagined.json`.

    Raises:
        SpecMismatch: the dataset's robot is not the policy's.
        ValueError: an unknown episode or row, a missing column, a folder that holds something else, or what `imagine`
            refuses.
    """
    require_robot(policy, dataset, identity, source)
    entry = choose_episodes(dataset, [episode])[0]
    if not 0 <= row < entry.length:
        raise ValueError(f"expected a row of episode {episode}, 0 to {entry.length - 1}, got {row}; choose with --row")
    require_own_folder(out, OWN_FILES, command="imagine", fresh=fresh)
    columns = dataset.columns(episode)
    states = numeric_column(columns, STATE, entry)
    spec = policy.spec
    past, known = _memory_rows(row, spec)
    observation = Observation(
        video=torch.from_numpy(_frames(policy, dataset, episode, past)[None]),
        state=torch.tensor(states[row])[None],
        task=[entry.task],
        known=torch.from_numpy(known[None]),
    )
    seen = imagine(
        policy,
        observation,
        num_chunks=num_chunks,
        keys=[(seed * EPISODE_SEED_STRIDE + episode,)],
        action_offset=action_offset,
    )
    imagined = seen.video[0].numpy()
    inside = [row + step for step in seen.video_steps if row + step < entry.length]
    real = np.zeros_like(imagined)
    if inside:
        real[:, : len(inside)] = _frames(policy, dataset, episode, np.array(inside))
    last = observation.video[0, :, -1].numpy()
    cameras = spec.robot.camera_names
    results = {
        "format": FORMAT,
        "policy": dataclasses.asdict(identity),
        "dataset": dataclasses.asdict(source),
        "episode": episode,
        "row": row,
        "task": entry.task,
        "seed": seed,
        "action_offset": action_offset,
        "chunks": [{"step": start, "row": row + start} for start in seen.starts],
        "frames": [
            {
                "step": step,
                "row": row + step,
                "psnr": _closeness(cameras, imagined[:, i], real[:, i]) if i < len(inside) else None,
                "copy_psnr": _closeness(cameras, last, real[:, i]) if i < len(inside) else None,
            }
            for i, step in enumerate(seen.video_steps)
        ],
        **_numbers(policy, seen, columns, entry, row),
    }
    starts = [i for i, step in enumerate(seen.video_steps) if i == 0 or seen.video_steps[i - 1] in seen.starts]
    gap = int(np.diff([0, *seen.video_steps]).max())
    film = encode_comparison(
        above=dict(zip(cameras, real, strict=True)),
        below=dict(zip(cameras, imagined, strict=True)),
        starts=starts,
        fps=max(1, round(min(spec.robot.control_hz / gap, MAX_FPS))),
    )
    with atomic_folder(out) as folder:
        write_json(folder / RESULTS_FILE, results)
        (folder / FILM_FILE).write_bytes(film)
        (folder / FRAMES_FOLDER).mkdir()
        for camera, above, below in zip(cameras, real, imagined, strict=True):
            Image.fromarray(sheet(above, below, num_chunks)).save(folder / FRAMES_FOLDER / f"{camera}.png")
    return results


def sheet(
    real: UInt8[np.ndarray, "t h w 3"], imagined: UInt8[np.ndarray, "t h w 3"], num_chunks: int
) -> UInt8[np.ndarray, "y x 3"]:
    """All frames as one picture: for each chunk a line of real frames above a line of imagined ones."""
    factor = max(1, round(SHOWN_HEIGHT / real.shape[1]))
    lines = []
    for above, below in zip(np.split(real, num_chunks), np.split(imagined, num_chunks), strict=True):
        for frames, gap in ((above, SEAM), (below, 4 * SEAM)):
            edged = np.pad(enlarge(frames, factor), ((0, 0), (0, gap), (0, SEAM), (0, 0)), constant_values=255)
            lines.append(np.concatenate(list(edged), axis=1))
    return np.concatenate(lines, axis=0)


def _numbers(
    policy: Policy, seen: Imagination, columns: dict[str, np.ndarray], entry: EpisodeEntry, row: int
) -> dict[str, Any]:
    """Values, actions and states by control step, with the recorded ones where the episode has them."""
    robot, transforms = policy.spec.robot, policy.transforms
    actions, states = numeric_column(columns, ACTION, entry), numeric_column(columns, STATE, entry)
    labels = numeric_column(columns, VALUE, entry) if VALUE in columns and transforms.value is not None else None

    def lines(steps: Sequence[int], predicted: torch.Tensor, recorded: np.ndarray | None) -> list[dict[str, Any]]:
        return [
            {
                "step": step,
                "imagined": predicted[0, i].tolist(),
                "recorded": recorded[row + step].tolist()
                if recorded is not None and row + step < entry.length
                else None,
            }
            for i, step in enumerate(steps)
        ]

    return {
        "values": None
        if seen.value is None
        else lines(seen.value_steps, seen.value, None if labels is None else labels[:, -1]),
        "action_channels": [channel.name for channel in robot.action],
        "actions": lines(seen.action_steps, seen.actions, actions),
        "state_channels": [channel.name for channel in robot.state],
        "states": None if seen.states is None else lines(seen.action_steps, seen.states, states),
    }


def _closeness(cameras: Sequence[str], shown: np.ndarray, real: np.ndarray) -> dict[str, float | None]:
    """PSNR of each camera; `None` for equal pictures, whose PSNR is infinite."""
    numbers = (peak_signal_to_noise(one[None], other[None]) for one, other in zip(shown, real, strict=True))
    return {
        name: None if math.isinf(number) else round(number, 4) for name, number in zip(cameras, numbers, strict=True)
    }


def _memory_rows(row: int, spec: PolicySpec) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[P]` that are remembered at a row, the newest last, and whether each is one of its own."""
    rows = row - np.arange(spec.num_context - 1, -1, -1) * (spec.context_stride or spec.execution_horizon)
    known = rows >= 0
    return np.maximum(rows, 0 if spec.context_stride is None else rows[known].min()), known


def _frames(policy: Policy, dataset: EpisodeSource, episode: int, rows: np.ndarray) -> UInt8[np.ndarray, "v t h w 3"]:
    ordered, place = np.unique(rows, return_inverse=True)
    cameras = policy.spec.robot.camera_names
    video = np.stack([dataset.frames(episode, camera, ordered.tolist()) for camera in cameras])[:, place]
    return policy.seen(torch.from_numpy(video)).numpy()  # as the model sees them, and as it imagines
