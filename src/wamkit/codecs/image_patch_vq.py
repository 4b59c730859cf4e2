"""A small image tokeniser that fits itself to a data set's frames in minutes on a CPU core: one code per patch.

A code depends on its own patch alone, so what stands still keeps its codes exactly from frame to frame. The decoder
sees codes together: each gives a patch of pixels, and a few convolutions over the grid of codes correct them by what is
around. Codes come from k-means, the decoder from gradient descent on the squared error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wamkit.atomic import atomic_file
from wamkit.codecs.base import require_codes, require_finite, require_frames, to_uint8, to_unit_range
from wamkit.codecs.patch_codebook import PatchCodebook, fit_codebook
from wamkit.codecs.reference import read_settings, write_settings
from wamkit.typed import COPY_AGAIN, blame, check_fields, check_least, read_fields

FORMAT_VERSION = 1
"""Version of the folder that `PatchVQTokenizer.save` writes."""

_SLICE_PIXELS = 1 << 19  # per pass of the decoder, so that memory stays flat in the number of frames
_MEAN_FRAMES = 256  # per sum of patches
_WARM_UP_STEPS = 50
_FIRST_SPREAD = 0.5  # of the vectors that stand for codes, before training


@dataclass(frozen=True, kw_only=True)
class PatchVQConfig:
    """Sizes of a `PatchVQTokenizer` and of its fit.

    Args:
        patch: side of a square patch in pixels, for which there is one code.
        num_codes: entries of the codebook.
        num_directions: directions in which patches are compared; fewer where a patch has fewer numbers.
        width: channels of the decoder's convolutions.
        num_blocks: residual blocks of the decoder; each sees one code further to all sides.
        max_patches: patches that k-means draws at most.
        rounds: of k-means.
        steps: of the decoder's optimiser.
        batch_size: frames per step.
        learning_rate: at its peak.
    """

    patch: int = 8
    num_codes: int = 2048
    num_directions: int = 48
    width: int = 128
    num_blocks: int = 2
    max_patches: int = 200_000
    rounds: int = 20
    steps: int = 5000
    batch_size: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        what = "patch VQ"
        check_fields(self, what)
        check_least(self, what, 1, "patch", "num_codes", "num_directions", "width", "max_patches", "rounds")
        check_least(self, what, 1, "batch_size")
        check_least(self, what, 0, "num_blocks", "steps")
        if self.learning_rate <= 0:
            raise ValueError(f"{what}: expected a learning_rate above 0, got {self.learning_rate}")

    @classmethod
    def tiny(cls) -> PatchVQConfig:
        """Seconds on a CPU."""
        return cls(
            num_codes=128,
            num_directions=16,
            width=32,
            num_blocks=1,
            max_patches=4000,
            rounds=6,
            steps=300,
            learning_rate=5e-3,
        )

    @property
    def patch_size(self) -> int:
        """Numbers in one patch."""
        return 3 * self.patch * self.patch


class GridDecoder(nn.Module):
    """Pixels of a grid of codes: a patch for each code, corrected by what the codes around it say."""

    def __init__(self, config: PatchVQConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.patches = nn.Embedding(config.num_codes, config.patch_size)
        self.tokens = nn.Embedding(config.num_codes, config.width)
        self.blocks = nn.Sequential(*[_Block(config.width) for _ in range(config.num_blocks)])
        self.correction = nn.Conv2d(config.width, config.patch_size, 1)

    def forward(self, codes: Int[Tensor, "n y x"]) -> Float[Tensor, "n c h w"]:
        """Images about [-1, 1]."""
        tokens = rearrange(F.gelu(self.tokens(codes)), "n y x d -> n d y x")
        correction = self.correction(F.gelu(self.blocks(tokens)))
        patches = self.patches(codes) + rearrange(correction, "n d y x -> n y x d")
        return rearrange(patches, "n y x (p q c) -> n c (y p) (x q)", p=self.patch, q=self.patch)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1)
        self.inside = nn.Conv2d(width, width, 1)

    def forward(self, tokens: Float[Tensor, "n d y x"]) -> Float[Tensor, "n d y x"]:
        return tokens + self.inside(F.gelu(self.around(tokens)))


@dataclass(frozen=True, kw_only=True)
class PatchVQTokenizer:
    """The fitted tokeniser; make one with `PatchVQTokenizer.fit` or `PatchVQTokenizer.load`.

    Args:
        config: sizes.
        codebook: patches to codes, exactly.
        decoder: codes to pixels; its weights are float16 numbers kept in float32, as `save` writes them.
    """

    config: PatchVQConfig
    codebook: PatchCodebook
    decoder: GridDecoder

    @property
    def spatial(self) -> int:
        """Pixels per code in each direction."""
        return self.config.patch

    @property
    def num_codes(self) -> int:
        """Entries of the codebook."""
        return self.config.num_codes

    @classmethod
    def fit(
        cls,
        frames: UInt8[Tensor, "n h w c"],
        config: PatchVQConfig,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> PatchVQTokenizer:
        """Fits codes and decoder where the frames lie.

        Args:
            frames: images of every camera that it will see, of one size.
            config: sizes.
            generator: draws patches, first weights and batches; on the CPU.
            progress: told the steps of the optimiser done and their total.

        Raises:
            ValueError: fewer than two patches altogether, or a wrong dtype, shape or size.
        """
        require_frames(frames, spatial=config.patch)
        if frames.numel() < 2 * config.patch_size:
            raise ValueError(
                f"patch VQ: expected frames with two patches or more to fit to, got {tuple(frames.shape)}; give more"
            )
        codebook = fit_codebook(
            _patches(frames, config.patch),
            num_codes=config.num_codes,
            num_directions=min(config.num_directions, config.patch_size),
            max_patches=config.max_patches,
            rounds=config.rounds,
            generator=generator,
        )
        decoder = _initialized(config, codebook, generator).to(frames.device)
        tokenizer = cls(config=config, codebook=codebook, decoder=decoder)
        codes = tokenizer.encode(frames)
        decoder.patches.weight.data.copy_(_mean_patches(frames, codes, otherwise=codebook.decode()))
        _train(decoder, frames, codes, config, generator, progress)
        decoder.half().float().eval().requires_grad_(False)
        return tokenizer

    def encode(self, frames: UInt8[Tensor, "n h w c"]) -> Int[Tensor, "n y x"]:
        """The nearest code of each patch.

        Raises:
            ValueError: wrong dtype, rank or channel count, or a size that is not a multiple of `patch`.
        """
        require_frames(frames, spatial=self.spatial)
        y, x = frames.shape[1] // self.spatial, frames.shape[2] // self.spatial
        return rearrange(self.codebook.nearest(_patches(frames, self.spatial)), "(n y x) -> n y x", y=y, x=x)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "n y x"]) -> UInt8[Tensor, "n h w c"]:
        """Frames of each grid of codes, which may have any size.

        Raises:
            ValueError: codes of a wrong dtype, rank or range.
        """
        require_codes(codes, num_codes=self.num_codes)
        n, y, x = codes.shape
        size = (y * self.spatial, x * self.spatial)
        frames = torch.empty((n, *size, 3), dtype=torch.uint8, device=codes.device)
        rows = max(1, _SLICE_PIXELS // max(1, math.prod(size)))
        for start in range(0, n, rows):
            frames[start : start + rows] = to_uint8(self.decoder(codes[start : start + rows].long()))
        return frames

    def to(self, device: torch.device | str) -> PatchVQTokenizer:
        """This tokeniser on `device`; its decoder is moved."""
        return dataclasses.replace(self, codebook=self.codebook.to(device), decoder=self.decoder.to(device))

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors` and `config.json`; each file is replaced whole or not at all."""
        from safetensors.torch import save_file

        tensors = {f"decoder.{name}": tensor.half() for name, tensor in self.decoder.state_dict().items()}
        for name in ("projection", "codes"):
            tensors[f"codebook.{name}"] = getattr(self.codebook, name).to(torch.int16)
        # Weights first: a reader looks for the settings, so a kill in between leaves no folder that seems whole.
        with atomic_file(folder / "model.safetensors") as partial:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, {"format": "pt"})
        settings = {"type": "patch_vq", "version": FORMAT_VERSION, "config": dataclasses.asdict(self.config)}
        write_settings(folder, settings)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> PatchVQTokenizer:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: another type or version, or tensors that do not fit the sizes.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        settings = read_settings(folder, kind="patch_vq", version=FORMAT_VERSION)
        with blame(folder / "config.json", COPY_AGAIN):
            config = read_fields(PatchVQConfig, settings.get("config"), "config")
        path = folder / "model.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"patch VQ: expected {path.name} in {folder}, found none; {COPY_AGAIN}")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or damaged ({error}); {COPY_AGAIN}") from error
        with torch.device("meta"):
            decoder = GridDecoder(config)
        _require_layout(tensors, config, decoder, path)
        require_finite(tensors.items(), source=path)
        parts = {name: tensor.float() for name, tensor in tensors.items()}
        codebook = PatchCodebook(projection=parts.pop("codebook.projection"), codes=parts.pop("codebook.codes"))
        decoder.load_state_dict({name.removeprefix("decoder."): part for name, part in parts.items()}, assign=True)
        return cls(config=config, codebook=codebook, decoder=decoder.eval().requires_grad_(False)).to(device)


def _require_layout(tensors: dict[str, Tensor], config: PatchVQConfig, decoder: GridDecoder, path: Path) -> None:
    directions = min(config.num_directions, config.patch_size)
    expected = {f"decoder.{name}": (torch.float16, tensor.shape) for name, tensor in decoder.state_dict().items()}
    expected["codebook.projection"] = (torch.int16, torch.Size((config.patch_size, directions)))
    expected["codebook.codes"] = (torch.int16, torch.Size((config.num_codes, directions)))
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        listed = "; ".join(f"{name}: expected {_said(expected, name)}, got {_said(found, name)}" for name in wrong)
        raise ValueError(f"{path}: its tensors do not fit config.json ({listed}); {COPY_AGAIN}")


def _said(layout: dict[str, tuple[torch.dtype, torch.Size]], name: str) -> str:
    if name not in layout:
        return "nothing"
    dtype, shape = layout[name]
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def _patches(frames: UInt8[Tensor, "n h w c"], s: int) -> UInt8[Tensor, "m d"]:
    return rearrange(frames, "n (y p) (x q) c -> (n y x) (p q c)", p=s, q=s)


def _initialized(config: PatchVQConfig, codebook: PatchCodebook, generator: torch.Generator) -> GridDecoder:
    """A decoder whose convolutions correct nothing yet."""
    with torch.device("meta"):
        decoder = GridDecoder(config)
    decoder.to_empty(device="cpu")
    blocks = [module for module in decoder.modules() if isinstance(module, _Block)]
    for block in blocks:
        nn.init.kaiming_uniform_(block.around.weight, a=math.sqrt(5), generator=generator)
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
    for silent in (decoder.correction, *(block.inside for block in blocks)):
        nn.init.zeros_(silent.weight)
    with torch.no_grad():
        # Like codes start with like vectors.
        codes = codebook.codes.cpu()
        mix = torch.randn(codes.shape[1], config.width, generator=generator)
        vectors = (codes - codes.mean(0)) @ mix
        decoder.tokens.weight.copy_(_FIRST_SPREAD * vectors / vectors.std().clamp_min(1e-6))
    return decoder


def _mean_patches(
    frames: UInt8[Tensor, "n h w c"], codes: Int[Tensor, "n y x"], *, otherwise: Float[Tensor, "k d"]
) -> Float[Tensor, "k d"]:
    """The mean, in [-1, 1], of the patches that have each code; of codes that none has, the row of `otherwise`."""
    sums, counts = torch.zeros_like(otherwise), torch.zeros_like(otherwise[:, :1])
    for some, their in zip(frames.split(_MEAN_FRAMES), codes.split(_MEAN_FRAMES), strict=True):
        patches = _patches(some, frames.shape[1] // codes.shape[1]).float()
        sums.index_add_(0, their.flatten(), patches)
        counts.index_add_(0, their.flatten(), torch.ones_like(patches[:, :1]))
    return torch.where(counts > 0, sums / counts.clamp_min(1) / 127.5 - 1.0, otherwise)


def _train(
    decoder: GridDecoder,
    frames: UInt8[Tensor, "n h w c"],
    codes: Int[Tensor, "n y x"],
    config: PatchVQConfig,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None,
) -> None:
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    for step in range(config.steps):
        rows = torch.randint(len(frames), (config.batch_size,), generator=generator).to(frames.device)
        loss = F.mse_loss(decoder(codes[rows]), to_unit_range(frames[rows]))
        warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
        rate = config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(step + 1, config.steps)
