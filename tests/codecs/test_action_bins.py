"""Numbers to bins and back."""

from __future__ import annotations

import pytest
import torch

from wamkit.codecs.action_bins import ActionBins, ClipCounter
from wamkit.codecs.vocabulary import VocabSpec, published_names

TABLE = [  # u, bin, id, decoded: WorldVLA 2.4 of the specification
    (-1.0, 1, 10006, -0.99608),
    (-0.999, 1, 10006, -0.99608),
    (0.0, 128, 10133, 0.0),
    (0.5, 192, 10197, 0.50196),
    (0.9999, 255, 10260, 0.99608),
    (1.0, 256, 10261, 0.99608),
]


@pytest.mark.parametrize(("number", "count", "token", "decoded"), TABLE)
def test_table(number: float, count: int, token: int, decoded: float) -> None:
    """Check 2, the table."""
    bins, spec = ActionBins(), VocabSpec.from_vocabulary(published_names())
    place = bins.encode(torch.tensor([number]))
    assert int(place) + 1 == count
    assert int(spec.id_of_bin[place]) == token
    assert float(bins.decode(place)) == pytest.approx(decoded, abs=5e-6)


def test_round_trip_of_random_vectors() -> None:
    """Check 2: 1e5 vectors."""
    numbers = torch.rand(100_000, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bins, spec = ActionBins(), VocabSpec.from_vocabulary(published_names())
    places = bins.encode(numbers)
    assert (bins.decode(places) - numbers).abs().max() <= 1 / 255 + 1e-7
    ids = spec.id_of_bin[places]
    assert ids.min() >= 10006 and ids.max() <= 10261
    assert torch.equal(spec.bin_of_id[ids], places)


def test_uniform_bins_have_256_values() -> None:
    bins = ActionBins("uniform256")
    assert len(bins.decode(torch.arange(256)).unique()) == 256
    assert len(ActionBins().decode(torch.arange(256)).unique()) == 255
    numbers = torch.linspace(-1, 1, 10_001)
    assert (bins.decode(bins.encode(numbers)) - numbers).abs().max() <= 1 / 256 + 1e-7


@pytest.mark.parametrize("binning", ["published", "uniform256"])
def test_outside_numbers_are_clipped_and_counted(binning: str) -> None:
    bins = ActionBins(binning)  # type: ignore[arg-type]
    numbers = torch.tensor([-3.0, -1.0, 0.0, 1.0, 1.0 + 1e-7, 2.0])
    assert torch.equal(bins.encode(numbers), bins.encode(numbers.clamp(-1, 1)))
    assert int(bins.count_outside(numbers)) == 2


@pytest.mark.usefixtures("types_unchecked")
def test_bad_numbers_and_names() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        ActionBins().encode(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="published, uniform256"):
        ActionBins("fast")  # type: ignore[arg-type]


def test_a_channel_that_mostly_lies_outside_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    counter = ClipCounter("states", ActionBins())
    for _ in range(15):
        counter.add(torch.tensor([[0.0, 3.0], [1.0, 0.9]]))
    assert (counter.num_seen, counter.num_clipped) == (60, 15)
    assert not caplog.records, "half of a channel is no more than half"
    for _ in range(3):
        counter.add(torch.tensor([[[1.0, -2.0]]]))
    assert (counter.num_seen, counter.num_clipped) == (66, 18)
    assert [record.getMessage() for record in caplog.records] == [
        "states: 16 of the last 31 numbers of channel 1 (from 0) lay outside what the model was trained on, and were "
        "clipped; check its units, or the robot has strayed from where its training data were"
    ]


def test_the_recent_past_is_judged(caplog: pytest.LogCaptureFixture) -> None:
    """A robot that begins to send millimetres after hours is told of, and so is the next one after it."""
    counter = ClipCounter("states", ActionBins())
    for number, length in ((0.5, 1000), (900.0, 50), (0.5, 200), (900.0, 50)):
        before = len(caplog.records)
        for _ in range(length):
            counter.add(torch.tensor([[number]]))
        assert len(caplog.records) - before == (number > 1)
    assert (counter.num_seen, counter.num_clipped) == (1300, 100)
    counter.add(torch.full((100_000, 1), 0.5))  # many at once
    counter.add(torch.full((64, 1), 2.0))
    assert len(caplog.records) == 3


def test_who_strays_in_every_episode_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    counter = ClipCounter("states", ActionBins())
    for _ in range(500):
        counter.add(torch.zeros(60, 1))
        counter.add(torch.full((40, 1), 2.0))
    before = len(caplog.records)
    assert 5 <= before <= 9, "once each time that the episodes double"
    counter.add(torch.full((100_000, 1), 2.0))
    counter.add(torch.full((1, 1), 2.0))
    assert len(caplog.records) == before + 1, "who begins to stray in the silence and goes on is told of after it"
