"""Look through one video file: is every frame there, whole, at its time, of the right size, and is there a picture?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data import features as words
from wamkit.data.findings import RECORD_AGAIN, Finding, Kind, Severity, listed_episodes
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.video import TIME_TOLERANCE_S, VideoError, VideoInfo, VideoReader

_COPY = f"copy it again, or {RECORD_AGAIN}"
_RATE_TOLERANCE = 0.01
# Standard deviation of a frame's brightness (of 255) below which nothing can be seen on it: a black GL context gives 0.
_BLANK_STD = 1.0
# What an encoder makes of the same picture in two frames differs by less, in the pixel that differs most; a thing that
# moves differs by more from what was behind it.
_STILL_DIFFERENCE = 24


@dataclass(frozen=True, kw_only=True)
class _Part:
    """An episode's frames in the file: `first` to `end - 1`."""

    episode: int
    first: int
    end: int


class _Pictures:
    """What is to be seen in the frames of one episode, which come one after the other."""

    def __init__(self) -> None:
        self.num_blank, self.first_blank, self.colour = 0, 0, [0, 0, 0]
        self.is_still = True
        self._first: np.ndarray | None = None

    def add(self, number: int, brightness: np.ndarray, frame: Any, reader: VideoReader) -> None:
        # The range is cheap and nearly always settles it.
        if int(brightness.max()) - int(brightness.min()) < 16 * _BLANK_STD and brightness.std() < _BLANK_STD:
            pixels = reader.to_rgb(frame)
            if pixels.std((0, 1)).max() < _BLANK_STD:
                if self.num_blank == 0:
                    self.first_blank, self.colour = number, pixels.mean((0, 1)).round().astype(int).tolist()
                self.num_blank += 1
        if self._first is None:
            self._first = brightness.copy()
        elif self.is_still:
            difference = np.maximum(brightness, self._first) - np.minimum(brightness, self._first)
            self.is_still = int(difference.max()) <= _STILL_DIFFERENCE


def check_video(dataset: LeRobotDataset, path: Path, key: str, episodes: Sequence[int]) -> list[Finding]:
    """Decode a video file once, from beginning to end.

    Args:
        dataset: opened unchecked.
        path: the file.
        key: of the camera's feature.
        episodes: whose frames lie in it.
    """
    starts = {episode: dataset.place(episode).videos[key].start_s for episode in episodes}
    parts = []
    for episode, start_s in starts.items():
        first = round(start_s * dataset.fps)
        parts.append(_Part(episode=episode, first=first, end=first + dataset.episodes[episode].length))
    parts.sort(key=lambda part: part.first)
    name = str(path.relative_to(dataset.root))

    def found(
        kind: Kind, what: str, remedy: str, affected: Sequence[int] = episodes, severity: Severity = "error"
    ) -> Finding:
        where = f"{name} ({listed_episodes(affected)})"
        return Finding(
            kind=kind, severity=severity, where=where, what=what, remedy=remedy, episodes=tuple(sorted(affected))
        )

    try:
        info, times, pictures, damage = _look_through(path, parts)
    except FileNotFoundError:
        return [found("missing_file", "expected a video, found no file", _COPY)]
    except VideoError as error:
        return [found("damaged_file", str(error), _COPY)]
    findings = []
    counted, needed = len(times), max(part.end for part in parts)
    lacking = [part.episode for part in parts if part.end > counted]
    if damage is not None:
        findings.append(found("damaged_file", str(damage), _COPY, lacking or episodes))
    elif lacking:
        what = f"expected {needed} frames by the episode table, got {counted}"
        findings.append(found("length", what, _COPY, lacking))
    elif counted > needed:
        what = f"expected {needed} frames by the episode table, got {counted}; the rest is unused"
        remedy = "check that the episode table belongs to the video"
        findings.append(found("length", what, remedy, severity="warning"))
    has_rate = abs(info.fps - dataset.fps) <= _RATE_TOLERANCE
    if not has_rate:
        what = f"expected {dataset.fps:g} frames/s by {words.INFO}, got {info.fps:g}"
        findings.append(found("rate", what, "encode the video again at the dataset's rate, or correct fps"))
    shape = words.image_size(dataset.features[key])
    if (info.height, info.width) != shape:
        what = f"expected {shape[0]}x{shape[1]} pixels by the features, got {info.height}x{info.width}"
        findings.append(found("size", what, RECORD_AGAIN))
    for part in parts if has_rate else ():
        if part.end > counted:
            continue  # said already
        expected = starts[part.episode] + np.arange(part.end - part.first) / dataset.fps
        off = np.flatnonzero(np.abs(np.array(times[part.first : part.end]) - expected) > TIME_TOLERANCE_S)
        if len(off):
            got = times[part.first + off[0]]
            what = f"expected frame {off[0]} at {expected[off[0]]:.4f} s of the file, got it at {got:.4f} s "
            what += f"({len(off)} frames are off)"
            findings.append(found("rate", what, "encode the video again at a steady rate", [part.episode]))
            continue
        findings += [
            found(kind, what, remedy, [part.episode], "warning")
            for kind, what, remedy in _looks(pictures[part.episode], part.end - part.first)
        ]
    return findings


def _looks(pictures: _Pictures, length: int) -> list[tuple[Kind, str, str]]:
    """What is wrong with the look of an episode."""
    if pictures.num_blank:
        what = f"expected pictures, got the one colour {pictures.colour} in {pictures.num_blank} of {length} frames, "
        what += f"first in frame {pictures.first_blank}"
        return [("blank_video", what, "check the camera or the simulator's GL (`wamkit doctor`) and record again")]
    if pictures.is_still and length > 1:
        what = f"expected pictures that change, got the same one in all {length} frames"
        return [("frozen_video", what, "check the camera's driver, or whether it was recorded at all; record again")]
    return []


def _look_through(
    path: Path, parts: Sequence[_Part]
) -> tuple[VideoInfo, list[float], dict[int, _Pictures], VideoError | None]:
    """Header, times of the frames, their looks by episode, and the damage at which decoding stopped."""
    pictures = {part.episode: _Pictures() for part in parts}
    times: list[float] = []
    damage: VideoError | None = None
    place = 0
    with VideoReader(path) as reader:
        try:
            for number, frame in enumerate(reader.frames()):
                times.append(frame.time)
                while place < len(parts) and number >= parts[place].end:
                    place += 1
                if place < len(parts) and number >= parts[place].first:
                    part = parts[place]
                    pictures[part.episode].add(number - part.first, _brightness(frame, reader), frame, reader)
        except VideoError as error:
            damage = error
        return reader.info, times, pictures, damage


def _brightness(frame: Any, reader: VideoReader) -> np.ndarray:
    """How bright each pixel is, uint8 `[h, w]`; without converting colours where the format keeps it apart."""
    name = frame.format.name
    if not name.startswith(("yuv", "nv12", "gray")) or frame.format.components[0].bits != 8:
        return reader.to_rgb(frame)[..., 1]
    plane = frame.planes[0]
    return np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
