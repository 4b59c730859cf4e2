"""Stages: their learning rates, their plain form, and what they refuse. No torch needed."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wamkit.models.worldvla.objective import joint
from wamkit.training.record import saw_no_future
from wamkit.training.stage import TrainStage, learning_rate_at, plain, recipe_differences, resolved_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    weight: float = 1.0
    views: tuple[str, ...] = ("front",)


def make_stage(**changes: Any) -> TrainStage:
    settings: dict[str, Any] = {
        "name": "video_only",
        "objective": Objective(),
        "train": ("video",),
        "steps": 10,
        "batch_size": 4,
        "learning_rate": 3e-4,
        "needs_future": True,
    }
    return TrainStage(**{**settings, **changes})


def test_an_objective_says_whether_it_reads_the_future() -> None:
    """Also one that is changed later, as `--stages.0.objective.world-share 0` does."""
    stage = make_stage(objective=joint(), needs_future=False)
    assert stage.needs_future
    alone = dataclasses.replace(stage, objective=dataclasses.replace(joint(), world_share=0.0))
    assert not alone.needs_future and saw_no_future({"recipe": {"stages": [plain(alone)]}})
    assert dataclasses.replace(alone, objective=joint()).needs_future
    assert make_stage(needs_future=True).needs_future and not make_stage(needs_future=False).needs_future


def test_a_constant_rate_warms_up_linearly() -> None:
    stage = make_stage(warmup_steps=4)
    rates = [learning_rate_at(stage, step) for step in range(10)]
    assert rates[:4] == pytest.approx([0.25 * 3e-4, 0.5 * 3e-4, 0.75 * 3e-4, 3e-4])
    assert rates[4:] == [3e-4] * 6
    assert learning_rate_at(make_stage(), 0) == 3e-4


def test_a_cosine_falls_from_the_peak_towards_zero_at_the_end() -> None:
    stage = make_stage(schedule="cosine", warmup_steps=2, steps=102, learning_rate=1.0)
    rates = [learning_rate_at(stage, step) for step in range(102)]
    assert rates[1] == rates[2] == 1.0
    assert rates[52] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[2:]))
    assert 0 < rates[-1] < 1e-3
    assert learning_rate_at(make_stage(schedule="cosine", steps=2, warmup_steps=2), 1) == 3e-4


def test_defaults_are_those_of_the_paper() -> None:
    stage = make_stage()
    assert (stage.betas, stage.eps, stage.weight_decay, stage.max_grad_norm) == ((0.9, 0.95), 1e-8, 1e-5, 1.0)
    assert (stage.schedule, stage.accumulation, stage.ema_decay) == ("constant", 1, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "stage name"),
        ({"name": ""}, "stage name"),
        ({"train": ()}, "at least one part"),
        ({"steps": 0}, "positive steps, got 0"),
        ({"batch_size": -1}, "positive batch_size"),
        ({"accumulation": 0}, "positive accumulation"),
        ({"learning_rate": math.nan}, "positive learning_rate"),
        ({"max_grad_norm": math.inf}, "positive max_grad_norm"),
        ({"warmup_steps": -1}, "warmup_steps of 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas in"),
        ({"ema_decay": 1.0}, "ema_decay in"),
        ({"schedule": "linear"}, "'constant' or 'cosine', got 'linear'"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    # The run-time type checker of the tests would refuse a wrong literal before the stage does.
    with pytest.raises((ValueError, TypeError), match=message if "schedule" not in changes else None):
        make_stage(**changes)


def test_the_plain_form_is_what_json_gives_back() -> None:
    class Size(enum.Enum):
        TINY = "tiny"

    value = {"stage": make_stage(), "path": Path("a/b"), "size": Size.TINY, 3: [None, True, 1.5]}
    form = plain(value)
    assert json.loads(json.dumps(form)) == form
    assert form["stage"]["objective"] == {"type": "Objective", "weight": 1.0, "views": ["front"]}
    assert (form["path"], form["size"], form["3"]) == ("a/b", "tiny", [None, True, 1.5])
    for foreign in (object(), math.nan, Objective):
        with pytest.raises(ValueError, match=r"expected finite numbers.* in a recipe"):
            plain({"a": [foreign]})


def test_a_recipe_needs_distinct_stages_and_its_own_keys() -> None:
    recipe = resolved_recipe([make_stage(), make_stage(name="other")], 3, {"model": {"width": 8}})
    assert [stage["name"] for stage in recipe["stages"]] == ["video_only", "other"]
    assert (recipe["seed"], recipe["model"]) == (3, {"width": 8})
    with pytest.raises(ValueError, match="distinct names"):
        resolved_recipe([make_stage(), make_stage()], 3, {})
    with pytest.raises(ValueError, match="distinct names"):
        resolved_recipe([], 3, {})
    with pytest.raises(ValueError, match=r"without the keys \['seed'\]"):
        resolved_recipe([make_stage()], 3, {"seed": 4})


def test_differences_name_the_path_and_both_sides() -> None:
    saved = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": "x"}
    now = {"a": 1, "b": {"c": [1, 3], "d": 0}, "new": "y"}
    assert recipe_differences(saved, now) == [
        "b.c[1]: saved 2, now 3",
        "b.d: saved None, now 0",
        "gone: saved 'x', now nothing",
        "new: saved nothing, now 'y'",
    ]
    assert recipe_differences(saved, json.loads(json.dumps(saved))) == []


def test_stages_load_no_torch() -> None:
    code = "import sys; from wamkit.training import TrainStage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
