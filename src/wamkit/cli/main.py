"""`wamkit <command>`: the table of commands, and what happens to their errors.

A command is a module with `Options`, a frozen dataclass or a union of them (its sub-commands), and
`run(options) -> int`, whose result is the exit status; one whose options depend on the arguments (a file that holds
their defaults) also has `parse(arguments)`. Its module is imported when the command is chosen, so help comes
at once.

Exit status: 0 done; 1 the command says no (a failed check), or it has a defect; 2 wrong use, wrong data or a machine
that lacks something, with one message; 130 interrupted. Of several processes under a launcher the first on
each machine speaks.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wamkit import __version__
from wamkit.launcher import is_first_on_machine


class Command(NamedTuple):
    """Where a command lives, and its line in the help."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "record": Command("wamkit.cli.record", "record demonstrations in a simulator as a LeRobot dataset"),
    "data": Command(
        "wamkit.cli.data", "inspect, describe, split or convert a dataset, compute statistics and value targets"
    ),
    "train": Command("wamkit.cli.train", "train a recipe's stages, or continue an interrupted run"),
    "evaluate": Command("wamkit.cli.evaluate", "run a policy in closed loop under a named protocol"),
    "select": Command("wamkit.cli.select", "choose among a run's policies by what they solve"),
    "openloop": Command("wamkit.cli.openloop", "compare a policy's predictions with recorded episodes"),
    "imagine": Command("wamkit.cli.imagine", "imagine several chunks ahead, beside what was recorded"),
    "quality": Command("wamkit.cli.quality", "measure a policy's world model on held-out episodes, beside copying"),
    "serve": Command("wamkit.cli.serve", "serve a policy to robots: WebSocket and HTTP on one port, with a live page"),
    "client": Command("wamkit.cli.client", "ask a server as a robot would, and say how long its answers take"),
    "import": Command("wamkit.cli.import_weights", "make a policy of weights that a paper's public code trained"),
    "export": Command("wamkit.cli.export", "copy a policy out of its training run, in bf16 if wanted"),
    "verify": Command("wamkit.cli.verify", "compare with recorded numbers; say what weights are"),
    "report": Command("wamkit.cli.report", "turn evaluations into one self-contained HTML page"),
    "doctor": Command("wamkit.cli.doctor", "report on this machine: versions, GL, codecs, known traps"),
}


_REMEDIES = {
    errno.ENOENT: "expected {path}, or a place where it can be made, found neither; correct the path",
    errno.EEXIST: "expected a new name or a folder, something else is at {path}; remove that, or choose another name",
    errno.ENOTDIR: "expected a folder in front of every '/' of {path}, one of them is a file; correct the path",
    errno.EISDIR: "expected a file at {path}, it is a folder; correct the path",
    errno.EACCES: "{path} may not be read or written by this user; change its permissions, or choose another place",
    errno.EPERM: "{path} may not be changed by this user; change its permissions, or choose another place",
    errno.EROFS: "{path} is on a file system that can only be read; choose another place",
}


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; `sys.argv` when `None`.
        commands: the table to choose from.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in arguments or os.environ.get("WAMKIT_DEBUG", "0") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview(commands))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"wamkit {__version__}")
        return 0
    name, *rest = arguments
    if name not in commands:
        print(_unknown(name, commands), file=sys.stderr)
        return 2
    return _run(name, commands[name].module, rest, is_debug=is_debug)


class _Lines(logging.Formatter):
    """A message a line; one that warns says so."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


def _run(name: str, module: str, arguments: list[str], *, is_debug: bool) -> int:
    lines = logging.StreamHandler()
    lines.setFormatter(_Lines("%(asctime)s %(message)s" if name == "serve" else None))  # it runs for days
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    logging.getLogger("wamkit").setLevel(logging.DEBUG if is_debug else logging.INFO)
    try:
        command = importlib.import_module(module)
        status: int = command.run(_chosen(name, command, arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stopped:
        told = f"; {stopped}" if str(stopped) else ""
        print(f"wamkit {name}: interrupted{told}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has left. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if is_debug:
            traceback.print_exc()
        # What a user did wrong is wrong on every process; a RuntimeError (no memory, no connection) may be of one.
        if is_debug or isinstance(error, RuntimeError) or is_first_on_machine():
            print(f"wamkit {name}: error: {_explained(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        # Nothing that a command foresees. It is no more use to a user than its kind and text.
        if is_debug:
            traceback.print_exc()
        advice = "" if is_debug else "; run again with --debug for the traceback"
        print(
            f"wamkit {name}: error: this is a defect of wamkit, or a damaged file: {type(error).__name__}: {error}"
            f"{advice}",
            file=sys.stderr,
        )
        return 1


def _chosen(name: str, command: Any, arguments: list[str]) -> Any:
    """The options that the arguments say.

    Raises:
        ValueError: a value that its dataclass refuses.
        SystemExit: help was asked for, or an argument cannot be read, which is printed.
    """
    import tyro

    wanted, default, arguments = options(command, [_with_folder_named(argument) for argument in arguments])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                wanted,
                prog=f"wamkit {name}",
                description=command.__doc__,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
                **default,
            )
    except SystemExit as ended:
        # tyro frames a dataclass's own ValueError, under a name of its own when there are sub-commands.
        refused = ended.__context__
        option, message = getattr(refused, "arg", None), getattr(refused, "message", "")
        if isinstance(option, str) and message:
            said = io.StringIO()
            option = ".".join(part for part in option.split(".") if not part.startswith("__tyro"))
            raise ValueError(f"--{option}: {message}" if option else message) from refused
        raise
    finally:
        if is_first_on_machine():
            sys.stderr.write(said.getvalue())


def _with_folder_named(argument: str) -> str:
    """The argument, with the folder we are in by its name: as a setting, `.` would be a path left unset."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{os.getcwd()}" if value in (".", "./") else argument


def options(command: Any, arguments: list[str]) -> tuple[Any, dict[str, Any], list[str]]:
    """What tyro has to make of a command's arguments: a type, its default if there is one, and the arguments left.

    Args:
        command: the command's module.
        arguments: those after its name.
    """
    if not hasattr(command, "parse"):
        return command.Options, {}, arguments
    wanted, default, left = command.parse(arguments)
    return wanted, {} if default is None else {"default": default}, left


def _explained(error: Exception) -> str:
    """The error's own message, and what to do where the message cannot know."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{message}. The disk is full: free some space and run the same command again."
    if isinstance(error, OSError) and error.filename is not None and error.errno in _REMEDIES:
        return _REMEDIES[error.errno].format(path=error.filename2 or error.filename) + f" ({error.strerror})"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] != "wamkit":
        extra = "models,sim,serve"
        return f"{message}. Install what this command needs: bash runs/setup.sh, or pip install 'wamkit[{extra}]'"
    return message


def _overview(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    listed = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in commands.items())
    return (
        f"wamkit {__version__}: world-action models, from recording to closed-loop evaluation\n\n"
        f"usage: wamkit <command> [options]\n\ncommands:\n{listed}\n\n"
        "wamkit <command> --help   the options of a command\n"
        "wamkit --version          the version\n"
        "--debug                   with any command: show the traceback of an error (or set WAMKIT_DEBUG=1)"
    )


def _unknown(name: str, commands: Mapping[str, Command]) -> str:
    close = difflib.get_close_matches(name, commands, n=1, cutoff=0.5)
    guess = f"; perhaps you meant: wamkit {close[0]}" if close else ""
    return f"wamkit: error: unknown command {name!r}{guess}\ncommands: {', '.join(commands)}"


if __name__ == "__main__":
    sys.exit(main())
