"""Films of an open-loop validation: real frames above imagined ones, once through each episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int, UInt8

from wamkit.evaluation.media import encode_comparison
from wamkit.spec import RobotSpec

MAX_FPS = 30


@dataclass(kw_only=True)
class FilmCutter:
    """Takes the imagined frames of calls in order and encodes an episode's film when the next episode begins.

    Only calls whose frames do not overlap those taken before are shown. Frames are held for one episode at a time, so
    that memory does not grow with the number of episodes.

    Args:
        robot: names cameras and rate.
        seed: pass that is filmed.
    """

    robot: RobotSpec
    seed: int
    _episode: int | None = None
    _shown_to: int = 0
    _fps: int = 1
    _parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    _films: dict[int, bytes] = field(default_factory=dict)

    def add(
        self,
        *,
        episode: int,
        seed: int,
        current: int,
        steps: Sequence[int],
        rows: Int[np.ndarray, "k"],
        real: UInt8[np.ndarray, "v t h w 3"],
        imagined: UInt8[np.ndarray, "v k h w 3"],
    ) -> None:
        """Show a call's frames, if it is its turn.

        Args:
            episode: index; calls of one episode come one after the other.
            seed: of the call.
            current: its present row.
            steps: control steps ahead of the imagined frames.
            rows: dataset rows of their counterparts.
            real: the counterparts, as many as lie inside the episode.
            imagined: all imagined frames.
        """
        if seed != self.seed:
            return
        if episode != self._episode:
            self._finish()
            self._episode, self._shown_to = episode, 0
        if not real.shape[1] or current < self._shown_to:
            return
        self._shown_to = int(rows[-1])
        self._fps = max(1, round(min(self.robot.control_hz / int(np.diff([0, *steps]).max()), MAX_FPS)))
        self._parts.append((real, imagined[:, : real.shape[1]]))

    def films(self) -> dict[int, bytes]:
        """MP4 files by episode; episodes without an imagined frame have none."""
        self._finish()
        return self._films

    def _finish(self) -> None:
        if self._episode is None or not self._parts:
            return
        above, below = (np.concatenate(column, axis=1) for column in zip(*self._parts, strict=True))
        cameras = self.robot.camera_names
        self._films[self._episode] = encode_comparison(
            above=dict(zip(cameras, above, strict=True)),
            below=dict(zip(cameras, below, strict=True)),
            starts=np.cumsum([0, *(real.shape[1] for real, _ in self._parts)])[:-1].tolist(),
            fps=self._fps,
        )
        self._parts = []
