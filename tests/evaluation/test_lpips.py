"""LPIPS on weights made in the published layout, against a plain evaluation and a case worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from wamkit.evaluation.lpips import LPIPS

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
LOOKED_AT = {2: 64, 7: 128, 14: 256, 21: 512, 28: 512}
POOLED_BEFORE = (5, 10, 17, 24)


@pytest.fixture(scope="module")
def trunk() -> dict[str, Tensor]:
    """A state dict of torchvision's vgg16, its classifier made small."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    last = 3
    for number, width in zip(CONVOLUTIONS, CHANNELS, strict=True):
        scale = (2 / (9 * last)) ** 0.5
        tensors[f"features.{number}.weight"] = scale * torch.randn(width, last, 3, 3, generator=generator)
        tensors[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=generator)
        last = width
    return tensors


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{number}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for number, width in enumerate(LOOKED_AT.values())
    }


@pytest.fixture(scope="module")
def folder(trunk: dict[str, Tensor], heads: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both as published: files of torch."""
    root = tmp_path_factory.mktemp("lpips")
    torch.save(trunk, root / "vgg16.pth")
    torch.save(heads, root / "vgg.pth")
    return root


@pytest.fixture(scope="module")
def network(folder: Path) -> LPIPS:
    return LPIPS.load(vgg=folder / "vgg16.pth", heads=folder / "vgg.pth")


def images(num: int, seed: int, height: int = 33, width: int = 40) -> Tensor:
    return torch.randint(
        0, 256, (num, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def distance(network: LPIPS, first: Tensor, second: Tensor) -> Tensor:
    return network.distance(network.encode(first), network.encode(second))


def plain_distance(trunk: dict[str, Tensor], heads: dict[str, Tensor], first: Tensor, second: Tensor) -> Tensor:
    """The same by functional calls on the published tensors, in float64."""

    def look(pictures: Tensor) -> list[Tensor]:
        x = pictures.permute(0, 3, 1, 2).double() / 255 * 2 - 1
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)
        seen = []
        for number in CONVOLUTIONS:
            if number in POOLED_BEFORE:
                x = F.max_pool2d(x, 2, 2)
            weight, bias = (trunk[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            if number in LOOKED_AT:
                seen.append(x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return seen

    total = torch.zeros(len(second), dtype=torch.float64)
    for number, (one, other) in enumerate(zip(look(first), look(second), strict=True)):
        weights = heads[f"lin{number}.model.1.weight"].double().view(1, -1, 1, 1)
        total += (weights * (one - other) ** 2).sum(dim=1).mean(dim=(1, 2))
    return total


def test_the_networks_have_the_published_sizes(network: LPIPS) -> None:
    assert sum(item.numel() for item in network.features.parameters()) == 14_714_688
    assert sum(item.numel() for item in network.heads().parameters()) == 64 + 128 + 256 + 512 + 512
    assert not any(item.requires_grad for item in network.parameters()) and not network.training


def test_the_distance_against_a_plain_evaluation(
    network: LPIPS, trunk: dict[str, Tensor], heads: dict[str, Tensor]
) -> None:
    first, second = images(2, 0), images(2, 1)
    expected = plain_distance(trunk, heads, first, second)
    torch.testing.assert_close(distance(network, first, second).double(), expected, rtol=1e-4, atol=1e-6)
    assert (expected > 0.01).all()


def test_equal_images_are_at_no_distance_and_order_does_not_matter(network: LPIPS) -> None:
    first, second = images(3, 0), images(3, 1)
    assert distance(network, first, first).tolist() == [0, 0, 0]
    torch.testing.assert_close(distance(network, first, second), distance(network, second, first))
    near = (0.9 * first.float() + 0.1 * second.float()).to(torch.uint8)
    assert (distance(network, first, near) < distance(network, first, second)).all()
    one = distance(network, first[:1], second)
    torch.testing.assert_close(one, distance(network, first[:1].expand(3, -1, -1, -1), second))


def test_a_case_by_hand() -> None:
    """Two channels that pass red and green on; only the first level counts, with weight 1.5.

    Where only red is left after the ReLU features are (1, 0), where only green is (0, 1): 1.5 * (1 + 1). The right half
    of the images is equal.
    """
    network = LPIPS()
    for item in network.parameters():
        item.zero_()
    first, second = network.get_submodule("features.0"), network.get_submodule("features.2")
    for layer in (first, second):
        for channel in (0, 1):
            layer.get_parameter("weight")[channel, channel, 1, 1] = 1
    network.get_parameter("lin0.model.1.weight").fill_(1.5)
    pictures = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    pictures[0, ..., 0], pictures[1, ..., 1] = 255, 200
    pictures[1, :, 8:] = pictures[0, :, 8:]
    assert distance(network, pictures[:1], pictures[1:]).item() == pytest.approx(3.0 / 2, abs=1e-6)


def test_files_of_torch_and_safetensors_are_read_alike(
    network: LPIPS, folder: Path, trunk: dict[str, Tensor], heads: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(trunk, tmp_path / "vgg16.safetensors")
    torch.save({"state_dict": heads}, tmp_path / "vgg.pth")
    again = LPIPS.load(vgg=tmp_path / "vgg16.safetensors", heads=tmp_path / "vgg.pth")
    for name, item in network.state_dict().items():
        assert torch.equal(item, again.state_dict()[name])


def test_wrong_weights_are_refused(
    folder: Path, trunk: dict[str, Tensor], heads: dict[str, Tensor], tmp_path: Path
) -> None:
    vgg, linear = folder / "vgg16.pth", folder / "vgg.pth"
    with pytest.raises(FileNotFoundError, match=r"expected the weights of VGG16 at .*none\.pth, found no such file"):
        LPIPS.load(vgg=tmp_path / "none.pth", heads=linear)
    with pytest.raises(ValueError, match=r"(?s)13 missing|26 missing.*expected torchvision's state dict of vgg16"):
        LPIPS.load(vgg=linear, heads=linear)
    with pytest.raises(ValueError, match=r"(?s)5 missing.*unexpected.*expected the heads of LPIPS 0\.1"):
        LPIPS.load(vgg=vgg, heads=vgg)
    wide = {**heads, "lin0.model.1.weight": torch.rand(1, 96, 1, 1)}
    torch.save(wide, tmp_path / "alex.pth")
    with pytest.raises(ValueError, match=r"(?s)lin0\.model\.1\.weight: expected \[1, 64, 1, 1\], got \[1, 96, 1, 1\]"):
        LPIPS.load(vgg=vgg, heads=tmp_path / "alex.pth")
    torch.save({**heads, "lin1.model.1.weight": torch.full((1, 128, 1, 1), float("nan"))}, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"nan\.pth: expected finite weights, got NaN or infinity in lin1"):
        LPIPS.load(vgg=vgg, heads=tmp_path / "nan.pth")


def test_what_is_no_state_dict_is_refused(folder: Path, tmp_path: Path) -> None:
    """A file that would run code when it is read is never run."""
    vgg = folder / "vgg16.pth"
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("these are no weights")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pth"))
    for name in ("model.pth", "text.pth", "script.pth"):
        with pytest.raises(ValueError, match=rf"{name}: expected the heads of LPIPS as a state dict of torch or"):
            LPIPS.load(vgg=vgg, heads=tmp_path / name)
    with pytest.raises(ValueError, match=r"list\.pth: expected the heads of LPIPS as a state dict .*, got list"):
        LPIPS.load(vgg=vgg, heads=tmp_path / "list.pth")
