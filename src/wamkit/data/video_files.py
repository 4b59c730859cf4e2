"""Frames out of many video files, again and again: no file is opened as a video twice, no frame decoded needlessly.

Opening a video and seeking in it cost more than decoding a few small frames. So the first visit to a file notes where
its packets lie, and later ones read just the packets from a key-frame to the frame wanted and hand them to a decoder
that is kept. The frames are those of `VideoReader`, bit for bit, and so are the refusals.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from wamkit.data.video import TIME_TOLERANCE_S, VideoInfo, VideoReader, broken, read_frames, reason, require_length

# Byte positions are those of the packets' contents in these containers; others put headers of their own between.
_PLAIN_CONTAINERS = {"mov", "mp4"}


@dataclass(frozen=True, kw_only=True)
class PacketTable:
    """Where the packets of a video file lie, in the order of decoding.

    Args:
        info: what the header says.
        state: size, time of change and number of the file on disk when it was looked through.
        position: int64 `[n]`, byte in the file; empty for a container that keeps packets otherwise.
        size: int64 `[n]`, bytes.
        shown: int64 `[n]`, time stamp.
        stored: int64 `[n]`, decoding time stamp.
        start: int64 `[n]`, the packet that decoding has to start from.
        order: int64 `[m]`, packets of frames that are shown, in the order of showing.
        times: float64 `[m]`, when they are shown, in seconds.
        decoder: everything that two files must have in common to share a decoder.
    """

    info: VideoInfo
    state: tuple[int, int, int]
    position: np.ndarray
    size: np.ndarray
    shown: np.ndarray
    stored: np.ndarray
    start: np.ndarray
    order: np.ndarray
    times: np.ndarray
    decoder: tuple[Any, ...]


class VideoFiles:
    """Decodes frames of many files. Methods may be called from several threads, and copies from several processes.

    Args:
        max_tables: files whose packets are remembered, those used last; 200 frames take 11 kB.
        max_decoders: decoders kept for later. Files that were encoded alike share them.
    """

    def __init__(self, *, max_tables: int = 8192, max_decoders: int = 16) -> None:
        self._max_tables, self._max_decoders = max_tables, max_decoders
        self._reset()

    def _reset(self) -> None:
        self._tables: OrderedDict[Path, PacketTable] = OrderedDict()
        self._idle: list[tuple[tuple[Any, ...], VideoReader]] = []  # decoders that nobody uses now, the latest last
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_max_tables": self._max_tables, "_max_decoders": self._max_decoders}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def read(
        self, path: Path, indices: Sequence[int], *, fps: int | float, start_s: float = 0.0, length: int | None = None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Decode frames of an episode by index; takes and gives what `video.read_frames` does.

        Raises:
            FileNotFoundError: there is no such file.
            VideoError: the file is shorter than the episode, truncated or damaged.
        """
        if not indices:
            raise ValueError(f"expected at least one frame to read from {path}, got none")
        try:
            file = path.open("rb", buffering=0)
        except OSError:
            VideoReader(path).close()  # says what is wrong with it
            raise
        with file:
            table = self._table(path, file.fileno())
            if length is not None:
                require_length(table.info, path, num_frames=round(start_s * fps) + length)
            times = np.array([start_s + index / fps for index in indices])
            if not len(table.position):
                return read_frames(path, indices, fps=fps, start_s=start_s)
            packets, places = np.unique(_packets_at(path, table, times), return_inverse=True)
            frames = self._decode(path, file.fileno(), table, packets)
        return frames if np.array_equal(places, np.arange(len(frames))) else frames[places]

    def _table(self, path: Path, file: int) -> PacketTable:
        """The table of a file as it is now; a file that was replaced is looked through again."""
        found = os.fstat(file)
        state = (found.st_size, found.st_mtime_ns, found.st_ino)
        with self._lock:
            table = self._tables.get(path)
            if table is not None and table.state == state:
                self._tables.move_to_end(path)
                return table
        with VideoReader(path) as reader:
            table = _look_through(reader, file, state)
        with self._lock:
            self._tables[path] = table
            while len(self._tables) > self._max_tables:
                self._tables.popitem(last=False)
        return table

    def _decode(self, path: Path, file: int, table: PacketTable, packets: np.ndarray) -> np.ndarray:
        """Frames of distinct packets, in their order."""
        missing = {int(table.shown[packet]): place for place, packet in enumerate(packets)}
        reader = self._take_decoder(path, table)
        frames: np.ndarray | None = None
        try:
            for first, last in _runs(table, packets):
                for frame in _frames_of(reader.codec, file, table, first, last):
                    place = missing.pop(frame.pts, None)
                    if place is None:
                        continue
                    if frame.is_corrupt:
                        raise broken(path, f"a whole frame at {_time(table, packets[place])}", "a damaged one")
                    pixels = reader.to_rgb(frame)
                    if frames is None:
                        frames = np.empty((len(packets), *pixels.shape), dtype=np.uint8)
                    frames[place] = pixels
            if missing or frames is None:
                first = packets[min(missing.values())]
                raise broken(path, f"a readable frame at {_time(table, first)}", "damaged data in its place")
        except (OSError, EOFError, av.FFmpegError) as error:
            first = packets[min(missing.values())] if missing else packets[-1]
            expected = f"a readable frame at {_time(table, first)}"
            raise broken(path, expected, f"damaged data ({reason(error)})") from error
        self._give_back(table, reader)  # one that met damage is not used again
        return frames

    def _take_decoder(self, path: Path, table: PacketTable) -> VideoReader:
        """A decoder for files like `path`, for the caller alone."""
        with self._lock:
            for place in reversed(range(len(self._idle))):
                if self._idle[place][0] == table.decoder:
                    return self._idle.pop(place)[1]
        with VideoReader(path) as reader:
            return reader  # the decoder outlives the file, which nobody keeps open

    def _give_back(self, table: PacketTable, reader: VideoReader) -> None:
        with self._lock:
            self._idle.append((table.decoder, reader))
            del self._idle[: -self._max_decoders]


def _look_through(reader: VideoReader, file: int, state: tuple[int, int, int]) -> PacketTable:
    packets = reader.packets()
    if not _lie_in_file(reader, file, packets):
        packets = []
    position, size, shown, stored = (
        np.array([getattr(packet, name) for packet in packets], dtype=np.int64)
        for name in ("pos", "size", "pts", "dts")
    )
    keys = np.flatnonzero([packet.is_keyframe for packet in packets])
    numbers = np.arange(len(packets))
    start = np.zeros_like(numbers)
    if len(keys):
        own = (np.searchsorted(keys, numbers, side="right") - 1).clip(0)
        # A frame that is shown before its key-frame may refer to frames before that: start one key-frame earlier.
        start = keys[(own - (shown < shown[keys[own]])).clip(0)]
    kept = np.flatnonzero([not packet.is_discard for packet in packets])
    order = kept[np.argsort(shown[kept], kind="stable")]
    time_base = float(packets[0].time_base) if packets else 1.0
    return PacketTable(
        info=reader.info,
        state=state,
        position=position,
        size=size,
        shown=shown,
        stored=stored,
        start=start,
        order=order,
        times=shown[order] * time_base,
        decoder=reader.decoder_settings,
    )


def _lie_in_file(reader: VideoReader, file: int, packets: list[Any]) -> bool:
    """Whether the packets' contents are found where they are said to be."""
    if not packets or not reader.container_names & _PLAIN_CONTAINERS:
        return False
    if any(value is None for packet in packets for value in (packet.pos, packet.pts, packet.dts)):
        return False
    return all(os.pread(file, one.size, max(0, one.pos)) == bytes(one) for one in (packets[0], packets[-1]))


def _packets_at(path: Path, table: PacketTable, times: np.ndarray) -> np.ndarray:
    """The packets of the frames shown at `times`, int64 `[t]`."""
    found = np.searchsorted(table.times, times - TIME_TOLERANCE_S)
    shown = np.append(table.times, np.inf)
    wrong = np.flatnonzero(shown[found] > times + TIME_TOLERANCE_S)
    if len(wrong):
        first = wrong[np.argmin(times[wrong])]
        place = found[first]
        before = f"{shown[place - 1]:.6f} s" if place else "the start"
        expected = f"a frame at {times[first]:.6f} s"
        if place == len(table.times):
            announced = f" ({table.info.num_frames} frames announced)"
            raise broken(path, expected + announced, f"the end of the video after {before}")
        raise broken(path, expected, f"frames at {before} and {shown[place]:.6f} s")
    return table.order[found]


def _time(table: PacketTable, packet: int | np.int64) -> str:
    return f"{float(table.times[table.order == packet][0]):.6f} s"


def _runs(table: PacketTable, packets: np.ndarray) -> list[tuple[int, int]]:
    """First and last packet of each stretch to decode, for packets in rising order."""
    runs: list[tuple[int, int]] = []
    for packet, start in zip(packets.tolist(), table.start[packets].tolist(), strict=True):
        # Emptying the decoder costs less than one small frame, so it jumps wherever a frame can be left out.
        if runs and start <= runs[-1][1] + 1:
            runs[-1] = (min(start, runs[-1][0]), packet)
        else:
            runs.append((start, packet))
    return runs


def _frames_of(codec: Any, file: int, table: PacketTable, first: int, last: int) -> Iterator[Any]:
    """Decode packets `first`, a key-frame, to `last`, and empty the decoder."""
    codec.flush_buffers()
    for number in range(first, last + 1):
        data = os.pread(file, int(table.size[number]), int(table.position[number]))
        if len(data) != table.size[number]:
            raise EOFError("the file has become shorter")
        packet = av.Packet(data)
        packet.pts, packet.dts = int(table.shown[number]), int(table.stored[number])
        yield from codec.decode(packet)
    yield from codec.decode(None)
