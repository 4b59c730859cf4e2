"""Statistics in the file form of the published WAV code, read and written.

Its normalisation is wamkit's: `2 * (x - q01) / (q99 - q01 + 1e-6) - 1` (its `minmax`), or `(x - mean) / (std + 1e-6)`,
not clipped. The file has no room for formulas, so it names none.

Source: WAV 6.2 of the specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from wamkit.data.atomic import write_json_atomically
from wamkit.data.stats import Statistics, numbers, read_json_object
from wamkit.typed import blame

READ_METHOD = "read from a WAV statistics file, which holds neither min nor max: q01 and q99 stand for them"
WAV_FEATURES = {"action": "{domain}_{space}", "action_delta": "{domain}_delta_{space}"}
WAV_FEATURES |= {"state": "{domain}_state_{space}", "value": "{domain}_value_{space}"}

_KEYS = ("mean", "std", "q01", "q99")

Space = Literal["eef", "joint"]


def write_wav_statistics(
    path: Path | str, statistics: dict[str, Statistics], *, domain: str, space: Space = "eef"
) -> None:
    """Write statistics in the file form of the published WAV code; entries of other domains in the file are kept.

    Args:
        path: the file (`stats.jsonl` in the published code, though one JSON document).
        statistics: `action`, `action_delta`, `state` and, if there, `value`.
        domain: X in `X_eef`, `X_delta_eef`, `X_state_eef`, `X_value_eef`.
        space: `eef` or `joint`.

    Raises:
        ValueError: a feature is missing, or the file there holds no JSON object; `given_statistics.require_same_form`
            tells other forms of statistics.
        OSError: writing failed; the old file is untouched.

    Source: WAV 6.2 of the specification.
    """
    missing = sorted({"action", "action_delta", "state"} - set(statistics))
    if missing:
        raise ValueError(f"statistics: expected action, action_delta and state, {missing} are missing; compute them")
    path = Path(path)
    document = read_json_object(path) if path.exists() else {}
    for name, pattern in WAV_FEATURES.items():
        entry = pattern.format(domain=domain, space=space)
        document.pop(entry, None)  # values of an older labelling must not stay beside newer actions
        if name in statistics:
            columns = statistics[name].to_dict()
            document[entry] = {key: columns[key] for key in ("mean", "std", "q99", "q01")}
    write_json_atomically(path, document)


def read_wav_statistics(path: Path | str, *, domain: str, space: Space = "eef") -> dict[str, Statistics]:
    """Read statistics from a file of the published WAV code.

    The file holds no extremes, so a channel whose quantiles coincide counts as constant.

    Args:
        path: the file.
        domain: X in `X_eef`.
        space: `eef` or `joint`.

    Returns:
        `action`, `action_delta`, `state` and, if there, `value`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry or key is missing, or not a list of finite numbers.

    Source: WAV 6.2 of the specification.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a WAV statistics file at {path}, found none")
    return parse_wav_statistics(read_json_object(path), path, domain=domain, space=space)


def parse_wav_statistics(document: dict[str, Any], path: Path, *, domain: str, space: Space) -> dict[str, Statistics]:
    """`read_wav_statistics` of what is in the file.

    Raises:
        ValueError: as there.
    """
    statistics = {}
    for name, pattern in WAV_FEATURES.items():
        entry = pattern.format(domain=domain, space=space)
        if entry not in document:
            if name == "value":
                continue
            raise ValueError(f"{path}: expected the entry {entry!r}, got {sorted(document)}; check domain and space")
        columns = document[entry]
        missing = [key for key in _KEYS if not isinstance(columns, dict) or not isinstance(columns.get(key), list)]
        if missing:
            raise ValueError(f"{path}: expected lists mean, std, q01 and q99 in {entry!r}, {missing} are not there")
        with blame(f"{path}: {entry}"):
            mean, std, q01, q99 = (numbers(columns[key], key) for key in _KEYS)
            statistics[name] = Statistics(
                mean=mean, std=std, q01=q01, q99=q99, min=q01, max=q99, count=0, num_kept=0, method=READ_METHOD
            )
    return statistics


def wav_entries(document: Mapping[str, Any]) -> dict[str, tuple[str, Space]]:
    """The statistics that a file of the published WAV code holds: `X_eef` or `X_joint` -> domain X and space."""
    found: dict[str, tuple[str, Space]] = {}
    for key in document:
        for space in get_args(Space):
            domain = key.removesuffix(f"_state_{space}")
            if domain and domain != key and f"{domain}_{space}" in document:
                found[f"{domain}_{space}"] = (domain, space)
    return found
