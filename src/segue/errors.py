"""The exceptions that Segue raises. A message says in one sentence what is wrong, where, and what to do."""

import difflib
import signal
from collections.abc import Iterable, Sequence


class SegueError(Exception):
    """An error that the user can correct: a name, a setting, an environment, a run that diverged."""


def at_least(minimum: int, **settings: int) -> None:
    """Raise SegueError for the first setting, given by name, that is below `minimum`."""
    for name, value in settings.items():
        if value < minimum:
            raise SegueError(f"{name} must be at least {minimum}, not {value}.")


def at_most(maximum: int, **settings: int) -> None:
    """Raise SegueError for the first setting, given by name, that is above `maximum`."""
    for name, value in settings.items():
        if value > maximum:
            raise SegueError(f"{name} must be at most {maximum:,}, not {value:,}.")


class DataError(SegueError):
    """A file or an array from which Segue does not learn, because it is damaged or inconsistent."""


class Busy(SegueError):
    """Another process holds the lock."""


class Stopped(KeyboardInterrupt):
    """A run or a sweep received the signal `number` and stops."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def similar(name: str, names: Iterable[str], count: int = 3, cutoff: float = 0.6, comma: str = " or ") -> str:
    """Return up to `count` known names that are similar to an unknown one, as "a or b or c"; "" where none is."""
    return _alternatives(difflib.get_close_matches(name, list(names), count, cutoff), comma)


def nearest(name: str, names: Sequence[str]) -> str:
    """Return the known names that are similar to an unknown one, as "a, b or c"; all names where none is."""
    return similar(name, names, cutoff=0.5, comma=", ") or _alternatives(names, ", ")


def _alternatives(names: Sequence[str], comma: str) -> str:
    return " or ".join(filter(None, [comma.join(names[:-1]), *names[-1:]]))
