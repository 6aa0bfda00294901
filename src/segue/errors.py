"""What Segue raises on purpose. Each message is one sentence: what is wrong, where, and what to do."""

import difflib
import signal
from collections.abc import Sequence


class SegueError(Exception):
    """Something the user can mend: a name, a setting, an environment, a run that diverged."""


def at_least(least: int, **settings: int) -> None:
    """Refuse a setting that is below `least`, by name."""
    for name, value in settings.items():
        if value < least:
            raise SegueError(f"{name} must be at least {least}, not {value}.")


class DataError(SegueError):
    """A file or an array that Segue refuses to learn from."""


class Busy(SegueError):
    """Another process holds the lock."""


class Stopped(KeyboardInterrupt):
    """A run or a sweep was asked to stop, by signal `number`."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def nearest(name: str, names: Sequence[str]) -> str:
    """ "a, b or c": the known names most like an unknown one, or all of them."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or list(names)
    return close[0] if len(close) == 1 else f"{', '.join(close[:-1])} or {close[-1]}"
