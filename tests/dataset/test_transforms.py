import json
from dataclasses import dataclass

import pytest
import torch

from wamkit.data.transforms import Normalizer, ValueTransform, symexp, symlog


@dataclass(frozen=True)
class Numbers:
    """Statistics by hand: channel 1 is constant, channel 2 moves only in outliers."""

    mean: tuple[float, ...] = (1.0, 0.7, 0.0)
    std: tuple[float, ...] = (2.0, 0.0, 0.0)
    q01: tuple[float, ...] = (-2.0, 0.7, 0.0)
    q99: tuple[float, ...] = (4.0, 0.7, 0.0)
    min: tuple[float, ...] = (-3.0, 0.7, 0.0)
    max: tuple[float, ...] = (5.0, 0.7, 1.0)


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
@pytest.mark.parametrize("lead", [(), (7,), (2, 3, 5)])
def test_check_11_normalize_then_denormalize_is_the_identity(kind, lead):
    generator = torch.Generator().manual_seed(0)
    center, spread = torch.tensor([0.0, 1e-3, 100.0, -5.0]), torch.tensor([1.0, 2e-3, 30.0, 0.1])
    values = torch.randn(500, 4, generator=generator) * spread + center
    normalizer = Normalizer(
        kind=kind,
        q01=tuple(values.quantile(0.01, 0).tolist()),
        q99=tuple(values.quantile(0.99, 0).tolist()),
        mean=tuple(values.mean(0).tolist()),
        std=tuple(values.std(0).tolist()),
    )
    x = torch.randn(*lead, 4, generator=generator) * 3 * spread + center
    there = normalizer.normalize(x)
    assert there.shape == x.shape
    torch.testing.assert_close(normalizer.denormalize(there), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normalizer.normalize(normalizer.denormalize(there)), there, atol=1e-5, rtol=1e-5)


def test_formulas_against_the_specification():
    x = torch.tensor([[-2.0, 0.0], [10.0, 3.0]], dtype=torch.float64)
    shared = {"q01": (-2.0, 0.0), "q99": (4.0, 1.0), "mean": (1.0, 0.5), "std": (2.0, 0.25)}
    q01, q99, mean, std = (torch.tensor(shared[name], dtype=torch.float64) for name in ("q01", "q99", "mean", "std"))
    minmax = Normalizer(kind="minmax", **shared).normalize(x)
    torch.testing.assert_close(minmax, 2 * (x - q01) / (q99 - q01 + 1e-6) - 1, atol=1e-12, rtol=1e-12)
    assert minmax[1, 0] > 2.9  # no clipping
    meanstd = Normalizer(kind="meanstd", **shared).normalize(x)
    torch.testing.assert_close(meanstd, (x - mean) / (std + 1e-6), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
def test_constant_and_hardly_used_channels(kind):
    normalizer = Normalizer.from_statistics(kind, Numbers())
    assert normalizer.constant == (1,)
    assert normalizer.widened == (2,)
    there = normalizer.normalize(torch.tensor([[1.0, 0.7, 1.0], [1.0, 99.0, 0.0]]))
    assert there[:, 1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(there[:, 2], torch.tensor([1.0, -1.0]), atol=1e-5, rtol=0)
    back = normalizer.denormalize(torch.tensor([[0.0, 3.0, 1.0]]))
    torch.testing.assert_close(back[0, 1:], torch.tensor([0.7, 1.0]), atol=1e-5, rtol=0)
    saved = json.loads(json.dumps(normalizer.to_dict()))
    assert saved["constant"] == [1]
    assert saved["widened"] == [2]
    assert saved["epsilon"] == 1e-6
    assert "epsilon" in saved["formula"]
    assert Normalizer.from_dict(saved) == normalizer


def test_normalizer_refuses_what_does_not_fit():
    normalizer = Normalizer.from_statistics("minmax", Numbers())
    with pytest.raises(ValueError, match="expected 3 channels, got 4"):
        normalizer.normalize(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="formula"):
        Normalizer.from_dict({**normalizer.to_dict(), "formula": "(x - min) / (max - min)"})
    broken = normalizer.to_dict()
    del broken["q99"]
    with pytest.raises(ValueError, match="q99"):
        Normalizer.from_dict(broken)
    with pytest.raises(ValueError, match="q99 >= q01"):
        Normalizer(kind="minmax", q01=(1.0,), q99=(0.0,), mean=(0.5,), std=(1.0,))
    with pytest.raises(ValueError, match="as many channels"):
        Normalizer(kind="minmax", q01=(1.0, 2.0), q99=(0.0,), mean=(0.5,), std=(1.0,))


def test_symlog_by_hand():
    x = torch.tensor([0.0, 1.0, -1.0, 9.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 2.0, -2.0, 10.0], dtype=torch.float64).abs()
    expected = torch.log(torch.tensor([1.0, 2.0, 2.0, 10.0], dtype=torch.float64)) * torch.sign(x)
    torch.testing.assert_close(symlog(x), expected)


def test_check_11_symexp_inverts_symlog():
    x = torch.cat([torch.linspace(-20, 20, 2001), torch.tensor([1e-6, -1e-4, 500.0, -1e4])])
    torch.testing.assert_close(symexp(symlog(x)), x, atol=1e-5, rtol=1e-5)


def test_value_transform_round_trip_and_formula():
    transform = ValueTransform(mean=(3.0, -2.0), std=(0.5, 10.0))
    values = torch.tensor([[3.0, -2.0], [4.0, 8.0], [-10.0, 300.0]])
    there = transform.normalize(values)
    torch.testing.assert_close(there[1], torch.log(torch.tensor([3.0, 2.0])), atol=1e-5, rtol=0)
    torch.testing.assert_close(transform.denormalize(there), values, atol=1e-5, rtol=1e-5)
    assert ValueTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    with pytest.raises(ValueError, match="expected 2 channels, got 3"):
        transform.normalize(torch.zeros(3))


def test_value_transform_of_constant_and_hardly_used_channels():
    transform = ValueTransform.from_statistics(Numbers())
    values = torch.tensor([[1.0, 0.7, 1.0], [3.0, 0.7, 0.0]])
    there = transform.normalize(values)
    assert there.abs().max() < 1.0
    assert there[:, 1].abs().max() < 1e-6
    torch.testing.assert_close(transform.denormalize(there), values, atol=1e-5, rtol=0)
