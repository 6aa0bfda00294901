"""Show a run's progress: a bar for each phase on a terminal, a line every 30 seconds elsewhere."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from segue.runs.hooks import NullHook
from segue.system import untrusted
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState

LINE_EVERY = 30.0
"""Seconds from one line to the next where there is no terminal."""


class _Rate(ProgressColumn):
    """The speed of a bar, in its own unit per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


class Console(NullHook):
    """A hook that shows progress. It writes to standard error, because results go to standard output."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.terminal = Terminal(stderr=True)
        self.live = self.terminal.is_terminal and not quiet
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[score]}"),
            console=self.terminal,
            disable=not self.live,
            speed_estimate_period=30,
        )
        self.bars: dict[str, int] = {}
        self.score, self.phase_began, self.last_line = "", time.monotonic(), time.monotonic()
        self.last_progress: tuple[float, int] | None = None
        """The time of the phase's last line, and the steps or updates that were done then."""

    def print_line(self, text: str) -> None:
        """Print a line where there is no terminal."""
        if not self.quiet and not self.live:
            print(text, file=sys.stderr, flush=True)
            self.last_line = time.monotonic()

    def note(self, text: str) -> None:
        """Print a line that the user should read, on a terminal or not."""
        if not self.quiet:
            print(untrusted.shown(text, 4_000), file=sys.stderr, flush=True)

    @contextmanager
    def counting(self, what: str, total: int, unit: str = "rows") -> Iterator[Callable[[int, int], None]]:
        """Show a bar for work outside the phases, from the first call of the yielded function (done, total) on."""
        bar: list[int] = []

        def advance(done: int, total: int) -> None:
            if not bar:
                self.progress.start()
                bar.append(self.progress.add_task(what, total=total, unit=unit, score=""))
                self.print_line(f"{what} ...")
            self.progress.update(bar[0], completed=done)  # pyright: ignore[reportArgumentType]
            if time.monotonic() - self.last_line > LINE_EVERY:
                self.print_line(f"{what}: {done:,}")

        yield advance

    def add_phases(self, phases: Mapping[str, AbstractPhase], run: RunState) -> None:
        """Add a bar for each phase of the run."""
        env_step = run.env_step
        for name, phase in phases.items():
            total = phase.length(dataclasses.replace(run, env_step=env_step))
            env_step += total if phase.acts else 0
            unit = "env steps" if phase.acts else "updates"
            self.bars[name] = self.progress.add_task(name, total=total, start=False, unit=unit, score="")
        self.progress.start()

    def show_score(self, name: str, scores: np.ndarray, normalised: bool, rates: np.ndarray | None = None) -> None:
        """Show the means of an evaluation's scores [seeds] and success rates [seeds] beside the bar of phase `name`."""
        words = f"{'score' if normalised else 'return'} {float(np.mean(scores)):,.1f}"
        self.show_measure(name, words if rates is None else f"{words}, success {float(np.mean(rates)):.0f} %")

    def show_measure(self, name: str, words: str) -> None:
        """Show in a few words how good the policy is, beside the bar of phase `name`."""
        self.score = words
        if name in self.bars:
            self.progress.update(self.bars[name], score=self.score)  # pyright: ignore[reportArgumentType]

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self.phase_began, self.last_progress = time.monotonic(), None
        self.progress.start_task(self.bars[name])  # pyright: ignore[reportArgumentType]
        self.print_line(f"{name}: begins at update {phase_state.updates:,}, env step {phase_state.env_step:,}")

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        done = phase_state.env_step - phase_state.run.env_step if phase.acts else phase_state.update
        if self.live:
            shown = "; ".join(filter(None, (self.score, phase.status(phase_state))))
            self.progress.update(self.bars[name], completed=done, score=shown)  # pyright: ignore[reportArgumentType]
        elif time.monotonic() - self.last_line > LINE_EVERY:
            then, before = self.last_progress or (0.0, 0)  # the first line has no speed: compilation took most of it
            self.last_progress = time.monotonic(), done
            speed = (done - before) / (self.last_progress[0] - then) if then else 0.0
            self.print_line(self._phase_line(name, phase, phase_state, done, speed))
        return phase_state

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None:
        done = phase_state.env_step - phase_state.run.env_step if phase.acts else phase_state.update
        self.progress.update(self.bars[name], completed=done, score=self.score)  # pyright: ignore
        speed = done / max(time.monotonic() - self.phase_began, 1e-9)
        self.print_line(f"{self._phase_line(name, phase, phase_state, done, speed)}; done")

    def _phase_line(self, name: str, phase: AbstractPhase, phase_state: PhaseState, done: int, speed: float) -> str:
        """Return a line on a phase: its progress, its speed, the time left and the last score."""
        total, unit = phase.length(phase_state.run), "env steps" if phase.acts else "updates"
        rate = f", {speed:,.{0 if speed >= 10 else 1}f}/s" if speed else ""
        left = f", {(total - done) / speed:,.0f} s left" if done < total and speed else ""
        more = f"; {status}" if (status := phase.status(phase_state)) else ""
        return f"{name}: {done:,} of {total:,} {unit}{rate}{left}, {self.score or 'no score yet'}{more}"

    def close(self) -> None:
        self.progress.stop()
