"""The wheel that robots install: small, and without anything that a server needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "packages" / "wamkit-client"

IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)  # an environment may load things of its own
import wamkit_client
assert wamkit_client.__file__.startswith(sys.argv[1])
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded - set(sys.stdlib_module_names)))
"""


@pytest.mark.slow
def test_the_wheel_needs_three_packages_and_imports_no_other(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, PACKAGE]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 100_000
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        told = Parser().parsestr(archive.read(metadata).decode())
        archive.extractall(tmp_path / "installed")
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"wamkit_client"}
    assert "wamkit_client/py.typed" in names and any(name.endswith("licenses/LICENSE") for name in names)
    needs = told.get_all("Requires-Dist") or []
    assert {need.partition(">=")[0] for need in needs} == {"numpy", "msgpack", "websockets"}
    assert told["Requires-Python"] == ">=3.10" and "## Ask and wait" in told.get_payload()
    command = [sys.executable, "-I", "-c", IMPORT, str(tmp_path / "installed")]
    imported = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    others = {name for name in imported.split() if "cython" not in name}  # msgpack is made with it
    assert others == {"wamkit_client", "numpy", "msgpack", "websockets"}
