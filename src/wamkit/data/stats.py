"""Statistics of a dataset's numbers, computed from all its rows, and the file they are kept in."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wamkit.data.atomic import write_json_atomically
from wamkit.data.features import ACTION, STATE
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.mixture import mixture_of
from wamkit.data.source import VALUE, EpisodeEntry, EpisodeSource, numeric_column, where
from wamkit.data.subset import Subset
from wamkit.spec import RobotSpec
from wamkit.typed import blame

logger = logging.getLogger(__name__)

STATISTICS_PATH = "meta/wamkit_statistics.json"
FORMAT = 1
WAV_METHOD = (
    "q01, q99, min, max over all rows of the dataset (linear interpolation between rows); mean and population std over "
    "the rows in which every dimension lies within [q01, q99]"
)
WEIGHTED_METHOD = (
    "rows of a mixture, each weighing its dataset's share of the draws divided by the dataset's rows: q01, q99 of the "
    "weighted rows (inverse of their distribution function); mean and population std over the rows in which every "
    "dimension lies within [q01, q99]; min, max over all rows"
)
UNTRIMMED_METHOD = "q01, q99, min, max, mean and population std over all rows"
ALL_ROWS_METHOD = "q01, q99, min, max, mean and population std over all rows (none lies within [q01, q99] throughout)"
FORMULAS = {
    "minmax": "2 * (x - q01) / (q99 - q01 + epsilon) - 1",
    "meanstd": "(x - mean) / (std + epsilon)",
    "epsilon": 1e-6,
}
"""How wamkit normalizes with these numbers, named in every file of them; nothing is clipped."""

_COLUMNS = ("mean", "std", "q01", "q99", "min", "max")


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """One number per channel each, in physical units.

    Args:
        mean: mean (see `method`).
        std: standard deviation (see `method`).
        q01: 1st percentile.
        q99: 99th percentile.
        min: smallest value.
        max: largest value.
        count: rows that the statistics describe.
        num_kept: rows that mean and std are of.
        method: how they were computed.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    count: int
    num_kept: int
    method: str

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in _COLUMNS}
        widths = {name: len(column) for name, column in columns.items()}
        if len(set(widths.values())) != 1:
            raise ValueError(f"statistics: expected as many channels in every entry, got {widths}")
        wrong = [name for name, column in columns.items() if not np.isfinite(column).all()]
        if wrong:
            raise ValueError(f"statistics: expected finite numbers, got others in {wrong}; compute them again")

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` inverts it."""
        return {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Statistics:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown.
        """
        known = {item.name for item in fields(cls)}
        if not isinstance(data, dict) or set(data) != known:
            got = sorted(data) if isinstance(data, dict) else repr(data)
            raise ValueError(f"statistics: expected the keys {sorted(known)}, got {got}; compute them again")
        mean, std, q01, q99, low, high = (numbers(data[key], key) for key in _COLUMNS)
        return cls(
            mean=mean,
            std=std,
            q01=q01,
            q99=q99,
            min=low,
            max=high,
            count=int(data["count"]),
            num_kept=int(data["num_kept"]),
            method=str(data["method"]),
        )


def numbers(column: object, key: str) -> tuple[float, ...]:
    """One number per channel from what JSON gave.

    Raises:
        ValueError: it is no list of finite numbers; the message names the key.
    """
    if not isinstance(column, list) or not all(map(_is_finite, column)):
        raise ValueError(f"statistics: expected a list of finite numbers as {key}, got {column!r}; compute them again")
    return tuple(float(item) for item in column)


def feature_statistics(
    rows: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"] | None = None, *, is_trimmed: bool = True
) -> Statistics:
    """Statistics of the rows of one feature.

    Args:
        rows: 1 or more.
        weights: how much each row counts, positive; equally when `None`.
        is_trimmed: whether mean and std leave out the rows outside the quantiles, as WAV does; openpi does not.

    Source: WAV 6.2 of the specification. Differs: when no row is within the quantiles in every dimension (a handful of
        rows), mean and std are of all rows, and `method` says so.
    """
    values = np.asarray(rows, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("statistics: expected 1 or more rows, got none; are all episodes of one row?")
    if weights is None:
        q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    else:
        q01, q99 = np.quantile(values, [0.01, 0.99], axis=0, weights=weights, method="inverted_cdf")
    inside = ((values >= q01) & (values <= q99)).all(axis=1)
    chosen = inside if is_trimmed and inside.any() else np.ones(len(values), dtype=bool)
    trimmed = values[chosen]
    if weights is None:
        mean, std = trimmed.mean(axis=0), trimmed.std(axis=0)
    else:
        mean = np.average(trimmed, axis=0, weights=weights[chosen])
        std = np.sqrt(np.average((trimmed - mean) ** 2, axis=0, weights=weights[chosen]))
    method = WAV_METHOD if weights is None else WEIGHTED_METHOD
    return Statistics(
        mean=_numbers(mean),
        std=_numbers(std),
        q01=_numbers(q01),
        q99=_numbers(q99),
        min=_numbers(values.min(axis=0)),
        max=_numbers(values.max(axis=0)),
        count=len(values),
        num_kept=len(trimmed),
        method=UNTRIMMED_METHOD if not is_trimmed else method if inside.any() else ALL_ROWS_METHOD,
    )


def compute_statistics(
    dataset: EpisodeSource,
    *,
    episodes: Sequence[int] | None = None,
    is_trimmed: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Statistics]:
    """Statistics of `action`, `action_delta`, `state` and, when the dataset has values, `value`.

    `action_delta` is of the differences between successive rows of one episode; no difference crosses into another.
    Rows of a mixture with weights count as often as they are drawn: see `WEIGHTED_METHOD`.

    Args:
        dataset: where rows come from.
        episodes: which to use; all by default.
        is_trimmed: as in `feature_statistics`.
        progress: called with (episodes read, episodes).

    Raises:
        ValueError: a column is missing, has another width than elsewhere or than the robot's, or holds a number that
            is not finite (the message names episode and row); or there are no rows.
    """
    chosen = [entry for entry in dataset.episodes if episodes is None or entry.index in episodes]
    if not chosen:
        raise ValueError(f"statistics: expected 1 or more of {len(dataset.episodes)} episodes, got {episodes}")
    keys = {"action": ACTION, "state": STATE}
    widths = _robot_widths(dataset.robot)
    rows: dict[str, list[np.ndarray]] = {"action": [], "action_delta": [], "state": []}
    for number, entry in enumerate(chosen):
        columns = dataset.columns(entry.index)
        if number == 0 and VALUE in columns:
            keys["value"], rows["value"] = VALUE, []
        for name, key in keys.items():
            column = numeric_column(columns, key, entry, source=dataset)
            width = widths.setdefault(name, column.shape[1])
            if column.shape[1] != width:
                raise ValueError(
                    f"{where(dataset, entry.index)}, row 0: expected {width} channels in column {key!r} (as in the "
                    f"robot spec or the episodes before), got {column.shape[1]}; record the episode again or leave it "
                    "out"
                )
            rows[name].append(column)
        rows["action_delta"].append(np.diff(rows["action"][-1].astype(np.float64), axis=0))
        if progress is not None:
            progress(number + 1, len(chosen))
    weights = {name: _row_weights(dataset, chosen, list(map(len, parts))) for name, parts in rows.items()}
    return {
        name: feature_statistics(np.concatenate(parts), weights[name], is_trimmed=is_trimmed)
        for name, parts in rows.items()
    }


def write_statistics(root: Path | str, statistics: dict[str, Statistics], *, fingerprint: str) -> Path:
    """Write `meta/wamkit_statistics.json`, whole or not at all.

    Args:
        root: dataset folder.
        statistics: by feature.
        fingerprint: of the dataset they describe.

    Returns:
        The file written.

    Raises:
        OSError: writing failed; the old file is untouched.
    """
    path = Path(root) / STATISTICS_PATH
    write_statistics_file(path, statistics, fingerprint=fingerprint)
    return path


def write_statistics_file(path: Path, statistics: dict[str, Statistics], *, fingerprint: str) -> None:
    """`write_statistics` to any file.

    Raises:
        OSError: writing failed; the old file is untouched.
    """
    features = {name: feature.to_dict() for name, feature in statistics.items()}
    write_json_atomically(
        path, {"format": FORMAT, "fingerprint": fingerprint, "formulas": FORMULAS, "features": features}
    )


def read_statistics(root: Path | str, *, fingerprint: str | None = None) -> dict[str, Statistics]:
    """Read `meta/wamkit_statistics.json`.

    Args:
        root: dataset folder.
        fingerprint: of the dataset as it is now; the file's must be the same. `None` does not ask.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, or describes the dataset before it was changed.
    """
    path = Path(root) / STATISTICS_PATH
    if not path.is_file():
        raise FileNotFoundError(f"expected statistics at {path}, found none; run `wamkit data stats {root}`")
    data = read_json_object(path)
    statistics = parse_statistics(data, path)
    if fingerprint is not None and data.get("fingerprint") != fingerprint:
        raise ValueError(
            f"{path}: expected statistics of the dataset as it is (fingerprint {fingerprint[:12]}…), got those of "
            f"{str(data.get('fingerprint'))[:12]}…, before it was changed; run `wamkit data stats {root}`"
        )
    return statistics


def parse_statistics(data: dict[str, Any], path: Path) -> dict[str, Statistics]:
    """Statistics of a file of wamkit's own, by feature.

    Args:
        data: what is in the file.
        path: the file, for messages.

    Raises:
        ValueError: it is not such a file.
    """
    if data.get("format") != FORMAT or not isinstance(data.get("features"), dict):
        raise ValueError(
            f"{path}: expected statistics of format {FORMAT}, got format {data.get('format')!r} with the keys "
            f"{sorted(data)}; run `wamkit data stats`"
        )
    with blame(path):
        return {name: Statistics.from_dict(feature) for name, feature in data["features"].items()}


def current_statistics(
    dataset: LeRobotDataset,
    *,
    view: Subset | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Statistics]:
    """The dataset's statistics: from its file when that describes the dataset as it is, else computed and written.

    A dataset that cannot be written is used as it is; its statistics are computed again the next time.

    Args:
        dataset: on disk.
        view: the dataset without its excluded episodes, when it has some.
        progress: called with (episodes read, episodes) when they are computed.

    Raises:
        ValueError: as `compute_statistics`.
    """
    source = dataset if view is None else view
    fingerprint = source.fingerprint()
    path = dataset.root / STATISTICS_PATH
    if path.is_file() and read_json_object(path).get("fingerprint") == fingerprint:
        return read_statistics(dataset.root, fingerprint=fingerprint)
    statistics = compute_statistics(source, progress=progress)
    try:
        write_statistics(dataset.root, statistics, fingerprint=fingerprint)
    except OSError as error:
        logger.warning("cannot keep statistics in %s (%s); they are computed anew each time", path, error)
    return statistics


def _row_weights(dataset: EpisodeSource, entries: Sequence[EpisodeEntry], rows: Sequence[int]) -> np.ndarray | None:
    """How much each row counts, float64 `[n]`: its dataset's weight spread over the dataset's rows.

    Args:
        dataset: where the entries come from.
        entries: episodes.
        rows: of each episode.
    """
    mixture = mixture_of(dataset)
    if mixture is None or mixture.weights is None:
        return None
    totals: dict[int, int] = {}
    owners = [mixture.part_of(entry.index) for entry in entries]
    for owner, count in zip(owners, rows, strict=True):
        totals[owner] = totals.get(owner, 0) + count
    each = [mixture.weights[owner] / max(totals[owner], 1) for owner in owners]
    return np.repeat(np.array(each), rows)


def _robot_widths(robot: RobotSpec | None) -> dict[str, int]:
    return {} if robot is None else {"action": len(robot.action), "state": len(robot.state)}


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is something else; the message names it.
    """
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        remedy = (
            "remove it, it is computed anew"
            if path.name == Path(STATISTICS_PATH).name
            else "restore it or name another"
        )
        raise ValueError(f"{path}: expected one JSON document, got something else ({error}); {remedy}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _is_finite(item: object) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)


def _numbers(column: np.ndarray) -> tuple[float, ...]:
    return tuple(float(number) for number in column)
