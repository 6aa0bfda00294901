"""What Segue raises on purpose. Each message is one sentence: what is wrong, where, and what to do."""

import signal


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
