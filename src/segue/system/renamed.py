"""Old names of version 0.1, for Python and for flags. They work for one more version, with a line that gives the new
name.

Flags are translated before they are parsed, so that the rest of Segue knows only the new names.
"""

import importlib
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any


def names(**homes: str) -> dict[str, str]:
    """Map each old name to its dotted place below `segue`; `homes` lists names by package."""
    return {name: f"{home}.{name}" for home, listed in homes.items() for name in listed.split()}


def look_up(old: str, place: str) -> Any:
    """Return what `segue.OLD` is now, and warn where it is."""
    warnings.warn(f"segue.{old} is now segue.{place}.", DeprecationWarning, stacklevel=3)
    home, dot, name = f"segue.{place}".rpartition(".")
    module = importlib.import_module(home)
    return getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{home}{dot}{name}")


_NETWORKS = "width|depth|critic-depth|actor-norm|critic-norm|actor-head|critic-head"
_FLAGS = (
    (rf"(--(?!prior)\w+(?:\.backbone)?)\.((?:no-)?(?:{_NETWORKS}))", r"\1.networks.\2"),
    (r"(--\w+)\.source\.(.+)", r"\1.sampler.\2"),
    (r"(--\w+)\.leash\.(.+)", r"\1.trust-region.\2"),
    (r"(--\w+)\.settle", r"\1.early-stopping"),
    (r"(--\w+)\.((?:no-)?)chance", r"\1.\2random"),
    (r"(--\w+)\.((?:no-)?)fit-aux", r"\1.\2fit-parts"),
    (r"(--[\w.]+)\.most", r"\1.max-weight"),
    (r"(--[\w.]+)\.listens", r"\1.policy-reduction"),
    (r"--engine", "--executor"),
)
"""Patterns of the old flags, and the new ones."""


def new_flag(flag: str) -> str | None:
    """Return what a flag of version 0.1 is called now; None where it has kept its name."""
    return next((match.expand(new) for old, new in _FLAGS if (match := re.fullmatch(old, flag))), None)


def translate(words: Sequence[str]) -> list[str]:
    """Return a command's words with new names for old flags. Each old flag is reported once, on standard error."""
    translated, reported = [], set()
    for word in words:
        flag, equals, value = word.partition("=")
        new = new_flag(flag) if flag.startswith("--") else None
        if new is not None and flag not in reported:
            reported.add(flag)
            print(f"segue: {flag} is now called {new}; the next version drops the old name.", file=sys.stderr)
        translated.append(word if new is None else f"{new}{equals}{value}")
    return translated
