"""The status display of a sweep: a live table on a terminal, lines elsewhere."""

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segue.sweeps import storage
from segue.system import untrusted

if TYPE_CHECKING:
    from segue.sweeps.progress import Progress


LINE_EVERY, LOOK_EVERY = 30.0, 2.0
"""Seconds between lines where there is no terminal, and between reads of the trials' files."""


ROWS_SHOWN = 20
"""The number of trials that the table shows."""


BEGINS = "begins"
"""The status of a trial that has not logged anything yet."""


class Board:
    """The status display, which owns the screen while a sweep runs. It reads the trials' own files."""

    def __init__(self, place: storage.Place, quiet: bool):
        self.place, self.quiet = place, quiet
        self.terminal = Console(stderr=True)
        live = self.terminal.is_terminal and not quiet
        self.live = Live(console=self.terminal, auto_refresh=False) if live else None
        self.began = time.monotonic()
        self.looked, self.lined, self.ended = 0.0, 0.0, -1
        self.lengths: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.before: set[str] | None = None
        self.reported: set[str] = set()
        if self.live:
            self.live.start()

    def show(self, progress: "Progress", slots: int) -> None:
        """Show the sweep's progress, if it is time to."""
        now = time.monotonic()
        for folder, why in {**progress.failed, **progress.skipped}.items():
            if folder not in self.reported and not self.quiet:
                word = "failed" if folder in progress.failed else "skipped"
                self.terminal.print(Text(untrusted.shown(f"{word} {folder}: {why}"), "red"), soft_wrap=True)
            self.reported.add(folder)
        ended = progress.total - len(progress.waiting) - len(progress.running)
        if self.quiet or (now - self.looked < LOOK_EVERY and ended == self.ended):
            return
        changed, self.looked, self.ended = ended != self.ended, now, ended
        at = {folder: self._progress(folder) for folder in progress.running}
        counts = self._counts(progress, at, slots)
        if self.live:
            self.live.update(self._table(at, counts), refresh=True)
        elif now - self.lined > LINE_EVERY or changed:
            self.lined = now
            print(f"segue: {counts}", file=sys.stderr, flush=True)

    def _counts(self, progress: "Progress", at: dict[str, tuple[str, float]], slots: int) -> str:
        """Count the trials in words, and estimate the time left."""
        words = [f"{len(progress.done)} of {progress.total} done", f"{len(progress.running)} running"]
        words += [f"{len(progress.waiting)} waiting", f"{len(progress.failed)} failed"]
        words += [f"{len(progress.skipped)} skipped"] if progress.skipped else []
        if self.before is None:
            self.before = progress.done.keys() - set()
        for folder, (where, share) in at.items():
            if where != BEGINS:  # a trial that starts from a checkpoint has a large share done at once
                self.first.setdefault(folder, share)
        worked = sum(1 - self.first.get(folder, 0.0) for folder in progress.done.keys() - self.before)
        worked += sum(share - self.first.get(folder, share) for folder, (_, share) in at.items())
        todo = len(progress.waiting) + sum(1 - share for _, share in at.values())
        if worked > 0.02 and todo:
            words.append(f"about {_span(todo / worked * (time.monotonic() - self.began))} left")
        return ", ".join(words)

    def _table(self, at: dict[str, tuple[str, float]], counts: str) -> Group:
        """Make the table of running trials. Failed trials are printed above it, once each."""
        table = Table("trial", "where it is", "done", box=None, pad_edge=False)
        table.columns[-1].justify = "right"
        for folder, (where, share) in list(at.items())[:ROWS_SHOWN]:
            table.add_row(Text(folder), Text(where), Text(f"{share:.0%}"))
        return Group(*([table] if at else []), Text(counts, "bold"))

    def _progress(self, folder: str) -> tuple[str, float]:
        """Return where a trial is, in words, and the share of its updates and env steps that are done."""
        lines = self.place.tail(f"{folder}/times.jsonl").splitlines()
        for line in reversed(lines):
            entry = storage.parse(line)
            if isinstance(entry, dict) and isinstance(entry.get("phase"), str):
                break
        else:
            return BEGINS, 0.0
        try:
            done = float(entry["updates"]) + float(entry["env_step"])
            where = f"{entry['phase']}, update {int(entry['updates']):,}, env step {int(entry['env_step']):,}"
            return where, min(done / self._length(folder), 1.0)
        except (KeyError, TypeError, ValueError, OverflowError):
            return "?", 0.0

    def _length(self, folder: str) -> float:
        """Return the updates and env steps of a complete trial; infinite where its settings cannot be read."""
        if folder not in self.lengths:
            name = f"{folder}/config.json"
            try:
                config = storage.parse(self.place.read([name]).get(name, b""))
                self.lengths[folder] = length(config["settings"])
            except (KeyError, TypeError, AttributeError, ValueError, OSError):
                return float("inf")
        return self.lengths[folder]

    def close(self) -> None:
        """Restore the terminal."""
        if self.live:
            self.live.stop()


def length(settings: dict[str, Any]) -> float:
    """Add up the updates and env steps of phases, from the settings in config.json.

    Phases that only learn have `steps`. Phases that act end at env step `until`.
    """
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
