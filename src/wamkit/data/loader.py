"""Training windows from a dataset: batch number `step` is a pure function of the seed and the step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wamkit.data.actions import ActionTransform
from wamkit.data.encoded import EncodedDataset
from wamkit.data.features import ACTION, STATE
from wamkit.data.frames import FrameStore
from wamkit.data.images import Crop, draw_crops
from wamkit.data.mixture import Mixture, mixture_of
from wamkit.data.source import VALUE, EpisodeEntry, EpisodeSource, numeric_column, where
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.data.windows import WindowConfig, num_windows, select_rows, window_ends
from wamkit.draws import TrainingDraws
from wamkit.spec import Preprocess, RobotSpec, SpecMismatch, require_match
from wamkit.types import Batch, EncodedWindows

VALUE_ADVICE = "write it with `wamkit data values`, then compute the statistics again"


@dataclass(frozen=True, kw_only=True)
class BatchRows:
    """Which rows a batch is made of; row numbers count within the episode.

    Args:
        episode: int64 `[b]`, dataset episode.
        position: int64 `[b]`, the same episode counted among those of the loader.
        current: int64 `[b]`, rows that the windows look ahead from, before clipping.
        context: int64 `[b, P]`.
        future: int64 `[b, chunk]`.
        action: int64 `[b, A]`.
        is_padded: bool `[b, A]`.
        is_repeated: bool `[b, P]`.
    """

    episode: np.ndarray
    position: np.ndarray
    current: np.ndarray
    context: np.ndarray
    future: np.ndarray
    action: np.ndarray
    is_padded: np.ndarray
    is_repeated: np.ndarray

    def only(self, index: Sequence[int]) -> BatchRows:
        """Some of the batch's windows."""
        return BatchRows(**{key: column[list(index)] for key, column in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class WindowParts:
    """How windows are shared among the datasets of a mixture, which follow each other.

    Args:
        start: int64 `[n]`, number of each dataset's first window.
        count: int64 `[n]`, its windows.
        share: float64 `[n]`, share of the draws.
    """

    start: np.ndarray
    count: np.ndarray
    share: np.ndarray


class WindowLoader:
    """Batches of windows, sampled uniformly over all windows of the dataset.

    Of a mixture with weights, the dataset is drawn first, by its weight, and then uniformly one of its windows.

    Numbers are normalised once and kept in memory. Frames are too (uint8, decoded once) when they fit the budget;
    otherwise each batch decodes its own.
    """

    def __init__(
        self,
        dataset: EpisodeSource,
        config: WindowConfig,
        *,
        action: ActionTransform,
        state: Normalizer,
        value: ValueTransform | None = None,
        batch_size: int,
        seed: int,
        cameras: Sequence[str] | None = None,
        robot: RobotSpec | None = None,
        episodes: Sequence[int] | None = None,
        image_size: tuple[int, int] | None = None,
        preprocess: Preprocess = "exact",
        random_crop: bool = False,
        encoded: EncodedDataset | None = None,
        cache_frames: int | Literal["auto"] = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Reads and checks every number of the dataset, and decodes its frames if they fit.

        Args:
            dataset: where episodes come from.
            config: how windows are cut.
            action: representation and normalisation of the action column.
            state: normaliser of the state column.
            value: transform of the value column; `None` leaves values out, and then no value column is needed.
            batch_size: windows per batch.
            seed: of every draw.
            cameras: cameras in view order; by default `robot`'s, else the dataset's.
            robot: the robot that a policy is trained for; the dataset's must match it.
            episodes: dataset episodes to use; by default all.
            image_size: (height, width) of the frames in batches; `None` is the recorded size.
            preprocess: how recorded frames are brought to that size.
            random_crop: show a part of each view, drawn anew for each window, brought to the same size.
            encoded: gives latents in place of frames, of which none is then decoded.
            cache_frames: bytes that decoded frames may take; `auto` is a quarter of the free memory; 0 keeps none.
            progress: called with (episodes decoded, episodes) while frames are decoded into memory.

        Raises:
            SpecMismatch: the dataset's cameras, sizes, channels or rates do not fit `robot`.
            ValueError: a camera or episode is unknown, a column is missing, has another width than its normaliser or
                holds a number that is not finite, or no episode is long enough for a window.
        """
        if batch_size < 1 or seed < 0:
            raise ValueError(f"loader: expected batch_size >= 1 and seed >= 0, got {batch_size} and {seed}")
        self.dataset, self.config, self.batch_size, self.seed = dataset, config, batch_size, seed
        self.cameras = _choose_cameras(dataset, cameras, robot)
        self._entries = _choose_episodes(dataset, episodes)
        lengths = np.array([entry.length for entry in self._entries])
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        counts = np.array([num_windows(int(length), config) for length in lengths], dtype=np.int64)
        self._window_ends = np.cumsum(counts)
        mixture = mixture_of(dataset)
        self._parts = None if mixture is None else _window_parts(mixture, self._entries, counts, config)
        if self.num_windows == 0:
            raise ValueError(
                f"loader: expected an episode of {_rows_needed(config)}, got {len(lengths)} episodes of at most "
                f"{lengths.max(initial=0)}; record longer ones"
            )
        self._action = action
        self._actions, self._state, self._values = self._read_numbers(action, state, value)
        self._random_crop = random_crop
        if encoded is not None and random_crop:
            raise ValueError("latents cannot be cropped; train from frames, or without random crops")
        self._frames: FrameStore | EncodedDataset = encoded or FrameStore(
            dataset,
            self._entries,
            self.cameras,
            image_size=image_size,
            preprocess=preprocess,
            keep_recorded=random_crop,
            cache_frames=cache_frames,
            progress=progress,
        )

    @property
    def num_windows(self) -> int:
        """Windows that a batch is drawn from."""
        return int(self._window_ends[-1]) if len(self._window_ends) else 0

    @property
    def frames_in_memory(self) -> bool:
        """Whether all frames were decoded into memory."""
        return isinstance(self._frames, FrameStore) and self._frames.in_memory

    @property
    def decodes_per_batch(self) -> bool:
        """Whether frames are decoded for each batch."""
        return isinstance(self._frames, FrameStore) and not self._frames.in_memory

    @property
    def bytes_per_window(self) -> int:
        """Size of the frames of a window; 0 where latents are read."""
        frames = len(self.cameras) * (self.config.context + self.config.chunk)
        return frames * self._frames.frame_bytes if isinstance(self._frames, FrameStore) else 0

    def reseeded(self, batch_size: int, seed: int) -> WindowLoader:
        """The same numbers and frames, shared, in batches of another size and order."""
        if batch_size < 1 or seed < 0:
            raise ValueError(f"loader: expected batch_size >= 1 and seed >= 0, got {batch_size} and {seed}")
        other = copy.copy(self)
        other.batch_size, other.seed = batch_size, seed
        return other

    def rows(self, step: int) -> BatchRows:
        """The rows of batch `step`, without reading anything.

        Args:
            step: 0 or more.
        """
        rng = np.random.default_rng((self.seed, step))
        flat = self._draw(rng)
        position = np.searchsorted(self._window_ends, flat, side="right")
        picked = []
        for number, at in zip(flat.tolist(), position.tolist(), strict=True):
            length = self._entries[at].length
            ends = window_ends(length, self.config)
            end = ends[number - int(self._window_ends[at])]  # negative: counts back from the episode's last window
            picked.append(select_rows(length, end, self.config, rng))
        return BatchRows(
            episode=np.array([self._entries[at].index for at in position], dtype=np.int64),
            position=position,
            current=np.array([rows.current for rows in picked], dtype=np.int64),
            context=np.stack([rows.context for rows in picked]),
            future=np.stack([rows.future for rows in picked]),
            action=np.stack([rows.action for rows in picked]),
            is_padded=np.stack([rows.is_padded for rows in picked]),
            is_repeated=np.stack([rows.is_repeated for rows in picked]),
        )

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Numbers of `batch_size` windows, int64."""
        if self._parts is None:
            return rng.integers(self.num_windows, size=self.batch_size)
        part = rng.choice(len(self._parts.share), p=self._parts.share, size=self.batch_size)
        return self._parts.start[part] + rng.integers(self._parts.count[part])

    def batch(self, step: int, *, need_future: bool = True, rows: Sequence[int] | None = None) -> Batch:
        """Batch number `step`; the same numbers and pixels whenever and in whatever order it is asked for.

        Args:
            step: 0 or more.
            need_future: whether future frames are wanted; without them `future` is `None` and nothing else changes.
            rows: which windows of the batch are wanted, and decoded; all by default.
        """
        wanted = range(self.batch_size) if rows is None else rows
        crops = None
        if self._random_crop:
            draws = TrainingDraws(key=(self.seed, step), rows=wanted, num_rows=self.batch_size)
            crops = draw_crops(len(self.cameras), draws)
        return self._read(self.rows(step).only(wanted), need_future, crops)

    def _read(self, rows: BatchRows, need_future: bool, crops: list[list[Crop]] | None) -> Batch:
        start = self._offsets[rows.position][:, None]
        window = torch.from_numpy(start + rows.action)
        context, future, encoded = self._pictures(rows, need_future, crops)
        state = self._state[torch.from_numpy(start[:, 0] + rows.context[:, -1])]
        is_padded = torch.from_numpy(rows.is_padded)
        return Batch(
            context=context,
            future=future,
            state=state,
            actions=self._action.normalize_window(self._actions[window], state, is_padded),
            future_state=self._state[window],
            is_padded=is_padded,
            value_targets=None if self._values is None else self._values[window],
            task=[self._entries[at].task for at in rows.position],
            episode_index=torch.from_numpy(rows.episode),
            encoded=encoded,
            is_repeated=torch.from_numpy(rows.is_repeated),
        )

    def _pictures(
        self, rows: BatchRows, need_future: bool, crops: list[list[Crop]] | None
    ) -> tuple[Tensor | None, Tensor | None, EncodedWindows | None]:
        """Remembered frames, future frames, or their latents."""
        if isinstance(self._frames, EncodedDataset):
            encoded = self._frames.windows(
                episodes=rows.episode.tolist(),
                context=rows.context,
                current=rows.current,
                future=rows.future if need_future else None,
                task=[self._entries[at].task for at in rows.position],
            )
            return None, None, encoded
        wanted = np.concatenate([rows.context, rows.future], axis=1) if need_future else rows.context
        video = self._frames.gather(rows.position, wanted, crops)
        num_context = self.config.context
        return video[:, :, :num_context], video[:, :, num_context:] if need_future else None, None

    def _read_numbers(
        self, action: ActionTransform, state: Normalizer, value: ValueTransform | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        wanted: dict[str, ActionTransform | Normalizer | ValueTransform] = {ACTION: action, STATE: state}
        if value is not None:
            wanted[VALUE] = value
        read: dict[str, list[Tensor]] = {key: [] for key in wanted}
        for entry in self._entries:
            columns = self.dataset.columns(entry.index)
            for key, transform in wanted.items():
                column = numeric_column(
                    columns, key, entry, advice=VALUE_ADVICE if key == VALUE else "", source=self.dataset
                )
                if column.shape[1] != transform.width:
                    raise ValueError(
                        f"{where(self.dataset, entry.index)}: expected {transform.width} channels in column {key!r} "
                        f"(as in the statistics), got {column.shape[1]}; compute the statistics of this dataset"
                    )
                # In float64, so that the affine part loses nothing before the one rounding to float32.
                exact = torch.from_numpy(column.astype(np.float64))
                normalize = (
                    transform.normalize_episode if isinstance(transform, ActionTransform) else transform.normalize
                )
                read[key].append(normalize(exact).to(torch.float32))
        joined = {key: torch.cat(parts) for key, parts in read.items()}
        return joined[ACTION], joined[STATE], joined.get(VALUE)


def _choose_cameras(dataset: EpisodeSource, cameras: Sequence[str] | None, robot: RobotSpec | None) -> tuple[str, ...]:
    known = tuple(dataset.cameras)
    if robot is not None:
        if dataset.robot is None:
            raise SpecMismatch(
                f"expected a dataset that names its robot, to compare it with {robot.name!r}; this one (cameras "
                f"{list(known)}) does not: say what it is with `wamkit data describe`"
            )
        require_match(robot, dataset.robot, wanted_by="the policy", offered_by="the dataset")
    chosen = tuple(cameras if cameras is not None else robot.camera_names if robot is not None else known)
    missing = [name for name in chosen if name not in known]
    if missing or not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"loader: expected distinct cameras among {list(known)}, got {list(chosen)}")
    return chosen


def _window_parts(
    mixture: Mixture, entries: Sequence[EpisodeEntry], counts: np.ndarray, config: WindowConfig
) -> WindowParts | None:
    """The datasets that the entries are of; the weights of others are left out."""
    if mixture.weights is None:
        return None
    owners = np.array([mixture.part_of(entry.index) for entry in entries])
    if (np.diff(owners) < 0).any():
        raise ValueError("loader: expected a mixture's episodes dataset by dataset, got them in another order")
    parts = np.unique(owners)
    count = np.array([counts[owners == part].sum() for part in parts], dtype=np.int64)
    empty = [mixture.names[part] for part in parts[count == 0]]
    if empty:
        raise ValueError(f"loader: expected an episode of {_rows_needed(config)} in dataset {empty[0]!r}; leave it out")
    share = np.array([mixture.weights[part] for part in parts])
    return WindowParts(start=np.cumsum(count) - count, count=count, share=share / share.sum())


def _rows_needed(config: WindowConfig) -> str:
    """Of an episode that windows can be cut out of, for a message."""
    needed = f"{config.min_length} or more rows"
    return f"{needed} (whole windows of {config.action_horizon} actions)" if config.whole else needed


def _choose_episodes(dataset: EpisodeSource, episodes: Sequence[int] | None) -> list[EpisodeEntry]:
    entries = {entry.index: entry for entry in dataset.episodes}
    chosen = list(entries) if episodes is None else list(episodes)
    missing = [index for index in chosen if index not in entries]
    if missing or not chosen:
        raise ValueError(f"loader: expected episodes among the dataset's {len(entries)}, got {missing or chosen}")
    return [entries[index] for index in chosen]
