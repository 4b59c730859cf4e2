"""What the deployment files start is understood, and what the page on serving tells robots to send is read."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import tyro

from wamkit.cli import serve
from wamkit.serving.requests import RequestReader, Settings

from .policies import make_policy

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
UNIT = ROOT / "deploy" / "wamkit.service"


def started() -> dict[str, list[str]]:
    """Arguments after `wamkit` by file."""
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)
    unit = re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert entry is not None and unit is not None
    return {"Dockerfile": json.loads(entry[1])[1:], "wamkit.service": shlex.split(unit[1])[1:]}


@pytest.mark.parametrize("file", ["Dockerfile", "wamkit.service"])
def test_what_they_start_is_understood(file: str) -> None:
    command, *arguments = started()[file]
    chosen = tyro.cli(serve.Options, args=arguments)
    assert command == "serve" and chosen.token_file is not None and chosen.port == 8000


def test_the_image_copies_what_is_there() -> None:
    copied = [name for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    told = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert UNIT.name not in told.stderr, told.stderr


def test_every_key_of_the_page_is_read() -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    table = page.partition("## What to send")[2].partition("The reply holds")[0]
    names = set(re.findall(r"`([\w/.]+)`", table)) - {"exact", "observation/CAMERA", "observation.images.CAMERA"}
    reader = RequestReader(spec=make_policy().spec, settings=Settings(num_steps=1, planner=None))
    assert {"images", "obs", "deadline_ms", "proprio"} <= names
    # A key that is not known is told as such, whatever it holds; one that is known may be told to hold something else.
    for name in sorted(names):
        with pytest.raises(ValueError) as told:
            try:
                reader.read({name: object()})
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        assert "unknown keys" not in str(told.value), name
