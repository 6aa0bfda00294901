"""Files and JSON from anybody. Imports nothing heavy."""

import json
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
