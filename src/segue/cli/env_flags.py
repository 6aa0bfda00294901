"""The flags that say how an env is made: --env-arg, --reset-option and --action-range."""

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import Any

from segue.errors import SegueError

ENV_ARG = "an argument of the env's constructor, as often as needed: a number, true, false, null, [a list], or a text"
RESET_OPTION = "an option of every reset of the env, as often as needed"
ACTION_RANGE = (
    "the actions that policies use, inside the env's box, or the box of logs without an env: two numbers, or two lists "
    "such as 20,1000 80,1500"
)


def add(parser: argparse.ArgumentParser, *, action_range: bool = True) -> None:
    """Add the flags to a parser; `action_range` is left out where a run or a file has its own."""
    parser.add_argument("--env-arg", action="append", default=[], metavar="KEY=VALUE", help=ENV_ARG)
    parser.add_argument("--reset-option", action="append", default=[], metavar="KEY=VALUE", help=RESET_OPTION)
    if action_range:
        parser.add_argument("--action-range", nargs=2, metavar=("LOW", "HIGH"), help=ACTION_RANGE)


def given(asked: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags say, as arguments of `segue.task` and of `make_env`. Raises SegueError."""
    from segue.envs.arguments import parsed

    found: dict[str, Any] = {
        "env_args": parsed("--env-arg", asked.env_arg),
        "reset_options": parsed("--reset-option", asked.reset_option),
    }
    if getattr(asked, "action_range", None) is not None:
        found["action_range"] = tuple(map(_side, asked.action_range))
    return found


def again(asked: argparse.Namespace) -> str:
    """Return the flags that were given as a part of a command to print, with a space before each."""
    words = [word for text in asked.env_arg for word in ("--env-arg", text)]
    words += [word for text in asked.reset_option for word in ("--reset-option", text)]
    words += ["--action-range", *(text.strip() for text in asked.action_range)] if asked.action_range else []
    return "".join(f" {shlex.quote(word)}" for word in words)


def spaced(words: Sequence[str]) -> list[str]:
    """Return a command's words with a space before negative numbers of an action range, which the parsers of flags
    would take for flags."""
    after = [{"--action-range"} & set(words[max(at - 2, 0) : at]) for at in range(len(words))]
    return [f" {word}" if near and re.match(r"-[\d.]", word) else word for word, near in zip(words, after, strict=True)]


def _side(text: str) -> float | list[float]:
    """Return LOW or HIGH of an action range. Raises SegueError."""
    try:
        numbers = [float(part) for part in text.strip(" []").split(",")]
    except ValueError:
        raise SegueError(
            f"--action-range {text.strip()}: a number belongs there, or one for each dimension with commas between."
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]
