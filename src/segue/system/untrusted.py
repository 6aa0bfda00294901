"""Reads files, JSON and text that are not trusted. Imports nothing heavy.

Every text that came from a file passes `plain`, `shown`, `markdown` or `code` before it is printed or written into a
page.
"""

import json
import math
import re
import shlex
import stat
from collections.abc import Iterator
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
        raise DataError(f"{file} is not a file, but a folder, a pipe or a device: name a file.")
    if status.st_size > limit:
        raise DataError(f"{file} has {status.st_size:,} bytes: it is not of Segue's making.")
    with file.open("rb") as opened:
        return opened.read(limit)


def plain(text: object) -> str:
    """Return a text with the characters replaced that a terminal might obey or that no file can hold."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def shown(text: object, limit: int = 500) -> str:
    """Return a text as one line of at most `limit` characters that is safe to print."""
    return plain(" ".join(str(text).split()))[:limit]


def markdown(text: object) -> str:
    """Return a text as one line of Markdown that begins no tag, ends no table cell and leads nowhere.

    Viewers make links of bare addresses, too: of https://a.b, www.a.b and a@b. A backslash, which is not shown, keeps
    them from the first two; instead of an at sign stands one that only looks like it. Where a text need not be read as
    part of a sentence, `code` is safer.
    """
    return _ADDRESS.sub(r"\\\g<0>", _cell(text)).replace("](", "]\\(").replace("@", "\N{FULLWIDTH COMMERCIAL AT}")


_ADDRESS = re.compile(r"(?<=:)//|(?<=www)\.", re.IGNORECASE)
"""What makes a link of a bare address: the slashes behind a scheme, and the dot behind www."""


def code(text: object) -> str:
    """Return a text as one line of Markdown, as code, in which viewers make no links and a `<` is shown as `&lt;`."""
    return f"`{_cell(text).replace('`', chr(39))}`"


def _cell(text: object) -> str:
    """Return a text as one line of Markdown that begins no tag and ends no table cell."""
    return plain(text).replace("\n", " ").replace("<", "&lt;").replace("|", "\\|")


def names_no_module(env_id: str) -> bool:
    """Return whether an environment's id names no module to import: a file must not be able to run code."""
    return re.fullmatch(r"[\w/.-]+", env_id) is not None


def plain_word(text: str) -> bool:
    """Return whether a text is neither the path of a file nor the name of a module, but a word, a number or empty."""
    return re.fullmatch(r"[\w-]*|-?[\d.]+(e[+-]?\d+)?", text) is not None


def trusting(env_id: str) -> str:
    """Return the flag by which a user trusts an environment that a file names, quoted for a shell."""
    return f"--env-id {shlex.quote(shown(env_id))}"


def parse(text: str | bytes, *, finite: bool = False) -> Any:
    """Parse JSON in UTF-8. Refuse duplicate keys, whole numbers of more than 40 digits, and texts that cannot be names.

    Args:
        text: the JSON.
        finite: whether to refuse numbers that are not finite as well.

    Raises:
        ValueError: where the text is not such JSON.
        RecursionError: where it is nested more than `DEEPEST` times: what a parser can just hold may be too deep for
            whatever walks through it next.
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

    def finite_number(digits: str) -> float:
        if not math.isfinite(number := float(digits)):
            raise ValueError(f"a number is not finite, but {digits[:40]}")
        return number

    numbers: dict[str, Any] = {"parse_float": finite_number, "parse_constant": finite_number} if finite else {}
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    value = json.loads(text, object_pairs_hook=unique_keys, parse_int=bounded_int, **numbers)
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise RecursionError(f"it is nested more than {DEEPEST} times")
    if _ESCAPED.search(text) and any(map(_UNNAMEABLE.search, _texts(value))):
        raise ValueError("a text holds a character that no name can have")
    return value


DEEPEST = 100
"""How many objects and lists may lie within each other in a JSON text; Segue's own nest a tenth of that."""


def _depth(value: Any) -> int:
    """Return how many objects and lists lie within each other, without recursion."""
    depth, level = 0, [[value]]
    while level := [
        inner
        for each in level
        for inner in (each.values() if type(each) is dict else each)
        if type(inner) is dict or type(inner) is list
    ]:
        depth += 1
    return depth


_ESCAPED = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)
"""How JSON writes a NUL or half a character; only a text that has this is searched by `_UNNAMEABLE`."""


_UNNAMEABLE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
"""A NUL, or half a character. What lies between is how Python names files whose names are not UTF-8."""


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(inner)
