"""A parser that names a misspelt flag before it says what is missing."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from segue.errors import similar


def misspelt(words: Iterable[str], flags: Iterable[str], *, abbreviated: bool) -> str:
    """Return a sentence about the first word that is like one of the flags but none of them; "" where there is none.

    Flags of a phase, which have a dot, are left to those who know its settings. With `abbreviated`, the beginning of a
    flag is no mistake.
    """
    flags = list(flags)
    for word in words:
        flag = word.partition("=")[0]
        known = flag in flags or (abbreviated and any(each.startswith(flag) for each in flags))
        if not flag.startswith("--") or "." in flag or known:
            continue
        if near := similar(flag, flags, count=1, cutoff=0.75):
            return f"There is no flag {flag}; did you mean {near}?"
    return ""


class Parser(argparse.ArgumentParser):
    """Argparse's parser, which says first which flag is misspelt. Otherwise a required one would only be missing."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        flags = self._option_string_actions
        if self._subparsers is None and (wrong := misspelt(args or (), flags, abbreviated=self.allow_abbrev)):
            self.error(wrong)
        return super().parse_known_args(args, namespace)
