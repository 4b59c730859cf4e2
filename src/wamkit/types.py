"""Words that models, planners, policies and trainers share: observations, chunks, batches, and three small protocols.

Axes: `b` batch, `v` views, `t` frames, `c` channels, `h w` height and width, `l` tokens, `p` position in an action
chunk, `a` action, `s` state, `m` samples drawn for one observation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor, nn

from wamkit.draws import TrainingDraws
from wamkit.spec import PolicySpec


class InputError(ValueError):
    """What a caller gave does not fit the policy: the message says what was expected and what to do.

    Policies and families raise it for what a robot can send; any other error in a call is a defect of ours.
    """


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the robot sees, feels and is asked to do now, for a batch of robots.

    Args:
        video: uint8 at the edge, the newest frame last; its length is the policy's context.
        state: proprioception; physical units at the edge, normalised inside a policy.
        task: one sentence per batch element.
        known: which frames were really seen, the newest always; the others only fill the memory of an episode that has
            not lasted that long. `None`: all of them.
    """

    video: UInt8[Tensor, "b v t h w c"]
    state: Float[Tensor, "b s"]
    task: list[str]
    known: Bool[Tensor, "b t"] | None = None


@dataclass(frozen=True, kw_only=True)
class Imagined:
    """What a model imagined along with its actions; a missing modality is `None`.

    Args:
        video: future frames, uint8.
        video_steps: control steps after the observation at which each imagined frame lies (one number per frame), so
            that it can be set against the frame that really came.
        value: value per action step, in the units of the value targets (last channel).
        scores: planner scores of every candidate, one row per planning iteration.
    """

    video: UInt8[Tensor, "b v t h w c"] | None = None
    video_steps: tuple[int, ...] | None = None
    value: Float[Tensor, "b p"] | None = None
    scores: Float[Tensor, "b i m"] | None = None

    def row(self, index: int) -> Imagined:
        """What was imagined for one robot, as a batch of one."""
        part = slice(index, index + 1)
        rows = {key: tensor[part] for key in ("video", "value", "scores") if (tensor := getattr(self, key)) is not None}
        return dataclasses.replace(self, **rows)


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """A chunk of actions.

    Args:
        actions: physical units once it has left the policy.
        imagined: what was imagined beside it.
        timing: seconds by phase, for instance `{"encode": …, "plan": …, "act": …}`.
    """

    actions: Float[Tensor, "b p a"]
    imagined: Imagined | None = None
    timing: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EncodedWindows:
    """What frozen codecs make of some windows' frames and sentences, computed earlier.

    Axes: `q` is the posterior's mean and, for codecs that have one, its standard deviation; `k y x` is a latent. Codecs
    that give token ids have `q` and `k` of 1.

    Args:
        context: each remembered frame on its own.
        future: each future clip as one video, or its frames on their own, as the codec has it; `None` when a stage does
            not read it.
        text: embedded sentences; `None`, as are the next three, when the family keeps none.
        text_mask: which tokens belong to them.
        empty_text: the embedded empty sentence.
        empty_mask: its tokens.
    """

    context: Num[Tensor, "b v t q k y x"]
    future: Num[Tensor, "b v q k f y x"] | None
    text: Float[Tensor, "b l d"] | None = None
    text_mask: Bool[Tensor, "b l"] | None = None
    empty_text: Float[Tensor, "1 l d"] | None = None
    empty_mask: Bool[Tensor, "1 l"] | None = None

    def to(self, device: torch.device | str) -> EncodedWindows:
        """The same on `device`."""
        moved: dict[str, Any] = {key: item.to(device) for key, item in vars(self).items() if item is not None}
        return dataclasses.replace(self, **moved)

    def rows(self, index: Sequence[int]) -> EncodedWindows:
        """Some of the windows."""
        rows = list(index)
        return dataclasses.replace(
            self,
            context=self.context[rows],
            future=None if self.future is None else self.future[rows],
            text=None if self.text is None else self.text[rows],
            text_mask=None if self.text_mask is None else self.text_mask[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training windows: normalised numbers, and raw frames or what codecs made of them.

    Args:
        context: remembered frames, the current one last; `None` when `encoded` stands for them.
        future: future frames at the model's frame stride, or `None` when a stage does not read them.
        state: normalised current state.
        actions: normalised actions of the prediction window.
        future_state: normalised states of the same dataset rows as `actions`.
        is_padded: rows of the window past the end of the episode (they repeat its last row).
        value_targets: value vectors in the network's space (z-scored, symlog), or `None` when the dataset has none.
        task: one sentence per batch element.
        episode_index: dataset episode of each element, so that an error can name it.
        encoded: latents and embeddings from a cache, in place of frames.
        is_repeated: remembered frames from before the episode's first used row (they repeat it); `None` when not told.
    """

    context: UInt8[Tensor, "b v t h w c"] | None
    future: UInt8[Tensor, "b v f h w c"] | None
    state: Float[Tensor, "b s"]
    actions: Float[Tensor, "b p a"]
    future_state: Float[Tensor, "b p s"]
    is_padded: Bool[Tensor, "b p"]
    value_targets: Float[Tensor, "b p r"] | None
    task: list[str]
    episode_index: Int[Tensor, "b"]
    encoded: EncodedWindows | None = None
    is_repeated: Bool[Tensor, "b t"] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        tensors: dict[str, Any] = {key: item.to(device) for key, item in vars(self).items() if isinstance(item, Tensor)}
        encoded = None if self.encoded is None else self.encoded.to(device)
        return dataclasses.replace(self, **tensors, encoded=encoded)

    def rows(self, index: Sequence[int]) -> Batch:
        """Some of the batch's windows."""
        rows = list(index)
        picked: dict[str, Any] = {key: item[rows] for key, item in vars(self).items() if isinstance(item, Tensor)}
        encoded = None if self.encoded is None else self.encoded.rows(rows)
        return dataclasses.replace(self, **picked, task=[self.task[row] for row in rows], encoded=encoded)


@runtime_checkable
class Trainable(Protocol):
    """What a trainer needs of a model family.

    `network` holds exactly the weights that are trained and saved as `model.safetensors`. `parts()` partitions its
    parameter names; a stage names the parts it trains.
    """

    network: nn.Module

    def parts(self) -> dict[str, list[str]]: ...

    def loss(
        self, batch: Batch, objective: Any, draws: TrainingDraws
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]: ...


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a model decodes in one control step, still in the network's range.

    Args:
        actions: normalised control channels.
        value: value tokens in the network's space, or `None` when not asked for.
        future: imagined frames, or `None` when not asked for.
        future_steps: control steps after the observation at which each imagined frame lies.
        states: normalised states predicted for the rows of `actions`, or `None` when not asked for or not predicted.
    """

    actions: Float[Tensor, "b p a"]
    states: Float[Tensor, "b p s"] | None = None
    value: Float[Tensor, "b y z"] | None = None
    future: UInt8[Tensor, "b v t h w c"] | None = None
    future_steps: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a policy expects to follow an observation, in physical units and in the network's range.

    Args:
        actions: physical units.
        states: states predicted for the rows of `actions`, physical units, or `None` for a family that predicts none.
        value: value tokens' last channel, in the units of the value targets, or `None` for a policy without values.
        sampled: the same as the network gave it, with the imagined frames.
    """

    actions: Float[Tensor, "b p a"]
    states: Float[Tensor, "b p s"] | None
    value: Float[Tensor, "b y"] | None
    sampled: Sampled


@runtime_checkable
class Decoder(Protocol):
    """One control step of a model: observations encoded, nothing drawn yet.

    A planner may choose the initial noise; families without latent noise to choose ignore `chosen`. With `value`,
    values are sampled too, where the family has them. With `imagine`, values and future frames are, the frames with
    classifier-free `guidance` by the sentence. Neither changes the actions.
    """

    def sample(
        self,
        draws: Draws,
        chosen: ChosenNoise | None = None,
        *,
        value: bool = False,
        imagine: bool = False,
        guidance: float = 1.0,
    ) -> Sampled: ...


@runtime_checkable
class ChosenNoise(Protocol):
    """Initial noise that a planner settled on."""

    @property
    def video(self) -> Float[Tensor, "b v c f h w"]: ...

    @property
    def value(self) -> Float[Tensor, "b y z"]: ...

    @property
    def features(self) -> Any:
        """What the model read from `video` while it was searched, in the model's own form; `None` when not kept."""
        ...


@runtime_checkable
class Draws(Protocol):
    """Standard normal numbers by stream name: `video`, `value`, `action`, `iteration0.video`, …"""

    def __call__(self, stream: str, shape: Sequence[int]) -> Tensor:
        """`[b, *shape]` independent N(0, 1) numbers."""
        ...


@runtime_checkable
class Acting(Protocol):
    """What a policy needs of a model family; `network` holds the weights that are saved."""

    network: nn.Module

    @property
    def reads_state(self) -> bool:
        """Whether what it decides and imagines depends on the robot's state."""
        ...

    def encode_frames(self, video: UInt8[Tensor, "b v t h w c"]) -> Tensor:
        """Encoded frames `b v c t …`, each on its own, to be remembered."""
        ...

    def control_step(
        self,
        memory: Tensor,
        state: Float[Tensor, "b s"],
        task: list[str],
        num_steps: int,
        *,
        max_rows: int = 32,
        known: Bool[Tensor, "b t"] | None = None,
    ) -> Decoder:
        """Encoded observations, to be searched over and decoded; at most `max_rows` imagined videos at once.

        `known` says which frames of the memory were really seen, see `Observation`; a family whose memory is always
        full has no use for it.
        """
        ...

    def save_codecs(self, folder: Path) -> None: ...


@runtime_checkable
class ActionConditioned(Protocol):
    """A family that is a world model: from what was seen and what is done to what will be seen."""

    def encode_frames(self, video: UInt8[Tensor, "b v t h w c"]) -> Tensor:
        """See `Acting`."""
        ...

    def decode_frames(self, encoded: Tensor) -> UInt8[Tensor, "b v t h w c"]:
        """The frames of encoded ones, each on its own."""
        ...

    def imagine_along(
        self,
        memory: Tensor,
        actions: Float[Tensor, "b p a"],
        draws: Draws,
        *,
        max_rows: int = 32,
        guidance: float = 1.0,
    ) -> UInt8[Tensor, "b v p h w c"]:
        """The frame after each normalised action, from encoded frames on."""
        ...


@runtime_checkable
class Clips(Protocol):
    """A family that puts numbers into bins, and counts those that lay outside them by what they are."""

    @property
    def clipped(self) -> Mapping[str, Clipped]: ...


@runtime_checkable
class Clipped(Protocol):
    """How many numbers were put into bins, and how many of them lay outside."""

    @property
    def num_seen(self) -> int: ...

    @property
    def num_clipped(self) -> int: ...


@runtime_checkable
class ActingPolicy(Protocol):
    """What closed-loop evaluation and servers need: a policy that remembers each robot in a numbered slot.

    `reset` starts a new episode in each slot, with a seed from which every draw of that episode follows. `act` takes
    the newest frame of each slot, extends its memory, and gives a chunk in physical units; `executed` counts the
    actions run since the slot's previous call. Rows of the result follow `slots`.

    A policy whose spec has a `context_reach` is a `RememberingPolicy` too.
    """

    spec: PolicySpec

    def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None: ...

    def act(
        self,
        slots: Sequence[int],
        *,
        video: UInt8[Tensor, "b v h w c"],
        state: Float[Tensor, "b s"],
        task: list[str],
        executed: Sequence[int],
        record: bool = False,
    ) -> ActionChunk: ...


@runtime_checkable
class RememberingPolicy(ActingPolicy, Protocol):
    """A policy that can be told what its robots saw between two calls.

    `remember` takes one frame of each slot into its memory and gives nothing; `executed` counts the actions run since
    the slot was told of a frame last, by `remember` or `act`, and so does that of the `act` after it.
    """

    def remember(self, slots: Sequence[int], *, video: UInt8[Tensor, "b v h w c"], executed: Sequence[int]) -> None: ...
