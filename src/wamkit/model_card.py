"""The README.md of a policy folder: what the policy needs, what it gives, how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wamkit.spec import ChannelSpec, PolicySpec

_TASKS_SHOWN = 10


def model_card(
    *, spec: PolicySpec, training: Mapping[str, Any], num_parameters: int, sections: Mapping[str, str]
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        spec: what the policy needs and gives.
        training: content of training.json; only what it holds is shown.
        num_parameters: numbers in the weight file.
        sections: further sections, title -> Markdown text.
    """
    robot = spec.robot
    lines = [
        "---",
        "library_name: wamkit",
        "pipeline_tag: robotics",
        f"tags: [robotics, world-action-model, {spec.family}]",
        "---",
        "",
        f"# {spec.family} policy for {robot.name}",
        "",
        f"{num_parameters / 1e6:.2f} million parameters. Loading needs this folder and nothing else:",
        "",
        "```python",
        "from wamkit.policy import load_policy",
        "",
        'policy = load_policy("path/to/this/folder")',
        "```",
        "",
        "## What it needs and gives",
        "",
        "| | |",
        "|---|---|",
        "| cameras, in order | "
        + ", ".join(f"{item.name} {item.height}x{item.width}" for item in robot.cameras)
        + " |",
        f"| frames remembered | {spec.num_context}{_apart(spec)} |",
        f"| state | {_channels(robot.state)} |",
        f"| action ({robot.action_kind}) | {_channels(robot.action)} |",
        f"| grippers | channels {list(robot.gripper_channels)}, {robot.gripper_sign} |",
        f"| actions per call, run before the next | {spec.action_horizon}, {spec.execution_horizon} |",
        f"| control rate | {robot.control_hz:g} Hz |",
        f"| normalisation | {spec.normalization} |",
        f"| rendering | {robot.rendering or 'not applicable'} |",
        "",
    ]
    if spec.tasks:
        rest = len(spec.tasks) - _TASKS_SHOWN
        lines += ["Tasks:", "", *(f"- {task}" for task in spec.tasks[:_TASKS_SHOWN])]
        lines += [f"- and {rest} more (spec.json)"] if rest > 0 else []
        lines += [""]
    lines += ["## How it was trained", "", *_training(training), ""]
    for title, text in sections.items():
        lines += [f"## {title}", "", text.strip(), ""]
    return "\n".join(lines)


def _apart(spec: PolicySpec) -> str:
    """How far apart remembered frames are, where that is fixed."""
    return f", {spec.context_stride} control step{'s' * (spec.context_stride != 1)} apart" if spec.context_reach else ""


def _channels(channels: tuple[ChannelSpec, ...]) -> str:
    return ", ".join(
        channel.name if channel.unit == "1" else f"{channel.name} [{channel.unit}]" for channel in channels
    )


def _training(training: Mapping[str, Any]) -> list[str]:
    recipe = training.get("recipe")
    stages = recipe.get("stages", []) if isinstance(recipe, Mapping) else []
    lines = []
    if stages:
        lines += ["| stage | trains | steps | batch | learning rate |", "|---|---|---|---|---|"]
        for stage in stages:
            cells = [stage.get("name"), ", ".join(stage.get("train", ())), stage.get("steps"), stage.get("batch_size")]
            lines.append("| " + " | ".join(str(cell) for cell in [*cells, stage.get("learning_rate")]) + " |")
        lines.append("")
    if "stage" in training:
        lines.append(f"- saved after step {training.get('step')} of stage {training['stage']}")
    for key in ("seed", "data_fingerprint", "commit"):
        if training.get(key) is not None:
            lines.append(f"- {key.replace('_', ' ')}: `{training[key]}`")
    versions = training.get("versions")
    if isinstance(versions, Mapping) and versions:
        lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return lines or ["Not recorded."]
