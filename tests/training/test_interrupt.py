"""Signals, locks and launchers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from wamkit.training.interrupt import stop_on_signals


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
