"""What a person sees while a run runs: a bar per phase on a terminal, a line now and then elsewhere."""

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
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState

LINE_EVERY = 30.0
"""Seconds between lines where there is no terminal."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


class Console(NullHook):
    """A hook, and the owner of the screen. Everything goes to standard error; results go to standard output."""

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
        self.score, self.since, self.said = "", time.monotonic(), time.monotonic()
        self.before: tuple[float, int] | None = None
        """When the phase's last line was said, and how far it was then."""

    def say(self, text: str) -> None:
        """A line where there is no terminal."""
        if not self.quiet and not self.live:
            print(text, file=sys.stderr, flush=True)
            self.said = time.monotonic()

    def note(self, text: str) -> None:
        """What a person should know, terminal or not."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def counting(self, what: str, total: int, unit: str = "rows") -> Iterator[Callable[[int, int], None]]:
        """A bar for work outside the phases, shown once the work says that it advances."""
        bar: list[int] = []

        def advance(done: int, total: int) -> None:
            if not bar:
                self.progress.start()
                bar.append(self.progress.add_task(what, total=total, unit=unit, score=""))
                self.say(f"{what} ...")
            self.progress.update(bar[0], completed=done)  # pyright: ignore[reportArgumentType]
            if time.monotonic() - self.said > LINE_EVERY:
                self.say(f"{what}: {done:,}")

        yield advance

    def plan(self, phases: Mapping[str, AbstractPhase], run: RunState) -> None:
        """Show all the phases that are to come."""
        env_step = run.env_step
        for name, phase in phases.items():
            total = phase.length(dataclasses.replace(run, env_step=env_step))
            env_step += total if phase.acts else 0
            unit = "env steps" if phase.acts else "updates"
            self.bars[name] = self.progress.add_task(name, total=total, start=False, unit=unit, score="")
        self.progress.start()

    def scored(self, name: str, scores: np.ndarray, normalised: bool) -> None:
        """An evaluation: the score of each seed."""
        mean, word = float(np.mean(scores)), "score" if normalised else "return"
        self.score = f"{word} {mean:,.1f}"
        if name in self.bars:
            self.progress.update(self.bars[name], score=self.score)  # pyright: ignore[reportArgumentType]

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self.since, self.before = time.monotonic(), None
        self.progress.start_task(self.bars[name])  # pyright: ignore[reportArgumentType]
        self.say(f"{name}: begins at update {phase_state.updates:,}, env step {phase_state.env_step:,}")

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        done = phase_state.env_step - phase_state.run.env_step if phase.acts else phase_state.update
        if self.live:
            shown = "; ".join(filter(None, (self.score, phase.status(phase_state))))
            self.progress.update(self.bars[name], completed=done, score=shown)  # pyright: ignore[reportArgumentType]
        elif time.monotonic() - self.said > LINE_EVERY:
            begun, before = self.before or (0.0, 0)  # the first line tells no speed: most of it was compilation
            self.before = time.monotonic(), done
            speed = (done - before) / (self.before[0] - begun) if begun else 0.0
            self.say(self._line(name, phase, phase_state, done, speed))
        return phase_state

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None:
        done = phase_state.env_step - phase_state.run.env_step if phase.acts else phase_state.update
        self.progress.update(self.bars[name], completed=done, score=self.score)  # pyright: ignore
        speed = done / max(time.monotonic() - self.since, 1e-9)
        self.say(f"{self._line(name, phase, phase_state, done, speed)}; done")

    def _line(self, name: str, phase: AbstractPhase, phase_state: PhaseState, done: int, speed: float) -> str:
        total, unit = phase.length(phase_state.run), "env steps" if phase.acts else "updates"
        rate = f", {speed:,.{0 if speed >= 10 else 1}f}/s" if speed else ""
        left = f", {(total - done) / speed:,.0f} s left" if done < total and speed else ""
        more = f"; {status}" if (status := phase.status(phase_state)) else ""
        return f"{name}: {done:,} of {total:,} {unit}{rate}{left}, {self.score or 'no score yet'}{more}"

    def close(self) -> None:
        self.progress.stop()
