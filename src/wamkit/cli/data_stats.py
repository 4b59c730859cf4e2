"""`wamkit data stats`: compute a dataset's statistics, for training and for other programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wamkit.progress import ProgressBar


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Compute statistics of actions, their differences, states and values over all rows.

    They are written to meta/wamkit_statistics.json, which training reads. Compute them again after the dataset changed.
    Episodes listed in meta/wamkit_exclude.json do not count. With --format they are written to --output as other
    programs read them, and not into the dataset.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder."""
    format: Literal["wamkit", "openpi", "wav"] = "wamkit"
    """wamkit's own; openpi's norm_stats.json (mean and std of all rows); or the statistics file of the public WAV code,
    in which other domains are kept."""
    output: Path | None = None
    """File to write; by default wamkit's own in the dataset. An earlier file of the same format is replaced, or in wav
    added to; anything else there is refused."""
    width: int | None = None
    """openpi: fill vectors up with zeros to this width, that of its model."""
    domain: str | None = None
    """wav: X in the file's X_eef, X_state_eef, …"""
    space: Literal["eef", "joint"] | None = None
    """wav: what actions and states are; by default eef."""
    json: bool = False
    """Print the statistics as JSON."""


def run(options: Stats) -> int:
    """Compute, write and print them."""
    _require_sense(options)
    statistics = write_statistics_of(options.root) if options.output is None else _export(options, options.output)
    if options.json:
        print(json.dumps({name: feature.to_dict() for name, feature in statistics.items()}, indent=2))
        return 0
    for name, feature in statistics.items():
        print(f"{name}: {feature.count} rows, {feature.num_kept} of them within the quantiles")
        for statistic in ("mean", "std", "q01", "q99", "min", "max"):
            print(f"  {statistic:<5}" + "".join(f" {number:10.4g}" for number in getattr(feature, statistic)))
    if options.output is not None:
        print(f"wrote {options.output}")
    return 0


def write_statistics_of(root: Path) -> dict[str, Any]:
    """Compute a dataset's statistics and write them into it."""
    from wamkit.data.stats import write_statistics

    statistics, fingerprint = _computed(root, is_trimmed=True)
    write_statistics(root, statistics, fingerprint=fingerprint)
    return statistics


def _export(options: Stats, output: Path) -> dict[str, Any]:
    from wamkit.data.given_statistics import require_same_form
    from wamkit.data.norm_stats import write_norm_stats
    from wamkit.data.stats import write_statistics_file
    from wamkit.data.wav_statistics import write_wav_statistics

    require_same_form(output, options.format)
    statistics, fingerprint = _computed(options.root, is_trimmed=options.format != "openpi")
    if options.format == "openpi":
        write_norm_stats(output, statistics, width=options.width)
    elif options.format == "wav":
        assert options.domain is not None
        write_wav_statistics(output, statistics, domain=options.domain, space=options.space or "eef")
    else:
        write_statistics_file(output, statistics, fingerprint=fingerprint)
    return statistics


def _computed(root: Path, *, is_trimmed: bool) -> tuple[dict[str, Any], str]:
    from wamkit.data.exclusions import open_usable, without_excluded
    from wamkit.data.stats import compute_statistics

    dataset = without_excluded(open_usable(root))
    with ProgressBar("statistics", unit="episodes") as bar:
        return compute_statistics(dataset, is_trimmed=is_trimmed, progress=bar.show), dataset.fingerprint()


def _require_sense(options: Stats) -> None:
    needs = {"openpi": ("output",), "wav": ("output", "domain")}.get(options.format, ())
    missing = [f"--{name}" for name in needs if getattr(options, name) is None]
    if missing:
        raise ValueError(f"--format {options.format}: expected {' and '.join(missing)} too; add what is missing")
    useful = {"openpi": ("width",), "wav": ("domain", "space")}.get(options.format, ())
    given = [name for name in ("width", "domain", "space") if getattr(options, name) is not None]
    unused = [name for name in given if name not in useful]
    if unused:
        raise ValueError(f"--{unused[0]}: without effect with --format {options.format}; leave it out")
