"""A linear video codec that fits in seconds on a CPU: principal components of image patches.

A frame is cut into patches of `patch` x `patch` pixels, and each patch is projected on the `channels` directions in
which patches vary most, scaled to unit variance. In time it is causal like the LTX autoencoder: the first frame of a
clip has its own basis, and each following group of `temporal` frames is projected, patch by patch, on a basis of space
and time together. The bases are orthonormal, so decoding is a transposed product.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.atomic import atomic_file
from wamkit.codecs.base import LatentPosterior, require_clip, require_finite, require_frames
from wamkit.codecs.reference import read_settings, write_settings
from wamkit.typed import COPY_AGAIN, blame, check_fields, check_least, read_fields, read_value

FORMAT_VERSION = 1
"""Version of the folder that `PatchCodec.save` writes."""

_CHUNK_PIXELS = 1 << 19  # per product: the float copy of a large uint8 batch stays at about 6 MB, which is also faster
_ONE_LEVEL = 1.0 / 127.5  # one grey level of one pixel in [-1, 1]: directions that vary less are not blown up


@dataclass(frozen=True, kw_only=True)
class PatchCodecConfig:
    """Sizes of a `PatchCodec`.

    Args:
        patch: side of a square patch in pixels; the spatial stride.
        temporal: frames per latent frame after the first; 1 encodes every frame with the frame basis.
        channels: latent channels.
        clip_rank: directions per frame that the space-time basis is built from; more costs time and changes little.
        max_patches: patches that a fit reads at most, for each basis.
    """

    patch: int = 16
    temporal: int = 8
    channels: int = 32
    clip_rank: int = 64
    max_patches: int = 24_000

    def __post_init__(self) -> None:
        check_fields(self, "patch codec")
        check_least(self, "patch codec", 1, "patch", "temporal", "channels", "clip_rank", "max_patches")
        if self.channels > self.patch_size:
            raise ValueError(
                f"patch codec: a patch of {self.patch}x{self.patch}x3 has {self.patch_size} numbers, too few for "
                f"{self.channels} channels; lower channels or enlarge patch"
            )
        if self.max_patches <= self.channels:
            raise ValueError(
                f"patch codec: expected max_patches above {self.channels} channels, got {self.max_patches}"
            )

    @property
    def patch_size(self) -> int:
        """Numbers in one patch of one frame."""
        return 3 * self.patch * self.patch


@dataclass(frozen=True, kw_only=True)
class LinearBasis:
    """One orthonormal basis with the mean and scale of the data it was fitted on, in [-1, 1] pixel units."""

    mean: Float[Tensor, "d"]
    basis: Float[Tensor, "d k"]
    scale: Float[Tensor, "k"]

    def encode(self, patches: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Whitened coordinates of patches given in [-1, 1]."""
        weight = self.basis / self.scale
        return torch.addmm(-(self.mean @ weight), patches, weight)

    def encode_levels(self, patches: UInt8[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Whitened coordinates of uint8 patches; the change of range is folded into the product."""
        weight = self.basis / self.scale
        bias = -((1.0 + self.mean) @ weight)
        return torch.addmm(bias, patches.to(weight.dtype), weight / 127.5)

    def decode(self, coordinates: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Patches in [-1, 1] (not clamped) of whitened coordinates."""
        return torch.addmm(self.mean, coordinates * self.scale, self.basis.T)

    def to(self, device: torch.device | str) -> LinearBasis:
        """The same basis on `device`."""
        return LinearBasis(mean=self.mean.to(device), basis=self.basis.to(device), scale=self.scale.to(device))


@dataclass(frozen=True, kw_only=True)
class PatchCodec:
    """The fitted codec; make one with `PatchCodec.fit` or `PatchCodec.load`.

    Args:
        config: sizes.
        frame: basis of single frames.
        clip: basis of groups of `temporal` frames; equal to `frame` when `temporal` is 1.
        explained: share of the pixel variance that each basis keeps on the data of the fit, `frame` and `clip`.
    """

    config: PatchCodecConfig
    frame: LinearBasis
    clip: LinearBasis
    explained: dict[str, float]

    @property
    def spatial(self) -> int:
        """Pixels per latent in each direction."""
        return self.config.patch

    @property
    def temporal(self) -> int:
        """Frames per latent frame after the first."""
        return self.config.temporal

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.config.channels

    @classmethod
    def fit(
        cls,
        frames: UInt8[Tensor, "n h w c"],
        clips: UInt8[Tensor, "m t h w c"] | None = None,
        *,
        config: PatchCodecConfig,
        generator: torch.Generator,
    ) -> PatchCodec:
        """Fits both bases on a random subsample of patches.

        Args:
            frames: images of every camera that the codec will see.
            clips: videos of `1 + temporal * k` frames, k of 1 or more, at the frame stride of the model; not read when
                `temporal` is 1.
            config: sizes.
            generator: draws the subsample; on the CPU.

        Raises:
            ValueError: wrong dtype, shape or frame count, no clips although `temporal` is above 1, or fewer patches
                than channels.
        """
        require_frames(frames, spatial=config.patch)
        patches = _sample(_frame_patches(frames, config.patch), config, generator)
        full, variance, total = principal_directions(patches, max(config.channels, config.clip_rank))
        frame = _whiten(full, variance, patches.mean(0), config.channels)
        explained = {"frame": _share(variance[: config.channels], total)}
        if config.temporal == 1:
            return cls(config=config, frame=frame, clip=frame, explained={**explained, "clip": explained["frame"]})
        if clips is None:
            raise ValueError(f"patch codec: expected clips of 1 + {config.temporal} k frames to fit the clip basis")
        require_clip(clips, spatial=config.patch, temporal=config.temporal, what="clips")
        if clips.shape[1] == 1:
            raise ValueError(f"patch codec: expected clips of at least {1 + config.temporal} frames, got 1 frame")
        clip, explained["clip"] = _fit_clip_basis(clips, full, config, generator)
        return cls(config=config, frame=frame, clip=clip, explained=explained)

    def encode_frames(self, frames: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n k y x"]:
        """Each frame on its own.

        Raises:
            ValueError: wrong dtype, rank or channel count, or a size that is not a multiple of `patch`.
        """
        require_frames(frames, spatial=self.spatial)
        return self.encode_clip(frames[:, None])[:, :, 0]

    def posterior_frames(self, frames: UInt8[Tensor, "n h w c"]) -> LatentPosterior:
        """`encode_frames`: this codec has no spread."""
        return LatentPosterior(mean=self.encode_frames(frames))

    def posterior_clip(self, clip: UInt8[Tensor, "n t h w c"]) -> LatentPosterior:
        """`encode_clip`: this codec has no spread."""
        return LatentPosterior(mean=self.encode_clip(clip))

    def encode_clip(self, clip: UInt8[Tensor, "n t h w c"]) -> Float[Tensor, "n k f y x"]:
        """Each clip as one video.

        Raises:
            ValueError: as `encode_frames`, or a frame count that is not `1 + temporal * k`.
        """
        require_clip(clip, spatial=self.spatial, temporal=self.temporal)
        n, t, height, width, _ = clip.shape
        y, x = height // self.spatial, width // self.spatial
        latents = clip.new_empty((n, self.channels, 1 + (t - 1) // self.temporal, y, x), dtype=torch.float32)
        rows = max(1, _CHUNK_PIXELS // (t * height * width))
        for start in range(0, n, rows):
            part, out = clip[start : start + rows], latents[start : start + rows]
            first = self.frame.encode_levels(_frame_patches(part[:, 0], self.spatial))
            out[:, :, 0] = rearrange(first, "(n y x) k -> n k y x", y=y, x=x)
            if t > 1:
                later = self.clip.encode_levels(_group_patches(part[:, 1:], self.spatial, self.temporal))
                out[:, :, 1:] = rearrange(later, "(n f y x) k -> n k f y x", n=len(part), y=y, x=x)
        return latents

    def decode_clip(self, latents: Float[Tensor, "n k f y x"]) -> UInt8[Tensor, "n t h w c"]:
        """Frames of each clip: one for the first latent frame, `temporal` for every other.

        Raises:
            ValueError: the channel count is not the codec's.
        """
        if latents.shape[1] != self.channels:
            raise ValueError(f"expected latents of {self.channels} channels, got shape {tuple(latents.shape)}")
        n, _, f, y, x = latents.shape
        size = (1 + (f - 1) * self.temporal, y * self.spatial, x * self.spatial)
        video = torch.empty((n, *size, 3), dtype=torch.uint8, device=latents.device)
        rows = max(1, _CHUNK_PIXELS // math.prod(size))
        for start in range(0, n, rows):
            part = latents[start : start + rows].to(self.frame.basis.dtype)
            first = self.frame.decode(rearrange(part[:, :, 0], "n k y x -> (n y x) k"))
            s, out = self.spatial, video[start : start + rows]
            out[:, 0] = rearrange(_levels(first), "(n y x) (p q c) -> n (y p) (x q) c", y=y, x=x, p=s, q=s)
            if f > 1:
                later = self.clip.decode(rearrange(part[:, :, 1:], "n k f y x -> (n f y x) k"))
                pattern = "(n f y x) (t p q c) -> n (f t) (y p) (x q) c"
                out[:, 1:] = rearrange(_levels(later), pattern, f=f - 1, y=y, x=x, t=self.temporal, p=s, q=s)
        return video

    def to(self, device: torch.device | str) -> PatchCodec:
        """The same codec on `device`."""
        return dataclasses.replace(self, frame=self.frame.to(device), clip=self.clip.to(device))

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors` and `config.json`; each file is replaced whole or not at all."""
        from safetensors.torch import save_file

        tensors = {
            f"{name}.{key}": getattr(basis, key).detach().cpu().clone().contiguous()
            for name, basis in (("frame", self.frame), ("clip", self.clip))
            for key in ("mean", "basis", "scale")
        }
        settings = {
            "type": "patch",
            "version": FORMAT_VERSION,
            "config": dataclasses.asdict(self.config),
            "explained": self.explained,
        }
        # Weights first: a reader looks for the settings, so a kill in between leaves no folder that seems whole.
        with atomic_file(folder / "model.safetensors") as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
        write_settings(folder, settings)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> PatchCodec:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: another type or version, or tensors that do not fit the sizes.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        config, explained = _read_settings(folder)
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"patch codec: expected model.safetensors in {folder}, found none; {COPY_AGAIN}")
        try:
            tensors = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise ValueError(
                f"{folder / 'model.safetensors'} is truncated or damaged ({error}); {COPY_AGAIN}"
            ) from error
        _require_shapes(tensors, config, folder)
        require_finite(tensors.items(), source=folder / "model.safetensors")
        flat = [f"{name}.scale" for name in ("frame", "clip") if tensors[f"{name}.scale"].min() <= 0]
        if flat:
            raise ValueError(
                f"{folder / 'model.safetensors'}: expected a positive {flat[0]}, got {tensors[flat[0]].min():g}; "
                f"{COPY_AGAIN}"
            )
        frame, clip = (
            LinearBasis(**{key: tensors[f"{name}.{key}"] for key in ("mean", "basis", "scale")})
            for name in ("frame", "clip")
        )
        return cls(config=config, frame=frame, clip=clip, explained=explained).to(device)


def _read_settings(folder: Path) -> tuple[PatchCodecConfig, dict[str, float]]:
    settings = read_settings(folder, kind="patch", version=FORMAT_VERSION)
    with blame(folder / "config.json", COPY_AGAIN):
        config = read_fields(PatchCodecConfig, settings.get("config"), "config")
        return config, read_value(dict[str, float], settings.get("explained"), "explained")


def _require_shapes(tensors: dict[str, Tensor], config: PatchCodecConfig, folder: Path) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, size in (("frame", config.patch_size), ("clip", config.patch_size * config.temporal)):
        expected[f"{name}.mean"] = (size,)
        expected[f"{name}.basis"] = (size, config.channels)
        expected[f"{name}.scale"] = (config.channels,)
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        listed = "; ".join(f"{key}: expected {expected.get(key)}, got {found.get(key)}" for key in wrong)
        raise ValueError(f"{folder}: the tensors of model.safetensors do not fit config.json ({listed}); {COPY_AGAIN}")


def _levels(patches: Float[Tensor, "n d"]) -> UInt8[Tensor, "n d"]:
    return patches.add_(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(torch.uint8)


def _frame_patches(frames: UInt8[Tensor, "n h w c"], s: int) -> UInt8[Tensor, "m d"]:
    return rearrange(frames, "n (y p) (x q) c -> (n y x) (p q c)", p=s, q=s)


def _group_patches(frames: UInt8[Tensor, "n t h w c"], s: int, group: int) -> UInt8[Tensor, "m d"]:
    return rearrange(frames, "n (f t) (y p) (x q) c -> (n f y x) (t p q c)", t=group, p=s, q=s)


def _sample(
    patches: UInt8[Tensor, "m d"], config: PatchCodecConfig, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    if len(patches) <= config.channels:
        raise ValueError(
            f"patch codec: {len(patches)} patches are too few for {config.channels} channels; give more frames or clips"
        )
    keep = torch.randperm(len(patches), generator=generator)[: config.max_patches].to(patches.device)
    return patches[keep].to(torch.float32).div_(127.5).sub_(1.0)


def principal_directions(
    rows: Float[Tensor, "n d"], rank: int
) -> tuple[Float[Tensor, "d k"], Float[Tensor, "k"], float]:
    """Leading directions of the rows' covariance, their variances, and the variance of all directions together."""
    centred = rows - rows.mean(0)
    covariance = (centred.T @ centred / (len(rows) - 1)).to(torch.float64)
    variance, vectors = torch.linalg.eigh(covariance)
    variance, vectors = variance.flip(0)[:rank].clamp_min(0.0), vectors.flip(1)[:, :rank]
    # An eigenvector's sign is free: fix it, so that fits on two machines give the same latents.
    peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * torch.where(peak < 0, -1.0, 1.0)
    return vectors.to(rows.dtype), variance.to(rows.dtype), float(covariance.diagonal().sum())


def _whiten(
    basis: Float[Tensor, "d r"], variance: Float[Tensor, "r"], mean: Float[Tensor, "d"], channels: int
) -> LinearBasis:
    scale = variance[:channels].sqrt().clamp_min(_ONE_LEVEL)
    return LinearBasis(mean=mean, basis=basis[:, :channels].contiguous(), scale=scale)


def _fit_clip_basis(
    clips: UInt8[Tensor, "m t h w c"],
    frame_basis: Float[Tensor, "d r"],
    config: PatchCodecConfig,
    generator: torch.Generator,
) -> tuple[LinearBasis, float]:
    """Basis of groups of frames: every frame on the leading frame directions, then principal components over time.

    A covariance of all `temporal * patch_size` numbers would cost minutes; the two orthonormal steps cost a second and
    their product is orthonormal.
    """
    groups = _sample(_group_patches(clips[:, 1:], config.patch, config.temporal), config, generator)
    mean, total = groups.mean(0), float(groups.var(0).sum())
    per_frame = rearrange(groups - mean, "n (t d) -> n t d", t=config.temporal) @ frame_basis
    directions, variance, _ = principal_directions(rearrange(per_frame, "n t r -> n (t r)"), config.channels)
    frames = repeat(frame_basis, "d r -> t d r", t=config.temporal)
    over_time = rearrange(directions, "(t r) k -> t r k", t=config.temporal)
    basis = rearrange(frames @ over_time, "t d k -> (t d) k")
    return _whiten(basis, variance, mean, config.channels), _share(variance, total)


def _share(kept: Float[Tensor, "k"], total: float) -> float:
    return float(kept.sum()) / total if total > 0 and math.isfinite(total) else 1.0
