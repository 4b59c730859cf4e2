"""The command line: choosing a command, and what a user sees when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wamkit import __version__
from wamkit.cli.main import COMMANDS, Command, main

PROBE = '''
"""A command that ends as it is told."""
import errno
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the probe."""

    count: int = 1
    """How often."""

def run(options):
    {body}
'''


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `wamkit probe ...` whose `run` has the given body."""

    def call(body: str, *arguments: str) -> int:
        (tmp_path / "probe_command.py").write_text(PROBE.format(body=body))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "probe_command", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return main(["probe", *arguments], {"probe": Command("probe_command", "a probe")})

    return call


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name}" in shown and command.help in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: wamkit {name}" in capsys.readouterr().out


def test_nothing_asked_shows_help_but_is_not_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: wamkit" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"wamkit {__version__}\n"


def test_an_unknown_command_gets_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docter"]) == 2
    shown = capsys.readouterr().err
    assert "'docter'" in shown and "perhaps you meant: wamkit doctor" in shown


def test_an_unknown_option_is_refused(probe: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        probe("return 0", "--cuont", "3")
    assert ended.value.code == 2
    assert "--count" in capsys.readouterr().err


def test_options_arrive_and_the_status_comes_back(probe: Callable[..., int]) -> None:
    assert probe("return options.count", "--count", "7") == 7


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('expected 3 cameras, got 2')", "expected 3 cameras, got 2"),
        ("open('/nowhere/at/all')", "No such file or directory: '/nowhere/at/all'"),
        ("raise OSError(errno.ENOSPC, 'No space left on device', 'model.safetensors')", "free some space"),
        ("raise RuntimeError('no OpenGL library')", "no OpenGL library"),
        ("import a_simulator_nobody_has", "bash runs/setup.sh"),
    ],
)
def test_errors_are_one_message(
    body: str, message: str, probe: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(body) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("wamkit probe: error: ") and message in shown
    assert "Traceback" not in shown and shown.count("\n") == 1


def test_debug_shows_the_traceback(
    probe: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe("raise ValueError('no')", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("WAMKIT_DEBUG", "1")
    assert probe("raise ValueError('no')") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_of_ours_is_not_dressed_up(probe: Callable[..., int]) -> None:
    with pytest.raises(KeyError):
        probe("{}['absent']")


def test_an_interrupt_is_130(probe: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert probe("raise KeyboardInterrupt") == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "probe_command.py").write_text(PROBE.format(body="print('line\\n' * 200_000); return 0"))
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from wamkit.cli.main import Command, main; "
        "sys.exit(main(['probe'], {'probe': Command('probe_command', '')}))"
    )
    shell = f'"{sys.executable}" -c "$1" | head -n 1; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", shell, "bash", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line\n", "")
