"""What a world model makes of recorded episodes: roll-outs, single steps, and frames only encoded and decoded.

Nothing here knows a model: it is a function that imagines along given actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.data.features import ACTION, STATE
from wamkit.data.source import EpisodeEntry, EpisodeSource, numeric_column, where
from wamkit.evaluation.protocol import EPISODE_SEED_STRIDE
from wamkit.policy import Policy
from wamkit.types import ActionConditioned, Clipped, Clips, Observation

Transform = Callable[[Tensor], Tensor]


@runtime_checkable
class Imagine(Protocol):
    """A world model as an evaluation sees it."""

    def __call__(
        self, observation: Observation, actions: Float[Tensor, "b p a"], *, keys: Sequence[tuple[int, ...]]
    ) -> UInt8[Tensor, "b v p h w c"]:
        """The frame expected after each action, in the size of the frames given; each is fed back for the next.

        Args:
            observation: frames, the newest last, with the state and sentence of its row.
            actions: physical units.
            keys: what each row's draws follow from; the row's number in the episode comes last.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class WorldModel:
    """What is measured, and how it is asked.

    Args:
        imagine: the model.
        cameras: whose frames it sees and imagines, in view order.
        seen: brings camera frames `… h w 3` to the model's size.
        reconstruct: encodes and decodes frames `b v t h w c`, each on its own, which no roll-out of the model can beat;
            `None` for a model without a codec.
        num_context: frames it is shown.
        context_stride: rows between two of them; before the episode its first frame is repeated.
        max_rows: how many episodes or rows are imagined at once.
        device: where frames are compared, and where the networks of metrics are.
        clipped: counts the numbers of actions that the model clips; `None` for one that clips none.
    """

    imagine: Imagine
    cameras: tuple[str, ...]
    seen: Transform
    reconstruct: Transform | None = None
    num_context: int = 1
    context_stride: int = 1
    max_rows: int = 16
    device: torch.device | str = "cpu"
    clipped: Clipped | None = None

    def __post_init__(self) -> None:
        if not self.cameras or min(self.num_context, self.context_stride, self.max_rows) < 1:
            raise ValueError(
                "expected one or more cameras, and num_context, context_stride and max_rows of 1 or more, got "
                f"{list(self.cameras)}, {self.num_context}, {self.context_stride} and {self.max_rows}"
            )


def world_of(policy: Policy, *, max_rows: int = 16, device: torch.device | str = "cpu") -> WorldModel:
    """The world model of a policy.

    Args:
        policy: whose; its `imagine_along` is an `Imagine`, its `reconstruct` encodes and decodes frames.
        max_rows: see `WorldModel`.
        device: see `WorldModel`.

    Raises:
        ValueError: its model imagines no frames along given actions.
    """
    spec = policy.spec
    if not isinstance(policy.model, ActionConditioned):
        raise ValueError(
            f"family {spec.family!r} imagines no frames along given actions, so its world model cannot be measured by "
            "recorded ones; `wamkit imagine` and `wamkit openloop` compare what it imagines beside its own actions"
        )
    return WorldModel(
        imagine=policy.imagine_along,
        cameras=spec.robot.camera_names,
        seen=policy.seen,
        reconstruct=policy.reconstruct,
        num_context=spec.num_context,
        context_stride=spec.execution_horizon if spec.context_stride is None else spec.context_stride,
        max_rows=max_rows,
        device=device,
        clipped=policy.model.clipped.get("actions") if isinstance(policy.model, Clips) else None,
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeFrames:
    """Recorded frames of an episode beside imagined ones, in the model's size; `t` rows, `p` = t - 1 actions between.

    Args:
        entry: its line of the episode table.
        real: what was recorded.
        rolled: imagined from the first frame on, each frame from the one imagined before; `p` counts from row 1.
        stepped: imagined one step ahead from recorded frames.
        rebuilt: `real`, encoded and decoded; `None` for a model without a codec.
    """

    entry: EpisodeEntry
    real: UInt8[Tensor, "v t h w 3"]
    rolled: UInt8[Tensor, "v p h w 3"]
    stepped: UInt8[Tensor, "v p h w 3"]
    rebuilt: UInt8[Tensor, "v t h w 3"] | None


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    entry: EpisodeEntry
    actions: Float[np.ndarray, "t a"]
    states: Float[np.ndarray, "t s"]


def imagine_episodes(
    world: WorldModel, dataset: EpisodeSource, entries: Sequence[EpisodeEntry], *, seed: int = 0
) -> Iterator[EpisodeFrames]:
    """Imagine along whole episodes, `max_rows` at a time, the longest first, so that a batch wastes little.

    Every draw follows from (seed, episode, row).

    Args:
        world: the model.
        dataset: recorded episodes of its robot.
        entries: which, of two rows or more.
        seed: of the model's draws.

    Raises:
        ValueError: an episode of one row, a missing column, or a model that gives something other than frames.
    """
    short = [where(dataset, entry.index) for entry in entries if entry.length < 2]
    if short:
        raise ValueError(f"expected episodes of two rows or more, got one in {', '.join(short)}; leave these out")
    ordered = sorted(entries, key=lambda entry: (-entry.length, entry.index))
    for start in range(0, len(ordered), world.max_rows):
        together = [_read(dataset, entry) for entry in ordered[start : start + world.max_rows]]
        rolled = _roll_out(world, dataset, together, seed)
        for item, frames in zip(together, rolled, strict=True):
            real = _frames(world, dataset, item.entry, range(item.entry.length))
            yield EpisodeFrames(
                entry=item.entry,
                real=real,
                rolled=frames,
                stepped=_step(world, item, real, seed),
                rebuilt=_rebuild(world, real),
            )


def _read(dataset: EpisodeSource, entry: EpisodeEntry) -> _Recorded:
    columns = dataset.columns(entry.index)
    actions = numeric_column(columns, ACTION, entry, source=dataset)
    if dataset.robot is not None and not dataset.robot.state:  # a robot that feels nothing has no such column
        return _Recorded(entry=entry, actions=actions, states=np.zeros((entry.length, 0), dtype=np.float32))
    return _Recorded(entry=entry, actions=actions, states=numeric_column(columns, STATE, entry, source=dataset))


def _roll_out(
    world: WorldModel, dataset: EpisodeSource, together: Sequence[_Recorded], seed: int
) -> list[UInt8[Tensor, "v p h w 3"]]:
    """From the first frame of some episodes along all their actions."""
    first = torch.stack([_frames(world, dataset, item.entry, [0]) for item in together])
    video = first.expand(-1, -1, world.num_context, -1, -1, -1).contiguous()
    longest = max(item.entry.length for item in together) - 1
    actions = [item.actions[np.arange(longest).clip(max=item.entry.length - 2)] for item in together]
    imagined = _ask(world, together, [0] * len(together), video, np.stack(actions), seed)
    return [frames[:, : item.entry.length - 1] for frames, item in zip(imagined, together, strict=True)]


def _step(world: WorldModel, item: _Recorded, real: Tensor, seed: int) -> UInt8[Tensor, "v p h w 3"]:
    """Every next frame of an episode from recorded ones."""
    parts = []
    for start in range(0, item.entry.length - 1, world.max_rows):
        rows = list(range(start, min(start + world.max_rows, item.entry.length - 1)))
        video = torch.stack([real[:, _memory(world, row).clip(min=0).tolist()] for row in rows])
        parts.append(_ask(world, [item] * len(rows), rows, video, item.actions[rows][:, None], seed)[:, :, 0])
    return torch.cat(parts).transpose(0, 1)


def _ask(
    world: WorldModel,
    items: Sequence[_Recorded],
    rows: Sequence[int],
    video: UInt8[Tensor, "b v t h w 3"],
    actions: Float[np.ndarray, "b p a"],
    seed: int,
) -> UInt8[Tensor, "b v p h w 3"]:
    """What the model imagines from one row of each item on, its memory being `video`; checked."""
    observation = Observation(
        video=video,
        state=torch.from_numpy(np.stack([item.states[row] for item, row in zip(items, rows, strict=True)])),
        task=[item.entry.task for item in items],
        known=torch.from_numpy(np.stack([_memory(world, row) >= 0 for row in rows])),
    )
    keys = [(seed * EPISODE_SEED_STRIDE + item.entry.index, row) for item, row in zip(items, rows, strict=True)]
    imagined = world.imagine(observation, torch.from_numpy(actions), keys=keys)
    wanted = (*video.shape[:2], actions.shape[1], *video.shape[3:])
    return _checked(imagined, wanted, f"imagined frames after {actions.shape[1]} actions").cpu()


def _rebuild(world: WorldModel, real: UInt8[Tensor, "v t h w 3"]) -> UInt8[Tensor, "v t h w 3"] | None:
    if world.reconstruct is None:
        return None
    parts = [part[None] for part in real.split(world.max_rows, dim=1)]
    rebuilt = [_checked(world.reconstruct(part), tuple(part.shape), "reconstructed frames")[0].cpu() for part in parts]
    return torch.cat(rebuilt, dim=1)


def _memory(world: WorldModel, row: int) -> np.ndarray:
    """Rows that the model remembers at `row`; those before the episode are negative."""
    return row - np.arange(world.num_context - 1, -1, -1) * world.context_stride


def _frames(
    world: WorldModel, dataset: EpisodeSource, entry: EpisodeEntry, rows: Sequence[int]
) -> UInt8[Tensor, "v t h w 3"]:
    """Recorded frames as the model sees them."""
    video = np.stack([dataset.frames(entry.index, camera, list(rows)) for camera in world.cameras])
    return world.seen(torch.from_numpy(video)).cpu()


def _checked(frames: Tensor, wanted: tuple[int, ...], what: str) -> Tensor:
    if frames.dtype != torch.uint8 or tuple(frames.shape) != wanted:
        raise ValueError(
            f"expected {what} of the world model as uint8 of shape {wanted} (rows, cameras, frames, height, width, "
            f"colours), got {frames.dtype} of shape {tuple(frames.shape)}"
        )
    return frames
