from __future__ import annotations

import subprocess
import sys

import pytest

from wamkit.envs import SUITES, match_tasks, suite_factory, suite_sentences, suite_tasks


def test_every_suite_has_a_factory_and_tasks() -> None:
    for suite in SUITES:
        assert callable(suite_factory(suite)())
        assert len(suite_tasks(suite)) > 0
    assert "drawer-open-v3" in suite_tasks("metaworld")
    assert suite_sentences("metaworld")["drawer-open-v3"] == "open the drawer"


def test_an_unknown_suite_is_guessed() -> None:
    with pytest.raises(ValueError, match="unknown suite 'meta-world'; did you mean 'metaworld'"):
        suite_tasks("meta-world")


def test_listing_tasks_and_making_a_factory_load_neither_simulator_nor_torch() -> None:
    script = (
        "import sys\nfrom wamkit.envs import suite_factory, suite_tasks\nimport wamkit.envs.workers\n"
        "for suite in ('aloha', 'libero', 'metaworld'):\n    suite_tasks(suite); suite_factory(suite)()\n"
        "heavy = ('torch', 'mujoco', 'metaworld', 'dm_control', 'gym_aloha', 'libero', 'robosuite', 'gymnasium')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=240)
    assert run.stdout.strip() == "[]"


def test_patterns_choose_tasks_each_once() -> None:
    known = suite_tasks("libero")
    chosen, unknown = match_tasks(["libero_goal/3", "libero_goal/*", "libero_10/1?"], known)
    assert chosen == ("libero_goal/3", *(f"libero_goal/{number}" for number in (0, 1, 2, 4, 5, 6, 7, 8, 9)))
    assert unknown == ["libero_10/1?"]
