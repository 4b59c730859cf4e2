"""LPIPS: how far apart two images look, by the features of VGG16.

Weights are two published files: torchvision's VGG16 trained on ImageNet, and the linear heads of LPIPS version 0.1
for it. Images are 8-bit RGB.

Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric", equation 1;
    version 0.1 of its authors' code, network vgg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.codecs.base import to_unit_range
from wamkit.evaluation.metric_weights import fill, read_metric_weights

WIDTHS: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Convolutions of VGG16, level by level; the last of each level is looked at."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of red, green and blue in [-1, 1]: ImageNet's mean and deviation, as version 0.1 rounds them."""
EPSILON = 1e-10
VGG_LAYOUT = "torchvision's state dict of vgg16 (features.0.weight to features.28.bias)"
HEADS_LAYOUT = "the heads of LPIPS 0.1 for vgg (lin0.model.1.weight to lin4.model.1.weight)"


class _Head(nn.Module):
    """Weights of one level's channels, under the published name `model.1.weight`; `model.0` was dropout."""

    def __init__(self, width: int):
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))


class LPIPS(nn.Module):
    """The distance, with random weights; `load` gives the published one."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        looked_at = []
        last = 3
        for level in WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in level:
                layers += [nn.Conv2d(last, width, 3, padding=1), nn.ReLU(inplace=True)]
                last = width
            looked_at.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.looked_at = tuple(looked_at)
        for number, widths in enumerate(WIDTHS):
            self.add_module(f"lin{number}", _Head(widths[-1]))
        self.register_buffer("shift", rearrange(torch.tensor(SHIFT), "c -> c 1 1"), persistent=False)
        self.register_buffer("scale", rearrange(torch.tensor(SCALE), "c -> c 1 1"), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, *, vgg: Path, heads: Path, device: torch.device | str = "cpu") -> LPIPS:
        """The published distance.

        Args:
            vgg: torchvision's VGG16; its classifier is ignored.
            heads: the linear heads.
            device: where it computes.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: a file is damaged or holds other weights.
        """
        network = cls()
        trunk = read_metric_weights(vgg, what="the weights of VGG16")
        trunk = {name.removeprefix("features."): item for name, item in trunk.items() if name.startswith("features.")}
        fill(network.features, trunk, source=str(vgg), layout=VGG_LAYOUT)
        linear = read_metric_weights(heads, what="the heads of LPIPS")
        fill(network.heads(), linear, source=str(heads), layout=HEADS_LAYOUT)
        return network.to(device)

    def heads(self) -> nn.ModuleDict:
        """The linear heads by their published names."""
        return nn.ModuleDict({f"lin{number}": self.get_submodule(f"lin{number}") for number in range(len(WIDTHS))})

    @torch.inference_mode()
    def encode(self, images: UInt8[Tensor, "n h w 3"]) -> list[Float[Tensor, "n c y x"]]:
        """What VGG16 sees at five levels, every place scaled to length 1 over its channels."""
        x = (to_unit_range(images) - self.shift) / self.scale
        seen = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.looked_at:
                length = reduce(x.square(), "n c y x -> n 1 y x", "sum").sqrt()
                seen.append(x / (length + EPSILON))
        return seen

    @torch.inference_mode()
    def distance(
        self, first: Sequence[Float[Tensor, "_ _ _ _"]], second: Sequence[Float[Tensor, "n _ _ _"]]
    ) -> Float[Tensor, "n"]:
        """Distance of images by their features, 0 for equal ones.

        Args:
            first: as `encode` gives them, for as many images as `second` or for one that is compared with all.
            second: likewise.
        """
        levels = []
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            head = self.get_submodule(f"lin{number}.model.1")
            levels.append(reduce(head((one - other).square()), "n 1 y x -> n", "mean"))
        return torch.stack(levels).sum(dim=0)
