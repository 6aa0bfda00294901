"""The arguments of an env besides its id: what its constructor and its `reset` take, as JSON values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.system import untrusted

ActionRange = Sequence[Any]
"""LOW and HIGH of the actions that policies use: numbers, or one number for each dimension."""


def check_arguments(what: str, values: Mapping[str, Any]) -> None:
    """Check arguments of an env, called `what` in messages: numbers, texts, true, false, null, and lists of these.

    Raises:
        SegueError: where a name is no text, or a value is anything else.
    """
    if not isinstance(values, Mapping):
        raise SegueError(f"{what} is a dictionary of values by name, not {values!r:.100}.")
    for name, value in values.items():
        if not isinstance(name, str) or not name:
            raise SegueError(f"{what} has the key {name!r:.100}, which is no name.")
        if not all(map(_is_scalar, _parts(value))):
            raise SegueError(
                f"{what} gives {name} as {value!r:.100}: a finite number, a text, true, false, null or a list of them "
                "belongs there."
            )


def check_range(action_range: ActionRange | None) -> None:
    """Check an action range by itself: LOW and HIGH, each a finite number or one for each dimension.

    Raises:
        SegueError: where it is none.
    """
    if action_range is None:
        return
    if not isinstance(action_range, list | tuple) or len(action_range) != 2:
        raise SegueError(f"The action range is LOW and HIGH, not {action_range!r:.100}.")
    for word, side in zip(("LOW", "HIGH"), action_range, strict=True):
        try:
            numbers = np.asarray(side)
        except ValueError:  # lists of several lengths
            numbers = np.asarray(None)
        if numbers.dtype.kind not in "fiu" or numbers.ndim > 1 or not numbers.size or not np.isfinite(numbers).all():
            raise SegueError(
                f"The action range's {word} is {side!r:.100}: a finite number belongs there, or one for each dimension."
            )


def parsed(flag: str, words: Sequence[str]) -> dict[str, Any]:
    """Parse words KEY=VALUE of a flag, where a value that is no JSON is a text.

    Raises:
        SegueError: for other words, and where a key stands twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise SegueError(f"{flag} {word}: say KEY=VALUE.")
        if name in found:
            raise SegueError(f"{flag} gives {name} twice.")
        try:
            found[name] = untrusted.parse(text)
        except ValueError:
            found[name] = text
        except RecursionError:
            raise SegueError(f"{flag} {name}: the value is nested too deeply.") from None
    check_arguments(flag, found)
    return found


def untrusted_texts(values: Mapping[str, Any]) -> list[str]:
    """Return the names of arguments that hold more than numbers and plain words.

    A text may be the path of a file that the env opens, or the name of a module that it imports, so that a file of
    somebody else's must not choose it.
    """
    unsafe = lambda part: isinstance(part, str) and not untrusted.plain_word(part)
    return [name for name, value in values.items() if any(map(unsafe, _parts(value)))]


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
