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
from pathlib import Path

@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the probe."""

    count: int = 1
    """How often."""
    folder: Path = Path()
    """Where, if anywhere."""

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


@pytest.mark.parametrize("said", [["--folder", "."], ["--folder=./"]])
def test_the_folder_we_are_in_is_a_folder(probe: Callable[..., int], said: list[str]) -> None:
    """`Path()` means that a path is left unset, and `.` is equal to it: `--initial.path .` would train from nothing."""
    assert probe("return int(options.folder == Path())") == 1
    assert probe("return int(options.folder == Path.cwd())", *said) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('expected 3 cameras, got 2')", "expected 3 cameras, got 2"),
        ("open('/nowhere/at/all')", "expected /nowhere/at/all, or a place where it can be made, found neither"),
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


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("return {}['absent']", "KeyError: 'absent'"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return None.shape", "AttributeError: 'NoneType' object has no attribute 'shape'"),
        ("return [][1]", "IndexError: list index out of range"),
        ("return len(3)", "TypeError: object of type 'int' has no len()"),
    ],
)
def test_a_defect_of_ours_is_called_one(
    body: str, kind: str, probe: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(body) == 1
    message = f"wamkit probe: error: this is a defect of wamkit, or a damaged file: {kind}"
    assert capsys.readouterr().err == f"{message}; run again with --debug for the traceback\n"
    assert probe(body, "--debug") == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith(f"{message}\n")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("EEXIST", "expected a new name or a folder, something else is at /data/run; remove that"),
        ("ENOTDIR", "expected a folder in front of every '/' of /data/run, one of them is a file; correct the path"),
        ("EISDIR", "expected a file at /data/run, it is a folder"),
        ("EACCES", "/data/run may not be read or written by this user; change its permissions"),
        ("EROFS", "/data/run is on a file system that can only be read; choose another place"),
    ],
)
def test_what_the_system_refuses_is_explained(
    code: str, message: str, probe: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(f"raise OSError(errno.{code}, 'No', '/data/run')") == 2
    assert message in capsys.readouterr().err


def test_what_one_process_says_the_others_do_not_repeat(
    probe: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert probe("raise ValueError('wrong')") == 2
    with pytest.raises(SystemExit) as ended:
        probe("return 0", "--cuont", "3")
    assert ended.value.code == 2 and capsys.readouterr().err == ""
    assert probe("raise RuntimeError('no memory')") == 2, "may have happened on this one alone"
    assert "no memory" in capsys.readouterr().err
    assert probe("raise ValueError('wrong')", "--debug") == 2
    assert "error: wrong" in capsys.readouterr().err


def test_a_value_that_a_setting_refuses_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "debug", "--stages.0.steps", "-1"]) == 2
    said = capsys.readouterr().err
    assert said == "wamkit train: error: --stages.0: stage 'video_only': expected a positive steps, got -1\n"


@pytest.mark.parametrize("command", [["train"], ["data", "encode"]])
def test_a_misspelt_recipe_gets_a_guess(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "debgu", "--data.root", "x"]) == 2
    said = capsys.readouterr().err
    assert "unknown recipe 'debgu'; did you mean 'debug'? choose among: wav-metaworld, " in said
    assert said.count("\n") == 1


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "wamkit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"wamkit {__version__}\n"


def test_a_number_of_processes_that_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "abc")
    assert main(["train", "debug", "--data.root", "x", "--output", "y"]) == 2
    assert "expected WORLD_SIZE to be a number of processes, got 'abc'" in capsys.readouterr().err


def test_an_interrupt_is_130(probe: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert probe("raise KeyboardInterrupt") == 130
    assert capsys.readouterr().err == "wamkit probe: interrupted\n"
    assert probe("raise KeyboardInterrupt('the same command goes on')") == 130
    assert capsys.readouterr().err == "wamkit probe: interrupted; the same command goes on\n"


def test_warnings_are_told_as_warnings(tmp_path: Path) -> None:
    body = "import logging; log = logging.getLogger('wamkit.probe'); log.warning('odd'); log.info('fine'); return 0"
    (tmp_path / "probe_command.py").write_text(PROBE.format(body=body))
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from wamkit.cli.main import Command, main; "
        "main(['probe'], {'probe': Command('probe_command', '')})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: odd\nfine\n"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "probe_command.py").write_text(PROBE.format(body="print('line\\n' * 200_000); return 0"))
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from wamkit.cli.main import Command, main; "
        "sys.exit(main(['probe'], {'probe': Command('probe_command', '')}))"
    )
    shell = f'"{sys.executable}" -c "$1" | head -n 1; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", shell, "bash", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line\n", "")
