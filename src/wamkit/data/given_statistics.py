"""Statistics from a file of any form that wamkit knows, checked against the data that they are to normalize."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from wamkit.data.actions import ActionType
from wamkit.data.norm_stats import is_norm_stats, parse_norm_stats
from wamkit.data.policy_statistics import is_policy_statistics, parse_policy_statistics
from wamkit.data.stats import Statistics, parse_statistics, read_json_object
from wamkit.data.transforms import Kind
from wamkit.data.wav_statistics import parse_wav_statistics, wav_entries

Form = Literal["wamkit", "openpi", "wav", "policy"]
"""Who reads a file of statistics; that of a policy folder is not written as one of data."""


def forms_of(document: Mapping[str, Any]) -> list[Form]:
    """The forms of statistics that a JSON object has: one, none if it is something else, several if it is a mixture."""
    found: list[Form] = ["openpi"] if is_norm_stats(document) else []
    if wav_entries(document):
        found.append("wav")
    if "features" in document and "format" in document:
        found.append("wamkit")
    if is_policy_statistics(document):
        found.append("policy")
    return found


def require_same_form(path: Path | str, form: Form) -> None:
    """Refuse to write statistics over a file that is something else.

    Args:
        path: where statistics are to be written; there may be nothing.
        form: of those to be written.

    Raises:
        ValueError: there is a file that cannot be read, or is not of this form alone.
        OSError: what is there may not be read, or is a folder.
    """
    path = Path(path)
    if not path.exists():
        return
    wanted = f"expected no file at {path}, or one of statistics of {form}"
    try:
        document = read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{wanted}, it cannot be read ({error}); choose another --output") from error
    forms = forms_of(document)
    if forms != [form]:
        held = f"statistics of {' and '.join(forms)}" if forms else f"the keys {sorted(document)[:8]}"
        raise ValueError(f"{wanted}, it holds {held}; choose another --output")


def read_given_statistics(
    path: Path | str,
    *,
    widths: Mapping[str, int],
    entry: str = "",
    option: str = "data.statistics_entry",
    kind: Kind | None = None,
    action_type: ActionType | None = None,
) -> dict[str, Statistics]:
    """Read a file; its form is told by what is in it.

    Args:
        path: wamkit's own statistics, a policy's `statistics.json` or its folder, openpi's `norm_stats.json` or a file
            of the published WAV code.
        widths: channels of `action`, `state` and, if there are values, `value` in the data.
        entry: which statistics of a WAV file, as `libero_eef`; needed when it holds several.
        option: what messages call `entry`.
        kind: how the numbers will be normalised, which a policy's statistics depend on.
        action_type: how actions will be represented, likewise.

    Returns:
        At least `action` and `state`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another form, or several in one file, numbers that are not finite, or another width than the data's;
            the message names the file.
    """
    path = Path(path)
    if path.is_dir() and (path / "spec.json").is_file():
        path = path / "statistics.json"
    if not path.is_file():
        inside = sorted(file.parent for file in path.glob("*/statistics.json"))
        remedy = f"did you mean {inside[0]}?" if inside else "correct data.statistics"
        raise FileNotFoundError(f"expected a file of statistics, or a policy folder, at {path}, found none; {remedy}")
    document = read_json_object(path)
    forms = forms_of(document)
    if len(forms) > 1:
        raise ValueError(
            f"{path}: expected statistics of one form, got those of {' and '.join(forms)} in one file; write them apart"
        )
    entries = wav_entries(document)
    if entry and not entries:
        raise ValueError(f"{path}: {option} {entry!r} chooses among those of a WAV file, this is another; leave it out")
    if forms == ["openpi"]:
        statistics = parse_norm_stats(document, path, widths=widths)
    elif forms == ["wav"]:
        if len(entries) > 1 and not entry:
            raise ValueError(f"{path} holds several: choose one of {sorted(entries)} as {option}")
        chosen = entry or next(iter(entries))
        if chosen not in entries:
            raise ValueError(f"{path}: expected one of {sorted(entries)} as {option}, got {entry!r}")
        domain, space = entries[chosen]
        statistics = parse_wav_statistics(document, path, domain=domain, space=space)
    elif forms == ["wamkit"]:
        statistics = parse_statistics(document, path)
    elif forms == ["policy"]:
        statistics = parse_policy_statistics(document, path, kind=kind, action_type=action_type)
    else:
        raise ValueError(
            f"{path}: expected statistics of wamkit (format, features), of a policy (state, action, value), of openpi "
            f"(norm_stats) or of WAV (X_eef, X_state_eef, …), got the keys {sorted(document)[:8]}; name another file"
        )
    missing = sorted({"action", "state"} - set(statistics))
    if missing:
        raise ValueError(f"{path}: expected statistics of action and state, {missing} are missing; name another file")
    for name in ("action", "action_delta", "state", "value"):
        wanted = widths.get("action" if name == "action_delta" else name)
        if name in statistics and wanted is not None and statistics[name].width != wanted:
            raise ValueError(
                f"{path}: expected {wanted} channels of {name}, as in the data, got {statistics[name].width}; use the "
                "statistics of the same robot"
            )
    return statistics
