"""One recorded closed-loop episode: what really happened beside what the policy imagined (numpy only).

A trace is kept as one `trace.npz` without pickled objects. Its entries are

    meta                  text, JSON: task sentence, camera order, number of calls, metadata
    frames/<camera>       uint8   [T + 1, h, w, 3]   row 0 is the first observation, row t follows action t - 1
    state                 float32 [T + 1, s]
    actions               float32 [T, a]             as sent to the simulator
    reward, success       float32 [T], bool [T]      earned by action t
    call/<k>/step         int64   []                 control steps run before call k
    call/<k>/actions      float32 [p, a]             the whole predicted chunk
    call/<k>/video        uint8   [v, f, h, w, 3]    imagined frames, views in camera order (absent when not imagined)
    call/<k>/video_steps  int64   [f]                control steps after the observation (absent when not told)
    call/<k>/value        float32 [p]                imagined value per action step (absent when not imagined)
    call/<k>/scores       float32 [i, m]             planner scores, one row per iteration (absent without a planner)
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.atomic import atomic_file

FORMAT = "wamkit-trace/1"


@dataclass(frozen=True, kw_only=True)
class CallTrace:
    """One call of the policy; the arrays are those of the module's table, `None` when absent."""

    step: int
    actions: np.ndarray
    video: np.ndarray | None = None
    video_steps: np.ndarray | None = None
    value: np.ndarray | None = None
    scores: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A closed-loop episode of T control steps.

    Args:
        frames: camera name -> uint8 `[T + 1, h, w, 3]`, in the policy's view order.
        state: float32 `[T + 1, s]`, physical units.
        actions: float32 `[T, a]`, physical units.
        reward: float32 `[T]`.
        success: bool `[T]`.
        calls: policy calls in order.
        task: the task sentence.
        metadata: JSON-ready facts (task id, layout, seeds).
    """

    frames: dict[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray
    reward: np.ndarray
    success: np.ndarray
    calls: tuple[CallTrace, ...]
    task: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = len(self.actions)
        lengths = {"reward": len(self.reward), "success": len(self.success), "state": len(self.state) - 1}
        lengths |= {f"frames of {camera}": len(frames) - 1 for camera, frames in self.frames.items()}
        wrong = {name: length for name, length in lengths.items() if length != steps}
        if wrong:
            raise ValueError(f"trace: expected {steps} steps everywhere (one more observation), got {wrong}")

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def is_success(self) -> bool:
        """Whether the task was solved at any step."""
        return bool(self.success.any())

    def save(self, path: Path) -> None:
        """Write the trace; a kill at any moment leaves the old file or the new one, never half of one."""
        meta = {
            "format": FORMAT,
            "task": self.task,
            "cameras": list(self.frames),
            "calls": len(self.calls),
            "metadata": self.metadata,
        }
        arrays: dict[str, np.ndarray] = {
            "meta": np.array(json.dumps(meta)),
            "state": self.state,
            "actions": self.actions,
            "reward": self.reward,
            "success": self.success,
        }
        arrays |= {f"frames/{camera}": frames for camera, frames in self.frames.items()}
        for index, call in enumerate(self.calls):
            parts = {key: value for key, value in vars(call).items() if value is not None}
            arrays |= {f"call/{index}/{key}": np.asarray(value) for key, value in parts.items()}
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a trace.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a complete trace of this format.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                meta = json.loads(str(archive["meta"]))
                if meta.get("format") != FORMAT:
                    raise ValueError(f"{path}: expected a trace of format {FORMAT!r}, got {meta.get('format')!r}")
                calls = tuple(_load_call(archive, index) for index in range(meta["calls"]))
                return cls(
                    frames={camera: archive[f"frames/{camera}"] for camera in meta["cameras"]},
                    state=archive["state"],
                    actions=archive["actions"],
                    reward=archive["reward"],
                    success=archive["success"],
                    calls=calls,
                    task=meta["task"],
                    metadata=meta["metadata"],
                )
        except (KeyError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: expected a complete trace ({FORMAT}), got a damaged file ({error})") from error


def _load_call(archive: Any, index: int) -> CallTrace:
    prefix = f"call/{index}/"
    optional = {
        key: archive[prefix + key] for key in ("video", "video_steps", "value", "scores") if prefix + key in archive
    }
    return CallTrace(step=int(archive[prefix + "step"]), actions=archive[prefix + "actions"], **optional)
