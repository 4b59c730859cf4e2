"""What runs inside a worker process: one simulator, answering one request after another on a socket.

Started by `workers.py` as `python -m wamkit.envs.worker_process FD`. Imports no torch and not the parent's main module.
The process ends as soon as its parent closes the socket or dies, even in the middle of a simulation.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Serve the simulator whose factory arrives first on the socket named on the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it then closes its workers
    connection = Connection(int(sys.argv[1]))
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    try:
        simulator = requests.get()()
        _send(connection, ("ready", simulator.robot))
    except Exception as error:
        _send(connection, ("failed", _describe(error)))
        return
    from wamkit.envs.base import BrokenSimulator, handle

    while True:
        method, args = requests.get()
        answer: tuple[Any, ...]
        try:
            answer = ("value", handle(simulator, method, args))
        except BrokenSimulator as error:
            _send(connection, ("broken", _describe(error)))
            os._exit(1)  # another process takes its place
        except Exception as error:
            answer = ("raised", _describe(error))
        _send(connection, answer)


def _receive(connection: Connection, requests: queue.SimpleQueue[Any]) -> None:
    # Reading in a thread of its own notices the parent's death at once, whatever the simulator is doing.
    while True:
        try:
            requests.put(connection.recv())
        except EOFError:
            os._exit(0)
        except Exception as error:
            _send(connection, ("failed", _describe(error)))
            os._exit(1)


def _send(connection: Connection, message: tuple[Any, ...]) -> None:
    try:
        connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _describe(error: Exception) -> tuple[str, str, str]:
    return type(error).__name__, str(error), traceback.format_exc()


if __name__ == "__main__":
    main()
