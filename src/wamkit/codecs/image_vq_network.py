"""The VQ-GAN of Chameleon, which WorldVLA uses frozen: a convolutional autoencoder around a codebook.

The modules are named as in the published weights, so their tensors load as they are. `down.0` and `up.0` are the
finest levels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from wamkit.codecs.image_vq_config import VQConfig, norm_groups

_CHUNK_DISTANCES = 1 << 22  # distances held at once: 16 MB, however many vectors are looked up


class VQNetwork(nn.Module):
    """Encoder, codebook and decoder.

    Source: WorldVLA 2.2 of the specification; Esser et al. 2021, VQ-GAN, without attention but in the middle.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_width, 1)
        self.quantize = Codebook(config.num_codes, config.code_width)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.latent_channels, 1)
        self.decoder = Decoder(config) if config.has_decoder else None

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d y x"]:
        """Vectors to be replaced by codes, of images in [-1, 1]."""
        return self.quant_conv(self.encoder(images))

    def decode(self, vectors: Float[Tensor, "n d y x"]) -> Float[Tensor, "n 3 h w"]:
        """Images in about [-1, 1], not clamped, of codebook entries."""
        assert self.decoder is not None, "these weights have no decoder"
        return self.decoder(self.post_quant_conv(vectors))

    def codes(self, vectors: Float[Tensor, "n d y x"]) -> Int[Tensor, "n y x"]:
        """The nearest code of each vector."""
        n, _, y, x = vectors.shape
        nearest = self.quantize.nearest(rearrange(vectors, "n d y x -> (n y x) d"))
        return rearrange(nearest, "(n y x) -> n y x", n=n, y=y, x=x)

    def entries(self, codes: Int[Tensor, "n y x"]) -> Float[Tensor, "n d y x"]:
        """The codebook's entries of codes."""
        return rearrange(self.quantize.embedding(codes), "n y x d -> n d y x")


class Codebook(nn.Module):
    """A table of vectors, searched by distance."""

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, width)

    def nearest(self, vectors: Float[Tensor, "m d"]) -> Int[Tensor, "m"]:
        """The code of smallest squared distance for each vector; of equals, the first."""
        table = self.embedding.weight
        squares = table.square().sum(1)
        # |v - e|^2 less |v|^2, which is the same for every code
        chunks = vectors.split(max(1, _CHUNK_DISTANCES // len(table)))
        found = [torch.addmm(squares, chunk, table.T, alpha=-2.0).argmin(1) for chunk in chunks]
        return torch.cat(found)


class Encoder(nn.Module):
    """Images to latents; each level but the last ends with a convolution of stride 2."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = _conv(3, config.base_width)
        inputs = (config.base_width, *widths[:-1])
        self.down = nn.ModuleList(
            EncoderLevel(source, width, config.num_blocks, is_coarsest=level == len(widths) - 1)
            for level, (source, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], config.latent_channels)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k y x"]:
        """Latents of images in [-1, 1]."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents to images, the encoder mirrored; each level but the finest ends with an upsampling."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = _conv(config.latent_channels, widths[-1])
        self.mid = Middle(widths[-1])
        inputs = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(
            DecoderLevel(source, width, config.num_blocks + 1, is_finest=level == 0)
            for level, (source, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv(widths[0], 3)

    def forward(self, latents: Float[Tensor, "n k y x"]) -> Float[Tensor, "n 3 h w"]:
        """Images in about [-1, 1], not clamped."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class EncoderLevel(nn.Module):
    """Residual blocks at one size, then half of it."""

    def __init__(self, source: int, width: int, num_blocks: int, *, is_coarsest: bool) -> None:
        super().__init__()
        self.block = _blocks(source, width, num_blocks)
        self.downsample = nn.Identity() if is_coarsest else Downsample(width)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o y x"]:
        """The next level's input."""
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class DecoderLevel(nn.Module):
    """Residual blocks at one size, then twice of it."""

    def __init__(self, source: int, width: int, num_blocks: int, *, is_finest: bool) -> None:
        super().__init__()
        self.block = _blocks(source, width, num_blocks)
        self.upsample = nn.Identity() if is_finest else Upsample(width)

    def forward(self, x: Float[Tensor, "n i y x"]) -> Float[Tensor, "n o h w"]:
        """The next level's input."""
        for block in self.block:
            x = block(x)
        return self.upsample(x)


class Middle(nn.Module):
    """The coarsest grid, where alone every place sees every other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.attn_1 = SpatialAttention(width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: Float[Tensor, "n d y x"]) -> Float[Tensor, "n d y x"]:
        """Residual block, attention, residual block."""
        return self.block_2(self.attn_1(self.block_1(x)))


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside a path that changes nothing but, where it must, the width."""

    def __init__(self, source: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(source), _conv(source, width)
        self.norm2, self.conv2 = _norm(width), _conv(width, width)
        self.nin_shortcut = nn.Identity() if source == width else nn.Conv2d(source, width, 1)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h w"]:
        """The sum of both paths."""
        change = self.conv1(F.silu(self.norm1(x)))
        change = self.conv2(F.silu(self.norm2(change)))
        return self.nin_shortcut(x) + change


class SpatialAttention(nn.Module):
    """Attention of one head among all places of the grid, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "n d y x"]) -> Float[Tensor, "n d y x"]:
        """`x` and what its places read from each other."""
        normed = self.norm(x)
        q, k, v = (rearrange(part(normed), "n d y x -> n 1 (y x) d") for part in (self.q, self.k, self.v))
        read = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(read, "n 1 (y x) d -> n d y x", y=x.shape[2]))


class Downsample(nn.Module):
    """Half the sides: a convolution of stride 2 that looks one pixel beyond the right and the bottom edge."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d y x"]:
        """Every second place."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the sides: each place repeated, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, x: Float[Tensor, "n d y x"]) -> Float[Tensor, "n d h w"]:
        """Four places for one."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def empty(config: VQConfig) -> VQNetwork:
    """A network on the CPU whose weights are yet to be filled in."""
    with torch.device("meta"):
        network = VQNetwork(config)
    return network.to_empty(device="cpu")


def initialized(config: VQConfig, generator: torch.Generator) -> VQNetwork:
    """A network with random weights, drawn from `generator` alone."""
    network = empty(config)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Each convolution keeps the size of its input: at PyTorch's smaller numbers the first steps learn little.
            nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.weight[0].numel()), generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
    return network


def _blocks(source: int, width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(source if index == 0 else width, width) for index in range(count))


def _conv(source: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(source, width, 3, padding=1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(norm_groups(width), width, eps=1e-6)
