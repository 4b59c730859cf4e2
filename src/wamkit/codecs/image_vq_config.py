"""Sizes of the convolutional VQ-GAN image tokeniser. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from wamkit.typed import check_fields, check_least


def norm_groups(width: int) -> int:
    """Groups of a GroupNorm over `width` channels: 32, and four channels in each below 128.

    Differs: WorldVLA 2.2 of the specification has widths of 128 and more. At 32 channels, 32 groups would take every
    channel's mean away, and with it the brightness of the image.
    """
    return min(32, max(1, width // 4))


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Sizes of a VQ-GAN; the defaults are the published ones of Chameleon and WorldVLA.

    Args:
        base_width: channels that a multiplier counts.
        multipliers: width of each level over `base_width`, the finest first; each level but the first halves the sides.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels between the encoder or decoder and the 1x1 convolutions beside the codebook.
        code_width: numbers of one codebook entry.
        num_codes: entries of the codebook.
        has_decoder: weights in the layout of Hugging Face's Chameleon carry the encoder half alone.
    """

    base_width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    latent_channels: int = 256
    code_width: int = 256
    num_codes: int = 8192
    has_decoder: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "VQ-GAN")
        names = ("base_width", "num_blocks", "latent_channels", "code_width", "num_codes")
        check_least(self, "VQ-GAN", 1, *names)
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"VQ-GAN: expected multipliers of 1 or more, one per level, got {self.multipliers}")
        if any(width % norm_groups(width) for width in (self.base_width, *self.widths)):
            raise ValueError(
                f"VQ-GAN: expected widths that its normalisation can group (multiples of 4, from 128 on of 32), got "
                f"base_width {self.base_width} and levels of {self.widths}"
            )

    @classmethod
    def published(cls) -> VQConfig:
        """The published tokeniser: 16 pixels per code, 8192 codes of 256 numbers."""
        return cls()

    @classmethod
    def tiny(cls, *, num_codes: int = 8192) -> VQConfig:
        """The same structure for a CPU: a frame of 64 pixels becomes 4 by 4 codes."""
        return cls(
            base_width=32,
            multipliers=(1, 1, 1, 1, 1),
            num_blocks=1,
            latent_channels=32,
            code_width=16,
            num_codes=num_codes,
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first."""
        return tuple(self.base_width * multiplier for multiplier in self.multipliers)

    @property
    def spatial(self) -> int:
        """Pixels per code in each direction."""
        return 2 ** (len(self.multipliers) - 1)
