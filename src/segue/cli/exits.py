"""Ends a command with one sentence on standard error, and an exit code."""

import contextlib
import sys
from collections.abc import Iterator

from segue.errors import SegueError


@contextlib.contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turn an error that a user can mend into one sentence and exit code 1, and a stop into 128 + a signal's number."""
    try:
        yield
    except SegueError as error:
        print(f"segue: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as by:
        raise stopped(by) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        print(f"segue: {error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        raise SystemExit(1) from None


def stopped(by: KeyboardInterrupt, goes_on: str = "") -> SystemExit:
    """Print that a command was stopped, and how to continue it. Returns the exit to raise."""
    print(f"segue: stopped{goes_on}.", file=sys.stderr)
    return SystemExit(128 + getattr(by, "number", 2))
