"""Ends a command with one sentence on standard error, and an exit code."""

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segue.errors import SegueError
from segue.system import untrusted

LONGEST = 4_000
"""The most characters of an error that are printed."""


def never_fail_to_print() -> None:
    """Let characters that the terminal's encoding lacks be printed as escapes, such as \\u2013."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turn an error that a user can mend into one sentence and exit code 1, and a stop into 128 + a signal's number."""
    try:
        yield
    except SegueError as error:
        print(f"segue: {untrusted.shown(error, LONGEST)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as by:
        raise stopped(by) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        why = f"{error.filename or 'a file'}: {error.strerror or error}."
        print(f"segue: {untrusted.shown(why, LONGEST)}", file=sys.stderr)
        raise SystemExit(1) from None


def stopped(by: KeyboardInterrupt, goes_on: str = "") -> SystemExit:
    """Print that a command was stopped, and how to continue it. Returns the exit to raise."""
    print(f"segue: stopped{goes_on}.", file=sys.stderr)
    return SystemExit(128 + getattr(by, "number", 2))


@contextlib.contextmanager
def resumable(
    folder: str, env_id: str | None, env_args: Mapping[str, Any], reset_options: Mapping[str, Any]
) -> Iterator[None]:
    """Print the command that continues the run in `folder`, where the block is stopped after the run has begun.

    `env_id`, `env_args` and `reset_options` are what the user said of the env.
    """
    try:
        yield
    except KeyboardInterrupt as by:
        if not (Path(folder) / "config.json").exists():
            raise
        from segue.runs import config

        again = f"segue resume {shlex.quote(folder)}{config.trusting(env_id, env_args, reset_options)}"
        raise stopped(by, f"; what was written stays readable, and {again} goes on") from None
