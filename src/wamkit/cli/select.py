"""Choose among a run's policies by what they solve: wamkit select RUN --output FOLDER.

Train with --keep-policy-every STEPS, so that there are several. Each is evaluated on the same episodes, from initial
states that neither training nor the protocol's own evaluation has seen; the one that solves most is copied to
FOLDER/policy, of equals the one that was trained longest. FOLDER/selection.json says what all of them solved, and
FOLDER/evaluations holds an evaluation of each, for `wamkit report`. The same command goes on where it stopped, and
after more training asks the new ones alone.

The episodes that chose a policy flatter it: evaluate it under the protocol itself before you tell its score.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from wamkit.cli import evaluate
from wamkit.cli.evaluate import Trials

if TYPE_CHECKING:
    from wamkit.evaluation.selection import Selection


@dataclass(frozen=True, kw_only=True)
class Options(Trials):
    """Options of `wamkit select`."""

    candidates: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Output folder of `wamkit train`, whose last stage's checkpoints are compared; or policy folders."""
    output: Path
    """Folder of the selection: made, or continued."""
    episodes: int | None = 20
    """Episodes of each task and seed."""
    fresh: bool = False
    """Evaluate all candidates anew, in place of what the folder holds of them."""


def run(options: Options) -> int:
    """Evaluate all, choose one, copy it."""
    from wamkit.evaluation.protocol import get_protocol
    from wamkit.evaluation.selection import (
        EVALUATIONS,
        begin,
        candidates_in,
        choose,
        require_selection_folder,
        selection_seed,
        write_choice,
    )

    named = get_protocol(options.protocol)
    if options.layout_seed is None:
        options = dataclasses.replace(options, layout_seed=selection_seed(named))
    if options.layout_seed == named.layout_seed:
        raise ValueError(
            f"expected a layout_seed other than that of {named.name!r}, got {options.layout_seed}: the initial states "
            "that choose a policy cannot judge it as well; leave --layout-seed out, or take another"
        )
    protocol = options.resolved()
    protocol.requests(tasks=options.tasks, episodes=options.episodes)
    options.running.check()
    candidates = candidates_in(options.candidates)
    for candidate in candidates:  # the last one must not be refused after the others have run
        evaluate.make_factory(protocol, candidate.robot)
        protocol.require_robot(candidate.robot)
    require_selection_folder(options.output, candidates)
    begin(options.output)
    shared = {item.name: getattr(options, item.name) for item in dataclasses.fields(Trials)}
    for candidate in candidates:
        print(candidate.name)
        evaluation = options.output / EVALUATIONS / candidate.name
        evaluate.run(
            evaluate.Options(
                **shared, policy=candidate.folder, output=evaluation, record_episodes=0, fresh=options.fresh
            )
        )
    selection = choose(candidates, options.output)
    folder = write_choice(selection, options.output)
    print(_table(selection))
    print(f"{folder} is a copy of {selection.name}; for a score that did not choose it: wamkit evaluate {folder}")
    return 0


def _table(selection: Selection) -> str:
    width = max(len(item.name) for item in selection.candidates)
    lines = [f"{selection.results[0].protocol}: chosen by the most episodes solved"]
    for number, (candidate, results) in enumerate(zip(selection.candidates, selection.results, strict=True)):
        score = results.overall
        low, high = score.interval
        solved = f"{score.successes}/{score.trials} (95 % interval {low:.0%} to {high:.0%})"
        lines.append(f"  {candidate.name:<{width}}  {solved}{'  <- chosen' * (number == selection.chosen)}")
    pairs = selection.against_last
    if selection.chosen != len(selection.candidates) - 1:
        lines.append(
            f"  against the last one: {pairs.only_first} won, {pairs.only_second} lost of {pairs.num_pairs}, "
            f"p = {pairs.p_value:.2g} before counting how many were compared"
        )
    return "\n".join(lines)
