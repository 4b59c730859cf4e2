"""Dataclasses from JSON: what fits comes back as it was, and what does not is told by its name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from wamkit.typed import blame, check_fields, check_least, read_fields


@dataclass(frozen=True, kw_only=True)
class Wheel:
    size: float
    spokes: int = 32


@dataclass(frozen=True, kw_only=True)
class Cart:
    name: str
    wheels: tuple[Wheel, ...]
    color: Literal["red", "blue"] = "red"
    is_loaded: bool = False
    grid: tuple[int, int] | None = None
    weights: tuple[tuple[float, ...], ...] = ()
    spare: Wheel | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "cart")


CART = Cart(
    name="one",
    wheels=(Wheel(size=1.5), Wheel(size=2)),
    grid=(2, 3),
    weights=((1.0, 2.0), ()),
    spare=Wheel(size=1.0),
    notes={"free": [None, "words"]},
)
GOOD = json.loads(json.dumps(dataclasses.asdict(CART)))
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "expected name as text, got null"),
    ({"name": 3}, "expected name as text, got 3"),
    ({"wheels": {}}, r"expected wheels as a list, got \{\}"),
    ({"wheels": [7]}, r"wheels\[0\]: Wheel: expected an object with the keys size, spokes, got 7"),
    ({"wheels": [{"size": 1.0}, {}]}, r"wheels\[1\]: Wheel: expected the keys size, spokes; missing: size"),
    ({"wheels": [{"size": 1, "rim": 2}]}, r"wheels\[0\]: .*unknown: rim"),
    ({"wheels": [{"size": float("nan")}]}, r"wheels\[0\]: expected size as a finite number, got NaN"),
    ({"wheels": [{"size": 10**400}]}, "expected size as a finite number"),
    ({"wheels": [{"size": True}]}, "expected size as a finite number, got true"),
    ({"wheels": [{"size": 1, "spokes": True}]}, "expected spokes as a whole number, got true"),
    ({"wheels": [{"size": 1, "spokes": 2.0}]}, "expected spokes as a whole number, got 2.0"),
    ({"color": "green"}, 'expected color to be one of red, blue, got "green"'),
    ({"color": []}, r"expected color to be one of red, blue, got \[\]"),
    ({"is_loaded": 1}, "expected is_loaded as true or false, got 1"),
    ({"grid": [1, 2, 3]}, r"expected grid as a list of 2, got \[1, 2, 3\]"),
    ({"grid": [1, "2"]}, r'expected grid\[1\] as a whole number, got "2"'),
    ({"grid": 5}, "expected grid as a list, got 5"),
    ({"weights": [[1, 2], [float("inf")]]}, r"expected weights\[1\]\[0\] as a finite number, got Infinity"),
    ({"notes": []}, r"expected notes as an object, got \[\]"),
    ({"prices": {"new": 3, "old": "x"}}, r"expected prices\['old'\] as a finite number"),
    ({"spare": "x"}, "spare: Wheel: expected an object"),
    ({"seat": 1}, r"cart: expected the keys name, .*unknown: seat"),
]


def test_what_was_written_comes_back() -> None:
    assert read_fields(Cart, GOOD, "cart") == CART
    assert read_fields(Cart, {"name": "two", "wheels": []}, "cart") == Cart(name="two", wheels=())
    assert read_fields(Wheel, {"size": 1.0, "seat": 1}, "wheel", others=True) == Wheel(size=1.0)


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_fields(Cart, {**GOOD, **change}, "cart")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "cart: expected name as text, got 3"),
        ({"grid": (1, 2.5)}, r"cart: expected grid\[1\] as a whole number or null, got 2\.5"),
        ({"weights": ((1.0,), (float("nan"),))}, r"cart: expected weights\[1\]\[0\] as a finite number, got NaN"),
        ({"wheels": [Wheel(size=1.0)]}, "cart: expected wheels as a list"),
        ({"spare": {}}, r"cart: expected spare as a Wheel or null, got \{\}"),
    ],
)
def test_a_dataclass_holds_itself_to_its_annotations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CART, **change)


def test_limits_and_places() -> None:
    wheel = Wheel(size=0.5, spokes=0)
    check_least(wheel, "wheel", 0, "size", "spokes")
    with pytest.raises(ValueError, match=r"^/there/a\.json: wheel: expected spokes of 1 or more, got 0; mend it$"):  # noqa: SIM117
        with blame(Path("/there/a.json"), "mend it"):
            check_least(wheel, "wheel", 1, "spokes")
