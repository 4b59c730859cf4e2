"""Make a cache of latents or token ids and embedded sentences (`wamkit.data.encoded`), episode by episode.

An interrupted run is continued by the next. Under a launcher each process encodes its share of the episodes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from wamkit.atomic import atomic_file
from wamkit.codecs.base import CacheEncoder
from wamkit.data.encoded import (
    FORMAT,
    MANIFEST,
    TEXT,
    TOKEN_DTYPE,
    CachePurpose,
    codecs_digest,
    episode_path,
    read_manifest,
)
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
        num_bytes: of all latents or token ids.
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
    encoder: CacheEncoder,
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
        encoder: the codecs, on `device`.
        episodes: to be encoded; all by default.
        device: where frames are given to the encoder.
        batch_size: clips encoded at once, and as many frames as those hold.
        progress: called with (episodes of this process done, episodes of this process).

    Raises:
        ValueError: the folder holds a cache made for something else, or token ids are too large for int16.
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
    device = torch.device(device)
    purpose, numbers = _kept_of_a_row(encoder, purpose, windows, device)
    dtype = getattr(torch, purpose.dtype) if purpose.dtype is not None else TOKEN_DTYPE
    num_bytes = sum(entry.length for entry in entries) * numbers * dtype.itemsize
    manifest = {
        "format": FORMAT,
        "purpose": purpose.to_dict(),
        "codecs": codecs_digest(folder / "codecs"),
        "sentences": ["", *sorted({entry.task for entry in dataset.episodes} - {""})],
        "num_bytes": num_bytes,
    }
    with ExitStack() as stack:
        from_rank_zero(lambda: stack.enter_context(FolderLock(folder, doing="encoding into")))
        manifest = from_rank_zero(lambda: _begin(folder, purpose, manifest, encoder))
        has_clips = purpose.num_future is not None
        todo = [entry for entry in entries if not episode_path(folder, entry.index).is_file()]
        gathered(len(todo))  # nobody writes before all have looked
        own = todo[rank() :: world_size()]
        for done, entry in enumerate(own):
            frames = _frames(dataset, entry, purpose)
            tensors = _encode_episode(frames, entry.length, windows, encoder, device, batch_size, has_clips)
            with atomic_file(episode_path(folder, entry.index)) as partial:
                save_file({name: _stored(tensor, dtype) for name, tensor in tensors.items()}, partial)
            if progress is not None:
                progress(done + 1, len(own))
        gathered(len(own))
        from_rank_zero(lambda: _write_manifest(folder, {**manifest, "complete": True}))
    return EncodingReport(folder=folder, episodes=len(entries), encoded=len(todo), num_bytes=num_bytes)


def _begin(folder: Path, purpose: CachePurpose, manifest: dict[str, Any], encoder: CacheEncoder) -> dict[str, Any]:
    """Everything but the episodes, after looking whether they may and can be written; the manifest as it is kept."""
    num_bytes = manifest["num_bytes"]
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
            halved = ", or data.cache_dtype bfloat16, which takes half" if purpose.dtype == "float32" else ""
            raise OSError(
                f"the latents take {num_bytes / 1e9:.1f} GB, of which {there / 1e9:.1f} GB are there, and {folder} has "
                f"{free / 1e9:.1f} GB left; choose another disk{halved}"
            )
    text = encoder.encode_text(manifest["sentences"])
    kept = manifest if text is not None else {**manifest, "sentences": None}
    if found is None or not found["complete"]:
        _write_manifest(folder, {**kept, "complete": False})
    if text is not None:
        with atomic_file(folder / TEXT) as partial:
            save_file({"tokens": text.tokens.cpu().contiguous(), "mask": text.mask.cpu().to(torch.uint8)}, partial)
    return kept


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    with atomic_file(folder / MANIFEST) as partial:
        write_json(partial, manifest)


@torch.no_grad()
def _kept_of_a_row(
    encoder: CacheEncoder, purpose: CachePurpose, windows: WindowConfig, device: torch.device
) -> tuple[CachePurpose, int]:
    """What a cache of this encoder serves, and the numbers that a row takes: its frame and its future, in all views."""
    blank = torch.zeros(1, windows.chunk, *purpose.image_size, 3, dtype=torch.uint8, device=device)
    frame, clip = encoder.encode_frames(blank[:, 0]), encoder.encode_clips(blank)
    served = purpose.served_by(has_clips=clip is not None, has_floats=frame.is_floating_point())
    return served, len(purpose.cameras) * (frame.numel() + (0 if clip is None else clip.numel()))


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
    encoder: CacheEncoder,
    device: torch.device,
    batch_size: int,
    has_clips: bool,
) -> dict[str, Tensor]:
    """`frames` and, if the encoder has them, `clips` of one episode; see the module of the reader."""
    clip_rows = torch.from_numpy(np.stack([future_rows(length, row, windows) for row in current_rows(length, windows)]))
    frames, clips = [], []
    for view in views:
        parts = (encoder.encode_frames(part.to(device)) for part in view.split(batch_size * windows.chunk))
        frames.append(torch.cat([part.cpu() for part in parts]))
        if has_clips:
            futures = (encoder.encode_clips(view[rows].to(device)) for rows in clip_rows.split(batch_size))
            clips.append(torch.cat([future.cpu() for future in futures if future is not None]))
    stacked = {"frames": torch.stack(frames, dim=1)}
    return {**stacked, "clips": torch.stack(clips, dim=1)} if has_clips else stacked


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Token ids or latents as they are kept.

    Raises:
        ValueError: ids that `dtype` cannot hold.
    """
    if not dtype.is_floating_point:
        least, most = (int(bound) for bound in tensor.aminmax())
        known = torch.iinfo(dtype)
        if least < known.min or most > known.max:
            raise ValueError(
                f"a cache holds token ids as {known.dtype}, {known.min} to {known.max}; the codec gave {least} to "
                f"{most}: train from frames with it, or use a smaller codebook"
            )
    return tensor.to(dtype)
