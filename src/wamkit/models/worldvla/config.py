"""Sizes and settings of WorldVLA and of RynnVLA-002; importing this module loads no torch.

Source: WorldVLA (arXiv 2506.21539), section 3 and its public configuration; RynnVLA-002 (arXiv 2511.17502).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from wamkit.model_config import ModelConfig
from wamkit.typed import check_fields, check_least, read_fields

_NOT_COMPARED = ("pretrained", "fit_steps")

GRID_UNIT = 32  # pixels; an image says its size in these


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The continuous action head of RynnVLA-002.

    Args:
        dim: width.
        num_layers: encoder layers.
        num_heads: attention heads.
        mlp_dim: width of their feed-forward networks.
        dropout: inside them, in training.
    """

    dim: int = 1024
    num_layers: int = 2
    num_heads: int = 4
    mlp_dim: int = 4096
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "head")
        check_least(self, "head", 1, "dim", "num_layers", "num_heads", "mlp_dim")
        _check_share(self.dropout, "head.dropout")
        if self.dim % self.num_heads:
            raise ValueError(f"head: expected dim as a multiple of num_heads = {self.num_heads}, got {self.dim}")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The transformer, of Chameleon's layout: everything that decides a weight's name or shape.

    Args:
        vocab_size: rows of the embedding and of the output head.
        num_layers: blocks.
        num_heads: attention heads.
        dim: width.
        mlp_dim: width of the feed-forward networks.
        norm_eps: of every norm.
        rope_base: of the rotary table.
        max_length: longest sequence; 4096 in training, 8192 in the public evaluation.
        dropout: of what attention and feed-forward network add, in training.
        head: the continuous action head, or `None`.
    """

    vocab_size: int = 65536
    num_layers: int = 32
    num_heads: int = 32
    dim: int = 4096
    mlp_dim: int = 11008
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    max_length: int = 4096
    dropout: float = 0.05
    head: HeadConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self, "network")
        check_least(self, "network", 1, "vocab_size", "num_layers", "num_heads", "dim", "mlp_dim", "max_length")
        _check_share(self.dropout, "network.dropout")
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"network: expected dim as a multiple of 2 num_heads = {2 * self.num_heads}, got {self.dim}"
            )
        if self.norm_eps <= 0 or self.rope_base <= 0:
            raise ValueError(
                f"network: expected positive norm_eps and rope_base, got {self.norm_eps} and {self.rope_base}"
            )


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Which tokenisers of images and text stand before the network.

    Args:
        image: `vq` (the published network, pretrained, or a small one fitted to the data) or `patch_vq` (fitted).
        text: `chameleon` (the published tokenizer), `bytes` (beside the published ids) or `words` (a small vocabulary).
        spatial: pixels per image code along one side.
        num_codes: codes of the image tokeniser.
        pretrained: folder of the published tokenisers (`vqgan.ckpt`, `vqgan.yaml`, `text_tokenizer.json`); empty when
            they are fitted.
        fit_steps: optimiser steps of a fitted image tokeniser.
    """

    image: Literal["vq", "patch_vq"] = "vq"
    text: Literal["chameleon", "bytes", "words"] = "chameleon"
    spatial: int = 16
    num_codes: int = 8192
    pretrained: str = ""
    fit_steps: int = 400

    def __post_init__(self) -> None:
        check_fields(self, "codec")
        check_least(self, "codec", 1, "spatial", "num_codes", "fit_steps")


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How ids are chosen; 0 everywhere takes the likeliest.

    Args:
        temperature: of action ids.
        image_temperature: of image codes.
        image_top_k: draw among this many of the likeliest image codes; 0 is all of them.
    """

    temperature: float = 0.0
    image_temperature: float = 0.0
    image_top_k: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "decoding")
        check_least(self, "decoding", 0, "temperature", "image_temperature", "image_top_k")


@dataclass(frozen=True, kw_only=True)
class WorldVLAConfig(ModelConfig):
    """A complete WorldVLA: network, tokenisers and the layout of its sequences.

    Args:
        network: the transformer.
        codec: tokenisers of images and text.
        decoding: how ids are chosen.
        num_views: cameras; each frame is one image of each.
        image_size: pixels along one side of the square images, R.
        num_context: frames of an action prompt, M; the newest last, one control step apart.
        num_future: (image, action) pairs before the image that a world sample predicts, N; 1 is published.
        action_horizon: actions of a chunk, K.
        action_dim: control channels.
        state_dim: channels of the robot's state.
        reads_state: the state stands in the action prompt, as in RynnVLA-002.
        mask: `action` hides the other actions of a chunk from each action; `causal` does not.
        acts_by: `tokens` decodes action ids; `head` takes the continuous head's actions.
        binning: see `codecs.action_bins.ActionBins`.
        sign_channels: action channels of which the sign alone is wanted, as of a gripper that opens or closes: they
            come out as -1 or 1 in normalised units.
        action_prompt: the question before actions; `{task}` stands for the sentence.
        world_prompt: the question before an image.
        text_length: most text ids of a prompt; prompts are padded to it when the model acts.
        name: size name, for the record.
    """

    network: NetworkConfig
    codec: CodecConfig = field(default_factory=CodecConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    num_views: int = 1
    image_size: int = 256
    num_context: int = 2
    num_future: int = 1
    action_horizon: int = 5
    action_dim: int = 7
    state_dim: int = 8
    reads_state: bool = False
    mask: Literal["action", "causal"] = "action"
    acts_by: Literal["tokens", "head"] = "tokens"
    binning: Literal["published", "uniform256"] = "published"
    sign_channels: tuple[int, ...] = ()
    action_prompt: str = "What action should the robot take to {task}?"
    world_prompt: str = (
        "Generate the next image based on the provided sequence of historical images and corresponding actions."
    )
    text_length: int = 64
    name: str = "custom"

    def __post_init__(self) -> None:
        check_fields(self, "model")
        counts = ("num_views", "image_size", "num_context", "num_future", "action_horizon", "action_dim", "text_length")
        check_least(self, "model", 1, *counts)
        check_least(self, "model", 0, "state_dim")
        if self.image_size % GRID_UNIT or self.image_size % self.codec.spatial:
            raise ValueError(
                f"expected image_size as a multiple of {GRID_UNIT} px and of the codec's {self.codec.spatial} px, got "
                f"{self.image_size}"
            )
        if self.num_future > self.action_horizon:
            raise ValueError(
                f"expected at most action_horizon = {self.action_horizon} pairs in a world sample (num_future), got "
                f"{self.num_future}"
            )
        if self.acts_by == "head" and self.network.head is None:
            raise ValueError("acts_by 'head' needs the continuous head: set network.head, or acts_by 'tokens'")
        if self.reads_state and not self.state_dim:
            raise ValueError("reads_state needs a state: set state_dim to its channels, or reads_state to False")
        if self.action_prompt.count("{task}") != 1 or set("{}") & set(self.action_prompt.replace("{task}", "")):
            raise ValueError(
                "expected action_prompt with one {task}, where the sentence goes, and no other braces, got "
                f"{self.action_prompt!r}"
            )
        wrong = [channel for channel in self.sign_channels if not 0 <= channel < self.action_dim]
        if wrong:
            raise ValueError(f"expected sign_channels among the {self.action_dim} actions, got {wrong}")
        longest = max(self.action_length, self.world_length)
        if longest > self.network.max_length:
            raise ValueError(
                f"expected sequences of at most network.max_length = {self.network.max_length} ids, got up to "
                f"{longest} ({self.num_context} frames of {self.num_views} images of {self.image_length} ids, "
                f"{self.text_length} text ids, and the answer); use fewer frames, smaller images or a shorter "
                "text_length, or raise it"
            )

    @property
    def family(self) -> str:
        """Name in the table of families."""
        return "worldvla"

    @property
    def parts(self) -> tuple[str, ...]:
        """The transformer, and the continuous head where there is one."""
        return ("transformer",) if self.network.head is None else ("transformer", "head")

    @property
    def future_stride(self) -> int:
        """A world sample predicts the frame of the very next control step."""
        return 1

    @property
    def context_stride(self) -> int | None:
        """An action prompt holds the frames of consecutive control steps."""
        return 1

    @property
    def whole_windows(self) -> bool:
        """Only chunks that lie wholly inside the episode are trained on."""
        return True

    @property
    def codec_batches(self) -> int:
        """Batches that the image tokeniser is fitted to, if it is."""
        if self.codec.pretrained:
            return 0
        return 48 if self.codec.image == "patch_vq" else 12

    def codec_record(self) -> dict[str, Any]:
        """What decides the ids of an image."""
        record = dataclasses.asdict(self.codec)
        return {key: record[key] for key in ("image", "spatial", "num_codes", "fit_steps")}

    def codec_settings(self) -> dict[str, Any]:
        """Kinds of tokenisers, stride and size of the codebook."""
        return {key: value for key, value in dataclasses.asdict(self.codec).items() if key not in _NOT_COMPARED}

    @property
    def grid(self) -> int:
        """Image codes along one side, g."""
        return self.image_size // self.codec.spatial

    @property
    def image_length(self) -> int:
        """Ids of one image: codes, a row end each row, begin, end and two grid counts."""
        return self.grid * self.grid + self.grid + 4

    @property
    def frame_length(self) -> int:
        """Ids of a frame: one image of each camera."""
        return self.num_views * self.image_length

    @property
    def block_length(self) -> int:
        """Ids of one action."""
        return self.action_dim + 2

    @property
    def state_length(self) -> int:
        """Ids of the state in an action prompt."""
        return self.state_dim + 2 if self.reads_state else 0

    @property
    def action_prompt_length(self) -> int:
        """Most ids before the answer of an action sample."""
        return 1 + self.text_length + self.state_length + self.num_context * self.frame_length + 1

    @property
    def world_prompt_length(self) -> int:
        """Most ids before the answer of a world sample."""
        return 1 + self.text_length + self.num_future * (self.frame_length + self.block_length) + 1

    @property
    def action_length(self) -> int:
        """Ids of the longest action sample."""
        return self.action_prompt_length + self.action_horizon * self.block_length + 1

    @property
    def world_length(self) -> int:
        """Ids of the longest world sample."""
        return self.world_prompt_length + self.frame_length + 1

    def with_pretrained(self, folder: str) -> WorldVLAConfig:
        """The same model with `vqgan.ckpt` and `text_tokenizer.json` in another folder."""
        return dataclasses.replace(self, codec=dataclasses.replace(self.codec, pretrained=folder))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WorldVLAConfig:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value of another type or out of range; the message names it.
        """
        return read_fields(cls, data, "model")


def _check_share(number: float, name: str) -> None:
    if not 0 <= number < 1:
        raise ValueError(f"expected {name} in [0, 1), got {number}")


def libero(*, image_size: int = 256, action_horizon: int = 5) -> WorldVLAConfig:
    """The published size: Chameleon's 7 B transformer.

    Args:
        image_size: 256 or 512.
        action_horizon: 5; 10 for LIBERO-Long.
    """
    return WorldVLAConfig(
        network=NetworkConfig(), image_size=image_size, action_horizon=action_horizon, name=f"libero-{image_size}"
    )


def rynnvla(*, action_horizon: int = 5, acts_by: Literal["tokens", "head"] = "head") -> WorldVLAConfig:
    """RynnVLA-002: a wrist camera, the state in the prompt and a continuous action head.

    Args:
        action_horizon: 5 for LIBERO's object and goal suites, 10 for spatial and long.
        acts_by: discrete or continuous actions.
    """
    return WorldVLAConfig(
        network=NetworkConfig(head=HeadConfig(), dropout=0.08),
        num_views=2,
        action_horizon=action_horizon,
        reads_state=True,
        acts_by=acts_by,
        name="rynnvla",
    )


def small(
    *,
    num_views: int = 1,
    action_dim: int = 4,
    state_dim: int = 4,
    action_horizon: int = 5,
    reads_state: bool = True,
    mask: Literal["action", "causal"] = "action",
) -> WorldVLAConfig:
    """A useful policy and world model in a small simulator, trained on a CPU."""
    return WorldVLAConfig(
        network=NetworkConfig(
            vocab_size=3100, num_layers=6, num_heads=6, dim=192, mlp_dim=512, max_length=1024, dropout=0.0
        ),
        codec=CodecConfig(image="patch_vq", text="words", spatial=8, num_codes=2048, fit_steps=5000),
        num_views=num_views,
        image_size=64,
        action_horizon=action_horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        reads_state=reads_state,
        mask=mask,
        world_prompt="Generate the next image.",
        text_length=16,
        name="small",
    )


def tiny(
    *, num_views: int = 1, action_dim: int = 7, state_dim: int = 8, action_horizon: int = 5, has_head: bool = False
) -> WorldVLAConfig:
    """Seconds on a CPU; the same code path and ids as the published size."""
    head = HeadConfig(dim=32, num_layers=2, num_heads=4, mlp_dim=64) if has_head else None
    return WorldVLAConfig(
        network=NetworkConfig(
            vocab_size=16400, num_layers=3, num_heads=4, dim=64, mlp_dim=128, max_length=1024, head=head
        ),
        codec=CodecConfig(image="vq", text="bytes", spatial=16, num_codes=8192, fit_steps=60),
        num_views=num_views,
        image_size=64,
        action_horizon=action_horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        reads_state=has_head,
        acts_by="head" if has_head else "tokens",
        text_length=128,
        name="tiny",
    )


SIZES: dict[str, Callable[[], WorldVLAConfig]] = {
    "libero-256": libero,
    "libero-512": lambda: libero(image_size=512),
    "rynnvla": rynnvla,
    "small": small,
    "tiny": tiny,
}
"""Sizes by name."""
