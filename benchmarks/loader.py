"""How fast training windows are loaded, beside a dataset that opens the video for every frame it needs.

    python benchmarks/loader.py --output results/loader/results.json

A dataset is recorded (square and goal on a textured table, two cameras, one video per episode and camera, a key-frame
every second frame as LeRobot has it), and both sides load the same windows of it: remembered and future frames of both
cameras, in batches, as many workers as there are cores.

- wamkit: `StageBatches` without frames in memory behind `prefetched`, as training uses it; opened anew for each round,
  so that starting processes and finding out where frames lie are timed too. Batches hold normalised numbers as well.
- frame by frame: the usual dataset. For each window, camera and frame PyAV opens the file, seeks, and decodes up to the
  frame; torch's `DataLoader` runs it in as many processes, or in one, whichever is faster here.

Every pixel of both is compared, outside the timed part. Rounds of the sides alternate and the fastest counts, for
others may share the machine; files come out of the system's cache on both sides. Prints `ratio NAME VALUE`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from wamkit.data.actions import ActionTransform
from wamkit.data.batches import StageBatches
from wamkit.data.image_settings import ColorJitter
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import compute_statistics
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.data.writer import LeRobotWriter
from wamkit.training.prefetch import drawing_processes, prefetched
from wamkit.types import Batch


def record(root: Path, *, episodes: int, length: int, size: int) -> None:
    """Write the dataset; texture and noise give its frames the bytes per pixel of LIBERO's, and so the same work."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, synthetic_robot(height=size, width=size)) as writer:
        for number in range(episodes):
            # One at a time, for all of them would not fit into memory.
            (episode,) = synthetic_episodes(1, length=length + number % 7, height=size, width=size, seed=number)
            texture = np.kron(rng.normal(0, 12, (size // 2, size // 2, 3)), np.ones((2, 2, 1)))
            video = {
                camera: (frames + texture + rng.normal(0, 1, frames.shape)).clip(0, 255).astype(np.uint8)
                for camera, frames in episode.video.items()
            }
            writer.add(dataclasses.replace(episode, video=video))


class FrameByFrame(Dataset[torch.Tensor]):
    """Windows of a dataset, each frame by a video opened for it.

    Args:
        dataset: says where videos are.
        cameras: in view order.
        windows: episode and rows of each window.
    """

    def __init__(self, dataset: LeRobotDataset, cameras: tuple[str, ...], windows: list[tuple[int, list[int]]]) -> None:
        self.fps, self.windows = dataset.fps, windows
        self.places = {
            entry.index: [dataset.place(entry.index).videos[dataset.camera_key(camera)] for camera in cameras]
            for entry in dataset.episodes
        }

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> torch.Tensor:
        episode, rows = self.windows[number]
        views = [
            np.stack([self.frame(place.path, place.start_s + row / self.fps) for row in rows])
            for place in self.places[episode]
        ]
        return torch.from_numpy(np.stack(views))

    def frame(self, path: Path, time_s: float) -> np.ndarray:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # faster than PyAV's own choice for frames of this size
            container.seek(round(time_s / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.time >= time_s - 1e-4:
                    return frame.reformat(format="rgb24", **CONVERSION).to_ndarray()
        raise ValueError(f"{path} has no frame at {time_s} s")


# From 17 on PyAV converts colours in several threads unless it is told not to, which takes longer.
CONVERSION: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


def make_loader(root: Path, batch: int, cache_frames: int) -> WindowLoader:
    """The training loader with the published shape of windows: 4 remembered frames, 9 future ones, 36 actions."""
    dataset = LeRobotDataset(root)
    statistics = compute_statistics(dataset)
    return WindowLoader(
        dataset,
        WindowConfig(),
        action=ActionTransform(normalizer=Normalizer.from_statistics("minmax", statistics["action"])),
        state=Normalizer.from_statistics("minmax", statistics["state"]),
        batch_size=batch,
        seed=0,
        cache_frames=cache_frames,
    )


def wamkit_batches(loader: WindowLoader, batches: int) -> Iterator[Batch]:
    """Batches, drawn ahead as in training."""
    source = StageBatches(
        loader=loader,
        needs_future=True,
        color_jitter=ColorJitter(),
        device="cpu",
        num_processes=drawing_processes(loader, None),
    )
    with closing(prefetched(source, 0, batches)) as drawn:
        yield from drawn


def frames_of(batch: Batch) -> torch.Tensor:
    """Frames `b v t h w c`, remembered and future ones."""
    assert batch.context is not None and batch.future is not None
    return torch.cat([batch.context, batch.future], dim=2)


def windows_of(loader: WindowLoader, batches: int) -> list[tuple[int, list[int]]]:
    """Episode and rows of every window of the batches."""
    windows = []
    for step in range(batches):
        rows = loader.rows(step)
        wanted = np.concatenate([rows.context, rows.future], axis=1).tolist()
        windows += list(zip(rows.episode.tolist(), wanted, strict=True))
    return windows


def timed(make: Callable[[], Iterator[Any]], batch: int) -> float:
    """Windows per second of a whole pass."""
    began = time.perf_counter()
    count = sum(1 for _ in make())
    return count * batch / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=None, help="a dataset of yours in place of the one recorded")
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--length", type=int, default=150, help="rows of an episode")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=16, help="windows per batch")
    parser.add_argument("--batches", type=int, default=40, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="write results.json here")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = options.dataset
        if root is None:
            root = Path(folder) / "dataset"
            record(root, episodes=options.episodes, length=options.length, size=options.size)
        began = time.perf_counter()
        cached = make_loader(root, options.batch, cache_frames=1 << 40)
        filling_s = time.perf_counter() - began
        dataset, batches = LeRobotDataset(root), options.batches
        naive = FrameByFrame(dataset, cached.cameras, windows_of(cached, batches))

        def frame_by_frame(workers: int) -> Iterator[torch.Tensor]:
            return iter(DataLoader(naive, batch_size=options.batch, num_workers=workers))

        opened: list[WindowLoader] = []

        def wamkit() -> Iterator[Batch]:
            return wamkit_batches(opened.pop(), batches)

        sides: dict[str, Callable[[], Iterator[Any]]] = {
            "wamkit": wamkit,
            "frame_by_frame": lambda: frame_by_frame(cores),
            "frame_by_frame_one_process": lambda: frame_by_frame(0),
            "wamkit_frames_in_memory": lambda: wamkit_batches(cached, batches),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, make in sides.items():
                opened[:] = [make_loader(root, options.batch, cache_frames=0)]  # it knows no file yet
                rates[name].append(timed(make, options.batch))
        opened[:] = [make_loader(root, options.batch, cache_frames=0)]
        equal = zip(wamkit(), frame_by_frame(cores), wamkit_batches(cached, batches), strict=True)
        for number, (drawn, theirs, remembered) in enumerate(equal):
            ours = frames_of(drawn)
            if not (torch.equal(ours, theirs) and torch.equal(ours, frames_of(remembered))):
                raise SystemExit(f"batch {number}: expected the same pixels from both sides, got others")
        shape = [dataset.num_episodes, dataset.num_frames, len(cached.cameras), *ours.shape[3:5]]
    best = {name: max(found) for name, found in rates.items()}
    print(f"{shape[0]} episodes, {shape[1]} rows, {shape[2]} cameras of {shape[3]}x{shape[4]} px; {cores} cores")
    for name, rate in best.items():
        print(f"{name}: {rate:.1f} windows/s of {ours.shape[2]} frames per camera")
    print(
        f"{batches * options.batch} windows: the same pixels from all sides; filling the memory took {filling_s:.1f} s"
    )
    other = max(best["frame_by_frame"], best["frame_by_frame_one_process"])  # whichever suits the machine
    ratios = {
        "wamkit_over_frame_by_frame": best["wamkit"] / other,
        "in_memory_over_frame_by_frame": best["wamkit_frames_in_memory"] / other,
    }
    for name, value in ratios.items():
        print(f"ratio {name} {value:.1f}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        results = {
            "episodes": shape[0],
            "rows": shape[1],
            "cameras": shape[2],
            "size_px": shape[3],
            "frames_per_window_and_camera": int(ours.shape[2]),
            "batch": options.batch,
            "batches": batches,
            "cores": cores,
            "processor": platform.processor() or platform.machine(),
            "av": av.__version__,
            "torch": torch.__version__,
            "windows_per_second": best,
            "rounds": rates,
            "seconds_to_fill_memory": filling_s,
            "same_pixels": True,
            "ratios": ratios,
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
