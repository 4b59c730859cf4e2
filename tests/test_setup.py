"""`runs/setup.sh` on machines that lack something.

The machine around the script (Python, pip, apt-get, id) is played by small shell programs in a folder that alone is in
PATH; the script itself is the real one. That a real machine can be set up is shown by the run that these tests are in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("bash", "cat", "cksum", "dirname", "flock", "head", "mkdir", "rm", "sed", "touch")

# One program plays python3 and .venv/bin/python; files in the machine's folder say what the machine has.
PYTHON = """#!/bin/bash
echo "python $*" >>"$MACHINE/log"
case "$*" in
    *"version_info <"*) [ ! -e "$MACHINE/old-python" ] ;;
    *"version_info >="*) [ ! -e "$MACHINE/new-python" ] || [ "${0##*/}" = python3.12 ] ;;
    *ensurepip*) [ -e "$MACHINE/python3-venv" ] ;;
    *EGL*) [ -e "$MACHINE/egl" ] ;;
    *OSMesa*) [ -e "$MACHINE/libosmesa6" ] ;;
    --version) [ -e "$MACHINE/old-python" ] && echo Python 3.9.2 || echo Python 3.11.2 ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip --version" | "-c import wamkit, wamkit_client") ;;
    "-m pip install -e"*)
        [ ! -e "$MACHINE/killed" ] || kill -KILL "$PPID" "$$"
        [ ! -e "$MACHINE/no-network" ] || { echo "pip: no network" >&2; exit 1; } ;;
    *) exit 1 ;;
esac
"""
APT_GET = """#!/bin/bash
echo "apt-get $*" >>"$MACHINE/log"
[ ! -e "$MACHINE/broken-apt" ] || { echo "E: no such package" >&2; exit 100; }
[ "$1" = update ] || for package in "${@:6}"; do touch "$MACHINE/$package"; done
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine of which `has` is true (`python3-venv`, `egl`, `old-python`, `no-network`, `killed`, ...)."""

    folder: Path

    def setup(
        self, *, root: bool = True, project: str = "project", python: str = "python3", gl: str = ""
    ) -> subprocess.CompletedProcess[str]:
        self._program("id", f"#!/bin/bash\necho {0 if root else 1000}\n")
        # Naming the Python keeps the script from finding the one of the machine that runs these tests.
        environment = {"PATH": str(self.folder / "bin"), "MACHINE": str(self.folder), "WAMKIT_PYTHON": python}
        environment["MUJOCO_GL"] = gl
        return subprocess.run(
            ["/bin/bash", str(self.folder / project / "runs" / "setup.sh")],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def log(self) -> list[str]:
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    @property
    def venv(self) -> Path:
        return self.folder / "project" / ".venv"

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    (tmp_path / "project" / "runs").mkdir(parents=True)
    for name in ("runs/setup.sh", "pyproject.toml", "packages/wamkit-client/pyproject.toml", "constraints.txt"):
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "project" / name)
    (tmp_path / "bin").mkdir()
    for tool in (*TOOLS, "cp", "uname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or pytest.fail(f"these tests need {tool}"))
    made = Machine(folder=tmp_path)
    made._program("python3", PYTHON)
    made._program("apt-get", APT_GET)
    for thing in getattr(request, "param", ()):
        (tmp_path / thing).touch()
    return made


def has(*things: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("machine", [things], indirect=True, ids=["+".join(things) or "bare"])


@has()
def test_root_gets_the_missing_packages_in_one_go(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    apt = [line for line in machine.log() if line.startswith("apt-get")]
    assert apt[0].startswith("apt-get update") and len(apt) == 2
    assert apt[1].startswith("apt-get install -y -qq -o ") and apt[1].endswith(" python3-venv libosmesa6")
    assert "CPU build of torch" in done.stderr  # and which way torch came is said


@has()
def test_others_get_the_command_and_nothing_is_made(machine: Machine) -> None:
    done = machine.setup(root=False)
    assert done.returncode == 1
    assert "\n    sudo apt-get update && sudo apt-get install -y python3-venv libosmesa6\n" in done.stderr
    assert not machine.venv.exists() and not any(line.startswith("apt-get") for line in machine.log())


@has("python3-venv")
def test_only_what_lacks_is_named(machine: Machine) -> None:
    done = machine.setup(root=False)
    assert done.returncode == 1 and "apt-get install -y libosmesa6\n" in done.stderr


@has("python3-venv", "libosmesa6")
def test_a_second_run_installs_nothing_until_the_pins_change(machine: Machine) -> None:
    assert machine.setup(root=False).returncode == 0
    assert any("pip install -e" in line for line in machine.log())
    again = machine.setup(root=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert not any("pip" in line for line in machine.log())
    with (machine.folder / "project" / "constraints.txt").open("a") as pins:
        pins.write("another==1.0\n")
    assert machine.setup(root=False).returncode == 0
    log = machine.log()
    assert any("pip install -e" in line for line in log) and not any("-m venv" in line for line in log)


@has("python3-venv", "libosmesa6")
def test_settings_of_tools_are_no_reason_to_install_again(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    machine.log()
    pyproject = machine.folder / "project" / "pyproject.toml"
    text = pyproject.read_text()
    pyproject.write_text(text + "[tool.ruff.format]\nquote-style = 'single'\n")
    assert machine.setup().returncode == 0
    assert not any("pip" in line for line in machine.log())
    pyproject.write_text(text.replace("dependencies = [", 'dependencies = [\n    "another",'))
    assert machine.setup().returncode == 0
    assert any("pip install -e" in line for line in machine.log())


@has("python3-venv", "libosmesa6", "no-network")
def test_an_install_without_network_is_continued_in_place(machine: Machine) -> None:
    broken = machine.setup()
    assert broken.returncode == 1
    assert "pip: no network" in broken.stderr and "Run this again" in broken.stderr
    (machine.venv / "downloaded").touch()
    (machine.folder / "no-network").unlink()
    assert machine.setup().returncode == 0
    assert (machine.venv / "downloaded").exists()


@has("python3-venv", "libosmesa6", "killed")
def test_a_first_install_that_was_killed_is_made_anew(machine: Machine) -> None:
    assert machine.setup().returncode != 0
    (machine.venv / "half-installed").touch()
    (machine.folder / "killed").unlink()
    mended = machine.setup()
    assert mended.returncode == 0 and "interrupted" in mended.stderr
    assert not (machine.venv / "half-installed").exists()


@pytest.mark.parametrize("trouble", ["no-network", "killed"])
@has("python3-venv", "libosmesa6")
def test_an_update_that_fails_leaves_the_venv_and_is_tried_again(machine: Machine, trouble: str) -> None:
    assert machine.setup().returncode == 0
    (machine.venv / "precious").touch()
    with (machine.folder / "project" / "constraints.txt").open("a") as pins:
        pins.write("another==1.0\n")
    (machine.folder / trouble).touch()
    assert machine.setup().returncode != 0
    machine.log()
    (machine.folder / trouble).unlink()
    assert machine.setup().returncode == 0
    assert (machine.venv / "precious").exists() and any("pip install -e" in line for line in machine.log())


@has("python3-venv", "libosmesa6")
def test_a_copied_checkout_gets_a_venv_of_its_own(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    (machine.venv / "from-elsewhere").touch()
    (machine.folder / "project").rename(machine.folder / "original")
    shutil.copytree(machine.folder / "original", machine.folder / "project")
    (machine.folder / "project").rename(machine.folder / "copy")
    (machine.folder / "original").rename(machine.folder / "project")
    untouched = machine.setup()
    assert (untouched.returncode, untouched.stderr) == (0, "") and (machine.venv / "from-elsewhere").exists()
    copied = machine.setup(project="copy")
    assert copied.returncode == 0 and f"belongs to {machine.folder / 'project'}" in copied.stderr
    assert not (machine.folder / "copy" / ".venv" / "from-elsewhere").exists()


@has("python3-venv", "libosmesa6")
def test_a_venv_of_someone_else_is_used_and_kept(machine: Machine) -> None:
    (machine.venv / "bin").mkdir(parents=True)
    shutil.copy(machine.folder / "bin" / "python3", machine.venv / "bin" / "python")
    (machine.venv / "theirs").touch()
    assert machine.setup().returncode == 0
    (machine.folder / "project").rename(machine.folder / "moved")
    assert machine.setup(project="moved").returncode == 0
    assert (machine.folder / "moved" / ".venv" / "theirs").exists()
    assert not any("-m venv" in line for line in machine.log())


@pytest.mark.parametrize("python", ["gone", "without pip"])
@has("python3-venv", "libosmesa6")
def test_a_venv_of_someone_else_that_does_not_work_is_not_deleted(machine: Machine, python: str) -> None:
    (machine.venv / "bin").mkdir(parents=True)
    if python == "gone":
        (machine.venv / "bin" / "python").symlink_to("/no/such/python")
    else:  # as `uv venv` makes it
        (machine.venv / "bin" / "python").write_text('#!/bin/bash\n[[ "$*" != *pip* ]]\n')
        (machine.venv / "bin" / "python").chmod(0o755)
    (machine.venv / "theirs").touch()
    done = machine.setup()
    assert done.returncode == 1 and "did not make" in done.stderr and "with pip" in done.stderr
    assert (machine.venv / "theirs").exists() and not any("install" in line for line in machine.log())


@has("python3-venv", "libosmesa6")
def test_our_venv_whose_python_is_gone_is_made_anew(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "bin" / "python").symlink_to("/no/such/python")
    done = machine.setup()
    assert done.returncode == 0 and "no working Python" in done.stderr


@has("python3-venv", "libosmesa6")
def test_gl_that_went_away_is_asked_for_again(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    (machine.folder / "libosmesa6").unlink()
    done = machine.setup(root=False)
    assert done.returncode == 1 and "apt-get install -y libosmesa6\n" in done.stderr


@pytest.mark.parametrize("root", [True, False])
@has("python3-venv", "egl")
def test_egl_will_do_unless_osmesa_is_asked_for(machine: Machine, root: bool) -> None:
    done = machine.setup(root=root)
    assert done.returncode == 0 and not any(line.startswith("apt-get") for line in machine.log())
    done = machine.setup(root=root, gl="osmesa")
    assert (done.returncode == 0) == root and "libosmesa6" in done.stderr


@has("python3-venv", "libosmesa6", "new-python")
def test_a_python_without_wheels_is_used_and_said(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 0 and "mujoco 3.3.0 has no wheels" in done.stderr


@has("python3-venv", "libosmesa6", "new-python")
def test_a_python_with_wheels_is_preferred(machine: Machine) -> None:
    machine._program("python3.12", PYTHON)
    done = machine.setup(python="")
    assert done.returncode == 0 and "(python3.12)" in done.stderr and "wheels" not in done.stderr


@has("old-python")
def test_an_old_python_is_refused(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 1
    assert "expected Python 3.11 or newer, got Python 3.9.2" in done.stderr
    assert not machine.venv.exists()


@has("broken-apt")
def test_what_apt_says_is_passed_on(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 1
    assert "cannot install python3-venv libosmesa6" in done.stderr and "E: no such package" in done.stderr


@has()
def test_a_machine_without_apt_is_told_what_it_lacks(machine: Machine) -> None:
    os.remove(machine.folder / "bin" / "apt-get")
    done = machine.setup()
    assert done.returncode == 1 and "lacks python3-venv libosmesa6" in done.stderr
