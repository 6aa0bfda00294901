"""What a person sees of a sweep: a table that lives on a terminal, lines elsewhere."""

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segue.sweeps import storage

if TYPE_CHECKING:
    from segue.sweeps.progress import Progress


LINE_EVERY, LOOK_EVERY = 30.0, 2.0
"""Seconds between lines where there is no terminal, and between looks at the trials' files."""


MOST = 20
"""Trials that the table shows."""


BEGINS = "begins"
"""Where a trial is that has not said anything yet."""


class Board:
    """The owner of the screen while a sweep runs. It knows what the trials' own files say."""

    def __init__(self, place: storage.Place, quiet: bool):
        self.place, self.quiet = place, quiet
        self.terminal = Console(stderr=True)
        live = self.terminal.is_terminal and not quiet
        self.live = Live(console=self.terminal, auto_refresh=False) if live else None
        self.begun = time.monotonic()
        self.looked, self.lined, self.ended = 0.0, 0.0, -1
        self.lengths: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.before: set[str] | None = None
        self.told: set[str] = set()
        if self.live:
            self.live.start()

    def show(self, left: "Progress", slots: int) -> None:
        """Say where the sweep stands, if it is time to."""
        now = time.monotonic()
        for folder, why in {**left.failed, **left.skipped}.items():
            if folder not in self.told and not self.quiet:
                word = "failed" if folder in left.failed else "skipped"
                self.terminal.print(Text(f"{word} {folder}: {why}", "red"), soft_wrap=True)
            self.told.add(folder)
        ended = left.total - len(left.waiting) - len(left.running)
        if self.quiet or (now - self.looked < LOOK_EVERY and ended == self.ended):
            return
        pending_row, self.looked, self.ended = ended != self.ended, now, ended
        at = {folder: self._progress(folder) for folder in left.running}
        counts = self._counts(left, at, slots)
        if self.live:
            self.live.update(self._table(at, counts), refresh=True)
        elif now - self.lined > LINE_EVERY or pending_row:
            self.lined = now
            print(f"segue: {counts}", file=sys.stderr, flush=True)

    def _counts(self, left: "Progress", at: dict[str, tuple[str, float]], slots: int) -> str:
        words = [f"{len(left.done)} of {left.total} done", f"{len(left.running)} running"]
        words += [f"{len(left.waiting)} waiting", f"{len(left.failed)} failed"]
        words += [f"{len(left.skipped)} skipped"] if left.skipped else []
        if self.before is None:
            self.before = left.done.keys() - set()
        for folder, (where, share) in at.items():
            if where != BEGINS:  # one that starts from a checkpoint may begin far on
                self.first.setdefault(folder, share)
        worked = sum(1 - self.first.get(folder, 0.0) for folder in left.done.keys() - self.before)
        worked += sum(share - self.first.get(folder, share) for folder, (_, share) in at.items())
        todo = len(left.waiting) + sum(1 - share for _, share in at.values())
        if worked > 0.02 and todo:
            words.append(f"about {_span(todo / worked * (time.monotonic() - self.begun))} left")
        return ", ".join(words)

    def _table(self, at: dict[str, tuple[str, float]], counts: str) -> Group:
        """What runs; what failed stands above it, once."""
        table = Table("trial", "where it is", "done", box=None, pad_edge=False)
        table.columns[-1].justify = "right"
        for folder, (where, share) in list(at.items())[:MOST]:
            table.add_row(Text(folder), Text(where), Text(f"{share:.0%}"))
        return Group(*([table] if at else []), Text(counts, "bold"))

    def _progress(self, folder: str) -> tuple[str, float]:
        """Where a trial is, and the share of its updates and env steps that it has done."""
        lines = self.place.tail(f"{folder}/times.jsonl").splitlines()
        for line in reversed(lines):
            said = storage.parse(line)
            if isinstance(said, dict) and isinstance(said.get("phase"), str):
                break
        else:
            return BEGINS, 0.0
        try:
            done = float(said["updates"]) + float(said["env_step"])
            where = f"{said['phase']}, update {int(said['updates']):,}, env step {int(said['env_step']):,}"
            return where, min(done / self._length(folder), 1.0)
        except (KeyError, TypeError, ValueError, OverflowError):
            return "?", 0.0

    def _length(self, folder: str) -> float:
        """Updates and env steps of a whole trial, as far as its settings tell."""
        if folder not in self.lengths:
            name = f"{folder}/config.json"
            try:
                config = storage.parse(self.place.read([name]).get(name, b""))
                self.lengths[folder] = length(config["settings"])
            except (KeyError, TypeError, AttributeError, ValueError, OSError):
                return float("inf")
        return self.lengths[folder]

    def close(self) -> None:
        if self.live:
            self.live.stop()


def length(settings: dict[str, Any]) -> float:
    """Updates and env steps of phases, as config.json has them: those that only learn have `steps`, those that act end
    at env step `until`."""
    total, env_step = 0.0, 0.0
    for phase in settings.values():
        until = float(phase.get("until", env_step))
        total += float(phase.get("steps", 0)) + (until - env_step) * (1 + float(phase.get("updates_per_step", 0)))
        env_step = until
    return max(total, 1.0)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
