"""Make a cache of latents and embedded sentences (`wamkit.data.encoded`), episode by episode.

An interrupted run is continued by the next. Under a launcher each process encodes its share of the episodes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from wamkit.atomic import atomic_file
from wamkit.codecs.base import LatentPosterior, TextEncoder, VideoCodec
from wamkit.data.encoded import FORMAT, MANIFEST, TEXT, CachePurpose, codecs_digest, episode_path, read_manifest
from wamkit.data.images import fit_images
from wamkit.data.source import EpisodeEntry, EpisodeSource
from wamkit.data.windows import WindowConfig, current_rows, future_rows
from wamkit.lock import FolderLock
from wamkit.parallel import from_rank_zero, gathered, rank, world_size
from wamkit.weight_files import write_json


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """What a call of `encode_dataset` did.

    Args:
        folder: the cache.
        episodes: in it.
        encoded: by this call, on all processes; the others were there.
        num_bytes: of all latents.
    """

    folder: Path
    episodes: int
    encoded: int
    num_bytes: int


def encode_dataset(
    dataset: EpisodeSource,
    folder: Path | str,
    purpose: CachePurpose,
    windows: WindowConfig,
    *,
    video_codec: VideoCodec,
    text_encoder: TextEncoder,
    episodes: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> EncodingReport:
    """Encode every frame and the future of every row of some episodes, and every sentence of the dataset.

    A cache takes further episodes when it is called again with them.

    Args:
        dataset: where episodes come from.
        folder: the cache; its `codecs/` already holds the codecs given.
        purpose: recorded, and compared when an interrupted run is continued.
        windows: which rows a future is made of.
        video_codec: on `device`.
        text_encoder: on any device.
        episodes: to be encoded; all by default.
        device: where frames are encoded.
        batch_size: clips encoded at once, and as many frames as those hold.
        progress: called with (episodes of this process done, episodes of this process).

    Raises:
        ValueError: the folder holds a cache made for something else.
        BlockingIOError: another process encodes into the folder.
        OSError: not enough room, said before anything is encoded; or writing failed.
    """
    folder = Path(folder)
    # Those that an earlier call encoded stay, and count.
    entries = [
        entry
        for entry in dataset.episodes
        if episodes is None or entry.index in episodes or episode_path(folder, entry.index).is_file()
    ]
    if batch_size < 1 or not entries:
        raise ValueError(f"expected batch_size >= 1 and 1 or more episodes, got {batch_size} and {len(entries)}")
    numbers = _numbers_per_row(video_codec, purpose, device)
    num_bytes = sum(entry.length for entry in entries) * numbers * getattr(torch, purpose.dtype).itemsize
    sentences = ["", *sorted({entry.task for entry in dataset.episodes} - {""})]
    manifest = {
        "format": FORMAT,
        "purpose": purpose.to_dict(),
        "codecs": codecs_digest(folder / "codecs"),
        "sentences": sentences,
        "num_bytes": num_bytes,
    }
    with ExitStack() as stack:
        from_rank_zero(lambda: stack.enter_context(FolderLock(folder, doing="encoding into")))
        from_rank_zero(lambda: _begin(folder, purpose, manifest, num_bytes, text_encoder))
        todo = [entry for entry in entries if not episode_path(folder, entry.index).is_file()]
        gathered(len(todo))  # nobody writes before all have looked
        own = todo[rank() :: world_size()]
        for done, entry in enumerate(own):
            frames = _frames(dataset, entry, purpose)
            tensors = _encode_episode(frames, entry.length, windows, video_codec, torch.device(device), batch_size)
            with atomic_file(episode_path(folder, entry.index)) as partial:
                save_file({name: tensor.to(getattr(torch, purpose.dtype)) for name, tensor in tensors.items()}, partial)
            if progress is not None:
                progress(done + 1, len(own))
        gathered(len(own))
        from_rank_zero(lambda: _write_manifest(folder, {**manifest, "complete": True}))
    return EncodingReport(folder=folder, episodes=len(entries), encoded=len(todo), num_bytes=num_bytes)


def _begin(
    folder: Path, purpose: CachePurpose, manifest: dict[str, object], num_bytes: int, text_encoder: TextEncoder
) -> None:
    found = read_manifest(folder)
    if found is not None:
        purpose.require(found["purpose"], folder)
        if found["codecs"] != manifest["codecs"]:
            raise ValueError(
                f"{folder / 'codecs'} is not what the cache was begun with; remove {folder} and start anew"
            )
    there = sum(file.stat().st_size for file in (folder / "episodes").glob("*.safetensors"))
    if there < num_bytes:
        free = shutil.disk_usage(folder).free
        if num_bytes - there > free:
            raise OSError(
                f"the latents take {num_bytes / 1e9:.1f} GB, of which {there / 1e9:.1f} GB are there, and {folder} has "
                f"{free / 1e9:.1f} GB left; choose another disk, or data.cache_dtype bfloat16, which takes half"
            )
    if found is None or not found["complete"]:
        _write_manifest(folder, {**manifest, "complete": False})
    sentences = manifest["sentences"]
    assert isinstance(sentences, list)
    text = text_encoder.encode(sentences)
    with atomic_file(folder / TEXT) as partial:
        save_file({"tokens": text.tokens.cpu().contiguous(), "mask": text.mask.cpu().to(torch.uint8)}, partial)


def _write_manifest(folder: Path, manifest: dict[str, object]) -> None:
    with atomic_file(folder / MANIFEST) as partial:
        write_json(partial, manifest)


def _numbers_per_row(codec: VideoCodec, purpose: CachePurpose, device: torch.device | str) -> int:
    """Numbers that a row takes: its own frame and its future, for all cameras, at most two each (mean and spread)."""
    height, width = (side // codec.spatial for side in purpose.image_size)
    latent_frames = 1 + 1 + (purpose.num_future - 1) // codec.temporal
    blank = torch.zeros(1, *purpose.image_size, 3, dtype=torch.uint8, device=device)
    kinds = 1 if codec.posterior_frames(blank).std is None else 2
    return len(purpose.cameras) * codec.channels * height * width * latent_frames * kinds


def _frames(dataset: EpisodeSource, entry: EpisodeEntry, purpose: CachePurpose) -> list[Tensor]:
    height, width = purpose.image_size
    return [
        fit_images(
            torch.from_numpy(np.ascontiguousarray(dataset.frames(entry.index, camera, range(entry.length)))),
            height=height,
            width=width,
            preprocess=purpose.preprocess,
        )
        for camera in purpose.cameras
    ]


@torch.no_grad()
def _encode_episode(
    views: Sequence[Tensor],
    length: int,
    windows: WindowConfig,
    codec: VideoCodec,
    device: torch.device,
    batch_size: int,
) -> dict[str, Tensor]:
    """`frames` and `clips` of one episode, see the module of the reader."""
    clip_rows = torch.from_numpy(np.stack([future_rows(length, row, windows) for row in current_rows(length, windows)]))
    frames, clips = [], []
    for view in views:
        parts = view.split(batch_size * windows.chunk)
        frames.append(_stacked(codec.posterior_frames(part.to(device)) for part in parts))
        clips.append(_stacked(codec.posterior_clip(view[rows].to(device)) for rows in clip_rows.split(batch_size)))
    return {"frames": torch.stack(frames, dim=1), "clips": torch.stack(clips, dim=1)}


def _stacked(posteriors: Iterable[LatentPosterior]) -> Tensor:
    """`n q k …` on the CPU."""
    parts = []
    for posterior in posteriors:
        kinds = [posterior.mean] if posterior.std is None else [posterior.mean, posterior.std]
        parts.append(torch.stack(kinds, dim=1).cpu())
    return torch.cat(parts)
