"""World models in the report: imagined frames against recorded ones, beside copying and the codec alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from wamkit.evaluation.media import data_uri
from wamkit.evaluation.report_page import card, cards
from wamkit.evaluation.report_tables import Cell, wide_table
from wamkit.evaluation.video_metrics import PSNR_CAP
from wamkit.evaluation.world_quality import FRAMES_FOLDER, WorldQuality
from wamkit.evaluation.world_scores import ClipQuality, Estimate, RolloutQuality, StepQuality

SIDES = {"model": "imagined", "copy": "copied", "ceiling": "codec alone"}


@dataclass(frozen=True)
class Measured:
    """One folder of `wamkit quality` as the report reads it."""

    folder: Path

    @cached_property
    def results(self) -> WorldQuality:
        """`quality.json`."""
        return WorldQuality.load(self.folder)

    @property
    def label(self) -> str:
        """Policy, dataset and part of it."""
        results = self.results
        return f"{results.policy.name} on {results.dataset.name} ({results.split})"

    @property
    def pictures(self) -> list[Path]:
        """Roll-outs beside what was recorded."""
        return sorted((self.folder / FRAMES_FOLDER).glob("*.png"))


def world_models(found: Sequence[Measured], limit: int) -> str:
    """The numbers of every measured world model, and some of its roll-outs.

    Args:
        found: what to show.
        limit: pictures for each.
    """
    intro = (
        '<p class="soft">Frames imagined along recorded actions, beside what was recorded; nothing was executed. '
        "Copying repeats the frame before (single steps) or the first one (roll-outs); the codec alone, recorded "
        "frames encoded and decoded, is the best that imagined frames can be.</p>"
    )
    return intro + "".join(_world_model(item, limit) for item in found)


def _world_model(item: Measured, limit: int) -> str:
    results = item.results
    parts = [f"<h3>{escape(item.label)}</h3>", f'<p class="soft">{len(results.episodes)} episodes.</p>']
    if results.dataset.was_trained_on:
        parts.append(
            '<p class="note" role="note"><strong>The policy was trained on this dataset.</strong> The numbers count '
            "only where it left these episodes out.</p>"
        )
    caption = f"Next frame from recorded ones (moving: by {results.settings.motion:g} of 255 or more)"
    parts.append(wide_table([_step(step) for step in results.steps], caption))
    rows = [row for rollout in results.rollouts for row in _rollout(rollout)]
    if rows:
        parts.append(wide_table(rows, "Roll-outs from an episode's first frame, imagined frames fed back"))
    if results.not_measured:
        told = "; ".join(f"{what}: {why}" for what, why in results.not_measured.items())
        parts.append(f'<p class="soft">Not measured: {escape(told)}.</p>')
    caption = '<span class="name">Real above, imagined below.</span>'
    parts.append(cards([card(_picture(path), f"{caption} {escape(path.stem)}") for path in item.pictures[:limit]]))
    return "".join(parts)


def _step(step: StepQuality) -> list[Cell]:
    sides = [(name, getattr(step, side)) for side, name in SIDES.items()]
    cells = [(f"PSNR, {name}", "–" if found is None else _decibels(found.psnr)) for name, found in sides]
    gain = None if step.model is None else step.model.psnr_gain
    number = ("Frames", f"{step.num_frames} {step.frames if step.frames == 'moving' else ''}".strip())
    return [("", escape(step.camera)), number, *cells, ("Gain over copying", _gain(gain))]


def _rollout(rollout: RolloutQuality) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for side, name in SIDES.items():
        found: ClipQuality | None = getattr(rollout, side)
        if found is not None:
            length = "all" if rollout.frames is None else str(rollout.frames)
            rows.append(
                [
                    ("", f"{escape(rollout.camera)}, {name}"),
                    ("Frames", length),
                    ("Episodes", str(rollout.num_episodes)),
                    ("PSNR", _decibels(found.psnr)),
                    ("Gain over copying", _gain(found.psnr_gain) if side == "model" else ""),
                    ("SSIM", f"{found.ssim.mean:.1f}"),
                    ("LPIPS", "–" if found.lpips is None else f"{found.lpips.mean:.2f}"),
                    ("FVD", "–" if found.fvd is None else f"{found.fvd.value:.1f} ({found.fvd.num_clips} clips)"),
                ]
            )
    return rows


def _picture(path: Path) -> str:
    label = escape(f"{path.stem}: real frames above imagined ones", quote=True)
    return f'<img alt="{label}" style="width:100%" src="{data_uri(path.read_bytes(), "image/png")}">'


def _decibels(psnr: Estimate) -> str:
    return "exact" if psnr.mean >= PSNR_CAP else f"{psnr.mean:.2f} dB"


def _gain(gain: Estimate | None) -> str:
    if gain is None:
        return "–"
    told = f"{gain.mean:+.2f} dB"
    return told if gain.interval is None else f"{told} ({gain.interval[0]:+.2f} to {gain.interval[1]:+.2f})"
