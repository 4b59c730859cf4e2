"""I3D: the video classifier by whose features the Frechet video distance is measured.

Weights are a published file in the layout of pytorch-i3d (`rgb_imagenet.pt`; the `i3d_pretrained_400.pt` of public FVD
code has the same): Inception-v1 inflated to three dimensions, RGB, 400 classes of Kinetics. Two such files give two
different distances, so results name the file.

Source: Carreira and Zisserman 2017, "Quo vadis, action recognition?"; Szegedy et al. 2015, table 1 for the widths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.codecs.base import to_unit_range
from wamkit.evaluation.metric_weights import fill, read_metric_weights

NUM_CLASSES: Final = 400
SIZE: Final = 224
"""Height and width in pixels that the network was trained at."""
MIN_FRAMES: Final = 9
"""Time is halved three times, rounded up, and two steps must be left."""
LAYOUT: Final = (
    f"the I3D of pytorch-i3d, RGB with {NUM_CLASSES} classes (Conv3d_1a_7x7.conv3d.weight to logits.conv3d.bias)"
)
COUNTER: Final = "num_batches_tracked"  # older files have none, and only training reads it

Triple = tuple[int, int, int]


class _Unit(nn.Module):
    """Convolution with "SAME" padding, batch norm, ReLU; weight names `conv3d` and `bn`."""

    def __init__(self, width_in: int, width: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(width_in, width, kernel, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(width, eps=1e-3)
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d f y x"]:
        return F.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))))


class _Pool(nn.Module):
    """Maximum over a window with "SAME" padding; zeros may fill it, since what comes in went through a ReLU."""

    def __init__(self, kernel: Triple, stride: Triple):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c f y x"]:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 and 3x3x3 twice; pooled and 1x1x1."""

    def __init__(self, width_in: int, widths: tuple[int, int, int, int, int, int]):
        super().__init__()
        first, narrow, middle, narrower, small, pooled = widths
        self.b0 = _Unit(width_in, first)
        self.b1a = _Unit(width_in, narrow)
        self.b1b = _Unit(narrow, middle, 3)
        self.b2a = _Unit(width_in, narrower)
        self.b2b = _Unit(narrower, small, 3)
        self.b3a = _Pool((3, 3, 3), (1, 1, 1))
        self.b3b = _Unit(width_in, pooled)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


class _Logits(nn.Module):
    """A class score at every place; weight name `conv3d`."""

    def __init__(self, width_in: int, num_classes: int):
        super().__init__()
        self.conv3d = nn.Conv3d(width_in, num_classes, 1)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k t h w"]:
        return self.conv3d(x)


class I3D(nn.Module):
    """The classifier up to its class scores, with random weights; `load` gives the published one."""

    def __init__(self) -> None:
        super().__init__()
        trunk: list[tuple[str, nn.Module]] = [
            ("Conv3d_1a_7x7", _Unit(3, 64, 7, 2)),
            ("MaxPool3d_2a_3x3", _Pool((1, 3, 3), (1, 2, 2))),
            ("Conv3d_2b_1x1", _Unit(64, 64)),
            ("Conv3d_2c_3x3", _Unit(64, 192, 3)),
            ("MaxPool3d_3a_3x3", _Pool((1, 3, 3), (1, 2, 2))),
            ("Mixed_3b", _Mixed(192, (64, 96, 128, 16, 32, 32))),
            ("Mixed_3c", _Mixed(256, (128, 128, 192, 32, 96, 64))),
            ("MaxPool3d_4a_3x3", _Pool((3, 3, 3), (2, 2, 2))),
            ("Mixed_4b", _Mixed(480, (192, 96, 208, 16, 48, 64))),
            ("Mixed_4c", _Mixed(512, (160, 112, 224, 24, 64, 64))),
            ("Mixed_4d", _Mixed(512, (128, 128, 256, 24, 64, 64))),
            ("Mixed_4e", _Mixed(512, (112, 144, 288, 32, 64, 64))),
            ("Mixed_4f", _Mixed(528, (256, 160, 320, 32, 128, 128))),
            ("MaxPool3d_5a_2x2", _Pool((2, 2, 2), (2, 2, 2))),
            ("Mixed_5b", _Mixed(832, (256, 160, 320, 32, 128, 128))),
            ("Mixed_5c", _Mixed(832, (384, 192, 384, 48, 128, 128))),
        ]
        self.names = tuple(name for name, _ in trunk)
        for name, part in trunk:
            self.add_module(name, part)
        self.logits = _Logits(1024, NUM_CLASSES)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu") -> I3D:
        """The published classifier.

        Raises:
            FileNotFoundError: the file is not there.
            ValueError: it is damaged or holds other weights.
        """
        network = cls()
        tensors = read_metric_weights(path, what="the weights of I3D")
        unread = {name: item for name, item in network.state_dict().items() if name.endswith(COUNTER)}
        fill(network, {**unread, **tensors}, source=str(path), layout=LAYOUT)
        return network.to(device)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b k"]:
        """Class scores of clips in [-1, 1], the mean over time."""
        x = video
        for name in self.names:
            x = self.get_submodule(name)(x)
        x = self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1))
        return reduce(x, "b k t h w -> b k", "mean")

    @torch.inference_mode()
    def encode(self, clip: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, "k"]:
        """The features of one clip: its 400 class scores before softmax, as public FVD code takes them.

        Frames are resized to 224x224 px, bilinear and not antialiased, as that code does, and stay unrounded.

        Raises:
            ValueError: fewer frames than the network can take.
        """
        if len(clip) < MIN_FRAMES:
            raise ValueError(f"expected a clip of {MIN_FRAMES} or more frames, got {len(clip)}; compare longer clips")
        frames = to_unit_range(clip)
        if frames.shape[-2:] != (SIZE, SIZE):
            frames = F.interpolate(frames, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        features: Tensor = self(rearrange(frames, "t c h w -> 1 c t h w"))[0]
        return features


def pad_same(x: Float[Tensor, "b c t h w"], kernel: Triple, stride: Triple) -> Float[Tensor, "b c f y x"]:
    """Zeros around time, height and width, so that a window moved by `stride` gives ceil(size / stride) places.

    Source: TensorFlow's "SAME": the odd zero comes last.
    """
    pads: list[int] = []
    for size, window, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        missing = max((-(-size // step) - 1) * step + window - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads) if any(pads) else x
