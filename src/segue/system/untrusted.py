"""Files and JSON from anybody. Imports nothing heavy."""

import json
import re
import shlex
import stat
from pathlib import Path
from typing import Any

from segue.errors import DataError


def content(file: Path, most: int) -> bytes:
    """What an ordinary file holds. Raises OSError, and DataError for a pipe, a device or one of over `most` bytes."""
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise DataError(f"{file} is not a file: was the directory written by Segue?")
    if about.st_size > most:
        raise DataError(f"{file} has {about.st_size:,} bytes: it is not of Segue's making.")
    with file.open("rb") as opened:
        return opened.read(most)


def shown(text: str) -> str:
    """Return a text as one line of at most 500 characters, without characters that a terminal might obey."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:500]


def plain(env_id: str) -> bool:
    """Whether an env's id names no module to import: a file is not to run code."""
    return re.fullmatch(r"[\w/.-]+", env_id) is not None


def trusting(env_id: str) -> str:
    """The flag by which a user trusts an env that a file names, as a shell takes it for two words, whatever it says."""
    return f"--env-id {shlex.quote(shown(env_id))}"


def parse(text: str | bytes) -> Any:
    """JSON in which no key stands twice and no whole number is astronomical. Raises ValueError, or RecursionError for
    what is nested too deep."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    def whole(digits: str) -> int:
        if len(digits) > 40:
            raise ValueError(f"a number has {len(digits)} digits")
        return int(digits)

    return json.loads(text, object_pairs_hook=once, parse_int=whole)
