"""Run every trial of a sweep that is not done yet."""

import contextlib
import dataclasses
import json
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segue.errors import SegueError, Stopped, at_least
from segue.sweeps import executors, storage
from segue.sweeps.plan import Sweep, Trial
from segue.sweeps.progress import Progress
from segue.sweeps.status import Board
from segue.system import disk, signals, untrusted

LOOK = 0.1
"""Seconds between checks of the workers."""


SHOWN = 10.0
"""Seconds that a shared directory may take to show a finished trial after its worker's end (NFS caches)."""


AWAY = 600.0
"""Seconds after a worker's end during which a store that does not answer is asked again."""


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """How a sweep ended."""

    out: str
    finished: tuple[str, ...]
    """Folders of the trials that have finished."""
    failed: dict[str, str]
    """The reason, by folder, why a trial failed."""
    skipped: dict[str, str]
    """The reason, by folder, why a trial was not started: a trial that it needs failed or was skipped."""

    def __str__(self) -> str:
        lines = [f"failed   {folder}: {why}" for folder, why in self.failed.items()]
        lines += [f"skipped  {folder}: {why}" for folder, why in self.skipped.items()]
        total = sum(map(len, (self.finished, self.failed, self.skipped)))
        again = "; the same command tries again" if self.failed else ""
        report = f"segue report {shlex.quote(self.out)}"
        if "://" in self.out:
            report = f"copy {self.out} here with the store's own tool, and segue report the copy"
        return "\n".join([*lines, f"{len(self.finished)} of {total} trials are done{again}: {report}"])


def preview(plan: Sweep, executor: str = "local") -> str:
    """Check a sweep and list its trials' commands, one line each.

    The flags are checked, and, where the trials are to run here, that this machine has enough cores and GPUs.

    Raises:
        SegueError: where a check fails.
    """
    trials = plan.trials()
    _check_flags(trials)
    if executor == "local":  # a cluster is not asked, for that would start one
        executors.Local(None, plan.cores, plan.gpus, None)
    return "\n".join([*(f"segue {shlex.join(trial.command)}" for trial in trials), f"{len(trials)} trials"])


def sweep(
    plan: Sweep,
    *,
    out: str | Path,
    executor: str = "local",
    address: str | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> SweepResult:
    """Run every trial of a sweep that is not done. The same call continues a sweep that was stopped.

    Args:
        plan: `Sweep(...)` or `Sweep.read(file)`.
        out: the sweep's directory, or a URL that fsspec knows. Finished trials stay; their commands must be the same.
        executor: "local", or "ray": trials are tasks of a cluster, which sees `out` under the same name.
        address: the address of Ray's cluster, or "auto"; None: the cluster that RAY_ADDRESS names, else a new one on
            this machine.
        workers: the number of trials at a time; None: as many as there are cores for.
        quiet: whether to show no status display.

    Raises:
        SegueError: where the plan is wrong, or `out` holds trials of other commands. No trial has begun then. A trial
            that fails does not raise.
    """
    at_least(1, workers=1 if workers is None else workers)
    if executor not in executors.EXECUTORS:
        raise SegueError(f"There is no executor {executor!r}: there are {', '.join(executors.EXECUTORS)}.")
    trials, place = plan.trials(), storage.at(out)
    with contextlib.ExitStack() as opened:
        opened.enter_context(signals.handled(signals.STOP_SIGNALS, _stop))  # workers commit when the driver ends
        opened.enter_context(place.locked())
        _write_plan(place, plan, trials)
        hold = lambda thing: opened.enter_context(contextlib.closing(thing))
        progress = Progress(trials, storage.finished(place, [trial.folder for trial in trials]))
        if progress.waiting:
            board = hold(Board(place, quiet))
            pool = hold(executors.EXECUTORS[executor](workers, plan.cores, plan.gpus, address))
            ended: dict[str, tuple[int, float]] = {}
            while progress.waiting or progress.running:
                while len(progress.running) < pool.slots and (trial := progress.next()):
                    order = {"trial": {**trial.entry(), "needs": trial.needs}, "place": place.where}
                    pool.start(trial.folder, {**order, "cores": plan.cores, "gpus": plan.gpus})
                ended |= {folder: (code, time.monotonic()) for folder, code in pool.ended()}
                for folder, (code, at) in list(ended.items()):
                    if _record_end(progress, place, folder, code, plan.retries, time.monotonic() - at):
                        del ended[folder]
                board.show(progress, pool.slots)
                time.sleep(LOOK)
            board.show(progress, pool.slots)
    return SweepResult(place.where, tuple(progress.done), progress.failed, progress.skipped)


def _record_end(progress: Progress, place: storage.Place, folder: str, code: int, retries: int, since: float) -> bool:
    """Record how a trial ended, from its worker's exit code and its files.

    Codes 1 and 2 are errors that the user has to mend. Every other code but 0 is an accident, after which the trial is
    tried again. Returns whether the outcome is known: `since` seconds after the worker's end, the store may not answer
    or not show the trial yet.
    """
    try:
        finished = storage.finished(place, [folder])
    except OSError as error:
        if since >= AWAY:
            progress.end(folder, f"{place.where} does not answer ({untrusted.shown(str(error))})")
        return since >= AWAY
    if finished:  # even if it was killed thereafter
        progress.end(folder)
    elif code == 0 and since < SHOWN:
        return False
    elif code == 0:
        progress.end(folder, f"it ended well, and {place.where} does not show it: do all nodes see the same directory?")
    elif code in (1, 2):
        progress.end(folder, last_line(place, folder))
    elif progress.tries.get(folder, 0) < retries:
        progress.again(folder)
    else:
        number = -code if code < 0 else code - 128
        known = number in set(signal.Signals)
        how = f"was ended by {signal.Signals(number).name}" if known else f"ended with code {code}"
        progress.end(folder, f"it {how}, as {retries} times before: {last_line(place, folder)}")
    return True


def last_line(place: storage.Place, folder: str) -> str:
    """Return the last line of a trial's log."""
    lines = place.tail(f"{folder}.log").decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
    return untrusted.shown(last).removeprefix("segue: ")


def _write_plan(place: storage.Place, plan: Sweep, trials: Sequence[Trial]) -> None:
    """Check the plan against the sweep's directory and write sweep.json, which has the SHA-256 of its content. A plan
    that has not changed is not checked."""
    content = disk.signed({"format": disk.FORMAT, "cores": plan.cores, "trials": [trial.entry() for trial in trials]})
    text = (json.dumps(content, indent=1) + "\n").encode()
    if place.read(["sweep.json"]).get("sweep.json") == text:
        return
    _check_flags(trials)
    commands = {f"{trial.folder}/config.json": ["segue", *trial.command] for trial in trials}
    for name, content in place.read(list(commands)).items():
        config = storage.parse(content)
        if not isinstance(config, dict) or config.get("command") != commands[name]:
            folder = name.removesuffix("/config.json")
            raise SegueError(
                f"{place.where}/{folder} was run by another command than {shlex.join(commands[name])}: choose another "
                "--out, or remove it."
            )
    place.write("sweep.json", text)


def _check_flags(trials: Sequence[Trial]) -> None:
    """Check the flags of every arm on every task with the parser of `segue run`.

    The parser imports JAX, so the check runs in a process of its own.
    """
    first = {(trial.task, trial.arm): trial for trial in reversed(trials)}
    commands = json.dumps([trial.command[1:] for trial in first.values()])
    checker = executors.worker("--check", stdout=subprocess.PIPE)
    answer = checker.communicate(commands.encode())[0]
    if checker.returncode:
        raise SegueError("The flags could not be checked: what went wrong stands above.")
    for (task, arm), why in zip(first, json.loads(answer), strict=True):
        if why:
            raise SegueError(f"Arm {arm} on task {task}: {why}")


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)
