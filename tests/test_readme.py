"""What the README tells people to run exists and is understood; what it links to is there."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from wamkit.cli.main import COMMANDS, options

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(first_word: str) -> list[str]:
    """Lines of code blocks that start with the word, without comments, continued lines joined."""
    lines = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if re.match(rf"\s*{first_word}\s+[^<]", line)]


@pytest.mark.parametrize("line", commands("wamkit"))
def test_wamkit_lines_are_understood(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    assert name in COMMANDS
    wanted, default, arguments = options(importlib.import_module(COMMANDS[name].module), arguments)
    tyro.cli(wanted, args=arguments, **default)  # exits with a message when an option is unknown


@pytest.mark.parametrize("line", commands("bash"))
def test_scripts_are_there(line: str) -> None:
    assert (ROOT / shlex.split(line)[1]).is_file()


def test_the_commands_above_were_found() -> None:
    assert len(commands("wamkit")) >= 4 and len(commands("bash")) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
