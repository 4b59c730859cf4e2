"""The policy calls of an open-loop validation: recorded rows in, predictions and their counterparts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from wamkit.data.features import ACTION, STATE
from wamkit.data.source import VALUE, EpisodeEntry, EpisodeSource, numeric_column
from wamkit.data.transforms import symexp
from wamkit.evaluation.open_loop_films import FilmCutter
from wamkit.evaluation.open_loop_predictions import Comparison, EpisodePrediction, VideoComparison
from wamkit.evaluation.open_loop_protocol import OpenLoopProtocol
from wamkit.evaluation.open_loop_rows import ChunkRows, chunk_rows, future_rows
from wamkit.evaluation.protocol import EPISODE_SEED_STRIDE
from wamkit.policy import Policy
from wamkit.types import Observation, Prediction

VALUE_ADVICE = "write it with `wamkit data values`, or leave values out (--no-values, with_values=False)"


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """The numbers of an episode, checked, and the calls made on it.

    Args:
        entry: its line of the episode table.
        actions: physical units.
        states: physical units.
        values: the value column, or `None` when values are left out.
        calls: rows of each call.
    """

    entry: EpisodeEntry
    actions: Float[np.ndarray, "t a"]
    states: Float[np.ndarray, "t s"]
    values: Float[np.ndarray, "t r"] | None
    calls: list[ChunkRows]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the policy: number `number` on an episode, with the draws of `seed`."""

    episode: RecordedEpisode
    seed: int
    number: int

    @property
    def rows(self) -> ChunkRows:
        """Its rows."""
        return self.episode.calls[self.number]

    @property
    def key(self) -> tuple[int, int]:
        """What its draws follow from: those of a robot that was reset with the same seed, at the same call."""
        return self.seed * EPISODE_SEED_STRIDE + self.episode.entry.index, self.number

    @property
    def name(self) -> str:
        """For messages."""
        return f"episode {self.episode.entry.index}, row {self.rows.current}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one call; arrays as in `EpisodePrediction`, without its first axis."""

    call: Call
    value_positions: np.ndarray
    actions: tuple[np.ndarray, ...]
    states: tuple[np.ndarray, ...] | None
    value: tuple[np.ndarray, ...] | None
    video_steps: tuple[int, ...]
    video: tuple[np.ndarray, ...] | None


def read_episode(
    policy: Policy, dataset: EpisodeSource, entry: EpisodeEntry, protocol: OpenLoopProtocol, *, with_values: bool
) -> RecordedEpisode:
    """Read and check the numbers of an episode.

    Raises:
        ValueError: it is too short, or a column is missing, has another width than the policy's or holds a number that
            is not finite.
    """
    transforms = policy.transforms
    widths = {ACTION: transforms.action.width, STATE: transforms.state.width}
    if with_values and transforms.value is not None:
        widths[VALUE] = transforms.value.width
    try:
        calls = chunk_rows(entry.length, policy.spec, protocol)
    except ValueError as error:
        raise ValueError(f"episode {entry.index}: {error}; choose a longer one") from error
    columns = dataset.columns(entry.index)
    read = {}
    for key, width in widths.items():
        read[key] = numeric_column(columns, key, entry, advice=VALUE_ADVICE if key == VALUE else "")
        if read[key].shape[1] != width:
            raise ValueError(
                f"episode {entry.index}: expected {width} channels in column {key!r}, as the policy was trained on, "
                f"got {read[key].shape[1]}; use a dataset made with the same settings"
                + (", or leave values out (--no-values)" if key == VALUE else "")
            )
    return RecordedEpisode(entry=entry, actions=read[ACTION], states=read[STATE], values=read.get(VALUE), calls=calls)


@dataclass(kw_only=True)
class Caller:
    """Asks the policy, a batch of calls at a time, in the order of the episodes' rows.

    Args:
        policy: what is asked.
        dataset: where frames come from.
        protocol: how imagined frames are aligned.
        films: takes imagined frames beside real ones; `None` compares no frames.
    """

    policy: Policy
    dataset: EpisodeSource
    protocol: OpenLoopProtocol
    films: FilmCutter | None

    def ask(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer for each call.

        Raises:
            ValueError: the policy gave a number that is not finite; the message names the call.
        """
        context = self._frames(calls, [call.rows.context for call in calls])
        observation = Observation(
            video=torch.from_numpy(np.stack(context)),
            state=torch.from_numpy(np.stack([call.episode.states[call.rows.current] for call in calls])),
            task=[call.episode.entry.task for call in calls],
            known=torch.from_numpy(np.stack([call.rows.known for call in calls])),
        )
        prediction = self.policy.predict(observation, keys=[call.key for call in calls])
        _require_finite(prediction, calls)
        steps = prediction.sampled.future_steps
        future = prediction.sampled.future
        if self.films is None or future is None or steps is None:
            return [self._answer(call, prediction, row) for row, call in enumerate(calls)]
        imagined = future.cpu().numpy()
        rows = [future_rows(call.rows, steps, self.protocol) for call in calls]
        inside = [own[own < call.episode.entry.length] for own, call in zip(rows, calls, strict=True)]
        real = [self._seen(video) for video in self._frames(calls, inside)]
        answers = []
        for row, call in enumerate(calls):
            compared = _compare_frames(imagined[row], real[row], self._seen(context[row][:, -1:])[:, 0], rows[row])
            answers.append(self._answer(call, prediction, row, steps, compared))
            self.films.add(
                episode=call.episode.entry.index,
                seed=call.seed,
                current=call.rows.current,
                steps=steps,
                rows=rows[row],
                real=real[row],
                imagined=imagined[row],
            )
        return answers

    def _answer(
        self,
        call: Call,
        prediction: Prediction,
        row: int,
        steps: tuple[int, ...] = (),
        video: tuple[np.ndarray, ...] | None = None,
    ) -> Answer:
        transforms, episode, sampled = self.policy.transforms, call.episode, prediction.sampled
        last = episode.entry.length - 1
        rows = call.rows.action.clip(max=last)
        true = torch.from_numpy(episode.actions[rows])
        current = torch.from_numpy(episode.states[call.rows.current].copy())
        wanted = transforms.action.normalize_chunk(true[None], current[None])[0]
        actions = _numbers(prediction.actions[row], true, sampled.actions[row], wanted)
        states = None
        if prediction.states is not None and sampled.states is not None:
            felt = torch.from_numpy(episode.states[rows])
            states = _numbers(prediction.states[row], felt, sampled.states[row], transforms.state.normalize(felt))
        value, positions = None, np.zeros(0, dtype=np.int64)
        if episode.values is not None and transforms.value is not None and sampled.value is not None:
            length = sampled.value.shape[1]
            positions = np.arange(1, length + 1) * (len(rows) // length) - 1
            labels = torch.from_numpy(episode.values[rows[positions]])
            own = None if prediction.value is None else prediction.value[row]
            assert own is not None, "a policy with values predicts them"
            value = _numbers(
                own[:, None],
                labels[:, -1:],
                symexp(sampled.value[row, :, -1:]),
                symexp(transforms.value.normalize(labels)[:, -1:]),
            )
        return Answer(
            call=call,
            value_positions=positions,
            actions=actions,
            states=states,
            value=value,
            video_steps=steps,
            video=video,
        )

    def _frames(self, calls: Sequence[Call], rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Frames `v t h w c` of the wanted rows of each call; a frame that several calls want is decoded once."""
        wanted: dict[int, set[int]] = {}
        for call, own in zip(calls, rows, strict=True):
            wanted.setdefault(call.episode.entry.index, set()).update(own.tolist())
        found = {}
        for episode, needed in wanted.items():
            ordered = sorted(needed)
            cameras = self.policy.spec.robot.camera_names if ordered else ()
            video = [self.dataset.frames(episode, camera, ordered) for camera in cameras]
            found[episode] = (ordered, np.stack(video) if video else None)
        taken = []
        for call, own in zip(calls, rows, strict=True):
            ordered, frames = found[call.episode.entry.index]
            taken.append(self._nothing() if frames is None else frames[:, np.searchsorted(ordered, own)])
        return taken

    def _seen(self, video: np.ndarray) -> np.ndarray:
        """Recorded frames `v t h w c` as the policy sees them, and imagines."""
        return self.policy.seen(torch.from_numpy(video)).numpy()

    def _nothing(self) -> np.ndarray:
        cameras = self.policy.spec.robot.cameras
        return np.zeros((len(cameras), 0, cameras[0].height, cameras[0].width, 3), dtype=np.uint8)


def assemble(episode: RecordedEpisode, seed: int, answers: Sequence[Answer]) -> EpisodePrediction:
    """The answers of one pass over an episode as arrays."""

    def comparison(parts: Sequence[tuple[np.ndarray, ...] | None]) -> Comparison | None:
        given = [part for part in parts if part is not None]
        if not given:
            return None
        predicted, true, normalized, true_normalized = (np.stack(column) for column in zip(*given, strict=True))
        return Comparison(predicted=predicted, true=true, normalized=normalized, true_normalized=true_normalized)

    actions = comparison([answer.actions for answer in answers])
    assert actions is not None, "every call gives actions"
    videos = [answer.video for answer in answers if answer.video is not None]
    video = None
    if videos:
        rows, error, still = (np.stack(column) for column in zip(*videos, strict=True))
        video = VideoComparison(
            steps=np.array(answers[0].video_steps, dtype=np.int64), rows=rows, error=error, copy_error=still
        )
    return EpisodePrediction(
        episode=episode.entry.index,
        seed=seed,
        length=episode.entry.length,
        current=np.array([answer.call.rows.current for answer in answers], dtype=np.int64),
        rows=np.stack([answer.call.rows.action for answer in answers]),
        value_positions=answers[0].value_positions,
        actions=actions,
        states=comparison([answer.states for answer in answers]),
        value=comparison([answer.value for answer in answers]),
        video=video,
    )


def _numbers(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.to("cpu", torch.float32).numpy() for tensor in tensors)


def _compare_frames(
    imagined: np.ndarray, real: np.ndarray, last: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Rows, and mean squared pixel errors `k v` of imagined frames and of repeating the last one; 0 past the end."""
    errors = np.zeros((2, len(rows), len(imagined)), dtype=np.float32)
    inside = real.shape[1]
    for which, shown in enumerate((imagined[:, :inside], last[:, None])):
        difference = shown.astype(np.float32) - real.astype(np.float32)
        errors[which, :inside] = (difference**2).mean(axis=(2, 3, 4)).T if inside else 0
    return rows, errors[0], errors[1]


def _require_finite(prediction: Prediction, calls: Sequence[Call]) -> None:
    for what in ("actions", "states", "value"):
        numbers = getattr(prediction, what)
        if numbers is None:
            continue
        finite = torch.isfinite(numbers).flatten(1).all(dim=1)
        if not finite.all():
            call = calls[int(finite.int().argmin())]
            raise ValueError(
                f"the policy predicted {what} that are not finite numbers in {call.name}; look at its weights and "
                "statistics"
            )
