"""openpi's `norm_stats.json`, read and written.

    {"norm_stats": {"state": {"mean": […], "std": […], "q01": […], "q99": […]}, "actions": {…}}}

openpi normalizes as wamkit does: `(x - mean) / (std + 1e-6)`, or `2 * (x - q01) / (q99 - q01 + 1e-6) - 1` with
quantiles, not clipped. Its mean and std are over all rows; its action statistics are those of what its data transforms
give, which for many of its configurations are differences to the state. Vectors may be padded to the width of a model.

Source: openpi, `shared/normalize.py`; `ecosystem.md` 3.3 and 3.4 of the specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from wamkit.data.atomic import write_json_atomically
from wamkit.data.stats import FORMULAS, Statistics, numbers, read_json_object
from wamkit.typed import blame

READ_METHOD: Final = (
    "read from openpi's norm_stats.json, which holds neither min nor max: q01 and q99 stand for them; a channel whose "
    "quantiles coincide though it varies is taken to have two values"
)
_FEATURES: Final = {"state": "state", "action": "actions"}
_KEYS: Final = ("mean", "std", "q01", "q99")
_PADDING: Final = 1e-6  # openpi's histograms give quantiles of 1e-10 for zeros


def write_norm_stats(path: Path | str, statistics: Mapping[str, Statistics], *, width: int | None = None) -> None:
    """Write `state` and `action` as openpi reads them.

    Args:
        path: the file.
        statistics: by feature; openpi's own have mean and std of all rows (`is_trimmed=False`).
        width: pad vectors with zeros to this width; as they are when `None`.

    Raises:
        ValueError: a feature is missing, or wider than `width`.
        OSError: writing failed; the old file is untouched.
    """
    missing = sorted(set(_FEATURES) - set(statistics))
    if missing:
        raise ValueError(f"statistics: expected state and action, {missing} are missing; compute them")
    found = {}
    for name, key in _FEATURES.items():
        feature = statistics[name]
        padding = 0 if width is None else width - feature.width
        if padding < 0:
            raise ValueError(f"expected a width of {feature.width} or more, the channels of {name}, got {width}")
        found[key] = {column: [*getattr(feature, column), *[0.0] * padding] for column in _KEYS}
    described = {"formulas": FORMULAS, "method": {_FEATURES[name]: statistics[name].method for name in _FEATURES}}
    write_json_atomically(Path(path), {"norm_stats": found, "wamkit": described})  # openpi passes over other keys


def read_norm_stats(path: Path | str, *, widths: Mapping[str, int] | None = None) -> dict[str, Statistics]:
    """Read `state` and `action` from openpi's file.

    Args:
        path: the file.
        widths: channels of the robot's `state` and `action`; padding beyond them is cut off. As in the file if `None`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key is missing, holds no list of finite numbers, or has another width.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected openpi's norm_stats.json at {path}, found none")
    return parse_norm_stats(read_json_object(path), path, widths=widths)


def parse_norm_stats(
    document: dict[str, Any], path: Path, *, widths: Mapping[str, int] | None = None
) -> dict[str, Statistics]:
    """`read_norm_stats` of what is in the file.

    Raises:
        ValueError: as there.
    """
    found = document.get("norm_stats")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in _FEATURES.values()):
        got = sorted(found) if isinstance(found, dict) else sorted(document)
        raise ValueError(f"{path}: expected norm_stats with the keys state and actions, got {got}; name another file")
    statistics = {}
    for name, key in _FEATURES.items():
        columns = found[key]
        missing = [column for column in _KEYS if not isinstance(columns.get(column), list)]
        if missing:
            raise ValueError(
                f"{path}: expected lists mean, std, q01 and q99 in {key!r}, {missing} are not there; compute them "
                "with a newer openpi, or leave the file out"
            )
        with blame(f"{path}: {key}"):
            values = {column: numbers(columns[column], column) for column in _KEYS}
            wanted = None if widths is None else widths.get(name)
            statistics[name] = _feature(values, wanted)
    return statistics


def _feature(values: dict[str, tuple[float, ...]], wanted: int | None) -> Statistics:
    widths = {len(column) for column in values.values()}
    width = max(widths)
    if wanted is not None and wanted < width and len(widths) == 1:
        centres = (values["mean"], values["q01"], values["q99"])
        used = [index for index in range(wanted, width) if any(abs(column[index]) > _PADDING for column in centres)]
        if used:
            raise ValueError(
                f"expected {wanted} channels and zeros to fill up, got {width} channels of which {used[:6]} are not "
                "zeros; use the statistics of the same robot"
            )
        values = {key: column[:wanted] for key, column in values.items()}
    elif wanted is not None and wanted != width:
        raise ValueError(f"expected {wanted} channels, got {width}; use the statistics of the same robot")
    extremes = [_extremes(*channel) for channel in zip(*(values[key] for key in _KEYS), strict=len(widths) == 1)]
    return Statistics(
        **values,
        min=tuple(low for low, _ in extremes),
        max=tuple(high for _, high in extremes),
        count=0,
        num_kept=0,
        method=READ_METHOD,
    )


def _extremes(mean: float, std: float, q01: float, q99: float) -> tuple[float, float]:
    """Smallest and largest value as far as they can be told.

    A gripper that is hardly ever used has equal quantiles, and would pass for constant. If it has two values, the other
    one follows from mean and deviation: for shares 1-p and p at distance r, mean - q = p r and std² = p (1-p) r².
    """
    rounding = 1e-6 * max(1.0, abs(q01), abs(q99))
    if q99 - q01 > rounding or std <= rounding:
        return q01, q99
    distance = mean - q01
    if abs(distance) < 1e-3 * std:  # values on both sides
        return q01 - 10 * std, q99 + 10 * std
    other = q01 + (std**2 + distance**2) / distance
    return min(q01, other), max(q99, other)


def is_norm_stats(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object is openpi's."""
    return "norm_stats" in document
