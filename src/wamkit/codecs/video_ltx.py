"""The LTX-Video causal autoencoder (diffusers' `AutoencoderKLLTXVideo`) as a video codec: frozen, pretrained.

Frames 1 + 8k become latent frames 1 + k, 32 pixels become one latent, 128 channels. Latents are normalized by the two
per-channel vectors that the weights carry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.codecs.base import LatentPosterior, require_clip, require_frames, to_uint8, to_unit_range
from wamkit.codecs.ltx_weights import ltx_vae_config, vae_folder, vae_from_folder, vae_from_original
from wamkit.codecs.reference import WeightsReference, read_dtype, read_settings, write_settings
from wamkit.typed import COPY_AGAIN, blame, read_fields, read_value

FORMAT_VERSION = 1
"""Version of the folder that `LTXVideoCodec.save` writes."""


@dataclass(frozen=True, kw_only=True)
class LTXOptions:
    """How the autoencoder is run; none of it changes what the weights are.

    Args:
        slice_size: clips per forward pass, so that memory stays flat in the batch; `None` runs all at once.
        tile_pixels: images larger than this are cut into overlapping square tiles; `None` never cuts.
        tile_overlap: pixels that neighbouring tiles share.
        decode_timestep: noise level told to a decoder with timestep conditioning (0.9.1 and later).
        decode_noise_scale: share of noise mixed into the latents of such a decoder.
        decode_seed: seed of that noise when `decode_clip` is given no generator.
    """

    slice_size: int | None = None
    tile_pixels: int | None = None
    tile_overlap: int = 64
    decode_timestep: float = 0.03
    decode_noise_scale: float = 0.025
    decode_seed: int = 0

    def __post_init__(self) -> None:
        if self.slice_size is not None and self.slice_size < 1:
            raise ValueError(f"LTX codec: expected slice_size of 1 or more, or None, got {self.slice_size}")
        if self.tile_pixels is not None and not 0 < self.tile_overlap < self.tile_pixels:
            raise ValueError(
                f"LTX codec: expected 0 < tile_overlap < tile_pixels = {self.tile_pixels}, got {self.tile_overlap}"
            )
        if not 0.0 <= self.decode_noise_scale <= 1.0:
            raise ValueError(f"LTX codec: expected decode_noise_scale in 0 to 1, got {self.decode_noise_scale}")


class LTXVideoCodec:
    """The autoencoder with its normalization, frozen.

    Args:
        vae: an `AutoencoderKLLTXVideo`; it is set to evaluation and its gradients are switched off.
        options: how it is run.
        source: what `save` refers to; `None` makes `save` copy the weights.

    Raises:
        ValueError: a per-channel deviation that is not positive and finite, or tiles that are no multiples of the
            spatial stride.
    """

    def __init__(
        self, vae: nn.Module, *, options: LTXOptions | None = None, source: WeightsReference | None = None
    ) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.options = options or LTXOptions()
        self.source = source
        self._settings: Any = vae.config  # set by diffusers, unknown to nn.Module
        statistics = torch.stack([self._statistic("latents_mean"), self._statistic("latents_std")])
        if not torch.isfinite(statistics).all() or not (statistics[1] > 0).all():
            raise ValueError(
                "LTX codec: expected finite latents_mean and positive latents_std; the weights are damaged"
            )
        if self.options.tile_pixels is not None:
            self._enable_tiling(self.options.tile_pixels, self.options.tile_overlap)

    @property
    def spatial(self) -> int:
        """Pixels per latent in each direction."""
        return int(self._vae.spatial_compression_ratio)

    @property
    def temporal(self) -> int:
        """Frames per latent frame after the first."""
        return int(self._vae.temporal_compression_ratio)

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self._settings.latent_channels)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of the computation; latents are float32 either way."""
        return next(self.vae.parameters()).dtype

    def encode_frames(self, frames: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n k y x"]:
        """Each frame on its own, as a one-frame video; the posterior's mode.

        Args:
            frames: height and width are multiples of `spatial`.

        Raises:
            ValueError: wrong dtype, rank, channel count or size.
        """
        return self.posterior_frames(frames).mean

    def encode_clip(self, clip: UInt8[Tensor, "n t h w c"]) -> Float[Tensor, "n k f y x"]:
        """Each clip as one video; the posterior's mode.

        Args:
            clip: `1 + temporal * k` frames.

        Raises:
            ValueError: as `encode_frames`, or a frame count that is not `1 + temporal * k`.
        """
        return self.posterior_clip(clip).mean

    def posterior_frames(self, frames: UInt8[Tensor, "n h w c"]) -> LatentPosterior:
        """The posterior of each frame on its own; latents `n k y x`. Arguments and errors as for `encode_frames`."""
        require_frames(frames, spatial=self.spatial)
        posterior = self.posterior_clip(frames[:, None])
        assert posterior.std is not None
        return LatentPosterior(mean=posterior.mean[:, :, 0], std=posterior.std[:, :, 0])

    @torch.no_grad()
    def posterior_clip(self, clip: UInt8[Tensor, "n t h w c"]) -> LatentPosterior:
        """The posterior of each clip; latents `n k f y x`. Arguments and errors as for `encode_clip`."""
        require_clip(clip, spatial=self.spatial, temporal=self.temporal)
        n, t, height, width, _ = clip.shape
        shape = (n, self.channels, 1 + (t - 1) // self.temporal, height // self.spatial, width // self.spatial)
        mean, std = torch.empty(shape, device=self.device), torch.empty(shape, device=self.device)
        for rows in self._slices(n):
            pixels = rearrange(to_unit_range(clip[rows].to(self.device)), "n t c h w -> n c t h w")
            posterior = self._vae.encode(pixels.to(self.dtype)).latent_dist
            mean[rows], std[rows] = posterior.mode().float(), posterior.std.float()
        scale = self._settings.scaling_factor / self._statistic("latents_std")
        return LatentPosterior(mean=(mean - self._statistic("latents_mean")) * scale, std=std * scale)

    @torch.no_grad()
    def decode_clip(
        self, latents: Float[Tensor, "n k f y x"], generator: torch.Generator | None = None
    ) -> UInt8[Tensor, "n t h w c"]:
        """Frames of each clip.

        Args:
            latents: normalized, as `encode_clip` gives them.
            generator: noise of decoders with timestep conditioning; `None` draws it from `options.decode_seed`. The
                decoder of 0.9.0 takes no noise and nothing changes.

        Raises:
            ValueError: the channel count is not the codec's.
        """
        if latents.shape[1] != self.channels:
            raise ValueError(f"expected latents of {self.channels} channels, got shape {tuple(latents.shape)}")
        n, _, f, y, x = latents.shape
        size = (1 + (f - 1) * self.temporal, y * self.spatial, x * self.spatial)
        mean, std = self._statistic("latents_mean"), self._statistic("latents_std")
        latents = latents.to(self.device, torch.float32) * std / self._settings.scaling_factor + mean
        options, is_conditioned = self.options, bool(self._settings.timestep_conditioning)
        draws = torch.Generator().manual_seed(options.decode_seed) if generator is None else generator
        if is_conditioned:
            noise = self._normal(tuple(latents.shape), draws)
            latents = (1.0 - options.decode_noise_scale) * latents + options.decode_noise_scale * noise
        video = torch.empty((n, *size, 3), dtype=torch.uint8, device=self.device)
        with self._injected_noise(draws):
            for rows in self._slices(n):
                part = latents[rows].to(self.dtype)
                timestep = part.new_full((len(part),), options.decode_timestep) if is_conditioned else None
                # Cut here and not by the autoencoder's own slicing, which drops the timestep of all but two rows.
                images = self._vae.decode(part, timestep).sample
                video[rows] = to_uint8(rearrange(images, "n c t h w -> n t c h w"))
        return video

    def to(self, device: torch.device | str) -> LTXVideoCodec:
        """This codec, its weights moved to `device`."""
        self.vae.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Writes `config.json` with a reference to the weights, or with the weights beside it if they have no file."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.source is None:
            self._vae.save_pretrained(folder / "vae")
        settings = {
            "type": "ltx",
            "version": FORMAT_VERSION,
            "options": dataclasses.asdict(self.options),
            "dtype": str(self.dtype).removeprefix("torch."),
            "source": None if self.source is None else dataclasses.asdict(self.source),
            "architecture": dict(self._settings),
        }
        write_settings(folder, settings)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu", *, pretrained: Path | None = None) -> LTXVideoCodec:
        """Inverse of `save`.

        Args:
            folder: what `save` wrote.
            device: where the weights go.
            pretrained: where the referenced weights lie now, when they have moved: their folder, or the one around it.

        Raises:
            FileNotFoundError: the settings or the referenced weights are missing.
            ValueError: another type or version, or other weights than those referred to.
        """
        settings = read_settings(folder, kind="ltx", version=FORMAT_VERSION)
        with blame(folder / "config.json", COPY_AGAIN):
            options, dtype = read_fields(LTXOptions, settings.get("options"), "options"), read_dtype(settings)
            source = read_value(WeightsReference | None, settings.get("source"), "source")
            architecture = read_value(dict[str, Any], settings.get("architecture"), "architecture")
        if source is None:
            return cls(vae_from_folder(folder / "vae", dtype), options=options).to(device)
        if pretrained is not None and (pretrained / "vae").is_dir():
            pretrained = vae_folder(pretrained)
        path = source.locate(pretrained)
        vae = vae_from_original(path, dtype, architecture) if path.is_file() else vae_from_folder(path, dtype)
        return cls(vae, options=options, source=source).to(device)

    @classmethod
    def from_pretrained(
        cls,
        path: Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        options: LTXOptions | None = None,
        architecture: Mapping[str, Any] | None = None,
    ) -> LTXVideoCodec:
        """The published weights.

        Args:
            path: an LTX-Video folder in diffusers' layout (with `vae/`), its `vae` folder, or the original single file
                (`ltx-video-2b-v0.9.safetensors`), of which only the `vae.*` tensors are read.
            dtype: type of the weights and of the computation; bfloat16 on accelerators.
            device: where the weights go.
            options: how the autoencoder is run.
            architecture: of a single file, `ltx_vae_config()` when absent; a folder carries its own.

        Raises:
            FileNotFoundError: nothing usable at `path`; says what was expected.
            ValueError: missing, foreign or misshapen tensors, or another class of autoencoder.
        """
        path = Path(path)
        if path.is_file():
            vae = vae_from_original(path, dtype, architecture or ltx_vae_config())
            return cls(vae, options=options, source=WeightsReference.of(path, [path])).to(device)
        folder = vae_folder(path)
        files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
        return cls(vae_from_folder(folder, dtype), options=options, source=WeightsReference.of(folder, files)).to(
            device
        )

    @property
    def _vae(self) -> Any:
        return self.vae  # with the methods that diffusers adds

    def _statistic(self, name: str) -> Float[Tensor, "k 1 1 1"]:
        return rearrange(getattr(self._vae, name).to(self.device, torch.float32), "k -> k 1 1 1")

    def _slices(self, n: int) -> Iterator[slice]:
        step = self.options.slice_size or max(n, 1)
        return (slice(start, start + step) for start in range(0, n, step))

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device).to(self.device)

    @contextmanager
    def _injected_noise(self, generator: torch.Generator) -> Iterator[None]:
        """Decoders of 0.9.1 draw noise inside their blocks from the global state: seed it for them, then restore it."""
        if not any(self._settings.decoder_inject_noise):
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
            yield

    def _enable_tiling(self, tile: int, overlap: int) -> None:
        if tile % self.spatial or overlap % self.spatial:
            raise ValueError(
                f"LTX codec: expected tile_pixels and tile_overlap to be multiples of {self.spatial}, "
                f"got {tile} and {overlap}"
            )
        self._vae.enable_tiling(
            tile_sample_min_height=tile,
            tile_sample_min_width=tile,
            tile_sample_stride_height=tile - overlap,
            tile_sample_stride_width=tile - overlap,
        )
