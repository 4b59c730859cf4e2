"""`wamkit <command>`: the table of commands, and what happens to their errors.

A command is a module with `Options`, a frozen dataclass or a union of them (its sub-commands), and
`run(options) -> int`, whose result is the exit status; one whose options depend on the arguments (a file that holds
their defaults) also has `parse(arguments)`. Its module is imported when the command is chosen, so help comes
at once.

Exit status: 0 done; 1 the command says no (a failed check); 2 wrong use, wrong data or a machine that lacks something,
with one message; 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wamkit import __version__


class Command(NamedTuple):
    """Where a command lives, and its line in the help."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "record": Command("wamkit.cli.record", "record demonstrations in a simulator as a LeRobot dataset"),
    "data": Command("wamkit.cli.data", "inspect a dataset, compute its statistics, write value targets into it"),
    "train": Command("wamkit.cli.train", "train a recipe's stages, or continue an interrupted run"),
    "evaluate": Command("wamkit.cli.evaluate", "run a policy in closed loop under a named protocol"),
    "openloop": Command("wamkit.cli.openloop", "compare a policy's predictions with recorded episodes"),
    "imagine": Command("wamkit.cli.imagine", "imagine several chunks ahead, beside what was recorded"),
    "import": Command("wamkit.cli.import_weights", "make a policy of weights that the public code of WAV trained"),
    "export": Command("wamkit.cli.export", "copy a policy out of its training run, in bf16 if wanted"),
    "verify": Command("wamkit.cli.verify", "compare with recorded numbers; say what weights are"),
    "report": Command("wamkit.cli.report", "turn evaluations into one self-contained HTML page"),
    "doctor": Command("wamkit.cli.doctor", "report on this machine: versions, GL, codecs, known traps"),
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


def _run(name: str, module: str, arguments: list[str], *, is_debug: bool) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("wamkit").setLevel(logging.DEBUG if is_debug else logging.INFO)
    try:
        import tyro

        command = importlib.import_module(module)
        wanted, default, arguments = options(command, arguments)
        chosen = tyro.cli(
            wanted,
            prog=f"wamkit {name}",
            description=command.__doc__,
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
            **default,
        )
        status: int = command.run(chosen)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"wamkit {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has left. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if is_debug:
            traceback.print_exc()
        print(f"wamkit {name}: error: {_explained(error)}", file=sys.stderr)
        return 2


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
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] != "wamkit":
        return f"{message}. Install what this command needs, for instance with: bash runs/setup.sh"
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
