"""Makes a script for a shell's completion. The script is made once, so that Tab does not start Segue."""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import shtab

from segue.cli.flags import run_settings
from segue.cli.listing import recipes
from segue.tasks.budget import PAPER
from segue.tasks.offline import BACKBONES
from segue.tasks.recipes import RECIPES
from segue.tasks.suite import TASKS, task

FOLDERS = {"run", "runs", "from"}
"""The names of arguments that complete to a folder."""


FILES = {"source", "file", "dataset", "policy", "out"}
"""The names of arguments that complete to a file."""


def script(shell: str, parsers: Mapping[str, Callable[[], argparse.ArgumentParser]]) -> str:
    """Make the completion script for "bash", "zsh" or "fish", of `run` and the commands of these parsers."""
    root = argparse.ArgumentParser("segue")
    commands = root.add_subparsers(parser_class=lambda prog, made: made)  # pyright: ignore
    commands.add_parser("run", made=_run(), help="train")
    for name, parser in parsers.items():
        made = parser()
        commands.add_parser(name, made=made, help=(made.description or "").partition("\n")[0])
    _fill(root)
    return shtab.complete(root, shell)


def _run() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("segue run")
    run = parser.add_subparsers()
    for name, _, what in recipes():
        chosen_task = task("walker2d-random", **({"backbone": name} if name in BACKBONES else {}))
        settings = run_settings(name, "paper", RECIPES[name](chosen_task, PAPER))(recipe=name)
        flags = run.add_parser(name, help=what)
        for field in dataclasses.fields(settings):
            if field.name != "recipe":
                for words, choices, takes in _flags(field, getattr(settings, field.name), ""):
                    more: Any = {"choices": choices, "nargs": "+"} if takes else {"action": "store_true"}
                    flags.add_argument(*words, **more)
    return parser


def _flags(field: Any, value: Any, prefix: str) -> Iterator[tuple[list[str], Any, bool]]:
    """List the flags of a setting and of the settings below it, as tyro names them.

    Yields:
        the flag's words, the choices of its value, and whether a value follows.
    """
    name = prefix + field.name.strip("_").replace("_", "-")
    if dataclasses.is_dataclass(value):
        below = prefix if field.name == "method" else f"{name}."
        for inner in dataclasses.fields(value):
            yield from _flags(inner, getattr(value, inner.name), below)
    elif isinstance(value, bool):
        head, _, last = name.rpartition(".")
        yield [f"--{name}", f"--{head}{'.' if head else ''}no-{last}"], None, False
    else:
        yield [f"--{name}"], _choices(field.type) or None, True


def _choices(kind: Any) -> list[str]:
    """Return the words of all Literals in a type."""
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    return [word for inner in get_args(kind) for word in _choices(inner)]


def _fill(parser: argparse.ArgumentParser) -> None:
    """Set, for every argument, what completes it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _fill(below)
        elif action.dest in ("task", "prefix"):
            action.choices = list(TASKS)
        elif action.dest in FOLDERS | FILES:
            action.complete = shtab.DIRECTORY if action.dest in FOLDERS else shtab.FILE  # pyright: ignore
