"""WorldVLA as a model family: the network behind its tokenisers, with its verbs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from wamkit.codecs.action_bins import ClipCounter
from wamkit.codecs.base import ImageTokenizer
from wamkit.codecs.load import load_image_tokenizer
from wamkit.codecs.text_tokens import TextTokenizer, load_text_tokenizer
from wamkit.codecs.vocabulary import VocabSpec
from wamkit.draws import TrainingDraws
from wamkit.models.worldvla.cache import WorldVLACacheEncoder
from wamkit.models.worldvla.codecs import fit_image_tokenizer, make_text_tokenizer
from wamkit.models.worldvla.config import SIZES, WorldVLAConfig
from wamkit.models.worldvla.control import WorldVLAControl, imagine_along
from wamkit.models.worldvla.losses import losses
from wamkit.models.worldvla.network import WorldVLATransformer, empty_network, initialized, part_of
from wamkit.models.worldvla.objective import WorldVLAObjective
from wamkit.models.worldvla.samples import EncodedBatch, token_batch
from wamkit.models.worldvla.sequence import SequenceBuilder
from wamkit.models.worldvla.validation import TokenErrors, token_errors
from wamkit.models.worldvla.weights import check_fit, inspect_weights, load_weights, open_weights
from wamkit.typed import COPY_AGAIN, blame
from wamkit.types import Batch, Draws
from wamkit.weight_findings import Findings


@dataclass
class WorldVLA:
    """A complete WorldVLA.

    Args:
        config: sizes and layout.
        network: the weights that are trained and saved.
        image_tokenizer: frozen.
        text_tokenizer: frozen.
    """

    SIZES: ClassVar[Mapping[str, Callable[[], WorldVLAConfig]]] = SIZES

    config: WorldVLAConfig
    network: WorldVLATransformer
    image_tokenizer: ImageTokenizer
    text_tokenizer: TextTokenizer
    vocabulary: VocabSpec = field(init=False, repr=False)
    builder: SequenceBuilder = field(init=False, repr=False)
    clipped: dict[str, ClipCounter] = field(init=False, repr=False)
    """What was put into bins outside training, `states` and `actions`."""

    def __post_init__(self) -> None:
        """Hold the pieces to each other.

        Raises:
            ValueError: a tokeniser does not fit the configuration.
        """
        config, image = self.config, self.image_tokenizer
        wanted, offered = (config.codec.spatial, config.codec.num_codes), (image.spatial, image.num_codes)
        if wanted != offered:
            raise ValueError(f"expected an image tokeniser with (spatial, num_codes) = {wanted}, got {offered}")
        self.vocabulary = VocabSpec.from_vocabulary(self.text_tokenizer.vocabulary, num_codes=config.codec.num_codes)
        self.vocabulary.check_fit(config.network.vocab_size, num_codes=image.num_codes)
        self.builder = SequenceBuilder(config, self.vocabulary, self.text_tokenizer)
        self.clipped = {what: ClipCounter(what, self.builder.bins) for what in ("states", "actions")}

    @classmethod
    def fit_codecs(
        cls, config: WorldVLAConfig, batches: Sequence[Batch], generator: torch.Generator, folder: Path
    ) -> None:
        """Fit or find the tokenisers that a configuration names, and save them.

        Args:
            config: names the tokenisers.
            batches: windows whose frames a fitted tokeniser learns from.
            generator: of the fit.
            folder: where `create` and `load` read them.

        Raises:
            FileNotFoundError: no pretrained tokenisers in the folder that the configuration names.
            ValueError: pretrained tokenisers are named without a folder, or do not fit; or a task is too long. Nothing
                was fitted then.
        """
        text = make_text_tokenizer(config)
        vocabulary = VocabSpec.from_vocabulary(text.vocabulary, num_codes=config.codec.num_codes)
        vocabulary.check_fit(config.network.vocab_size, num_codes=config.codec.num_codes)
        SequenceBuilder(config, vocabulary, text).check_sentences(task for batch in batches for task in batch.task)
        frames = [
            rearrange(video, "b v t h w c -> (b v t) h w c")
            for batch in batches
            for video in (batch.context, batch.future)
            if video is not None
        ]
        image = fit_image_tokenizer(config, torch.cat(frames) if frames else None, generator)
        image.save(folder / "image")
        text.save(folder / "text")

    @classmethod
    def create(
        cls,
        config: WorldVLAConfig,
        codecs: Path,
        *,
        seed: int,
        initial: Path | None = None,
        profile: str = "exact",
        may_resize: Sequence[str] = (),
        dtype: torch.dtype | None = None,
    ) -> WorldVLA:
        """A WorldVLA to be trained, behind saved tokenisers.

        Args:
            config: sizes and layout.
            codecs: what `fit_codecs` or `save_codecs` wrote.
            seed: of fresh weights.
            initial: weights to start from; see `weights.open_weights`.
            profile: what kind of weights those are, see `weights.PROFILES`.
            may_resize: no module of this family may.
            dtype: of the network's values; float32 when `None`.

        Raises:
            FileNotFoundError: nothing at `initial`.
            ValueError: tokenisers or weights do not fit the configuration, or an unknown profile.
        """
        _refuse_resizing(may_resize)
        network = empty_network(config)
        model = cls(
            config=config,
            network=network,
            image_tokenizer=load_image_tokenizer(codecs / "image"),
            text_tokenizer=load_text_tokenizer(codecs / "text"),
        )
        if initial is None:
            initialized(network, seed).to(dtype or torch.float32)
        else:
            load_weights(
                network,
                open_weights(initial),
                source=str(initial),
                profile=profile,
                image_ids=model.vocabulary.image,
                seed=seed,
                dtype=dtype,
            )
        return model

    @classmethod
    def cache_encoder(cls, config: WorldVLAConfig, codecs: Path, device: torch.device | str) -> WorldVLACacheEncoder:
        """What makes a cache of a dataset out of saved tokenisers.

        Args:
            config: the configuration that they are for.
            codecs: what `fit_codecs` or `save_codecs` wrote.
            device: where they run.

        Raises:
            FileNotFoundError: no tokenisers there.
            ValueError: they are damaged.
        """
        return WorldVLACacheEncoder(load_image_tokenizer(codecs / "image", device))

    @classmethod
    def check_initial(cls, config: WorldVLAConfig, path: Path, *, profile: str, may_resize: Sequence[str]) -> None:
        """Refuse initial weights that `create` could not start from; headers alone are read.

        Raises:
            FileNotFoundError: nothing at `path`.
            ValueError: an unknown profile, a damaged file, or weights that do not fit.
        """
        _refuse_resizing(may_resize)
        check_fit(empty_network(config), open_weights(path), source=str(path), profile=profile)

    @classmethod
    def inspect(
        cls,
        config: WorldVLAConfig,
        path: Path,
        *,
        profile: str | None = None,
        may_resize: Sequence[str] = (),
        read: bool = False,
    ) -> Findings:
        """What weights are, and whether `create` can start from them; see `weights.inspect_weights`."""
        _refuse_resizing(may_resize)
        return inspect_weights(config, path, profile=profile, read=read)

    @classmethod
    def read_config(cls, data: dict[str, Any]) -> WorldVLAConfig:
        """The configuration in a policy folder; it holds itself to the folder's spec with `check_spec`.

        Raises:
            ValueError: a key is missing or unknown, or a value of another type or out of range.
        """
        return WorldVLAConfig.from_dict(data)

    @classmethod
    def load(
        cls,
        config: WorldVLAConfig,
        weights: Mapping[str, Tensor],
        codecs: Path,
        *,
        source: str,
        dtype: torch.dtype | None = None,
        pretrained: Path | None = None,
    ) -> WorldVLA:
        """A WorldVLA from the pieces of a policy folder.

        Args:
            config: sizes and layout.
            weights: by name.
            codecs: what `save_codecs` wrote.
            source: name for messages.
            dtype: of the network's values; float32 when `None`, whatever the weights are stored as.
            pretrained: where the pretrained image tokeniser lies now, when it has moved.

        Raises:
            ValueError: configuration, tokenisers and weights do not fit each other.
        """
        network = empty_network(config)
        load_weights(network, weights, source=source, dtype=dtype)
        image = load_image_tokenizer(codecs / "image", pretrained=pretrained)
        text = load_text_tokenizer(codecs / "text")
        with blame(f"{source}: codecs do not fit config.json", COPY_AGAIN):
            return cls(config=config, network=network, image_tokenizer=image, text_tokenizer=text)

    def save_codecs(self, folder: Path) -> None:
        """Write what `load` needs of the tokenisers."""
        self.image_tokenizer.save(folder / "image")
        self.text_tokenizer.save(folder / "text")

    def to(self, device: torch.device | str) -> WorldVLA:
        """Move network and image tokeniser; returns itself."""
        self.network.to(device)
        self.image_tokenizer = self.image_tokenizer.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return self.network.lm_head.weight.device

    @property
    def reads_state(self) -> bool:
        """Whether actions depend on the robot's state."""
        return self.config.reads_state

    def parts(self) -> dict[str, list[str]]:
        """Parameter names of the transformer and of the continuous head."""
        parts: dict[str, list[str]] = {}
        for name, _ in self.network.named_parameters():
            parts.setdefault(part_of(name), []).append(name)
        return parts

    def with_weights(self, weights: Mapping[str, Tensor]) -> WorldVLA:
        """This WorldVLA with other weights behind the same tokenisers, for evaluation; it shares memory with them."""
        network = empty_network(self.config)
        network.load_state_dict({name: tensor.detach() for name, tensor in weights.items()}, strict=True, assign=True)
        network.eval().requires_grad_(False)
        return WorldVLA(
            config=self.config,
            network=network,
            image_tokenizer=self.image_tokenizer,
            text_tokenizer=self.text_tokenizer,
        )

    def loss(
        self, batch: Batch, objective: WorldVLAObjective, draws: TrainingDraws
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The stage's loss on a batch of windows, and its parts."""
        encoded = self.encode(batch.to(self.device))
        tokens = token_batch(self.builder, encoded, objective, draws)
        total, parts = losses(self.network, self.config, self.vocabulary, tokens, encoded.actions, objective, draws)
        return total, parts | encoded.shares_outside(self.builder)

    @torch.no_grad()
    def encode(self, batch: Batch) -> EncodedBatch:
        """Frames as codes, by the frozen tokeniser or from a cache.

        Raises:
            ValueError: neither frames nor codes in the batch.
        """
        context: Tensor
        future: Tensor | None = None
        if batch.encoded is not None:
            context = rearrange(batch.encoded.context, "b v t 1 1 y x -> b t v y x").long()
            if batch.encoded.future is not None:
                future = rearrange(batch.encoded.future, "b v 1 1 t y x -> b t v y x").long()
        elif batch.context is not None:
            context = rearrange(self.encode_frames(batch.context), "b v 1 t y x -> b t v y x")
            if batch.future is not None:
                future = rearrange(self.encode_frames(batch.future), "b v 1 t y x -> b t v y x")
        else:
            raise ValueError("expected a batch of frames or of their codes, got neither")
        known = None if batch.is_repeated is None else ~batch.is_repeated
        return EncodedBatch(
            context=context,
            future=future,
            known=torch.ones(context.shape[:2], dtype=torch.bool, device=context.device) if known is None else known,
            state=batch.state,
            actions=batch.actions,
            task=batch.task,
        )

    def validate(
        self, batch: Batch, *, streams: Collection[str], num_steps: int, rows_at_once: int = 16
    ) -> dict[str, Any]:
        """Errors on windows that were not trained on, see `validation.TokenErrors`.

        Args:
            batch: windows with their future.
            streams: without effect; whatever the model has is measured.
            num_steps: without effect; nothing is denoised.
            rows_at_once: windows computed at once.
        """
        num_rows = len(batch.task)
        parts = []
        for start in range(0, num_rows, rows_at_once):
            rows = range(start, min(start + rows_at_once, num_rows))
            encoded = self.encode(batch.rows(rows).to(self.device))
            parts.append(token_errors(self.network, self.builder, encoded))
        return TokenErrors.joined(parts).summary()

    @torch.no_grad()
    def encode_frames(self, video: UInt8[Tensor, "b v t h w c"]) -> Int[Tensor, "b v 1 t y x"]:
        """The codes of every frame."""
        flat = self.image_tokenizer.encode(rearrange(video, "b v t h w c -> (b v t) h w c"))
        return rearrange(flat, "(b v t) y x -> b v 1 t y x", b=video.shape[0], v=video.shape[1])

    @torch.no_grad()
    def decode_frames(self, encoded: Int[Tensor, "b v 1 t y x"]) -> UInt8[Tensor, "b v t h w c"]:
        """The frames of codes."""
        flat = self.image_tokenizer.decode(rearrange(encoded, "b v 1 t y x -> (b v t) y x"))
        return rearrange(flat, "(b v t) h w c -> b v t h w c", b=encoded.shape[0], v=encoded.shape[1])

    @torch.no_grad()
    def control_step(
        self,
        memory: Int[Tensor, "b v 1 t y x"],
        state: Float[Tensor, "b s"],
        task: list[str],
        num_steps: int,
        *,
        max_rows: int = 32,
        known: Bool[Tensor, "b t"] | None = None,
    ) -> WorldVLAControl:
        """Read the prompts once.

        Args:
            memory: from `encode_frames`, the newest frame last.
            state: normalised.
            task: one sentence per row.
            num_steps: without effect; nothing is denoised.
            max_rows: frames imagined at once.
            known: which frames were really seen; the others are left out of the prompt.
        """
        if self.config.reads_state:
            self.clipped["states"].add(state)
        return WorldVLAControl(self, memory, state, task, max_rows=max_rows, known=known)

    @torch.no_grad()
    def imagine_along(
        self,
        memory: Int[Tensor, "b v 1 t y x"],
        actions: Float[Tensor, "b p a"],
        draws: Draws,
        *,
        max_rows: int = 32,
        guidance: float = 1.0,
    ) -> UInt8[Tensor, "b v p h w c"]:
        """The frames that follow some actions, each imagined from the one before; nothing else of a robot is needed.

        Args:
            memory: from `encode_frames`; the newest frame is gone on from.
            actions: normalised, one after the other.
            draws: of codes that are drawn.
            max_rows: rows computed at once.
            guidance: see `decode.decode_frame`.
        """
        self.clipped["actions"].add(actions)
        codes = imagine_along(self, memory, actions, draws, max_rows=max_rows, guidance=guidance)
        return self.decode_frames(rearrange(codes, "b p v y x -> b v 1 p y x"))


def _refuse_resizing(may_resize: Sequence[str]) -> None:
    if may_resize:
        raise ValueError(
            f"no module of WorldVLA may have another shape, got may_resize {list(may_resize)}; leave it out"
        )


FAMILY = WorldVLA
