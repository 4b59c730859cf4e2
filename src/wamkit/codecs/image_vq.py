"""The VQ-GAN image tokeniser of Chameleon and WorldVLA: one code out of 8192 for 16 by 16 pixels, frozen.

Weights come from the published files, or from a fit on a data set's own frames at a small size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from wamkit.atomic import atomic_file
from wamkit.codecs.base import require_codes, require_frames, to_uint8, to_unit_range
from wamkit.codecs.image_vq_config import VQConfig
from wamkit.codecs.image_vq_network import VQNetwork
from wamkit.codecs.image_vq_training import fit_network
from wamkit.codecs.image_vq_weights import (
    CHECKPOINT_SUFFIX,
    find_published,
    moved,
    network_from,
    published_config,
    read_tensors,
    write_published,
)
from wamkit.codecs.reference import WeightsReference, read_settings, write_settings
from wamkit.typed import COPY_AGAIN, blame, read_fields, read_value
from wamkit.weight_files import weight_files

FORMAT_VERSION = 1
"""Version of the folder that `VQImageTokenizer.save` writes."""

_SLICE_PIXELS = 1 << 18  # per forward pass: one image of 512 px, so that memory stays flat in the number of frames


class VQImageTokenizer:
    """The network at the edge: uint8 frames to codes and back, always in float32, so that codes do not shift.

    Args:
        network: it is set to evaluation and its gradients are switched off.
        source: what `save` refers to; `None` makes `save` write the weights.
    """

    def __init__(self, network: VQNetwork, *, source: WeightsReference | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.source = source

    @property
    def config(self) -> VQConfig:
        """Sizes."""
        return self.network.config

    @property
    def spatial(self) -> int:
        """Pixels per code in each direction."""
        return self.config.spatial

    @property
    def num_codes(self) -> int:
        """Entries of the codebook."""
        return self.config.num_codes

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.quantize.embedding.weight.device

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "n h w c"]) -> Int[Tensor, "n y x"]:
        """The code nearest to what the encoder gives at each place of each frame.

        Args:
            frames: height and width are multiples of `spatial`.

        Raises:
            ValueError: wrong dtype, rank, channel count or size.
        """
        require_frames(frames, spatial=self.spatial)
        n, height, width, _ = frames.shape
        codes = torch.empty((n, height // self.spatial, width // self.spatial), dtype=torch.int64, device=self.device)
        rows = max(1, _SLICE_PIXELS // (height * width))
        for start in range(0, n, rows):
            images = to_unit_range(frames[start : start + rows].to(self.device))
            codes[start : start + rows] = self.network.codes(self.network.encode(images))
        return codes

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "n y x"]) -> UInt8[Tensor, "n h w c"]:
        """Frames of each grid of codes, clamped to 0-255.

        Raises:
            ValueError: codes of a wrong dtype, rank or range, or weights without a decoder.
        """
        require_codes(codes, num_codes=self.num_codes)
        if not self.config.has_decoder:
            raise ValueError(
                "expected VQ-GAN weights with a decoder, got the encoder half alone, as Chameleon's in Hugging Face's "
                "layout are; load vqgan.ckpt instead"
            )
        n, y, x = codes.shape
        size = (y * self.spatial, x * self.spatial)
        frames = torch.empty((n, *size, 3), dtype=torch.uint8, device=self.device)
        rows = max(1, _SLICE_PIXELS // max(1, size[0] * size[1]))
        for start in range(0, n, rows):
            entries = self.network.entries(codes[start : start + rows].to(self.device, torch.int64))
            frames[start : start + rows] = to_uint8(self.network.decode(entries))
        return frames

    def to(self, device: torch.device | str) -> VQImageTokenizer:
        """This tokeniser, its weights moved to `device`."""
        self.network.to(device)
        return self

    @classmethod
    def fit(
        cls,
        frames: UInt8[Tensor, "n h w c"],
        config: VQConfig,
        generator: torch.Generator,
        *,
        steps: int = 400,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> VQImageTokenizer:
        """A tokeniser trained on frames from random weights, where they lie.

        Args:
            frames: images of every camera that it will see, of one size.
            config: sizes; `VQConfig.tiny()` is meant.
            generator: draws the first weights, the batches and the codebook; on the CPU.
            steps: of the optimiser.
            batch_size: frames per step.
            progress: told the steps done and their total.

        Raises:
            ValueError: unusable frames, no steps, an empty batch, or a config without a decoder.
        """
        network = fit_network(
            frames, config=config, generator=generator, steps=steps, batch_size=batch_size, progress=progress
        )
        return cls(network)

    def save(self, folder: Path) -> None:
        """Writes `config.json` with a reference to the weights, or with `model.safetensors` if they have no file."""
        from safetensors.torch import save_file

        if self.source is None:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
            # Weights first: a reader looks for the settings, so a kill in between leaves no folder that seems whole.
            with atomic_file(folder / "model.safetensors") as partial:
                save_file(tensors, partial, metadata={"format": "pt"})
        settings = {
            "type": "image_vq",
            "version": FORMAT_VERSION,
            "config": dataclasses.asdict(self.config),
            "source": None if self.source is None else dataclasses.asdict(self.source),
        }
        write_settings(folder, settings)

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | str = "cpu", *, pretrained: Path | None = None
    ) -> VQImageTokenizer:
        """Inverse of `save`.

        Args:
            folder: what `save` wrote.
            device: where the weights go.
            pretrained: where the referenced weights lie now, when they have moved; as `path` of `from_pretrained`.

        Raises:
            FileNotFoundError: the settings or the weights are missing.
            ValueError: another type or version, damaged weights, or others than those referred to.
        """
        settings = read_settings(folder, kind="image_vq", version=FORMAT_VERSION)
        with blame(folder / "config.json", COPY_AGAIN):
            config = read_fields(VQConfig, settings.get("config"), "config")
            source = read_value(WeightsReference | None, settings.get("source"), "source")
        if source is None:
            path = folder / "model.safetensors"
            if not path.is_file():
                raise FileNotFoundError(f"VQ-GAN: expected {path.name} in {folder}, found none; {COPY_AGAIN}")
        else:
            path = source.locate(None if pretrained is None else moved(source, pretrained))
        return cls(network_from(read_tensors(path), config, path), source=source).to(device)

    @classmethod
    def from_pretrained(
        cls, path: Path, *, config: VQConfig | None = None, device: torch.device | str = "cpu"
    ) -> VQImageTokenizer:
        """The published weights.

        Args:
            path: `vqgan.ckpt` or the same tensors as .safetensors; the folder that holds it, or WorldVLA's download
                around that; or Chameleon in the layout of Hugging Face (a file, or a folder of shards), which has the
                encoder half alone.
            config: sizes; by default those of `vqgan.yaml` beside the weights, or the published ones where there is
                none.
            device: where the weights go.

        Raises:
            FileNotFoundError: nothing usable at `path`; says what was expected.
            ValueError: a file that holds more than tensors, missing, foreign or misshapen tensors, or settings of
                another architecture.
        """
        path = find_published(Path(path))
        tensors = read_tensors(path)
        config = config or published_config(path)
        if path.suffix != CHECKPOINT_SUFFIX and not any(name.startswith("decoder.") for name in tensors):
            config = dataclasses.replace(config, has_decoder=False)
        files = [path] if path.is_file() else weight_files(path)
        return cls(network_from(tensors, config, path), source=WeightsReference.of(path, files)).to(device)

    def to_published(self, folder: Path) -> None:
        """Writes `vqgan.ckpt` and `vqgan.yaml`, as Chameleon was published.

        Raises:
            ValueError: the weights have no decoder.
        """
        write_published(self.network, folder)
