"""The folder of an evaluation: whose it is, what is claimed in it, and what may be removed. Loads no torch."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from wamkit.evaluation.own_folder import require_new_folder
from wamkit.evaluation.results import (
    EPISODES_FILE,
    RECORDED_FOLDER,
    RESULTS_FILE,
    RUN_FILE,
    TRACE_FILE,
    VIDEO_FILE,
    write_json,
)

_ROUNDING = ("processor", "torch_threads", "accelerator")  # what arithmetic may round differently on
_BEFORE = {"batching": "free"}  # what runs were, whose run.json does not say
_FIRST_LINE = b'{"task": '  # of episodes.jsonl, even where a kill has cut it short

logger = logging.getLogger(__name__)


def require_evaluation_folder(out: Path) -> None:
    """Refuse to evaluate among files that are no evaluation; what lies beside one may stay there.

    Args:
        out: where the evaluation would be written.

    Raises:
        ValueError: it is a file.
        FileExistsError: it is a folder that holds other things and no evaluation.
    """
    if not _is_evaluation(out):
        require_new_folder(out, unless="an evaluation")


def require_same_run(out: Path, run: dict[str, Any]) -> None:
    """Refuse a folder that holds another evaluation, and change nothing.

    Args:
        out: the evaluation's folder.
        run: what must be the same to go on, as it will be when read back from JSON.

    Raises:
        ValueError: naming every difference and what to do.
    """
    path = out / RUN_FILE
    if not _holds_results(out):
        return
    if not path.is_file():
        raise ValueError(
            f"{out} holds {EPISODES_FILE} or {RESULTS_FILE} without {RUN_FILE}, so whose results they are is unknown; "
            "use another folder, or start afresh (--fresh, resume=False)"
        )
    try:
        before = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error}); use another folder, or start afresh (--fresh, resume=False)"
        ) from error
    before = {**_BEFORE, **before}
    different = [key for key in run if run[key] != before.get(key)]
    if different:
        listed = "\n  - ".join(f"{key}: there {before.get(key)!r}, now {run[key]!r}" for key in different)
        raise ValueError(
            f"{out} holds another evaluation:\n  - {listed}\n"
            "Use another folder, or start afresh there (--fresh, resume=False)."
        )


def claim_folder(out: Path, run: dict[str, Any], machine: dict[str, Any]) -> None:
    """Write down what is evaluated in this folder and what was asked for; the machine is the one that began."""
    out.mkdir(parents=True, exist_ok=True)
    if _holds_results(out):
        machine = json.loads((out / RUN_FILE).read_text())["machine"]
    write_json(out / RUN_FILE, {**run, "machine": machine})


def warn_about_rounding(out: Path, machine: dict[str, Any]) -> None:
    """Say that an evaluation goes on where arithmetic may round differently."""
    if not _holds_results(out):
        return
    before = json.loads((out / RUN_FILE).read_text())["machine"]
    changed = [
        f"{key} {before[key]}, now {machine[key]}" for key in _ROUNDING if before.get(key, machine[key]) != machine[key]
    ]
    if changed:
        logger.warning(
            "%s was begun with %s: episodes from here on are what they would have been there only up to rounding",
            out,
            "; ".join(changed),
        )


def remove_evaluation(out: Path) -> None:
    """Remove what an evaluation made and nothing else; `run.json` marks the folder until `claim_folder` replaces it."""
    (out / RESULTS_FILE).unlink(missing_ok=True)
    recorded = out / RECORDED_FOLDER
    for folder in sorted(recorded.iterdir()) if recorded.is_dir() else ():
        if _is_recording(folder):
            shutil.rmtree(folder)
    if recorded.is_dir() and not recorded.is_symlink() and not any(recorded.iterdir()):
        recorded.rmdir()
    (out / EPISODES_FILE).unlink(missing_ok=True)


def _is_evaluation(out: Path) -> bool:
    """Whether an evaluation has claimed the folder. Results alone claim none: policies carry some beside them."""
    log = out / EPISODES_FILE
    if log.is_file():
        with log.open("rb") as file:
            if file.read(len(_FIRST_LINE)) == _FIRST_LINE:
                return True
    try:
        run = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
        return False
    return isinstance(run, dict) and "protocol" in run


def _holds_results(out: Path) -> bool:
    """Whether there is something to protect; an evaluation that never finished an episode left nothing."""
    return any((out / name).is_file() for name in (EPISODES_FILE, RESULTS_FILE))


def _is_recording(folder: Path) -> bool:
    """Whether a folder is a recorded episode, or what a kill left of one (hidden, perhaps empty)."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    return names <= {VIDEO_FILE, TRACE_FILE} and (bool(names) or folder.name.startswith("."))
