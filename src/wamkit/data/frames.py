"""The frames of a dataset's episodes in the model's size: decoded once into memory when they fit, else when wanted."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wamkit.data.images import Crop, crop_and_fit, fit_images
from wamkit.data.source import EpisodeEntry, EpisodeSource
from wamkit.spec import Preprocess, SpecMismatch

logger = logging.getLogger(__name__)

_MOST_THREADS = 8  # of decoding; more would wait for the interpreter


class FrameStore:
    """Frames by episode and row, of some cameras, in one size.

    Args:
        dataset: decodes them; its `frames` is called from several threads.
        entries: its episodes that are wanted.
        cameras: in view order.
        image_size: (height, width) of the frames given out; `None` is the recorded size.
        preprocess: how they are brought to that size.
        keep_recorded: keep the recorded size in memory, for crops.
        cache_frames: bytes that decoded frames may take; `auto` is a quarter of the free memory; 0 keeps none.
        progress: called with (episodes decoded, episodes) while frames are decoded into memory.

    Raises:
        ValueError: cameras of several sizes, or another size than wanted under `exact`.
        SpecMismatch: frames of another size than the dataset's robot spec says.
    """

    def __init__(
        self,
        dataset: EpisodeSource,
        entries: Sequence[EpisodeEntry],
        cameras: Sequence[str],
        *,
        image_size: tuple[int, int] | None = None,
        preprocess: Preprocess = "exact",
        keep_recorded: bool = False,
        cache_frames: int | Literal["auto"] = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._dataset, self._entries, self._cameras = dataset, list(entries), tuple(cameras)
        self._offsets = np.concatenate([[0], np.cumsum([entry.length for entry in entries])])
        self._recorded = self._recorded_shape()
        self.image_size = image_size or self._recorded[:2]
        self._preprocess: Preprocess = preprocess
        # Refuses a size that does not fit now, rather than at the first batch.
        fit_images(torch.zeros(0, *self._recorded, dtype=torch.uint8), **self._wanted())
        self._shape = self._recorded if keep_recorded else (*self.image_size, 3)
        self._num_threads = min(num_cores(), _MOST_THREADS)
        self._frames = self._decode_all(progress) if self._fits(cache_frames) else None

    @property
    def in_memory(self) -> bool:
        """Whether all frames were decoded into memory."""
        return self._frames is not None

    @property
    def frame_bytes(self) -> int:
        """Size of a frame that is given out."""
        return int(np.prod(self.image_size)) * 3

    def gather(self, position: np.ndarray, rows: np.ndarray, crops: Sequence[Sequence[Crop]] | None = None) -> Tensor:
        """Frames uint8 `[b, v, t, h, w, c]` of rows `[b, t]` of the episodes at `position` among the entries.

        Args:
            position: int64 `[b]`.
            rows: int64 `[b, t]`, counted within the episode.
            crops: a part of each view of each element, brought to the size of all; needs `keep_recorded`.
        """
        recorded = self._stored(position, rows)
        if crops is None:
            return torch.from_numpy(recorded)
        cut = [crop_and_fit(video, own, **self._wanted()) for video, own in zip(recorded, crops, strict=True)]
        return torch.from_numpy(np.stack(cut))

    def _stored(self, position: np.ndarray, rows: np.ndarray) -> np.ndarray:
        num_views = len(self._cameras)
        if self._frames is not None:
            view_start = (np.arange(num_views) * self._offsets[-1])[None, :, None]
            index = self._offsets[position][:, None, None] + view_start + rows[:, None, :]
            return np.take(self._frames, index, axis=0).reshape(*index.shape, *self._shape)
        video = np.empty((len(position), num_views, rows.shape[1], *self._shape), dtype=np.uint8)
        # Windows of one episode are decoded in one pass, and episodes in rising order.
        wanted = {}
        for at in np.unique(position).tolist():
            items = np.flatnonzero(position == at)
            unique, inverse = np.unique(rows[items], return_inverse=True)
            wanted[at] = (unique.tolist(), list(zip(items.tolist(), inverse.reshape(len(items), -1), strict=True)))
        tasks = [(at, view) for at in wanted for view in range(num_views)]
        requests = [(self._entries[at], self._cameras[view], wanted[at][0]) for at, view in tasks]
        for (at, view), frames in zip(tasks, self._decoded(requests), strict=True):
            for item, places in wanted[at][1]:
                np.take(frames, places, axis=0, out=video[item, view], mode="clip")
        return video

    def _recorded_shape(self) -> tuple[int, int, int]:
        """Height, width and channels, read off the first frame of each camera."""
        entry = self._entries[0]
        shapes = {camera: self._dataset.frames(entry.index, camera, [0]).shape[1:] for camera in self._cameras}
        if len(set(shapes.values())) != 1:
            raise ValueError(
                f"loader: expected all cameras to have one size, got {shapes}; record them alike or choose cameras"
            )
        height, width, channels = shapes[self._cameras[0]]
        robot = self._dataset.robot
        for camera in robot.cameras if robot is not None else ():
            if camera.name in self._cameras and (camera.height, camera.width) != (height, width):
                raise SpecMismatch(
                    f"camera {camera.name!r}: expected {camera.height}x{camera.width} px (the dataset's robot spec), "
                    f"got frames of {height}x{width}; the video does not belong to this dataset"
                )
        return int(height), int(width), int(channels)

    def _fits(self, cache_frames: int | Literal["auto"]) -> bool:
        budget = _free_memory() // 4 if cache_frames == "auto" else cache_frames
        needed = int(self._offsets[-1]) * len(self._cameras) * int(np.prod(self._shape))
        if needed > budget:
            logger.info("frames need %d MB, the budget is %d MB: decoding them per batch", needed >> 20, budget >> 20)
        return needed <= budget

    def _decode_all(self, progress: Callable[[int, int], None] | None) -> np.ndarray:
        """Frames of every view, uint8 `[view * row, h * w * c]`: one axis, so that a batch is a single gather."""
        num_rows, num_views = int(self._offsets[-1]), len(self._cameras)
        frames = np.empty((num_views, num_rows, *self._shape), dtype=np.uint8)
        tasks = [(position, view) for position in range(len(self._entries)) for view in range(num_views)]
        requests = ((self._entries[at], self._cameras[view], range(self._entries[at].length)) for at, view in tasks)
        for (position, view), decoded in zip(tasks, self._decoded(requests), strict=True):
            frames[view, self._offsets[position] : self._offsets[position + 1]] = decoded
            if progress is not None and view == num_views - 1:
                progress(position + 1, len(self._entries))
        return frames.reshape(num_views * num_rows, -1)

    def _decoded(self, requests: Iterable[tuple[EpisodeEntry, str, Sequence[int]]]) -> Iterator[np.ndarray]:
        """Frames of each request in turn, in the size in which they are kept; a few requests are decoded at once.

        An error is raised at its request, and what is under way then ends first.
        """
        if multiprocessing.parent_process() is not None:  # one of several that read data
            yield from (self._fitted(self._decode(*request)) for request in requests)
            return
        pool = ThreadPoolExecutor(max_workers=self._num_threads, thread_name_prefix="decoding")
        try:
            pending: deque[Future[np.ndarray]] = deque()
            for request in requests:
                pending.append(pool.submit(self._decode, *request))
                if len(pending) > 2 * self._num_threads:
                    yield self._fitted(pending.popleft().result())
            while pending:
                yield self._fitted(pending.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, entry: EpisodeEntry, camera: str, indices: Sequence[int]) -> np.ndarray:
        """Frames in the recorded size."""
        frames = self._dataset.frames(entry.index, camera, indices)
        if frames.shape != (len(indices), *self._recorded) or frames.dtype != np.uint8:
            raise ValueError(
                f"episode {entry.index}, camera {camera!r}: expected uint8 frames of shape "
                f"{(len(indices), *self._recorded)}, got {frames.dtype} of {frames.shape}; record the episode again"
            )
        return frames

    def _fitted(self, frames: np.ndarray) -> np.ndarray:
        """Not in the decoding threads: each would start torch's own threads."""
        if self._shape == self._recorded:
            return frames
        return fit_images(torch.from_numpy(np.ascontiguousarray(frames)), **self._wanted()).numpy()

    def _wanted(self) -> dict[str, Any]:
        height, width = self.image_size
        return {"height": height, "width": width, "preprocess": self._preprocess}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_memory() -> int:
    """Bytes that this process may still take: what the machine can spare, within the container's limit."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts memory that holds cached files, which the system gives back at once
        available = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free = int(available[1]) * 1024 if available else free
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free
