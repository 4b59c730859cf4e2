"""WAV as a model family: the network behind its codecs, with its verbs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wamkit.codecs.base import LatentPosterior, TextEncoder, TextTokens, VideoCodec
from wamkit.codecs.load import load_text_encoder, load_video_codec
from wamkit.draws import TrainingDraws
from wamkit.models.wav.cache import WAVCacheEncoder
from wamkit.models.wav.config import SIZES, WAVConfig
from wamkit.models.wav.control import ControlStep
from wamkit.models.wav.initial import empty_network, initialized
from wamkit.models.wav.inspection import check_initial, inspect_weights
from wamkit.models.wav.layouts import open_weights
from wamkit.models.wav.load_policy import chosen_policy
from wamkit.models.wav.losses import EncodedBatch, losses
from wamkit.models.wav.model import TextContext, WAVTransformer, part_of
from wamkit.models.wav.objective import WAVObjective
from wamkit.models.wav.validation import WindowErrors, window_errors
from wamkit.models.wav.weights import load_weights
from wamkit.typed import COPY_AGAIN, blame
from wamkit.types import Batch, ChosenNoise, Draws, Sampled
from wamkit.weight_findings import Findings

MAX_SENTENCES = 64  # kept keys and values; at full size a sentence takes 29 MB in bf16


@dataclass
class WAV:
    """A complete WAV.

    Args:
        config: sizes and window geometry.
        network: the weights that are trained and saved.
        video_codec: frozen.
        text_encoder: frozen.
    """

    SIZES: ClassVar[Mapping[str, Callable[[], WAVConfig]]] = SIZES

    config: WAVConfig
    network: WAVTransformer
    video_codec: VideoCodec
    text_encoder: TextEncoder
    _sentences: dict[str, TextContext] = field(default_factory=dict, init=False, repr=False)
    _known: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def build(
        cls,
        config: WAVConfig,
        video_codec: VideoCodec,
        text_encoder: TextEncoder,
        *,
        network: WAVTransformer | None = None,
        seed: int = 0,
    ) -> WAV:
        """A WAV behind codecs.

        Args:
            config: sizes and window geometry.
            video_codec: frozen.
            text_encoder: frozen.
            network: its weights; `None` makes fresh ones.
            seed: of fresh weights.

        Raises:
            ValueError: a codec does not fit the configuration.
        """
        wanted = (config.codec.spatial, config.codec.temporal, config.network.latent_channels)
        offered = (video_codec.spatial, video_codec.temporal, video_codec.channels)
        if wanted != offered:
            raise ValueError(f"expected a video codec with (spatial, temporal, channels) = {wanted}, got {offered}")
        wanted_text = (config.network.text_width, config.codec.text_length)
        if (text_encoder.width, text_encoder.length) != wanted_text:
            raise ValueError(
                f"expected text of (width, length) = {wanted_text}, got {(text_encoder.width, text_encoder.length)}"
            )
        if network is None:
            network = initialized(empty_network(config.network), seed)
        return cls(config=config, network=network, video_codec=video_codec, text_encoder=text_encoder)

    @classmethod
    def fit_codecs(cls, config: WAVConfig, batches: Sequence[Batch], generator: torch.Generator, folder: Path) -> None:
        """Fit or find the codecs that a configuration names, and save them.

        Args:
            config: names the codecs.
            batches: windows that a fitted codec learns from; they need future frames.
            generator: of the fit's subsample.
            folder: where `create` and `load` read them.

        Raises:
            ValueError: pretrained codecs are named without their folder.
        """
        codec = config.codec
        if not codec.pretrained and (codec.video, codec.text) != ("patch", "hash"):
            raise ValueError(
                f"codecs {codec.video!r} and {codec.text!r} are pretrained: set model.codec.pretrained to their folder"
            )
        video: VideoCodec
        text: TextEncoder
        if codec.video == "patch":
            from wamkit.codecs.patch import PatchCodec, PatchCodecConfig

            settings = PatchCodecConfig(
                patch=codec.spatial, temporal=codec.temporal, channels=config.network.latent_channels
            )
            clips = [batch.future for batch in batches if batch.future is not None]
            contexts = [batch.context for batch in batches if batch.context is not None]
            frames = rearrange(torch.cat(contexts), "b v t h w c -> (b v t) h w c")
            video = PatchCodec.fit(
                frames,
                rearrange(torch.cat(clips), "b v t h w c -> (b v) t h w c"),
                config=settings,
                generator=generator,
            )
        else:
            from wamkit.codecs.video_ltx import LTXVideoCodec

            video = LTXVideoCodec.from_pretrained(Path(codec.pretrained))
        if codec.text == "hash":
            from wamkit.codecs.text_hash import HashedTextEncoder

            text = HashedTextEncoder(width=config.network.text_width, length=codec.text_length)
        else:
            from wamkit.codecs.text_t5 import T5TextEncoder

            text = T5TextEncoder.from_pretrained(Path(codec.pretrained), length=codec.text_length)
        video.save(folder / "video")
        text.save(folder / "text")

    @classmethod
    def create(
        cls,
        config: WAVConfig,
        codecs: Path,
        *,
        seed: int,
        initial: Path | None = None,
        profile: str = "exact",
        may_resize: Sequence[str] = (),
        dtype: torch.dtype | None = None,
    ) -> WAV:
        """A WAV to be trained, behind saved codecs.

        Args:
            config: sizes and window geometry.
            codecs: what `fit_codecs` or `save_codecs` wrote.
            seed: of fresh weights.
            initial: weights to start from; see `layouts.open_weights`.
            profile: what kind of weights those are, which says what they may lack; the seed gives it fresh.
            may_resize: modules of other shapes in them, fresh too.
            dtype: of the network's values; float32 when `None`.

        Raises:
            FileNotFoundError: nothing at `initial`.
            ValueError: an unknown profile, or codecs or weights do not fit the configuration.
        """
        network = empty_network(config.network)
        if initial is None:
            initialized(network, seed).to(dtype or torch.float32)
        else:
            policy = chosen_policy(profile, may_resize)
            load_weights(network, open_weights(initial), source=str(initial), policy=policy, seed=seed, dtype=dtype)
        video, text = load_video_codec(codecs / "video"), load_text_encoder(codecs / "text")
        return cls.build(config, video, text, network=network)

    @classmethod
    def cache_encoder(cls, config: WAVConfig, codecs: Path, device: torch.device | str) -> WAVCacheEncoder:
        """What makes a cache of a dataset out of saved codecs.

        Args:
            config: the configuration that the codecs are for.
            codecs: what `fit_codecs` or `save_codecs` wrote.
            device: where they run.

        Raises:
            FileNotFoundError: no codecs there.
            ValueError: they are damaged.
        """
        return WAVCacheEncoder(
            video_codec=load_video_codec(codecs / "video", device),
            text_encoder=load_text_encoder(codecs / "text", device),
        )

    @classmethod
    def check_initial(cls, config: WAVConfig, path: Path, *, profile: str, may_resize: Sequence[str]) -> None:
        """Refuse initial weights that `create` could not start from; see `inspection.check_initial`."""
        check_initial(config, path, profile=profile, may_resize=may_resize)

    @classmethod
    def inspect(
        cls,
        config: WAVConfig,
        path: Path,
        *,
        profile: str | None = None,
        may_resize: Sequence[str] = (),
        read: bool = False,
    ) -> Findings:
        """What weights are, and whether `create` can start from them; see `inspection.inspect_weights`."""
        return inspect_weights(config, path, profile=profile, may_resize=may_resize, read=read)

    @classmethod
    def read_config(cls, data: dict[str, Any]) -> WAVConfig:
        """The configuration in a policy folder; it holds itself to the folder's spec with `check_spec`.

        Raises:
            ValueError: a key is missing or unknown, or a value of another type or out of range.
        """
        return WAVConfig.from_dict(data)

    @classmethod
    def load(
        cls,
        config: WAVConfig,
        weights: Mapping[str, Tensor],
        codecs: Path,
        *,
        source: str,
        dtype: torch.dtype | None = None,
        pretrained: Path | None = None,
    ) -> WAV:
        """A WAV from the pieces of a policy folder.

        Args:
            config: sizes and window geometry.
            weights: by official name.
            codecs: what `save_codecs` wrote.
            source: name for messages.
            dtype: of the network's values; float32 when `None`, whatever the weights are stored as.
            pretrained: where pretrained codecs lie now, when they have moved.

        Raises:
            ValueError: configuration, codecs and weights do not fit each other.
        """
        network = empty_network(config.network)
        load_weights(network, weights, source=source, dtype=dtype)
        video = load_video_codec(codecs / "video", pretrained=pretrained)
        text = load_text_encoder(codecs / "text", pretrained=pretrained)
        with blame(f"{source}: codecs do not fit config.json", COPY_AGAIN):
            return cls.build(config, video, text, network=network)

    def save_codecs(self, folder: Path) -> None:
        """Write what `load` needs of the codecs."""
        self.video_codec.save(folder / "video")
        self.text_encoder.save(folder / "text")

    def to(self, device: torch.device | str) -> WAV:
        """Move network and codecs; returns itself."""
        self.forget()
        self.network.to(device)
        self.video_codec = self.video_codec.to(device)
        self.text_encoder = self.text_encoder.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return self.network.proj_in.weight.device

    @property
    def reads_state(self) -> bool:
        """Whether the state stands before the action tokens."""
        return self.config.has_state_token

    def parts(self) -> dict[str, list[str]]:
        """Parameter names of the video stream, the value expert and the action expert."""
        parts: dict[str, list[str]] = {}
        for name, _ in self.network.named_parameters():
            parts.setdefault(part_of(name), []).append(name)
        return parts

    def loss(
        self, batch: Batch, objective: WAVObjective, draws: TrainingDraws
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The stage's loss on a batch of windows, and its parts."""
        self.forget()
        return losses(self.network, self.config, self.encode(batch.to(self.device), draws), objective, draws)

    @torch.no_grad()
    def encode(self, batch: Batch, draws: TrainingDraws | None = None) -> EncodedBatch:
        """Run the frozen codecs over a batch.

        Args:
            batch: windows.
            draws: draws from the autoencoder's posterior, as training does; `None` takes its mode.
        """
        num_rows = len(batch.task)
        memory, future, text, empty = self._looked_up(batch) if batch.encoded is not None else self._computed(batch)
        drawn = _drawn(memory, draws, "memory posterior", num_rows)
        ahead = None if future is None else _drawn(future, draws, "future posterior", num_rows)
        return EncodedBatch(
            memory=rearrange(drawn, "(b v t) k y x -> b v k t y x", b=num_rows, t=self.config.num_context),
            future=None if ahead is None else rearrange(ahead, "(b v) k f y x -> b v k f y x", b=num_rows),
            text=text.tokens,
            text_mask=text.mask,
            empty_text=empty.tokens,
            empty_mask=empty.mask,
            state=batch.state,
            actions=torch.cat((batch.actions, batch.future_state), dim=-1)
            if self.config.concatenates_state
            else batch.actions,
            is_padded=batch.is_padded,
            value_targets=batch.value_targets,
        )

    def with_weights(self, weights: Mapping[str, Tensor]) -> WAV:
        """This WAV with other weights behind the same codecs, for evaluation; it shares their memory where it can."""
        network = empty_network(self.config.network)
        network.load_state_dict({name: tensor.detach() for name, tensor in weights.items()}, strict=True, assign=True)
        network.eval().requires_grad_(False)
        return WAV(config=self.config, network=network, video_codec=self.video_codec, text_encoder=self.text_encoder)

    def validate(
        self, batch: Batch, *, streams: Collection[str], num_steps: int, rows_at_once: int = 16
    ) -> dict[str, Any]:
        """Errors on windows that were not trained on, see `validation.WindowErrors.summary`.

        Args:
            batch: windows with their future.
            streams: of `video`, `value` and `action`.
            num_steps: Euler steps.
            rows_at_once: windows computed at once.
        """
        num_rows = len(batch.task)
        parts = []
        for start in range(0, num_rows, rows_at_once):
            rows = range(start, min(start + rows_at_once, num_rows))
            encoded = self.encode(batch.rows(rows).to(self.device))
            errors = window_errors(
                self.network, self.config, encoded, streams=streams, rows=rows, num_rows=num_rows, num_steps=num_steps
            )
            parts.append(errors)
        return WindowErrors.joined(parts).summary(self.config)

    def _computed(self, batch: Batch) -> tuple[LatentPosterior, LatentPosterior | None, TextTokens, TextTokens]:
        """Memory, future, sentences and the empty sentence, by the codecs."""
        if batch.context is None:
            raise ValueError("expected a batch of frames or of their latents, got neither")
        memory = self.video_codec.posterior_frames(rearrange(batch.context, "b v t h w c -> (b v t) h w c"))
        future = None
        if batch.future is not None:
            future = self.video_codec.posterior_clip(rearrange(batch.future, "b v t h w c -> (b v) t h w c"))
        return memory, future, self.text_encoder.encode(batch.task), self.text_encoder.encode([""])

    def _looked_up(self, batch: Batch) -> tuple[LatentPosterior, LatentPosterior | None, TextTokens, TextTokens]:
        """The same from a cache."""
        encoded = batch.encoded
        assert encoded is not None
        memory = _posterior(rearrange(encoded.context, "b v t q k y x -> q (b v t) k y x"))
        future = None
        if encoded.future is not None:
            future = _posterior(rearrange(encoded.future, "b v q k f y x -> q (b v) k f y x"))
        assert encoded.text is not None and encoded.text_mask is not None, "WAV's caches hold text"
        assert encoded.empty_text is not None and encoded.empty_mask is not None
        text = TextTokens(tokens=encoded.text, mask=encoded.text_mask)
        return memory, future, text, TextTokens(tokens=encoded.empty_text, mask=encoded.empty_mask)

    @torch.no_grad()
    def encode_frames(self, video: UInt8[Tensor, "b v t h w c"]) -> Float[Tensor, "b v k t y x"]:
        """Encode every frame on its own, as memory frames are; the posterior's mode."""
        flat = self.video_codec.encode_frames(rearrange(video, "b v t h w c -> (b v t) h w c"))
        return rearrange(flat, "(b v t) k y x -> b v k t y x", b=video.shape[0], v=video.shape[1])

    @torch.no_grad()
    def control_step(
        self,
        memory: Float[Tensor, "b v k t y x"],
        state: Float[Tensor, "b s"],
        task: list[str],
        num_steps: int,
        *,
        max_rows: int = 32,
        known: Bool[Tensor, "b t"] | None = None,
    ) -> WAVControl:
        """Encode what does not change while one chunk is planned and decoded.

        Args:
            memory: from `encode_frames`, the newest frame last.
            state: normalised.
            task: one sentence per row.
            num_steps: Euler steps.
            max_rows: imagined videos computed at once.
            known: not read; as in training, frames that only fill the memory are frames like others.
        """
        token = None
        if self.config.has_state_token:
            token = torch.nn.functional.pad(state, (self.config.num_zeros_before_state, 0))[:, None]
        return WAVControl(self, memory, self.read_tasks(task), token, num_steps, max_rows, self._known)

    def read_tasks(self, task: list[str]) -> TextContext:
        """Text keys and values of every row; each sentence is encoded and projected once."""
        new = [sentence for sentence in dict.fromkeys(task) if sentence not in self._sentences]
        if len(self._sentences) + len(new) > MAX_SENTENCES:
            self._sentences.clear()
            new = list(dict.fromkeys(task))
        for sentence in new:  # one by one, so that no sentence depends on those it was first met with
            text = self.text_encoder.encode([sentence])
            self._sentences[sentence] = self.network.read_text(text.tokens, text.mask, keep=True)
        return TextContext.joined([self._sentences[sentence] for sentence in task])

    def forget(self) -> None:
        """Drop what was computed from the weights; they are about to change or move."""
        self._sentences.clear()
        self._known.clear()

    @torch.no_grad()
    def decode_future(self, latents: Float[Tensor, "b v k f y x"]) -> UInt8[Tensor, "b v t h w c"]:
        """Future latents to frames."""
        flat = self.video_codec.decode_clip(rearrange(latents, "b v k f y x -> (b v) k f y x"))
        return rearrange(flat, "(b v) t h w c -> b v t h w c", b=len(latents))


class WAVControl(ControlStep):
    """A control step of a complete WAV: it knows the action layout and how to decode imagined frames."""

    def __init__(
        self,
        model: WAV,
        memory: Tensor,
        text: TextContext,
        state_token: Tensor | None,
        num_steps: int,
        max_rows: int,
        known: dict[tuple[Any, ...], Any],
    ):
        super().__init__(
            model.network,
            memory=memory,
            num_future_latents=model.config.num_future_latents,
            value_length=len(model.config.value_steps),
            text=text,
            state_token=state_token,
            num_steps=num_steps,
            max_rows=max_rows,
            known=known,
        )
        self.model = model

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
        """Decode one chunk, from drawn noise or from the noise a planner chose.

        Args:
            draws: streams `video`, `value` (unless chosen) and `action`.
            chosen: initial latents and value noise.
            value: also denoise the value properly, from the same noise.
            imagine: the same, and the future video too.
            guidance: of the imagined video by the sentence, see `ControlStep.imagine`; actions and value know none.
        """
        views, channels, frames, height, width = self.video_shape
        has_value = self.network.config.value is not None
        value_noise: Tensor | None = None
        if chosen is not None:
            video, value_noise = chosen.video, chosen.value
        else:
            noise = draws("video", (views, channels, frames - self.num_memory, height, width))
            video = self.with_memory(noise[:, None])[:, 0]
            value_noise = draws("value", self.value_shape) if has_value else None
        action_noise = draws("action", (self.model.config.action_horizon, self.network.action.config.channels))
        decoded = self.decode(
            video,
            action_noise=action_noise,
            value_noise=value_noise,
            with_value=(value or imagine) and has_value,
            features=None if chosen is None else chosen.features,
        )
        actions = decoded.actions[..., : self.model.config.action_dim]
        if not imagine:
            return Sampled(actions=actions, value=decoded.value)
        states = decoded.actions[..., self.model.config.action_dim :]
        empty = self.model.read_tasks([""]) if guidance != 1 else None
        stride, count = self.model.config.future_stride, self.model.config.num_future
        return Sampled(
            actions=actions,
            states=states if states.shape[-1] else None,
            value=decoded.value,
            future=self.model.decode_future(self.imagine(video, guidance=guidance, empty=empty)),
            future_steps=tuple(range(stride, stride * count + 1, stride)),
        )


def _posterior(stacked: Float[Tensor, "q n k ..."]) -> LatentPosterior:
    """From mean and, if there is one, standard deviation; sums of what a cache holds in bf16 are in fp32."""
    mean, *std = stacked.float()
    return LatentPosterior(mean=mean, std=std[0] if std else None)


def _drawn(posterior: LatentPosterior, draws: TrainingDraws | None, stream: str, num_rows: int) -> Tensor:
    """The mode, or latents drawn row by row of the batch."""
    if draws is None or posterior.std is None:
        return posterior.mean
    shape = (len(posterior.mean) // num_rows, *posterior.mean.shape[1:])
    return posterior.sample(draws(stream, shape).flatten(0, 1).to(posterior.mean.device))


FAMILY = WAV
