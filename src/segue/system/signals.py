"""Ctrl-C and a scheduler's signals, turned into a request to stop at the next step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from segue.errors import Stopped


class Stop:
    """Whether the run was asked to stop: Ctrl-C, SIGTERM or SIGUSR1. The second time ends the process at once."""

    SECONDS_TO_END = 8
    """Seconds from the request to the end, wherever the run then is."""

    def __init__(self):
        self.asked: int | None = None
        self.process = os.getpid()

    def hear(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process:  # a child that an env forked
            os._exit(128 + number)
        if self.asked is not None and number != signal.SIGALRM:
            os._exit(128 + number)
        if self.asked is not None:
            self.now()
        self.asked = number
        signal.alarm(self.SECONDS_TO_END)

    def now(self) -> None:
        """End here, if asked to. What cannot wait for the next tick calls this now and then."""
        if self.asked is not None:
            raise Stopped(self.asked)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C, and a scheduler's SIGTERM or SIGUSR1, end a run at its next tick, once its state is committed."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
    before = {number: signal.signal(number, stop.hear) for number in numbers}
    try:
        yield stop
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
