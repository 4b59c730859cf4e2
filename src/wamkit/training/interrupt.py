"""Stopping politely: signals become a request that the trainer answers after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether somebody asked to stop, and how (`SIGTERM`, `SIGINT`)."""

    signal: str | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request; a second signal takes its usual effect at once.

    Outside the main thread, where Python allows no signal handlers, nothing is caught.

    Yields:
        The request, filled in when a signal arrives.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        for other in numbers:
            signal.signal(other, before[other])

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number in numbers:
            signal.signal(number, before[number])
