"""One control step of WAV: the video stream is read once at pure noise, its keys and values kept for every denoising
step.

Source: WAV (arXiv 2604.14732), section 3.3 and its public pipeline.
Differs: nothing is computed twice. Keys and values of the video stream are projected once per layer and candidate and
shared by all value samples and denoising steps; text keys and values are computed once per sentence, modulations and
rotary tables once per model, memory latents once per frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from wamkit.flow import euler, sigma_schedule
from wamkit.models.wav.experts import Condition, ExpertStream, ExpertTokens
from wamkit.models.wav.model import TextContext, WAVTransformer
from wamkit.nn.attention import KeyValue
from wamkit.nn.modulation import Modulation, Timesteps
from wamkit.nn.rope import Rotation
from wamkit.types import InputError

Known = TypeVar("Known")


def to_tokens(latents: Float[Tensor, "*b c f h w"]) -> Float[Tensor, "*b l c"]:
    """Latent frames to tokens ordered frame, row, column."""
    return rearrange(latents, "... c f h w -> ... (f h w) c")


def to_latents(tokens: Float[Tensor, "*b l c"], height: int, width: int) -> Float[Tensor, "*b c f h w"]:
    """Inverse of `to_tokens`."""
    return rearrange(tokens, "... (f h w) c -> ... c f h w", h=height, w=width)


@dataclass(frozen=True, kw_only=True)
class KeptFeatures:
    """What one pass of the video stream at pure noise leaves, one entry per layer.

    Args:
        value: keys and values for the value expert; empty when not asked for.
        action: the same for the action expert.
        hidden: hidden states, for an expert that may read them later.
    """

    value: tuple[KeyValue, ...] = ()
    action: tuple[KeyValue, ...] = ()
    hidden: tuple[Float[Tensor, "b l d"], ...] = ()

    def rows(self, index: list[int]) -> KeptFeatures:
        """Those of some candidates, copied, so that the others may be dropped."""
        return KeptFeatures(
            value=tuple(kept.rows(index) for kept in self.value),
            action=tuple(kept.rows(index) for kept in self.action),
            hidden=tuple(x[index] for x in self.hidden),
        )

    @classmethod
    def joined(cls, parts: Sequence[KeptFeatures]) -> KeptFeatures:
        """Several, one after the other."""
        return cls(
            value=tuple(map(KeyValue.joined, zip(*(part.value for part in parts), strict=True))),
            action=tuple(map(KeyValue.joined, zip(*(part.action for part in parts), strict=True))),
            hidden=tuple(map(torch.cat, zip(*(part.hidden for part in parts), strict=True))),
        )


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a control step yields.

    Args:
        actions: denoised action tokens (action channels, then state channels), normalised.
        value: denoised value tokens, or `None` when not asked for.
    """

    actions: Float[Tensor, "b p a"]
    value: Float[Tensor, "b y z"] | None


class ControlStep:
    """An encoded observation (a batch of them), ready to be searched over and decoded.

    Args:
        network: the transformer, in evaluation mode.
        memory: memory latents, normalised.
        num_future_latents: future latent frames.
        value_length: value tokens.
        text: from `WAVTransformer.read_text(…, keep=True)`.
        state_token: zeros in the action channels, normalised current state in the rest; `None` for models without.
        num_steps: Euler steps for actions and values.
        max_rows: video rows (observation x candidate) per forward pass; bounds memory whatever the number of
            candidates.
        known: what follows from the weights and from sizes alone (modulations, rotary tables), as earlier control steps
            of the same network have left it; what is missing is added. Empty it when the weights change.
    """

    def __init__(
        self,
        network: WAVTransformer,
        *,
        memory: Float[Tensor, "b v c f h w"],
        num_future_latents: int,
        value_length: int,
        text: TextContext,
        state_token: Float[Tensor, "b 1 a"] | None,
        num_steps: int = 10,
        max_rows: int = 32,
        known: dict[tuple[Any, ...], Any] | None = None,
    ):
        self.network = network
        self.memory = memory
        self.text = text
        self.state_token = state_token
        self.sigmas = sigma_schedule(num_steps)
        if max_rows < 1:
            raise ValueError(f"expected max_rows of 1 or more, got {max_rows}")
        self.max_rows = max_rows
        self.value_length = value_length
        self.num_memory = memory.shape[3]
        self.grid = (self.num_memory + num_future_latents, memory.shape[4], memory.shape[5])
        self._known = {} if known is None else known

    @property
    def video_shape(self) -> tuple[int, ...]:
        """Shape of one candidate's latents, memory included: `v c f h w`."""
        _, views, channels, _, height, width = self.memory.shape
        return views, channels, self.grid[0], height, width

    @property
    def rotation(self) -> Rotation:
        """The video stream's rotary table."""
        return self._once(("rotation", self.grid), lambda: self.network.rotation(self.grid, self.memory.device))

    def modulation(self, sigma: float) -> Modulation:
        """Video modulation with clean memory frames and future frames at `sigma`; one row serves every candidate."""
        area, views = self.grid[1] * self.grid[2], self.memory.shape[1]
        num_clean, num_noisy = self.num_memory * area, (self.grid[0] - self.num_memory) * area

        def compute() -> Modulation:
            timesteps = Timesteps.clean_then(num_clean, self._level(sigma), num_noisy)
            return self.network.video_modulation(timesteps, views)

        return self._once(("modulation", views, num_clean, num_noisy, sigma), compute)

    def with_memory(self, video: Float[Tensor, "b g v c f h w"]) -> Float[Tensor, "b g v c frames h w"]:
        """Put the memory latents in front of future latents, or over the first frames of complete ones."""
        future = video[..., -(self.grid[0] - self.num_memory) :, :, :]
        memory = repeat(self.memory, "b v c f h w -> b g v c f h w", g=video.shape[1])
        return torch.cat((memory.to(future.dtype), future), dim=-3)

    @torch.no_grad()
    def features(
        self, video: Float[Tensor, "b v c f h w"], *, value: bool, action: bool, hidden: bool = False
    ) -> KeptFeatures:
        """One pass of the video stream at pure noise; hidden states are dropped as soon as they are projected.

        Args:
            video: initial latents (normalised), memory included.
            value: project for the value expert.
            action: project for the action expert.
            hidden: keep the hidden states themselves.
        """
        values, actions, states = [], [], []
        layers = self.network.video_layers(to_tokens(video), self.modulation(1.0), self.text, self.rotation)
        for i, x in enumerate(layers):
            state = rearrange(x, "b v l d -> b (v l) d")
            if value:
                values.append(self.network.value.keep_video(i, state))
            if action:
                actions.append(self.network.action.keep_video(i, state))
            if hidden:
                states.append(state)
        return KeptFeatures(value=tuple(values), action=tuple(actions), hidden=tuple(states))

    @property
    def value_shape(self) -> tuple[int, int]:
        """Tokens and channels of one value noise.

        Raises:
            InputError: the network has no value expert.
        """
        if self.network.config.value is None:
            raise InputError("this policy has no value expert, so there is nothing to plan by; leave the planner out")
        return self.value_length, self.network.value.config.channels

    @torch.no_grad()
    def values(
        self,
        video: Float[Tensor, "b g v c f h w"],
        noise: Float[Tensor, "b g n y z"],
        num_steps: int | None = None,
        watch: Callable[[slice, Tensor, KeptFeatures], None] | None = None,
    ) -> Float[Tensor, "b g n y z"]:
        """Denoise value tokens of every candidate and sample; the `n` samples of a candidate share its features.

        Candidates are processed in micro-batches, each reduced to its value curves before the next one starts, so that
        memory does not grow with their number.

        Args:
            video: initial latents of the candidates, memory included.
            noise: initial value noise.
            num_steps: Euler steps; as many as for actions when `None`.
            watch: called with each micro-batch (its candidates, their values and features) before it is dropped.
        """
        sigmas = self.sigmas if num_steps is None else sigma_schedule(num_steps)
        batch, groups, samples = noise.shape[:3]
        chunk = max(1, self.max_rows // batch)
        curves = []
        for start in range(0, groups, chunk):
            part = slice(start, start + chunk)
            rows = rearrange(video[:, part], "b g v c f h w -> (b g) v c f h w")
            kept = self.features(rows, value=True, action=False, hidden=watch is not None)
            flat = rearrange(noise[:, part], "b g n y z -> (b g n) y z")
            flat = euler(flat, partial(self._value_velocity, kept.value), sigmas)
            curves.append(rearrange(flat, "(b g n) y z -> b g n y z", b=batch, n=samples))
            if watch is not None:
                watch(part, curves[-1], kept)
            del kept  # before the next micro-batch is read, or two of them would be held
        return torch.cat(curves, dim=1)

    @torch.no_grad()
    def decode(
        self,
        video: Float[Tensor, "b v c f h w"],
        *,
        action_noise: Float[Tensor, "b p a"],
        value_noise: Float[Tensor, "b y z"] | None,
        with_value: bool = False,
        features: KeptFeatures | None = None,
    ) -> Decoded:
        """Denoise actions from one video noise and one value noise.

        The action expert reads the value features of the *first* step at every step, as the released model was trained
        to. With `with_value` the value is then denoised properly by further value steps.

        Args:
            video: initial latents (normalised), memory included.
            action_noise: initial action tokens.
            value_noise: initial value tokens; `None` for a model without a value expert.
            with_value: also return the denoised value.
            features: of `video`, with hidden states, when a search has read it already.
        """
        network, value = self.network, None
        if features is None:
            kept = self.features(video, value=value_noise is not None, action=True)
        else:
            action = tuple(network.action.keep_video(i, x) for i, x in enumerate(features.hidden))
            kept = KeptFeatures(value=features.value, action=action)
        value_features = None
        if value_noise is not None:
            first, hidden = self._value_step(value_noise, 1.0, kept.value, keep=True)
            value_features = network.action.keep_value(hidden)
            if with_value:
                value = value_noise + (self.sigmas[1] - 1.0) * first
                value = euler(value, partial(self._value_velocity, kept.value), self.sigmas[1:])

        def velocity(x: Tensor, sigma: float) -> Tensor:
            given = ExpertTokens(tokens=x, timestep=self._level(sigma), state_token=self.state_token)
            condition = self._condition("action", network.action, given, sigma)
            return network.action.run(given, kept.action, value_features, condition=condition)[0]

        return Decoded(actions=euler(action_noise, velocity, self.sigmas), value=value)

    @torch.no_grad()
    def imagine(
        self,
        video: Float[Tensor, "b v c f h w"],
        num_steps: int | None = None,
        *,
        guidance: float = 1.0,
        empty: TextContext | None = None,
    ) -> Float[Tensor, "b v c future h w"]:
        """Denoise the future video, memory frames held clean.

        Args:
            video: initial latents (normalised), memory included.
            num_steps: Euler steps; as many as for actions when `None`.
            guidance: classifier-free guidance on the sentence, s in v(empty) + s (v(sentence) - v(empty)); 1 is off
                and costs nothing.
            empty: the empty sentence, read as `text` was; guidance needs it.

        Returns:
            Future latents, normalised.

        Raises:
            ValueError: guidance without the empty sentence.
        """
        if guidance != 1 and empty is None:
            raise ValueError(f"guidance of {guidance} needs the empty sentence to guide away from, got none")
        sigmas = self.sigmas if num_steps is None else sigma_schedule(num_steps)
        area = self.grid[1] * self.grid[2]
        clean = to_tokens(video)[..., : self.num_memory * area, :]

        def told(future: Tensor, modulation: Modulation, text: TextContext) -> Tensor:
            tokens = torch.cat((clean, future), dim=-2)
            *_, x = self.network.video_layers(tokens, modulation, text, self.rotation)
            return self.network.video_head(x, modulation)[..., clean.shape[-2] :, :]

        def velocity(future: Tensor, sigma: float) -> Tensor:
            modulation = self.modulation(sigma)
            sentence = told(future, modulation, self.text)
            if guidance == 1 or empty is None:
                return sentence
            return torch.lerp(told(future, modulation, empty), sentence, guidance)

        future = euler(to_tokens(video)[..., clean.shape[-2] :, :], velocity, sigmas)
        return to_latents(future, *self.grid[1:])

    def _value_step(
        self, x: Tensor, sigma: float, kept: Sequence[KeyValue], keep: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        given = ExpertTokens(tokens=x, timestep=self._level(sigma))
        condition = self._condition("value", self.network.value, given, sigma)
        return self.network.value.run(given, kept, keep=keep, condition=condition)

    def _value_velocity(self, kept: Sequence[KeyValue], x: Tensor, sigma: float) -> Tensor:
        return self._value_step(x, sigma, kept)[0]

    def _condition(self, name: str, expert: ExpertStream, given: ExpertTokens, sigma: float) -> Condition:
        length, num_clean = given.tokens.shape[1], int(given.state_token is not None)
        return self._once((name, length, num_clean, sigma), lambda: expert.condition(given.timestep, length, num_clean))

    def _once(self, key: tuple[Any, ...], compute: Callable[[], Known]) -> Known:
        if key not in self._known:
            self._known[key] = compute()
        return cast(Known, self._known[key])

    def _level(self, sigma: float) -> Tensor:
        # one level serves every row: all rows are at the same step
        return torch.full((1,), 1000.0 * sigma, device=self.memory.device)
