"""Episodes that nobody is to learn from: the list beside a dataset, and the dataset without them.

`meta/wamkit_exclude.json` keeps the numbers and the reasons; the files of the episodes stay as they are.

    {"format": 1, "episodes": {"12": "front camera is black"}, "made_by": "wamkit data inspect", "fingerprint": "9f…"}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wamkit.data.atomic import write_json_atomically
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.data.subset import Subset

logger = logging.getLogger(__name__)

EXCLUDE_PATH: Final = "meta/wamkit_exclude.json"
FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """Episodes to leave out.

    Args:
        episodes: number -> reason, in rising order.
        made_by: who made the list.
        fingerprint: of what was recorded then (`LeRobotDataset.recorded_fingerprint`), if it was kept.
    """

    episodes: dict[int, str]
    made_by: str = ""
    fingerprint: str | None = None


def read_exclusions(root: Path | str, *, num_episodes: int | None = None) -> Exclusions:
    """The list of a dataset; empty when there is none.

    Args:
        root: dataset folder.
        num_episodes: that the dataset has, where that is known; else it is opened to count.

    Raises:
        FileNotFoundError: no dataset.
        DatasetError: the file is no such list, or names an episode that the dataset does not have.
    """
    root = Path(root)
    total = LeRobotDataset(root, check=False).num_episodes if num_episodes is None else num_episodes
    path = root / EXCLUDE_PATH
    if not path.is_file():
        return Exclusions(episodes={})
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(
            f"{path}: expected a JSON list of excluded episodes, it cannot be read ({error}); correct it, or remove it "
            "to use every episode"
        ) from error
    listed = document.get("episodes") if isinstance(document, dict) else None
    if not isinstance(listed, dict) or document.get("format") != FORMAT:
        raise DatasetError(
            f'{path}: expected {{"format": {FORMAT}, "episodes": {{"12": "reason", …}}, …}}, got {_short(document)}; '
            "correct it, or remove it to use every episode"
        )
    wrong = [key for key, reason in listed.items() if not _is_number(key) or not isinstance(reason, str)]
    if wrong:
        raise DatasetError(
            f"{path}: expected whole numbers with a reason each as episodes, got {wrong[0]!r}: {listed[wrong[0]]!r}; "
            "correct it, or remove it to use every episode"
        )
    episodes = {int(key): reason for key, reason in listed.items()}
    _require_known(episodes, total, str(path))
    fingerprint = document.get("fingerprint")
    return Exclusions(
        episodes=dict(sorted(episodes.items())),
        made_by=str(document.get("made_by", "")),
        fingerprint=fingerprint if isinstance(fingerprint, str) else None,
    )


def write_exclusions(
    root: Path | str,
    episodes: Mapping[int, str],
    *,
    made_by: str = "wamkit data inspect",
    fingerprint: str | None = None,
) -> Path:
    """Write the list of a dataset, whole or not at all; an earlier list is replaced.

    Args:
        root: dataset folder.
        episodes: number -> reason.
        made_by: who made the list.
        fingerprint: of what is recorded now.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: no dataset.
        DatasetError: an episode that the dataset does not have.
        OSError: writing failed; the old file is untouched.
    """
    path = Path(root) / EXCLUDE_PATH
    _require_known(episodes, LeRobotDataset(root, check=False).num_episodes, str(path))
    listed = {str(number): episodes[number] for number in sorted(episodes)}
    write_json_atomically(path, {"format": FORMAT, "episodes": listed, "made_by": made_by, "fingerprint": fingerprint})
    return path


def open_usable(root: Path | str) -> LeRobotDataset:
    """A dataset of which the excluded episodes' files are not looked at; they may be damaged.

    Raises:
        FileNotFoundError: no dataset, or a file of another episode is missing.
        DatasetError: as `read_exclusions`, or metadata and data of other episodes disagree.
        VideoError: a video of another episode is short or cannot be opened.
    """
    return LeRobotDataset(root, ignored=read_exclusions(root).episodes)


def is_of_this_dataset(excluded: Exclusions, dataset: LeRobotDataset) -> bool:
    """Whether a list was made of what is recorded now; also if it does not say.

    Raises:
        FileNotFoundError: a file of an episode that is not ignored is missing.
        DatasetError: such a file cannot be read.
    """
    if excluded.fingerprint is None or excluded.fingerprint == dataset.recorded_fingerprint():
        return True
    return excluded.fingerprint == dataset.fingerprint()  # of a list made when columns still counted


def require_usable(root: Path | str, episodes: Iterable[int]) -> None:
    """Refuse excluded episodes.

    Args:
        root: dataset folder.
        episodes: numbers of those about to be read.

    Raises:
        FileNotFoundError: no dataset.
        DatasetError: as `read_exclusions`, or one of the episodes is excluded.
    """
    excluded = read_exclusions(root).episodes
    refused = {episode: excluded[episode] for episode in episodes if episode in excluded}
    if refused:
        raise DatasetError(
            f"{Path(root) / EXCLUDE_PATH}: expected episodes that it does not exclude, got {_listed(refused)}; choose "
            "others, or correct the list"
        )


def without_excluded(dataset: LeRobotDataset) -> LeRobotDataset | Subset:
    """A dataset without its excluded episodes: itself when there are none. A log line says how many and where.

    Raises:
        DatasetError: as `read_exclusions`, or every episode is excluded.
    """
    excluded = read_exclusions(dataset.root)
    if not excluded.episodes:
        return dataset
    path = dataset.root / EXCLUDE_PATH
    kept = [entry.index for entry in dataset.episodes if entry.index not in excluded.episodes]
    if not kept:
        raise DatasetError(
            f"{path}: expected to leave some of the {dataset.num_episodes} episodes, it excludes all of them; correct "
            "it, or record others"
        )
    logger.info(
        "%s: %d of %d episodes are left out by %s: %s",
        *(dataset.root, len(excluded.episodes), dataset.num_episodes, EXCLUDE_PATH, _listed(excluded.episodes)),
    )
    if not is_of_this_dataset(excluded, dataset):
        logger.warning(
            "%s was made before the dataset changed; make it again if episodes were replaced, not only added",
            path,
        )
    return Subset(dataset, kept)


def _require_known(episodes: Mapping[int, str], total: int, where: str) -> None:
    unknown = sorted(number for number in episodes if not 0 <= number < total)
    if unknown:
        raise DatasetError(
            f"{where}: expected episodes from 0 to {total - 1}, got {unknown}; the list belongs to another dataset: "
            "correct it, or make it again"
        )


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit()


def _listed(episodes: Mapping[int, str]) -> str:
    shown = [f"{number} ({reason})" for number, reason in list(episodes.items())[:4]]
    return ", ".join(shown) + (", …" if len(episodes) > len(shown) else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:117]}…"
