"""JSON from anybody. Imports nothing heavy."""

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """JSON in which no key stands twice. Raises ValueError, or RecursionError for what is nested too deep."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    return json.loads(text, object_pairs_hook=once)
