"""One decision of a WorldVLA: prompts read once, a chunk of actions decoded, frames imagined along it.

Source: WorldVLA (arXiv 2506.21539), section 3.2; section 4 of the specification.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.models.worldvla.decode import decode_actions, decode_frame, prefill, sampler
from wamkit.models.worldvla.network import WorldVLATransformer
from wamkit.models.worldvla.sequence import SequenceBuilder
from wamkit.types import ChosenNoise, Draws, Sampled


@runtime_checkable
class Decodes(Protocol):
    """What a decision needs of the family."""

    @property
    def config(self) -> WorldVLAConfig: ...

    @property
    def network(self) -> WorldVLATransformer: ...

    @property
    def builder(self) -> SequenceBuilder: ...

    def decode_frames(self, encoded: Int[Tensor, "b v 1 t y x"]) -> UInt8[Tensor, "b v t h w c"]: ...


class WorldVLAControl:
    """A control step; every prompt is padded to the longest there can be, so that no row depends on its neighbours.

    Args:
        model: the family object.
        memory: codes of the remembered frames, the newest last.
        state: normalised.
        task: one sentence per row.
        max_rows: frames imagined at once.
        known: which frames were really seen.
    """

    def __init__(
        self,
        model: Decodes,
        memory: Int[Tensor, "b v 1 t y x"],
        state: Float[Tensor, "b s"],
        task: list[str],
        *,
        max_rows: int,
        known: Bool[Tensor, "b t"] | None = None,
    ) -> None:
        self._model, self._memory, self._max_rows = model, memory, max_rows
        config, builder = model.config, model.builder
        frames = rearrange(memory, "b v 1 t y x -> b t v y x")
        seen = torch.ones(frames.shape[:2], dtype=torch.bool) if known is None else known.cpu()
        rows = [
            builder.action_prompt(sentence, frames[row, seen[row].to(frames.device)], state[row])
            for row, sentence in enumerate(task)
        ]
        prompts = builder.prompts(rows, config.action_prompt_length)
        by_head = config.acts_by == "head"
        room = 0 if by_head else config.action_horizon * config.block_length
        self._prefix = prefill(model.network, prompts, room=room)

    @torch.no_grad()
    def sample(
        self,
        draws: Draws,
        chosen: ChosenNoise | None = None,
        *,
        value: bool = False,
        imagine: bool = False,
        guidance: float = 1.0,
    ) -> Sampled:
        """Decode one chunk.

        Args:
            draws: of ids that are drawn; streams `actionN` and `frameN.codeM`.
            chosen: without effect; there is no noise to choose.
            value: without effect; there are no values.
            imagine: also imagine the frame that follows each action.
            guidance: of imagined frames by what is asked, see `decode.decode_frame`.
        """
        actions = self._actions(draws)
        if not imagine:
            return Sampled(actions=actions)
        codes = imagine_along(self._model, self._memory, actions, draws, max_rows=self._max_rows, guidance=guidance)
        return Sampled(
            actions=actions,
            future=self._model.decode_frames(rearrange(codes, "b p v y x -> b v 1 p y x")),
            future_steps=tuple(range(1, actions.shape[1] + 1)),
        )

    def _actions(self, draws: Draws) -> Float[Tensor, "b p a"]:
        network, builder, config = self._model.network, self._model.builder, self._model.config
        if config.acts_by == "head":
            assert network.action_head is not None
            return builder.signed(network.action_head(self._prefix.hidden, self._prefix.visible).float())
        choose = sampler(uniform(draws), temperature=config.decoding.temperature)
        return builder.actions_of(decode_actions(network, builder, self._prefix, choose=choose))


@torch.no_grad()
def imagine_along(
    model: Decodes,
    memory: Int[Tensor, "b v 1 t y x"],
    actions: Float[Tensor, "b p a"],
    draws: Draws,
    *,
    max_rows: int,
    guidance: float = 1.0,
) -> Int[Tensor, "b p v y x"]:
    """The codes of the frame behind each action; each frame is imagined from the latest pairs alone.

    Args:
        model: the family object.
        memory: codes; the newest frame is gone on from.
        actions: normalised.
        draws: streams `frameN.codeM`.
        max_rows: rows computed at once.
        guidance: see `decode.decode_frame`.
    """
    config, builder, decoding = model.config, model.builder, model.config.decoding
    current = rearrange(memory, "b v 1 t y x -> b t v y x")[:, -1]
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.num_future)
    frames = []
    for step in range(actions.shape[1]):
        pairs.append((current, actions[:, step]))
        seen, done = (torch.stack(column, dim=1) for column in zip(*pairs, strict=True))
        prompts = builder.prompts(
            [builder.world_prompt(seen[row], done[row]) for row in range(len(actions))], config.world_prompt_length
        )
        parts = []
        for start in range(0, len(actions), max_rows):
            rows = slice(start, start + max_rows)
            numbers = uniform(draws, f"frame{step}.", rows)
            choose = sampler(numbers, temperature=decoding.image_temperature, top_k=decoding.image_top_k)
            parts.append(decode_frame(model.network, builder, prompts.rows(rows), choose=choose, guidance=guidance))
        current = torch.cat(parts)
        frames.append(current)
    return torch.stack(frames, dim=1)


def uniform(
    draws: Draws, prefix: str = "", rows: slice = slice(None)
) -> Callable[[str, tuple[int, ...]], Float[Tensor, "b ..."]]:
    """Numbers of (0, 1) from standard normal ones, for some of the rows."""

    def numbers(step: str, shape: tuple[int, ...]) -> Tensor:
        return torch.special.ndtr(draws(f"{prefix}{step}", shape)[rows].double())

    return numbers
