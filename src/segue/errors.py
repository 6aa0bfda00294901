"""What Segue raises on purpose. Each message is one sentence: what is wrong, where, and what to do."""


class SegueError(Exception):
    """Something the user can mend: a name, a setting, an environment, a run that diverged."""


class DataError(SegueError):
    """A file or an array that Segue refuses to learn from."""
