"""JSON from anybody. Imports nothing heavy."""

import json
from typing import Any


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
