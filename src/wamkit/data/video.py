"""Video files: encode frames to MP4, decode exactly the frames asked for.

A frame is named by its time; MP4 keeps one presentation time per frame, so a frame that is returned is the frame that
was asked for, or an error says what is missing. Nothing is interpolated or replaced by a neighbour.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

# LeRobot accepts a frame whose time is off by at most this (seconds); our own files are exact.
TIME_TOLERANCE_S = 1e-4
# Decoding on past this many frames costs more than seeking to the next one's key-frame: at 64 and 128 px the two break
# even at 4 frames when every second frame is a key-frame, at 10 when every tenth is.
_SEEK_BEYOND_FRAMES = 5

# From 17 on PyAV converts colours with a thread per core by default, and starting those takes ten times as long as
# converting a small frame; before, there was no such argument.
_CONVERSION: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

_ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
_PRESETS = {"h264": "veryfast", "hevc": "veryfast", "av1": "12"}


class VideoError(ValueError):
    """A video file is missing frames, truncated or unreadable; the message names the file, expected, got and remedy."""


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How frames are encoded.

    Args:
        codec: `h264` decodes everywhere; `av1` is what LeRobot writes.
        crf: constant rate factor, lower is better and bigger (h264 and hevc 0 to 51, av1 0 to 63).
        keyframe_interval: frames from one key-frame to the next; small values make random access cheap.
        preset: encoder preset; `None` takes `veryfast` (h264, hevc) or `12` (av1).
        pixel_format: FFmpeg name; `yuv420p` is what every player reads and needs even sizes.
    """

    codec: Literal["h264", "hevc", "av1"] = "h264"
    crf: int = 23
    keyframe_interval: int = 2
    preset: str | None = None
    pixel_format: str = "yuv420p"

    def __post_init__(self) -> None:
        if self.codec not in _ENCODERS:
            raise ValueError(f"video codec: expected one of {list(_ENCODERS)}, got {self.codec!r}")
        highest = 63 if self.codec == "av1" else 51
        if not 0 <= self.crf <= highest:
            raise ValueError(f"video crf: expected 0 to {highest} for {self.codec}, got {self.crf}")
        if self.keyframe_interval < 1:
            raise ValueError(f"video keyframe_interval: expected 1 or more, got {self.keyframe_interval}")

    def require_size(self, height: int, width: int) -> None:
        """Refuse frames that the pixel format cannot hold.

        Raises:
            ValueError: an odd size for `yuv420p`.
        """
        if self.pixel_format == "yuv420p" and (height % 2 or width % 2):
            raise ValueError(
                f"expected even height and width for yuv420p, got {height}x{width}; choose an even size (--size), or "
                "pixel_format='yuv444p'"
            )


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What the header of a video file says.

    Args:
        num_frames: frames in the file.
        fps: average frames per second.
        height: pixels.
        width: pixels.
        codec: FFmpeg's name of the codec.
        pixel_format: FFmpeg's name of the pixel format.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    codec: str
    pixel_format: str


def encode_video(frames: UInt8[np.ndarray, "t h w 3"], *, fps: int, settings: VideoSettings) -> bytes:
    """Encode RGB frames to the bytes of an MP4 file; equal input gives equal bytes.

    Args:
        frames: at least one frame; even height and width for `yuv420p`.
        fps: frames per second; frame t is shown at t / fps.
        settings: codec, quality and key-frame distance.

    Raises:
        ValueError: no frames, or a size that the pixel format cannot hold.
    """
    num_frames, height, width, _ = frames.shape
    if num_frames == 0:
        raise ValueError("expected at least one frame to encode, got none")
    settings.require_size(height, width)
    if settings.codec == "av1":
        os.environ.setdefault(
            "SVT_LOG", "1"
        )  # SVT-AV1 writes a banner to stderr for every file and has no option for it
    options = {
        "crf": str(settings.crf),
        "g": str(settings.keyframe_interval),
        "preset": settings.preset or _PRESETS[settings.codec],
    }
    if settings.codec == "h264" and _has_avx512():
        # x264's AVX-512 routines give other bytes now and then for equal small frames.
        options["x264-params"] = "asm=AVX2"
    if settings.codec == "hevc":
        options["x265-params"] = "log-level=error:pools=none:frame-threads=1"
    buffer, reformatter = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(_ENCODERS[settings.codec], rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, settings.pixel_format
        # One thread: the bytes do not depend on the machine's core count, and small frames encode no faster with more.
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = reformatter.reformat(frame, format=settings.pixel_format, **_CONVERSION)
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _has_avx512() -> bool:
    import torch  # here, since pages with films in them are written without it

    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class VideoReader:
    """An open video file that decodes frames by their time.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: it cannot be opened as a video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"expected a video at {path}, found no file; copy it back or exclude the episode")
        try:
            self._container = av.open(str(path), options={"err_detect": "explode"})
        except (OSError, ValueError) as error:
            raise broken(path, "a complete MP4 file", f"one that cannot be opened ({reason(error)})") from error
        if not self._container.streams.video:
            self._container.close()
            raise broken(path, "a video stream", "a file without one")
        self._reformatter = VideoReformatter()
        self._stream: Any = self._container.streams.video[0]
        # A thread per core costs more to start than these small frames cost to decode; callers read files in parallel.
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.options = {"err_detect": "explode"}

    @property
    def info(self) -> VideoInfo:
        """What the header says, read without decoding."""
        stream = self._stream
        return VideoInfo(
            num_frames=int(stream.frames),
            fps=float(stream.average_rate or 0),
            height=int(stream.height or 0),
            width=int(stream.width or 0),
            codec=stream.codec_context.codec.canonical_name,
            pixel_format=str(stream.pix_fmt),
        )

    def read(self, times: Sequence[float]) -> UInt8[np.ndarray, "t h w 3"]:
        """Decode the frames shown at `times`.

        Args:
            times: seconds from the start of the file, in any order, repeats allowed; at least one.

        Returns:
            RGB frames in the order of `times`.

        Raises:
            VideoError: the file ends early, is damaged, or has no frame within `TIME_TOLERANCE_S` of a time.
        """
        wanted = sorted(set(times))
        if not wanted:
            raise ValueError(f"expected at least one time to read from {self.path}, got none")
        frames: dict[float, np.ndarray] = {}
        gap = _SEEK_BEYOND_FRAMES / float(self._stream.average_rate or 30)
        position = 0
        while position < len(wanted):
            stop = position + 1
            while stop < len(wanted) and wanted[stop] - wanted[stop - 1] <= gap:
                stop += 1
            frames |= self._read_run(wanted[position:stop])
            position = stop
        return np.stack([frames[time] for time in times])

    def _read_run(self, wanted: list[float]) -> dict[float, np.ndarray]:
        """Frames at ascending, close times: one seek, then forward."""
        found: dict[float, np.ndarray] = {}
        remaining = iter(wanted)
        target = next(remaining)
        last: float | None = None
        try:
            for frame in self._decode_from(target):
                time = float(frame.pts * frame.time_base)
                if time > target + TIME_TOLERANCE_S:
                    raise broken(self.path, f"a frame at {target:.6f} s", f"frames at {_shown(last)} and {time:.6f} s")
                last = time
                if time < target - TIME_TOLERANCE_S:
                    continue
                if frame.is_corrupt:
                    raise broken(self.path, f"a whole frame at {target:.6f} s", "a damaged one")
                found[target] = self.to_rgb(frame)
                following = next(remaining, None)
                if following is None:
                    return found
                target = following
        except (OSError, EOFError, av.FFmpegError) as error:
            raise broken(
                self.path,
                f"a readable frame at {target:.6f} s",
                f"damaged data after {_shown(last)} ({reason(error)})",
            ) from error
        expected = f"a frame at {target:.6f} s ({self._stream.frames} frames announced)"
        raise broken(self.path, expected, f"the end of the video after {_shown(last)}")

    def _decode_from(self, time: float) -> Iterator[Any]:
        """Frames from the key-frame at or before `time` on, in presentation order."""
        time_base = float(self._stream.time_base)
        for start in (time, max(0.0, time - 1.0), 0.0):
            self._container.seek(max(0, round(start / time_base)), stream=self._stream, backward=True)
            decoded = self._container.decode(self._stream)
            first = next(decoded, None)
            if first is None:
                continue
            # Reordered frames can make a demuxer land on a key-frame that is shown after the time; then start earlier.
            if start == 0.0 or float(first.pts * first.time_base) <= time + TIME_TOLERANCE_S:
                yield first
                yield from decoded
                return

    def times(self) -> list[float]:
        """When each frame is shown, in seconds, ascending; read without decoding.

        Raises:
            VideoError: the file ends early.
        """
        packets = [packet for packet in self.packets() if packet.pts is not None]
        return sorted(float(packet.pts * packet.time_base) for packet in packets if not packet.is_discard)

    def packets(self) -> list[Any]:
        """The stored pieces of the video (`av.Packet`), a frame each, in the order of decoding.

        Raises:
            VideoError: the file ends early.
        """
        try:
            self._container.seek(0, stream=self._stream, backward=True)
            return [packet for packet in self._container.demux(self._stream) if packet.size]
        except (OSError, EOFError, av.FFmpegError) as error:
            raise broken(self.path, f"{self._stream.frames} frames", f"damaged data ({reason(error)})") from error

    def to_rgb(self, frame: Any) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of a decoded frame (`av.VideoFrame`), read-only."""
        rgb = self._reformatter.reformat(frame, format="rgb24", **_CONVERSION)
        plane: Any = rgb.planes[0]
        rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)  # of which the end may be padding
        return rows[: rgb.height, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)

    @property
    def codec(self) -> Any:
        """The decoder (`av.CodecContext`), for callers that read packets themselves."""
        return self._stream.codec_context

    @property
    def decoder_settings(self) -> tuple[Any, ...]:
        """Everything that the decoder was made with; files in which it is equal can share one."""
        codec = self._stream.codec_context
        colours = (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc)
        sizes = (self._stream.width, self._stream.height, str(self._stream.pix_fmt))
        return (codec.codec.name, bytes(codec.extradata or b""), *sizes, *colours)

    @property
    def container_names(self) -> frozenset[str]:
        """FFmpeg's names of the container."""
        return frozenset(self._container.format.name.split(","))

    def count_frames(self) -> int:
        """Decode the whole file and count; the only sure way to find damage.

        Raises:
            VideoError: a frame is damaged.
        """
        return sum(1 for _ in self.frames())

    def frames(self) -> Iterator[Any]:
        """Decode the whole file: every frame (`av.VideoFrame`) in the order in which they are shown.

        Raises:
            VideoError: a frame is damaged; those before it were given.
        """
        count = 0
        try:
            self._container.seek(0, stream=self._stream, backward=True)
            for frame in self._container.decode(self._stream):
                if frame.is_corrupt:
                    raise broken(self.path, f"{self._stream.frames} whole frames", f"damage after frame {count - 1}")
                count += 1
                yield frame
        except (OSError, EOFError, av.FFmpegError) as error:
            expected = f"{self._stream.frames} readable frames"
            raise broken(self.path, expected, f"{count} before damaged data ({reason(error)})") from error

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_frames(
    path: Path, indices: Sequence[int], *, fps: int | float, start_s: float = 0.0, length: int | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode frames of an episode by index.

    Args:
        path: video file.
        indices: frame numbers counted from the episode's first frame; any order, repeats allowed.
        fps: frames per second; frame i is shown at `start_s + i / fps`.
        start_s: seconds in the file at which the episode starts (files may hold many episodes).
        length: frames the episode must have; compared with the file's header before decoding.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file is shorter than the episode, truncated or damaged.
    """
    with VideoReader(path) as reader:
        if length is not None:
            require_length(reader.info, path, num_frames=round(start_s * fps) + length)
        return reader.read([start_s + index / fps for index in indices])


def require_length(info: VideoInfo, path: Path, *, num_frames: int) -> None:
    """Refuse a video whose header announces fewer frames than needed.

    Raises:
        VideoError: naming the file, both counts and what to do.
    """
    if info.num_frames < num_frames:
        raise broken(path, f"{num_frames} frames or more", f"{info.num_frames}")


def broken(path: Path, expected: str, got: str) -> VideoError:
    """The error for a file that is not what it should be."""
    return VideoError(f"video {path}: expected {expected}, got {got}; record the episode again or exclude it")


def _shown(time: float | None) -> str:
    return "the start" if time is None else f"{time:.6f} s"


def reason(error: BaseException) -> str:
    """What a decoder's error says."""
    return getattr(error, "strerror", None) or str(error)
