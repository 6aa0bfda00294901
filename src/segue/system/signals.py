"""Turns Ctrl-C and a scheduler's signals into a request to stop at the next step."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from segue.errors import Stopped


class Stop:
    """Whether the run was asked to stop, by Ctrl-C, SIGTERM or SIGUSR1. The second signal ends the process at once."""

    SECONDS_TO_END = 8
    """Seconds after which a run that was asked to stop ends, even if it has not reached its next tick."""

    def __init__(self):
        self.asked: int | None = None
        self.process = os.getpid()

    def on_signal(self, number: int, frame: Any) -> None:
        """Note the request and set an alarm; the alarm raises `Stopped` where the run has not ended by then."""
        if os.getpid() != self.process:  # a child that an env forked
            os._exit(128 + number)
        if self.asked is not None and number != signal.SIGALRM:
            os._exit(128 + number)
        if self.asked is not None:
            self.raise_if_asked()
        self.asked = number
        signal.alarm(self.SECONDS_TO_END)

    def raise_if_asked(self) -> None:
        """Raise `Stopped` if a stop was asked for. Work that takes long between two ticks calls this often."""
        if self.asked is not None:
            raise Stopped(self.asked)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, and the signals by which a scheduler asks a program to stop."""


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Let a stop signal end a run at its next tick, once the run's state is committed."""
    stop = Stop()
    with handled((*STOP_SIGNALS, signal.SIGALRM), stop.on_signal):
        try:
            yield stop
        finally:
            if stop.asked is not None:
                signal.alarm(0)


@contextlib.contextmanager
def handled(numbers: Sequence[signal.Signals], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle these signals inside the block. Python allows it in the main thread alone; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
