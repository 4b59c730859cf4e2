"""Choosing among a training run's policies by what they solve, and what is written of the choice.

    evaluations/<name>/   an evaluation of each candidate, all on the same episodes
    policy/               a copy of the chosen one
    selection.json        who was asked, what each solved, who was chosen

The best of several looks better on the episodes that chose it than it is. So those are never the ones that a protocol
scores: they start from a family of initial states of their own (`selection_seed`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.atomic import remove_folder
from wamkit.checkpoint import PolicyFiles, export_policy, fingerprint_folder, read_policy
from wamkit.evaluation.comparison import compare_records
from wamkit.evaluation.own_folder import require_new_folder
from wamkit.evaluation.protocol import Protocol
from wamkit.evaluation.report_source import Evaluation
from wamkit.evaluation.results import Results, write_json
from wamkit.evaluation.statistics import PairedComparison
from wamkit.spec import RobotSpec

SELECTION_FILE, EVALUATIONS, POLICY = "selection.json", "evaluations", "policy"
FORMAT = "wamkit-selection/1"
SEED_OFFSET = 1000
CHECKPOINTS = "checkpoints"
COPY = "policy_sha256"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A policy that may be chosen.

    Args:
        name: of its evaluation's folder.
        folder: where its files are.
        stage: of training that made it; empty when its record does not say.
        step: of that stage.
        robot: that it was trained on.
    """

    name: str
    folder: Path
    stage: str
    step: int
    robot: RobotSpec


def selection_seed(protocol: Protocol) -> int:
    """Seed of the initial states that candidates are compared on: not the protocol's, and not the recordings'."""
    return protocol.layout_seed + SEED_OFFSET


def candidates_in(folders: Sequence[Path]) -> list[Candidate]:
    """The policies to choose among, the one that was trained longest last.

    Args:
        folders: run folders, each of which stands for the checkpoints of its last stage; or policy folders, in order.

    Raises:
        FileNotFoundError: nothing is there, or no policy.
        ValueError: fewer than two, one of them twice, or a damaged one.
    """
    found: list[Candidate] = []
    for folder in folders:
        checkpoints = folder / CHECKPOINTS
        if checkpoints.is_dir():
            found += _last_stage(checkpoints)
        else:
            found.append(_candidate(read_policy(folder)))
    if len(found) < 2:
        raise ValueError(
            f"expected two or more policies to choose among, found {len(found)} "
            f"({', '.join(str(item.folder) for item in found) or 'none'}); a run keeps more of them with "
            "--keep-policy-every STEPS"
        )
    places = [item.folder.resolve() for item in found]
    twice = sorted({str(place) for place in places if places.count(place) > 1})
    if twice:
        raise ValueError(f"expected each policy once, got {twice[0]} more than once; name it once")
    names = [item.name for item in found]
    if len(set(names)) == len(names):
        return found
    longer = [f"{place.parent.parent.name}-{place.parent.name}-{place.name}" for place in places]
    if len(set(longer)) < len(longer):
        raise ValueError(f"expected policies whose folders can be told apart by name, got {longer}; rename some")
    return [dataclasses.replace(item, name=name) for item, name in zip(found, longer, strict=True)]


def _last_stage(checkpoints: Path) -> list[Candidate]:
    """A run's policies of the last stage that has any, by step."""
    # Hidden ones are what a killed writer left.
    files = [read_policy(folder) for folder in sorted(checkpoints.glob("*/")) if not folder.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"expected policies in {checkpoints}, found none; train first, or check the path")
    stages = [str(stage.get("name")) for stage in (files[-1].training.get("recipe") or {}).get("stages", [])]
    found = [_candidate(item) for item in files]
    nameless = [str(item.folder) for item in found if not item.stage]
    if nameless:
        raise ValueError(
            f"expected training.json of {nameless[0]} to name a stage of training, it does not; remove that "
            "checkpoint, or copy it again"
        )
    last = max((item.stage for item in found), key=lambda stage: stages.index(stage) if stage in stages else -1)
    return sorted((item for item in found if item.stage == last), key=lambda item: item.step)


def _candidate(files: PolicyFiles) -> Candidate:
    files.check_codecs()
    stage, step = files.training.get("stage"), files.training.get("step")
    return Candidate(
        name=files.folder.resolve().name,
        folder=files.folder,
        stage=stage if isinstance(stage, str) else "",
        step=step if isinstance(step, int) else 0,
        robot=files.spec.robot,
    )


def require_selection_folder(out: Path, candidates: Sequence[Candidate]) -> None:
    """Refuse to choose among files that are no selection, or candidates that are its own.

    Raises:
        ValueError: it is a file, or holds a candidate, which a new choice would replace.
        FileExistsError: a folder that holds other things and no selection.
    """
    if _earlier(out) is None:
        require_new_folder(out, unless="a selection")
    inside = [str(item.folder) for item in candidates if out.resolve() in item.folder.resolve().parents]
    if inside:
        raise ValueError(f"expected candidates outside {out}, where a choice replaces files, got {inside[0]}; copy it")


def begin(out: Path) -> None:
    """Make the folder a selection's; a choice that was made there before stands until another is made."""
    if _earlier(out) is None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SELECTION_FILE, {"format": FORMAT, "chosen": None})


def _earlier(out: Path) -> dict[str, Any] | None:
    """The choice that the folder holds; `None` where it holds none, or something else by its name."""
    try:
        found = json.loads((out / SELECTION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was chosen.

    Args:
        candidates: in the order of `candidates_in`.
        results: of each, on the same episodes.
        chosen: which, from 0.
        against_last: the chosen one against the last, which would have been taken without a choice.
    """

    candidates: tuple[Candidate, ...]
    results: tuple[Results, ...]
    chosen: int
    against_last: PairedComparison

    @property
    def name(self) -> str:
        """Of the chosen one."""
        return self.candidates[self.chosen].name

    def record(self) -> dict[str, Any]:
        """JSON-ready, as it stands in selection.json."""
        rows = []
        for candidate, results in zip(self.candidates, self.results, strict=True):
            score = results.overall
            rows.append(
                {
                    **{"name": candidate.name, "folder": str(candidate.folder)},
                    **{"stage": candidate.stage, "step": candidate.step, "fingerprint": results.policy.fingerprint},
                    **{"successes": score.successes, "trials": score.trials, "interval": list(score.interval)},
                    "tasks": {task: item.successes for task, item in results.tasks.items()},
                }
            )
        first = self.results[0]
        return {
            "format": FORMAT,
            "protocol": first.protocol,
            "protocol_settings": first.protocol_settings,
            "candidates": rows,
            "chosen": self.name,
            "against_last": dataclasses.asdict(self.against_last),
        }


def choose(candidates: Sequence[Candidate], out: Path) -> Selection:
    """The candidate that solved most; of equals the one that was trained longest.

    Args:
        candidates: all evaluated into the selection's folder, on the same episodes.
        out: that folder.

    Raises:
        FileNotFoundError, ValueError: an evaluation is not there, or damaged.
        RuntimeError: episodes were lost to simulator errors, so that the candidates did not have the same ones.
    """
    evaluations = [Evaluation(out / EVALUATIONS / item.name) for item in candidates]
    results = [item.results for item in evaluations]
    lost = [item.name for item, result in zip(candidates, results, strict=True) if result.overall.errors]
    if lost:
        raise RuntimeError(
            f"{', '.join(lost)} lost episodes to simulator errors, and the candidates are compared on the same ones "
            "alone; run the same command again, which tries those again"
        )
    chosen = max(range(len(results)), key=lambda index: (results[index].overall.successes, index))
    return Selection(
        candidates=tuple(candidates),
        results=tuple(results),
        chosen=chosen,
        against_last=compare_records(evaluations[chosen].records, evaluations[-1].records),
    )


def write_choice(selection: Selection, out: Path) -> Path:
    """Copy the chosen policy to `out / "policy"`, with the choice in its training.json, and write selection.json.

    A copy that is there and was not changed since stays as it is.

    Returns:
        The copy's folder.
    """
    record = selection.record()
    row = record["candidates"][selection.chosen]
    told = {
        "protocol": record["protocol"],
        "num_candidates": len(selection.candidates),
        **{key: row[key] for key in ("name", "fingerprint", "successes", "trials")},
    }
    path = out / POLICY
    before = _earlier(out) or {}
    is_whole = path.is_dir() and fingerprint_folder(path) == before.get(COPY)
    if not (is_whole and read_policy(path).training.get("selected") == told):
        if path.is_dir():
            remove_folder(path)
        export_policy(selection.candidates[selection.chosen].folder, path, record={"selected": told})
    write_json(out / SELECTION_FILE, {**record, COPY: fingerprint_folder(path)})
    return path
