"""What Segue raises on purpose. Each message is one sentence: what is wrong, where, and what to do."""

import difflib
import signal
from collections.abc import Iterable, Sequence


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


def similar(name: str, names: Iterable[str], most: int = 3, cutoff: float = 0.6, comma: str = " or ") -> str:
    """Return the known names most like an unknown one, as "a or b or c"; "" where none is like it."""
    return _alternatives(difflib.get_close_matches(name, list(names), most, cutoff), comma)


def nearest(name: str, names: Sequence[str]) -> str:
    """Return the known names most like an unknown one, as "a, b or c"; all of them where none is like it."""
    return similar(name, names, cutoff=0.5, comma=", ") or _alternatives(names, ", ")


def _alternatives(names: Sequence[str], comma: str) -> str:
    return " or ".join(filter(None, [comma.join(names[:-1]), *names[-1:]]))
