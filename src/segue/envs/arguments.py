"""The arguments of an env besides its id: what its constructor and its `reset` take, as JSON values."""

import json
import math
import shlex
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


def as_json(
    env_args: Mapping[str, Any], reset_options: Mapping[str, Any], action_range: ActionRange | None
) -> dict[str, Any]:
    """Return the arguments of an env as JSON has them, under these names; those that are empty are left out."""
    sides = [np.asarray(side).tolist() for side in action_range or ()]
    parts = {"env_args": dict(env_args), "reset_options": dict(reset_options), "action_range": sides}
    return json.loads(json.dumps({name: value for name, value in parts.items() if value}))


def from_json(found: Any) -> dict[str, Any] | None:
    """Return what `as_json` returned, as a file has it that is not trusted; None where it is anything else."""
    if not isinstance(found, dict) or not found.keys() <= _KINDS.keys():
        return None
    parts = {"env_args": {}, "reset_options": {}, "action_range": None, **found}
    if not all(isinstance(parts[name], kind) for name, kind in _KINDS.items()):
        return None
    try:
        for name in ("env_args", "reset_options"):
            check_arguments(name, parts[name])
        check_range(parts["action_range"])
    except SegueError:
        return None
    return as_json(**parts)


_KINDS = {"env_args": dict, "reset_options": dict, "action_range": list | None}
"""The types of an env's arguments in JSON."""


def in_words(arguments: Mapping[str, Any]) -> str:
    """Return what `as_json` returned as a part of a sentence, on one line."""
    listed = lambda name: ", ".join(f"{key}={json.dumps(value)}" for key, value in arguments[name].items())
    words = [listed("env_args")] if "env_args" in arguments else []
    words += [f"at every reset {listed('reset_options')}"] if "reset_options" in arguments else []
    words += ["actions from {} to {}".format(*arguments["action_range"])] if "action_range" in arguments else []
    return untrusted.shown("; ".join(words)) or "no arguments"


FLAGS = {"env_args": "--env-arg", "reset_options": "--reset-option"}
"""By which flag a user gives an env each kind of its arguments by name."""


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Return the flags with which a user gives an env what `as_json` returned, quoted for a shell."""
    words = [argument(flag, *pair) for part, flag in FLAGS.items() for pair in arguments.get(part, {}).items()]
    sides = arguments.get("action_range", ())
    number = lambda value: json.dumps(value).removesuffix(".0")
    numbers = [",".join(map(number, side if isinstance(side, list) else [side])) for side in sides]
    return [*words, *([" ".join(["--action-range", *numbers])] if numbers else [])]


def argument(flag: str, name: str, value: Any) -> str:
    """Return a flag's words that give an env one argument, quoted for a shell: a text as it is, where that is read as
    the same text."""
    text = value if isinstance(value, str) and _is_typed(value) else untrusted.plain(json.dumps(value))
    return f"{flag} {shlex.quote(f'{untrusted.shown(name)}={text}')}"


def _is_typed(text: str) -> bool:
    """Return whether a text on one line is read as that text by `parsed`: it is no JSON."""
    try:
        untrusted.parse(text)
    except ValueError:
        return text == untrusted.shown(text)
    except RecursionError:
        pass
    return False


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
