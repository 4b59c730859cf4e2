"""Report on this machine: versions, torch, GL with a check frame, video codecs, disk, and known traps.

Exit status 1 when something is wrong; a note says how to get what is optional and not here.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit doctor`."""

    json: bool = False
    """Print one JSON object instead of text."""
    folder: Path = Path()
    """Where data and checkpoints would be written; its disk is looked at."""


def run(options: Options) -> int:
    """Print the checks as they are made; 1 when one of them found a problem."""
    from wamkit.doctor import examine

    checks = []
    for check in examine(options.folder):
        checks.append(check)
        if not options.json:
            word = "PROBLEM" if check.problem else "note" if check.note else "ok"
            print(f"{word:<8} {check.name}: {check.found}", flush=True)
            if check.problem or check.note:
                print(f"{'':<8} -> {check.problem or check.note}", flush=True)
    is_healthy = not any(check.problem for check in checks)
    if options.json:
        print(json.dumps({"healthy": is_healthy, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
    return 0 if is_healthy else 1
