"""Reads files, JSON and text that are not trusted. Imports nothing heavy."""

import json
import re
import shlex
import stat
from pathlib import Path
from typing import Any

from segue.errors import DataError


def content(file: Path, limit: int) -> bytes:
    """Read an ordinary file of at most `limit` bytes.

    Raises:
        OSError: where the file cannot be read.
        DataError: for a pipe or a device, and for a larger file.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file} is not a file: was the directory written by Segue?")
    if status.st_size > limit:
        raise DataError(f"{file} has {status.st_size:,} bytes: it is not of Segue's making.")
    with file.open("rb") as opened:
        return opened.read(limit)


def shown(text: str) -> str:
    """Return a text as one line of at most 500 characters, without characters that a terminal might obey."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:500]


def names_no_module(env_id: str) -> bool:
    """Return whether an environment's id names no module to import: a file must not be able to run code."""
    return re.fullmatch(r"[\w/.-]+", env_id) is not None


def trusting(env_id: str) -> str:
    """Return the flag by which a user trusts an environment that a file names, quoted for a shell."""
    return f"--env-id {shlex.quote(shown(env_id))}"


def parse(text: str | bytes) -> Any:
    """Parse JSON, and refuse duplicate keys and whole numbers of more than 40 digits.

    Raises:
        ValueError: where the text is not such JSON.
        RecursionError: where it is nested too deeply.
    """

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a key stands twice")
        return table

    def bounded_int(digits: str) -> int:
        if len(digits) > 40:
            raise ValueError(f"a number has {len(digits)} digits")
        return int(digits)

    return json.loads(text, object_pairs_hook=unique_keys, parse_int=bounded_int)
