"""Signals, locks and launchers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wamkit.training.interrupt import only_run_in, stop_on_signals


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored; here it has its usual effect."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_takes_its_usual_effect() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone() -> None:
    seen = []

    def work() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with stop_on_signals() as request:
            seen.append((request.signal, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, True)]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from wamkit.training.interrupt import only_run_in\n"
        "with only_run_in(Path(sys.argv[1])): print('held', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert (result.stdout, result.returncode) == ("held\n", -signal.SIGKILL)
    with only_run_in(tmp_path):
        pass
