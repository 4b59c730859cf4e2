"""Sizes and settings of WAV; importing this module loads no torch.

Source: WAV (arXiv 2604.14732), sections 3 and 4 and its public configuration; see README.md beside this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from wamkit.model_config import ModelConfig
from wamkit.typed import check_fields, check_least, read_fields


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """One narrow transformer beside the video stream.

    Args:
        channels: width of its input and output vectors.
        num_heads: attention heads.
        head_dim: width per head.
        rope_base: position scale of its rotary table.
    """

    channels: int
    num_heads: int = 16
    head_dim: int = 32
    rope_base: float = 57.0

    def __post_init__(self) -> None:
        check_fields(self, "expert")
        check_least(self, "expert", 1, "channels", "num_heads", "head_dim")
        _check_width(self, "expert")
        if self.rope_base <= 0:
            raise ValueError(f"expert: expected a positive rope_base, got {self.rope_base}")

    @property
    def dim(self) -> int:
        """Width of the expert."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The transformer: everything that decides a weight's name or shape.

    Args:
        latent_channels: channels of a latent pixel, in and out.
        num_layers: blocks in every stream.
        num_heads: heads of the video stream.
        head_dim: width per head of the video stream.
        text_width: width of text embeddings.
        max_view: rows of the view table; 0 disables the view embedding.
        cross_view_every: layers 0, n, 2n, … attend across views; 0 disables it.
        norm_eps: of the blocks' norms.
        value: the value expert, or `None`.
        action: the action expert, or `None`; it reads the value expert when there is one.
    """

    latent_channels: int = 128
    num_layers: int = 28
    num_heads: int = 32
    head_dim: int = 64
    text_width: int = 4096
    max_view: int = 3
    cross_view_every: int = 3
    norm_eps: float = 1e-6
    value: ExpertConfig | None = None
    action: ExpertConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self, "network")
        check_least(self, "network", 1, "latent_channels", "num_layers", "num_heads", "head_dim", "text_width")
        check_least(self, "network", 0, "max_view", "cross_view_every")
        _check_width(self, "network")
        if self.norm_eps <= 0:
            raise ValueError(f"network: expected a positive norm_eps, got {self.norm_eps}")

    @property
    def dim(self) -> int:
        """Width of the video stream."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Which image codec and text encoder stand before the network.

    Args:
        video: `patch` (fitted in seconds) or `ltx` (pretrained, frozen).
        spatial: pixels per latent pixel along one side.
        temporal: frames per latent frame after the first.
        text: `hash` (deterministic, no weights) or `t5` (pretrained, frozen).
        text_length: text tokens, padded or truncated.
        pretrained: folder holding the pretrained codecs (`vae/`, `text_encoder/`, `tokenizer/`); empty for fitted ones.
    """

    video: Literal["patch", "ltx"] = "ltx"
    spatial: int = 32
    temporal: int = 8
    text: Literal["hash", "t5"] = "t5"
    text_length: int = 128
    pretrained: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "codec")
        check_least(self, "codec", 1, "spatial", "temporal", "text_length")


@dataclass(frozen=True, kw_only=True)
class WAVConfig(ModelConfig):
    """A complete WAV: network, codecs and the geometry of its windows.

    Args:
        network: the transformer.
        codec: image codec and text encoder.
        num_context: memory frames P, the current one last.
        num_future: future pixel frames (9 = 1 + 8: two latent frames).
        action_horizon: action tokens Ta; a multiple of `num_future`.
        action_dim: control channels, the first channels of an action token.
        concatenates_state: an action token holds the state of its row behind the action; without, the network predicts
            actions alone, and a state token needs as many state channels as there are action channels.
        has_state_token: prepend the current state to the action tokens.
        value_dense: one value token per action; else one per future frame, for the row that the frame shows.
    """

    network: NetworkConfig
    codec: CodecConfig = field(default_factory=CodecConfig)
    num_views: int = 2
    image_size: int = 256
    num_context: int = 4
    num_future: int = 9
    action_horizon: int = 36
    action_dim: int = 7
    state_dim: int = 8
    concatenates_state: bool = True
    has_state_token: bool = True
    value_dense: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action_horizon % self.num_future:
            raise ValueError(
                f"expected action_horizon to be a multiple of num_future = {self.num_future} (one future frame per "
                f"stride of actions), got {self.action_horizon}"
            )
        if self.image_size % self.codec.spatial:
            raise ValueError(
                f"expected image_size to be a multiple of the codec's {self.codec.spatial} px, got {self.image_size}"
            )
        if self.network.max_view and self.num_views > self.network.max_view:
            raise ValueError(f"expected at most max_view = {self.network.max_view} cameras, got {self.num_views}")
        if (self.num_future - 1) % self.codec.temporal:
            raise ValueError(f"expected num_future of 1 + {self.codec.temporal} k frames, got {self.num_future}")
        action = self.network.action
        if action is not None and action.channels != self.token_dim:
            what = "action_dim + state_dim" if self.concatenates_state else "action_dim"
            raise ValueError(f"expected action channels = {what} = {self.token_dim}, got {action.channels}")
        if self.has_state_token and not self.concatenates_state and self.state_dim != self.action_dim:
            raise ValueError(
                f"a state token without concatenated states needs state_dim = action_dim = {self.action_dim}, got "
                f"{self.state_dim}; set has_state_token=False or concatenates_state=True"
            )

    @property
    def family(self) -> str:
        """Name in the table of families."""
        return "wav"

    @property
    def value_channels(self) -> int:
        """Width of a value vector; 0 without a value expert."""
        return self.network.value.channels if self.network.value else 0

    @property
    def parts(self) -> tuple[str, ...]:
        """The video stream and the experts that are there."""
        experts = {"value": self.network.value, "action": self.network.action}
        return ("video", *(part for part, expert in experts.items() if expert is not None))

    @property
    def codec_batches(self) -> int:
        """Batches that the image codec is fitted to, if it is; the text encoder never is."""
        return 12 if self.codec.video == "patch" else 0

    @property
    def value_steps(self) -> tuple[int, ...]:
        """Control steps after the observation that the value tokens stand for, counting from 1."""
        first, every = (1, 1) if self.value_dense else (self.future_stride, self.future_stride)
        return tuple(range(first, self.action_horizon + 1, every))

    @property
    def token_dim(self) -> int:
        """Channels of an action token: action and, if concatenated, state of the same dataset row."""
        return self.action_dim + (self.state_dim if self.concatenates_state else 0)

    @property
    def num_zeros_before_state(self) -> int:
        """Leading zero channels of the state token, in place of the action."""
        return self.action_dim if self.concatenates_state else 0

    @property
    def num_future_latents(self) -> int:
        """Future latent frames."""
        return (self.num_future - 1) // self.codec.temporal + 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames (memory and future), rows, columns."""
        side = self.image_size // self.codec.spatial
        return self.num_context + self.num_future_latents, side, side

    def codec_record(self) -> dict[str, Any]:
        """Settings of image codec and text encoder, and the channels of a latent pixel."""
        return dataclasses.asdict(self.codec) | {"channels": self.network.latent_channels}

    def codec_settings(self) -> dict[str, Any]:
        """Kinds, strides and length of sentences."""
        return {key: value for key, value in self.codec_record().items() if key != "pretrained"}

    def with_pretrained(self, folder: str) -> WAVConfig:
        """The same model with `vae/`, `text_encoder/` and `tokenizer/` in another folder."""
        return dataclasses.replace(self, codec=dataclasses.replace(self.codec, pretrained=folder))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WAVConfig:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value of another type or out of range; the message names it.
        """
        return read_fields(cls, data, "model")


def _check_width(config: ExpertConfig | NetworkConfig, what: str) -> None:
    """Positions turn pairs of channels."""
    if config.dim % 2:
        raise ValueError(
            f"{what}: expected an even num_heads * head_dim, got {config.num_heads} * {config.head_dim} = {config.dim}"
        )


def libero() -> WAVConfig:
    """The published single-arm size: 2 305 605 785 parameters."""
    network = NetworkConfig(
        value=ExpertConfig(channels=10, rope_base=57.0), action=ExpertConfig(channels=15, rope_base=54.0)
    )
    return WAVConfig(network=network, name="libero")


def dualarm() -> WAVConfig:
    """The published two-arm size: 2 305 626 285 parameters."""
    network = NetworkConfig(
        value=ExpertConfig(channels=17, rope_base=57.0), action=ExpertConfig(channels=28, rope_base=54.0)
    )
    return WAVConfig(network=network, num_views=3, action_horizon=54, action_dim=14, state_dim=14, name="dualarm")


def small(
    *,
    num_views: int = 2,
    action_dim: int = 4,
    state_dim: int = 4,
    value_channels: int = 10,
    num_context: int = 1,
    action_horizon: int = 18,
) -> WAVConfig:
    """A useful policy in a small simulator, trained on a CPU in minutes.

    Time goes with the tokens of the video stream, so there are few: 16 a frame and view, one memory frame by default.
    The value expert is narrow because a planner runs it on many rows.
    """
    network = NetworkConfig(
        latent_channels=32,
        num_layers=4,
        num_heads=4,
        head_dim=32,
        text_width=64,
        value=ExpertConfig(channels=value_channels, num_heads=2, head_dim=32, rope_base=57.0),
        action=ExpertConfig(channels=action_dim + state_dim, num_heads=4, head_dim=32, rope_base=54.0),
    )
    return WAVConfig(
        network=network,
        codec=CodecConfig(video="patch", spatial=16, temporal=8, text="hash", text_length=12),
        num_views=num_views,
        image_size=64,
        num_context=num_context,
        num_future=9,
        action_horizon=action_horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        name="small",
    )


def tiny(*, num_views: int = 2, action_dim: int = 4, state_dim: int = 4, value_channels: int = 10) -> WAVConfig:
    """Seconds on a CPU; the same code path as the published size."""
    network = NetworkConfig(
        latent_channels=8,
        num_layers=2,
        num_heads=2,
        head_dim=16,
        text_width=16,
        value=ExpertConfig(channels=value_channels, num_heads=2, head_dim=8, rope_base=57.0),
        action=ExpertConfig(channels=action_dim + state_dim, num_heads=2, head_dim=8, rope_base=54.0),
    )
    return WAVConfig(
        network=network,
        codec=CodecConfig(video="patch", spatial=16, temporal=8, text="hash", text_length=6),
        num_views=num_views,
        image_size=32,
        num_context=2,
        num_future=9,
        action_horizon=9,
        action_dim=action_dim,
        state_dim=state_dim,
        name="tiny",
    )


SIZES: Final[Mapping[str, Callable[[], WAVConfig]]] = {
    "libero": libero,
    "dualarm": dualarm,
    "small": small,
    "tiny": tiny,
}
