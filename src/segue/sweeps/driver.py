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
"""Seconds between looks at what the workers do."""


SHOWN = 10.0
"""Seconds after a worker's end in which the directory it shares with the driver may not show it yet (NFS caches)."""


AWAY = 600.0
"""Seconds after a worker's end in which a store that does not answer is asked again."""


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """How a sweep ended."""

    out: str
    finished: tuple[str, ...]
    """Folders of trials."""
    failed: dict[str, str]
    """Why, by folder."""
    skipped: dict[str, str]
    """The same for trials that were not begun, because another one failed."""

    def __str__(self) -> str:
        lines = [f"failed   {folder}: {why}" for folder, why in self.failed.items()]
        lines += [f"skipped  {folder}: {why}" for folder, why in self.skipped.items()]
        total = sum(map(len, (self.finished, self.failed, self.skipped)))
        again = "; the same command tries again" if self.failed else ""
        report = f"segue report {self.out}"
        if "://" in self.out:
            report = f"copy {self.out} here with the store's own tool, and segue report the copy"
        return "\n".join([*lines, f"{len(self.finished)} of {total} trials are done{again}: {report}"])


def preview(plan: Sweep, executor: str = "local") -> str:
    """The trials and their commands, a line each, once it is known that their flags are right and, where they are to
    run here, that this machine has what they ask for."""
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
    """Run every trial that is not done. After any end, the same call goes on.

    Args:
        plan: `Sweep(...)` or `Sweep.read(file)`.
        out: the sweep's directory, or a URL that fsspec knows. Trials that are there stay; they must be of the same
            commands.
        executor: "local", or "ray": trials are tasks of a cluster, which sees `out` under the same name.
        address: of Ray's cluster, or "auto"; None: what RAY_ADDRESS names, else a new one on this machine.
        workers: trials at a time; None: as many as have cores.
        quiet: no status display.

    Raises:
        SegueError: where the plan is wrong, or `out` holds trials of other commands; nothing has begun then. A trial
            that fails does not raise.
    """
    at_least(1, workers=1 if workers is None else workers)
    if executor not in executors.EXECUTORS:
        raise SegueError(f"There is no executor {executor!r}: there are {', '.join(executors.EXECUTORS)}.")
    trials, place = plan.trials(), storage.at(out)
    with contextlib.ExitStack() as opened:
        opened.enter_context(signals.handled(signals.STOP_SIGNALS, _stop))  # workers commit when the driver ends
        opened.enter_context(place.locked())
        _settle(place, plan, trials)
        hold = lambda thing: opened.enter_context(contextlib.closing(thing))
        left = Progress(trials, storage.finished(place, [trial.folder for trial in trials]))
        if left.waiting:
            board = hold(Board(place, quiet))
            pool = hold(executors.EXECUTORS[executor](workers, plan.cores, plan.gpus, address))
            ended: dict[str, tuple[int, float]] = {}
            while left.waiting or left.running:
                while len(left.running) < pool.slots and (trial := left.next()):
                    order = {"trial": {**trial.entry(), "needs": trial.needs}, "place": place.where}
                    pool.start(trial.folder, {**order, "cores": plan.cores, "gpus": plan.gpus})
                ended |= {folder: (code, time.monotonic()) for folder, code in pool.ended()}
                for folder, (code, at) in list(ended.items()):
                    if _judge(left, place, folder, code, plan.retries, time.monotonic() - at):
                        del ended[folder]
                board.show(left, pool.slots)
                time.sleep(LOOK)
            board.show(left, pool.slots)
    return SweepResult(place.where, tuple(left.done), left.failed, left.skipped)


def _judge(left: Progress, place: storage.Place, folder: str, code: int, retries: int, since: float) -> bool:
    """What a worker's exit code means: 1 and 2 are for the user to mend, all others but 0 an accident.

    Returns whether that is known; it is not where the store does not answer, and `since` seconds may be too few.
    """
    try:
        finished = storage.finished(place, [folder])
    except OSError as error:
        if since >= AWAY:
            left.end(folder, f"{place.where} does not answer ({untrusted.shown(str(error))})")
        return since >= AWAY
    if finished:  # even if it was killed thereafter
        left.end(folder)
    elif code == 0 and since < SHOWN:
        return False
    elif code == 0:
        left.end(folder, f"it ended well, and {place.where} does not show it: do all nodes see the same directory?")
    elif code in (1, 2):
        left.end(folder, last_words(place, folder))
    elif left.tries.get(folder, 0) < retries:
        left.again(folder)
    else:
        number = -code if code < 0 else code - 128
        known = number in set(signal.Signals)
        how = f"was ended by {signal.Signals(number).name}" if known else f"ended with code {code}"
        left.end(folder, f"it {how}, as {retries} times before: {last_words(place, folder)}")
    return True


def last_words(place: storage.Place, folder: str) -> str:
    """The last line of a trial's log."""
    lines = place.tail(f"{folder}.log").decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return untrusted.shown(said).removeprefix("segue: ")


def _settle(place: storage.Place, plan: Sweep, trials: Sequence[Trial]) -> None:
    """Write sweep.json, once everything that can be refused has been. A plan that is the same passes unread."""
    said = {"format": disk.FORMAT, "cores": plan.cores, "trials": [trial.entry() for trial in trials]}
    text = (json.dumps(said, indent=1) + "\n").encode()
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
    """Let the parser of `segue run` look at every arm on every task, in a process of its own, for it imports JAX."""
    first = {(trial.task, trial.arm): trial for trial in reversed(trials)}
    asked = json.dumps([trial.command[1:] for trial in first.values()])
    done = executors.worker("--check", stdout=subprocess.PIPE)
    answer = done.communicate(asked.encode())[0]
    if done.returncode:
        raise SegueError("The flags could not be checked: what went wrong stands above.")
    for (task, arm), why in zip(first, json.loads(answer), strict=True):
        if why:
            raise SegueError(f"Arm {arm} on task {task}: {why}")


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)
