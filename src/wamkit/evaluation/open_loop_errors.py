"""How far predictions lie from what was recorded: per channel, per stretch of the chunk, per imagined frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from wamkit.evaluation.open_loop_predictions import Comparison, EpisodePrediction
from wamkit.spec import ChannelSpec

WINDOW_ENDS = (0, 1, 9, 25)
"""Stretches of the chunk that the public trainer tells apart; the last one ends with the chunk."""


@dataclass(frozen=True, kw_only=True)
class ChannelErrors:
    """Errors of one channel over all compared rows.

    Args:
        name: the channel.
        unit: of `mae`; that of `mse` is its square.
        mse: mean squared error, physical units.
        mae: mean absolute error, physical units.
        constant_mse: mean squared error of the best constant, physical units: the yardstick.
        normalized_mse: in the network's range (values: z-scored).
        normalized_mae: in the network's range.
    """

    name: str
    unit: str
    mse: float
    mae: float
    constant_mse: float
    normalized_mse: float
    normalized_mae: float


@dataclass(frozen=True, kw_only=True)
class WindowErrors:
    """Mean squared errors of one stretch of the chunk, in the network's range (value: z-scored).

    Args:
        first: first place in the chunk.
        last: one past the last place.
        action_mse: mean over the control channels.
        action_mse_per_channel: each control channel.
        state_mse: mean over the state channels, or `None`.
        value_mse: or `None`.
    """

    first: int
    last: int
    action_mse: float | None
    action_mse_per_channel: tuple[float, ...] | None
    state_mse: float | None
    value_mse: float | None


@dataclass(frozen=True, kw_only=True)
class FrameErrors:
    """Closeness of imagined frames; PSNR in decibels, `None` for frames without any error.

    Args:
        name: which frames: `all`, a camera, or the control steps ahead.
        steps: control steps ahead, or `None` for all of them.
        num_frames: frames compared, cameras counted apart.
        psnr: of the imagined frames.
        copy_psnr: of repeating the last remembered frame: the yardstick.
    """

    name: str
    steps: int | None
    num_frames: int
    psnr: float | None
    copy_psnr: float | None


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of one episode, or of all.

    Args:
        num_chunks: policy calls.
        num_rows: rows compared, over all calls.
        actions: control channels.
        states: state channels, empty when none were predicted.
        windows: stretches of the chunk.
        value: the last value channel, in the units of the value targets, or `None`.
        video: all frames, each camera, each number of steps ahead; empty without imagined frames.
    """

    num_chunks: int
    num_rows: int
    actions: tuple[ChannelErrors, ...]
    states: tuple[ChannelErrors, ...]
    windows: tuple[WindowErrors, ...]
    value: ChannelErrors | None
    video: tuple[FrameErrors, ...]


def measure(
    predictions: Sequence[EpisodePrediction],
    *,
    actions: Sequence[ChannelSpec],
    states: Sequence[ChannelSpec],
    cameras: Sequence[str],
) -> Errors:
    """Errors over all rows of all predictions that lie inside their episodes; every row counts alike.

    Args:
        predictions: of one policy, at least one.
        actions: control channels in order.
        states: state channels in order.
        cameras: in view order.
    """
    inside = np.concatenate([item.is_inside for item in predictions])
    state_parts = [item.states for item in predictions if item.states is not None]
    value_parts = [(item, item.value) for item in predictions if item.value is not None]
    acted = _joined([item.actions for item in predictions])
    felt = _joined(state_parts) if state_parts else None
    valued = _joined([part for _, part in value_parts]) if value_parts else None
    value_inside = (
        np.concatenate([item.is_inside[:, item.value_positions] for item, _ in value_parts]) if value_parts else None
    )
    if value_inside is not None and not value_inside.any():
        valued = value_inside = None  # values at a slow rate, and every episode ends before the first of them
    value_channel = ChannelSpec(name="value", unit="1")
    windows = []
    for first, last in window_bounds(inside.shape[1]):
        place = slice(first, last)
        per_channel = _window_mse(acted, inside, np.arange(inside.shape[1]), place)
        state_mse = None if felt is None else _window_mse(felt, inside, np.arange(inside.shape[1]), place)
        value_mse = None
        if valued is not None and value_inside is not None:
            value_mse = _window_mse(valued, value_inside, predictions[0].value_positions, place)
        windows.append(
            WindowErrors(
                first=first,
                last=last,
                action_mse=None if per_channel is None else float(per_channel.mean()),
                action_mse_per_channel=None if per_channel is None else tuple(per_channel.tolist()),
                state_mse=None if state_mse is None else float(state_mse.mean()),
                value_mse=None if value_mse is None else float(value_mse.mean()),
            )
        )
    return Errors(
        num_chunks=len(inside),
        num_rows=int(inside.sum()),
        actions=_channels(acted, inside, actions),
        states=() if felt is None else _channels(felt, inside, states),
        windows=tuple(windows),
        value=None if valued is None or value_inside is None else _channels(valued, value_inside, [value_channel])[0],
        video=_frames(predictions, cameras),
    )


def window_bounds(horizon: int) -> list[tuple[int, int]]:
    """Stretches (0, 1), (1, 9), (9, 25), (25, horizon) of a chunk, as far as it reaches.

    Source: WAV 6.4 of the specification.
    """
    ends = [end for end in WINDOW_ENDS if end < horizon] + [horizon]
    return list(itertools.pairwise(ends))


def psnr(mean_squared_error: float) -> float | None:
    """Peak signal to noise in decibels of 8-bit pictures; `None` without any error, as JSON has no infinity."""
    return None if mean_squared_error == 0 else 10 * math.log10(255.0**2 / mean_squared_error)


def _joined(parts: Sequence[Comparison]) -> Comparison:
    names = [item.name for item in fields(Comparison)]
    # In float64, so that sums over many rows lose nothing.
    return Comparison(**{name: np.concatenate([getattr(part, name) for part in parts]).astype(float) for name in names})


def _channels(both: Comparison, inside: np.ndarray, channels: Sequence[ChannelSpec]) -> tuple[ChannelErrors, ...]:
    true = both.true[inside]
    error = both.predicted[inside] - true
    normalized = both.normalized[inside] - both.true_normalized[inside]
    return tuple(
        ChannelErrors(
            name=channel.name,
            unit=channel.unit,
            mse=float((error[:, index] ** 2).mean()),
            mae=float(np.abs(error[:, index]).mean()),
            constant_mse=float(true[:, index].var()),
            normalized_mse=float((normalized[:, index] ** 2).mean()),
            normalized_mae=float(np.abs(normalized[:, index]).mean()),
        )
        for index, channel in enumerate(channels)
    )


def _window_mse(both: Comparison, inside: np.ndarray, positions: np.ndarray, place: slice) -> np.ndarray | None:
    """Per channel; `None` where no compared row falls into the stretch."""
    wanted = inside & ((positions >= place.start) & (positions < place.stop))
    if not wanted.any():
        return None
    return ((both.normalized[wanted] - both.true_normalized[wanted]) ** 2).mean(axis=0)


def _frames(predictions: Sequence[EpisodePrediction], cameras: Sequence[str]) -> tuple[FrameErrors, ...]:
    parts = [(item.video, item.length) for item in predictions if item.video is not None]
    if not parts:
        return ()
    inside = np.concatenate([video.rows < length for video, length in parts])
    if not inside.any():
        return ()
    error = np.concatenate([video.error for video, _ in parts]).astype(float)
    still = np.concatenate([video.copy_error for video, _ in parts]).astype(float)

    def frames(name: str, chosen: np.ndarray, views: slice, steps: int | None = None) -> FrameErrors:
        ours, copied = error[chosen][:, views], still[chosen][:, views]
        return FrameErrors(
            name=name,
            steps=steps,
            num_frames=ours.size,
            psnr=psnr(float(ours.mean())),
            copy_psnr=psnr(float(copied.mean())),
        )

    found = [frames("all", inside, slice(None))]
    found += [frames(camera, inside, slice(view, view + 1)) for view, camera in enumerate(cameras)]
    for index, step in enumerate(parts[0][0].steps.tolist()):
        chosen = inside & (np.arange(inside.shape[1]) == index)
        if chosen.any():
            found.append(frames(f"+{step}", chosen, slice(None), step))
    return tuple(found)
