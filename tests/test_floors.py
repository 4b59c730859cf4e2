"""The house has floors: a module imports downwards only, and rooms that stand apart never import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "wamkit"
FLOORS = (
    (
        "spec",
        "robots",
        "rotations",
        "episode",
        "draws",
        "types",
        "atomic",
        "launcher",
        "lock",
        "model_config",
        "progress",
        "trace",
        "versions",
        "weight_files",
        "weight_findings",
        "typed",
    ),
    ("flow", "masks", "twohot", "parallel", "device", "nn"),
    ("codecs", "backbones"),
    ("data", "models", "envs"),
    (
        "planning",
        "checkpoint",
        "model_card",
        "chunking",
        "policy_inputs",
        "policy",
        "imagination",
        "batching",
        "rollout",
        "untrained",
    ),
    ("training", "evaluation", "serving"),
    ("recipes",),
    ("__main__", "cli", "verify", "verify_weights", "doctor"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
APART = (3, 5)  # floors whose rooms never import each other
MODELS = ("models.FAMILIES", "models.family_module")  # all that is asked of them by what knows no family
OF_A_FAMILY = {"recipes.reference_yaml": "wav", "verify": "wav"}  # the public trainer's files; a golden format
ONLY_SPEC = ("serving.protocol", "serving.client")  # what a robot needs without the rest of the package


def imports(source: str, module: str) -> Iterator[str]:
    """Our own modules that `module` imports anywhere, also inside functions, as dotted names below the package."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            parts = f"wamkit.{module}".split(".")
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            names = [f"{origin}.{alias.name}" for alias in node.names]
        yield from (name.removeprefix("wamkit.") for name in names if name.split(".")[0] == "wamkit")


def is_of_a_family(name: str) -> bool:
    """Whether an import reaches into a family's folder."""
    return name.startswith("models.") and name not in MODELS


def is_about(module: str, family: str) -> bool:
    """Whether a module above the families is one family's own: its recipes, and what is listed."""
    return module.startswith(f"recipes.{family}_") or OF_A_FAMILY.get(module) == family


def violations(source: str, module: str) -> list[str]:
    """Imports of `module` that break the rules, one sentence each."""
    found = []
    room, family, *_ = [*module.split("."), ""]
    for name in imports(source, module):
        other, other_family, *_ = [*name.split("."), ""]
        if other in ("__version__", "wamkit"):
            continue
        if other not in FLOOR_OF:
            found.append(f"{module} imports {name}, a room without a floor; give it one in {Path(__file__).name}")
        elif module in ONLY_SPEC and other != "spec":
            found.append(f"{module} imports {name}, but may import spec alone")
        elif room == other:
            if room == "models" and family and other_family != family:
                found.append(f"{module} imports {name}, but model families stand apart")
        elif FLOOR_OF[room] > FLOOR_OF["models"] and is_of_a_family(name) and not is_about(module, other_family):
            found.append(f"{module} imports {name}, but knows a family by the verbs of models/__init__.py alone")
        elif FLOOR_OF[other] > FLOOR_OF[room]:
            found.append(f"{module} (floor {FLOOR_OF[room]}) imports {name} (floor {FLOOR_OF[other]}): upwards")
        elif FLOOR_OF[other] == FLOOR_OF[room] in APART:
            found.append(f"{module} imports {name}, but rooms of floor {FLOOR_OF[room]} stand apart")
    return found


def test_every_import_goes_down() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module == "__init__":
            found += [f"wamkit imports {name}; it imports nothing" for name in imports(path.read_text(), module)]
        elif module.split(".")[0] not in FLOOR_OF:
            found.append(f"{module} has no floor; give it one in {Path(__file__).name}")
        else:
            found += violations(path.read_text(), module)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("policy", "from wamkit.models import family_module", True),
        ("policy", "from wamkit.models.wav import config", False),
        ("recipes.execute", "from wamkit.models.wav.config import WAVConfig", False),
        ("recipes.wav_small", "from wamkit.models.wav import config", True),
        ("recipes.wav_small", "from wamkit.models.aim import config", False),
        ("cli.verify", "from wamkit.models import wav", False),
        ("verify", "from wamkit.models.wav.config import NetworkConfig", True),
        ("models.wav.model", "from wamkit.model_config import ModelConfig", True),
        ("policy", "from wamkit import spec, __version__", True),
        ("models.wav.model", "from .config import WAVConfig", True),
        ("serving.client", "from wamkit.spec import RobotSpec", True),
        ("flow", "import wamkit.data.loader", False),
        ("flow", "def late():\n    from wamkit.policy import Policy", False),
        ("data.loader", "from wamkit.envs import base", False),
        ("training.trainer", "from wamkit import evaluation", False),
        ("models.wav.model", "from ..aim.config import AIMConfig", False),
        ("models.wav.model", "from wamkit.models.aim import config", False),
        ("serving.client", "from wamkit.types import Observation", False),
        ("spec", "from wamkit.attic import box", False),
    ],
)
def test_the_rules_tell_right_from_wrong(module: str, source: str, allowed: bool) -> None:
    assert (not violations(source, module)) == allowed
