"""Which episodes are meant: lists and ranges as users write them, sentences of tasks. Standard library only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_ITEM = re.compile(r"(?:(?P<name>.+)=)?(?:(?P<one>\d+)|(?P<first>\d*):(?P<last>\d*))")


@dataclass(frozen=True, kw_only=True)
class EpisodeRange:
    """Some episodes in a row.

    Args:
        text: as it was written.
        name: the dataset meant; every dataset when empty.
        first: the first.
        last: one past the last; up to the end when `None`.
    """

    text: str
    name: str
    first: int
    last: int | None


def parse_episodes(items: Iterable[int | str], *, setting: str) -> tuple[EpisodeRange, ...]:
    """Episodes as a user writes them: `7`, `0:40` (0 to 39), `40:` (to the end), `kitchen=0:40` (of one dataset).

    Args:
        items: each a number or a range.
        setting: for the message.

    Raises:
        ValueError: an item is something else, or a range holds nothing.
    """
    found = []
    for item in items:
        match = _ITEM.fullmatch(str(item).strip())
        if match is None:
            raise ValueError(
                f"{setting}: expected episodes as 7, 0:40 (0 to 39), 40: or DATASET=0:40, got {item!r}; correct it"
            )
        one, last = match["one"], match["last"]
        first = int(one or match["first"] or 0)
        end = first + 1 if one else int(last) if last else None
        if end is not None and end <= first:
            raise ValueError(f"{setting}: expected a range that holds episodes, got {item!r}; 0:40 are the first forty")
        found.append(EpisodeRange(text=str(item), name=match["name"] or "", first=first, last=end))
    return tuple(found)


def choose_episodes(
    ranges: Sequence[EpisodeRange], *, names: Sequence[str], counts: Sequence[int], setting: str
) -> list[set[int] | None]:
    """Numbers of the episodes that ranges mean, by dataset.

    Args:
        ranges: of `parse_episodes`.
        names: of the datasets.
        counts: episodes of each.
        setting: for the messages.

    Returns:
        For each dataset its episodes; `None` when no range speaks of it.

    Raises:
        ValueError: a dataset or an episode that there is not.
    """
    chosen: list[set[int] | None] = [None] * len(names)
    for item in ranges:
        if item.name and list(names).count(item.name) != 1:
            raise ValueError(
                f"{setting}: expected the name of one of the datasets {list(names)}, got {item.name!r} in "
                f"{item.text!r}; datasets are called as their folders, which have to differ for this"
            )
        for number, (name, count) in enumerate(zip(names, counts, strict=True)):
            if item.name and item.name != name:
                continue
            last = count if item.last is None else item.last
            if not item.first < last <= count:
                raise ValueError(
                    f"{setting}: expected some of the episodes 0 to {count - 1} of dataset {name!r}, got "
                    f"{item.text!r}; {item.first}: means all from there"
                )
            chosen[number] = (chosen[number] or set()) | set(range(item.first, last))
    return chosen


def require_tasks(wanted: Sequence[str], known: Iterable[str], *, setting: str) -> None:
    """Refuse a sentence that no episode has.

    Raises:
        ValueError: naming it, and those that are like it.
    """
    sentences = sorted(set(known))
    for sentence in wanted:
        if sentence not in sentences:
            close = difflib.get_close_matches(sentence, sentences, n=3, cutoff=0.5)
            offered = ", ".join(map(repr, close or sentences[:8]))
            raise ValueError(
                f"{setting}: expected a sentence of the data, got {sentence!r}; "
                f"{'near to it' if close else f'some of the {len(sentences)}'}: {offered}"
            )


def ranges_of(numbers: Iterable[int]) -> list[Any]:
    """Numbers as `parse_episodes` reads them, runs of three and more as ranges."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    written: list[Any] = []
    for run in found:
        written += [f"{run[0]}:{run[-1] + 1}"] if len(run) > 2 else run
    return written
