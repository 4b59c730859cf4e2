"""I3D on weights made in the published layout, and the Frechet distance against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from wamkit.evaluation.fvd import RIDGE, Gaussian, frechet_distance, video_distance
from wamkit.evaluation.i3d import I3D, MIN_FRAMES, pad_same

# name -> widths of the branches b0, b1a, b1b, b2a, b2b, b3b; the published architecture
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A state dict as old files have it: without the counters of batch norm."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}

    def unit(name: str, width_in: int, width: int, kernel: int) -> None:
        scale = (2 / (width_in * kernel**3)) ** 0.5
        shape = (width, width_in, kernel, kernel, kernel)
        tensors[f"{name}.conv3d.weight"] = scale * torch.randn(shape, generator=generator)
        tensors[f"{name}.bn.weight"] = 0.5 + torch.rand(width, generator=generator)
        tensors[f"{name}.bn.bias"] = 0.3 * torch.randn(width, generator=generator)
        tensors[f"{name}.bn.running_mean"] = 0.1 * torch.randn(width, generator=generator)
        tensors[f"{name}.bn.running_var"] = 0.5 + torch.rand(width, generator=generator)

    unit("Conv3d_1a_7x7", 3, 64, 7)
    unit("Conv3d_2b_1x1", 64, 64, 1)
    unit("Conv3d_2c_3x3", 64, 192, 3)
    last = 192
    for name, (first, narrow, middle, narrower, small, pooled) in MIXED.items():
        unit(f"{name}.b0", last, first, 1)
        unit(f"{name}.b1a", last, narrow, 1)
        unit(f"{name}.b1b", narrow, middle, 3)
        unit(f"{name}.b2a", last, narrower, 1)
        unit(f"{name}.b2b", narrower, small, 3)
        unit(f"{name}.b3b", last, pooled, 1)
        last = first + middle + small + pooled
    tensors["logits.conv3d.weight"] = 0.05 * torch.randn(400, last, 1, 1, 1, generator=generator)
    tensors["logits.conv3d.bias"] = torch.randn(400, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "rgb_imagenet.pt"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def network(file: Path) -> I3D:
    return I3D.load(file)


def clip(length: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length, side, side, 3), dtype=torch.uint8, generator=generator)


def plain_logits(weights: dict[str, Tensor], video: Tensor) -> Tensor:
    """The same network as functional calls, its padding written out as output sizes ask for it."""

    def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], fill: float) -> Tensor:
        for axis in range(3):
            size = x.shape[2 + axis]
            places = math.ceil(size / stride[axis])
            missing = max((places - 1) * stride[axis] + kernel[axis] - size, 0)
            front = list(x.shape)
            front[2 + axis] = missing // 2
            back = list(x.shape)
            back[2 + axis] = missing - missing // 2
            x = torch.cat([x.new_full(front, fill), x, x.new_full(back, fill)], dim=2 + axis)
        return x

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.conv3d.weight"]
        x = F.conv3d(same(x, weight.shape[2:], (stride,) * 3, 0.0), weight, stride=stride)
        part = {key: weights[f"{name}.bn.{key}"].view(-1, 1, 1, 1) for key in ("weight", "bias")}
        mean, var = (weights[f"{name}.bn.running_{key}"].view(-1, 1, 1, 1) for key in ("mean", "var"))
        return ((x - mean) / (var + 0.001).sqrt() * part["weight"] + part["bias"]).clamp(min=0)

    def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(same(x, kernel, stride, -math.inf), kernel, stride)

    x = pool(unit("Conv3d_1a_7x7", video, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        branches = [
            unit(f"{name}.b0", x),
            unit(f"{name}.b1b", unit(f"{name}.b1a", x)),
            unit(f"{name}.b2b", unit(f"{name}.b2a", x)),
            unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1))),
        ]
        x = torch.cat(branches, dim=1)
    steps = [x[:, :, t : t + 2].mean(dim=(2, 3, 4)) for t in range(x.shape[2] - 1)]
    logits = [step @ weights["logits.conv3d.weight"].flatten(1).T + weights["logits.conv3d.bias"] for step in steps]
    return torch.stack(logits).mean(dim=0)


def test_the_network_has_the_published_size_and_names(network: I3D, weights: dict[str, Tensor]) -> None:
    assert sum(item.numel() for item in network.parameters()) == 12_697_264
    names = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert names == set(weights) and "Mixed_5c.b2b.bn.running_var" in names
    assert not any(item.requires_grad for item in network.parameters()) and not network.training


@pytest.mark.parametrize("length", [11])
def test_the_network_against_a_plain_evaluation(network: I3D, weights: dict[str, Tensor], length: int) -> None:
    """Odd numbers of frames: the padding is uneven."""
    frames = clip(length, 224)
    with torch.inference_mode():
        expected = plain_logits(weights, (frames.permute(3, 0, 1, 2)[None].float() / 127.5) - 1)
    found = network.encode(frames)
    assert found.shape == (400,)
    torch.testing.assert_close(found, expected[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, network.encode(frames.flip(0)), atol=1e-2), "it sees the order of frames"


def test_frames_are_brought_to_the_size_of_the_network(network: I3D) -> None:
    frames = clip(MIN_FRAMES, 56)
    large = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(224, 224), mode="bilinear", align_corners=False)
    expected = network((large / 127.5 - 1).permute(1, 0, 2, 3)[None])[0]
    torch.testing.assert_close(network.encode(frames), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="expected a clip of 9 or more frames, got 8"):
        network.encode(frames[:8])


@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_gives_as_many_places_as_steps_fit(kernel: int, stride: int) -> None:
    for size in range(max(1, kernel - 1), 12):
        x = torch.ones(1, 1, size, size + 1, 3)
        padded = pad_same(x, (kernel, kernel, 1), (stride, stride, 1))
        places = F.max_pool3d(padded, (kernel, kernel, 1), (stride, stride, 1)).shape[2:]
        assert places == (math.ceil(size / stride), math.ceil((size + 1) / stride), 3)
        assert padded.sum() == x.sum()
        front = int((padded[0, 0, :, padded.shape[3] // 2, 0] == 0).int().cummin(dim=0).values.sum())
        assert front == (padded.shape[2] - size) // 2, "the odd zero comes last"


def test_both_kinds_of_files_are_read_alike(network: I3D, weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "i3d.safetensors")
    torch.save(network.state_dict(), tmp_path / "new.pt")
    for name in ("i3d.safetensors", "new.pt"):
        again = I3D.load(tmp_path / name).state_dict()
        assert all(torch.equal(item, again[key]) for key, item in network.state_dict().items())


def test_wrong_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected the weights of I3D at .*none\.pt, found no such file"):
        I3D.load(tmp_path / "none.pt")
    torch.save({**weights, "Conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 2, 7, 7, 7)}, tmp_path / "flow.pt")
    with pytest.raises(
        ValueError, match=r"(?s)1 of another shape: .*\[64, 3, 7, 7, 7\], got \[64, 2.*expected the I3D"
    ):
        I3D.load(tmp_path / "flow.pt")
    torch.save({key: item for key, item in weights.items() if "logits" not in key}, tmp_path / "headless.pt")
    with pytest.raises(ValueError, match=r"(?s)2 missing: logits\.conv3d.*of pytorch-i3d, RGB with 400 classes"):
        I3D.load(tmp_path / "headless.pt")


def gaussian(mean: list[float], covariance: list[list[float]]) -> Gaussian:
    return Gaussian(
        mean=torch.tensor(mean, dtype=torch.float64), covariance=torch.tensor(covariance, dtype=torch.float64)
    )


def test_the_distance_of_gaussians_in_closed_form() -> None:
    """In one dimension it is (m1 - m2)² + (s1 - s2)²; axis by axis for diagonal covariances."""
    assert frechet_distance(gaussian([1], [[9]]), gaussian([3], [[4]]), ridge=0.0) == pytest.approx(4 + 1)
    first, second = gaussian([0, 0], [[4, 0], [0, 1]]), gaussian([1, 2], [[1, 0], [0, 16]])
    assert frechet_distance(first, second, ridge=0.0) == pytest.approx(1 + 4 + 1 + 9)
    turned = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    moved = [
        Gaussian(mean=turned @ item.mean, covariance=turned @ item.covariance @ turned.T) for item in (first, second)
    ]
    assert frechet_distance(*moved, ridge=0.0) == pytest.approx(15), "it does not depend on the axes"


def test_the_ridge_is_added_to_both_covariances() -> None:
    point, spread = gaussian([0], [[0]]), gaussian([0], [[3e-6]])
    assert RIDGE == 1e-6
    assert frechet_distance(point, spread) == pytest.approx(1e-6 * (2 - 1) ** 2), "(√(3+1) - √1)² ridges"
    assert frechet_distance(point, gaussian([2], [[0]])) == pytest.approx(4)


def test_the_distance_of_clips_against_its_definition() -> None:
    """By the eigenvalues of S1 S2, which are those of its square root squared."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(60, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    second = torch.randn(45, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 1
    exact = [item.double().numpy() for item in (first, second)]
    covariances = [torch.cov(torch.from_numpy(item).T) + 1e-6 * torch.eye(8, dtype=torch.float64) for item in exact]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt().sum()
    shift = ((exact[0].mean(axis=0) - exact[1].mean(axis=0)) ** 2).sum()
    expected = shift + float(covariances[0].trace() + covariances[1].trace() - 2 * roots)
    assert video_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert video_distance(second, first) == pytest.approx(expected, rel=1e-9), "symmetric"


@pytest.mark.parametrize("num", [2, 5, 500])
def test_a_set_of_clips_is_at_no_distance_from_itself(num: int) -> None:
    """Also where clips are fewer than features, and their covariance is singular."""
    features = 10 * torch.randn(num, 400, generator=torch.Generator().manual_seed(num))
    assert video_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert video_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-6), "in any order"
    assert video_distance(features, features + 1) == pytest.approx(400, rel=1e-6), "only the mean moves"


def test_what_has_no_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the features of 2 or more clips, got 1"):
        video_distance(torch.zeros(1, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="expected finite features, got NaN or infinity"):
        video_distance(torch.full((3, 4), float("nan")), torch.zeros(3, 4))
