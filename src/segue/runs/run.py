"""A run: phases, a task and seeds in; a directory out.

config.json       every setting, versions, seeds, revision      status.json    running, finished, failed ...
returns.jsonl     raw returns of every evaluation episode       metrics.jsonl  what learning reported
policy-S.*        seed S's policy (safetensors)                 best-S.*       the best policy that was evaluated
episodes.jsonl    returns of training episodes                  failures.jsonl seeds that diverged
commits/          the whole state, to resume from               checkpoints/   one folder for each phase's end
tensorboard/      the same curves, live (others: tracking.py)   times.jsonl    when each line of the others came
given.*           the policy that it started from, if any       machine.jsonl  rates, and how busy the machine was
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segue.core import Spec
from segue.data.dataset import Dataset
from segue.data.device import nothing
from segue.envs.faults import Watchdog
from segue.envs.lockstep import LockstepEnvs
from segue.envs.make import read_spec
from segue.envs.rollouts import Evaluator
from segue.errors import DataError, Stopped
from segue.results import read, records
from segue.runs import trackers
from segue.runs.config import (
    Safeguards,
    check_numbers,
    check_settings,
    in_order,
    pinned,
    read_unfinished,
    rebuild,
    task_of,
)
from segue.runs.console import Console
from segue.runs.job import Job
from segue.runs.opening import Opening, new_run, reopened_run
from segue.runs.watching import watch
from segue.system import disk, signals
from segue.tasks.budget import PAPER, Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase
from segue.training.pipeline import pipeline
from segue.training.state import RunState


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run left: its directory, its last state and its evaluations."""

    folder: Path
    run: RunState
    evaluations: records.RunRecord

    @property
    def returns(self) -> np.ndarray:
        """Raw returns of the last evaluation, [seeds, episodes]."""
        return self.evaluations.evaluations[-1].returns


def run(
    phases: Mapping[str, AbstractPhase],
    task: Task,
    *,
    out: str | Path,
    seeds: int = 1,
    seed: int = 0,
    budget: Budget = PAPER,
    since: str | None = None,
    log_every: int = 1_000,
    commit_every: int = 10_000,
    env_limit: float = 60.0,
    env_restarts: int = 100,
    rollback: bool = False,
    halt_on_explosion: bool = False,
    track: Sequence[str] = trackers.DEFAULT,
    about: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> Result:
    """Run a recipe's phases on a task and keep everything in the directory `out`.

    Args:
        phases: a recipe's value, for instance `segue.opt(task)`; any dictionary of phases by name.
        task: `segue.task("walker2d-random")`, or `segue.task(env_id=..., dataset=...)`.
        out: a directory that is new or empty.
        seeds: independent repetitions, trained side by side; numbered from `seed`.
        budget: how many rows to make and how often to evaluate; the phases carry their own lengths.
        since: DIRECTORY:PHASE, a checkpoint of an earlier run to go on from, after the phase of the same name here.
        log_every: updates (or env steps, where there are any) from one line of metrics.jsonl to the next.
        commit_every: updates (or env steps) from one commit to the next; `resume` goes on from the last one.
        env_limit: seconds after which an env that does not answer is rebuilt.
        env_restarts: how often an env may be rebuilt before the run stops.
        rollback: a seed that diverges goes on from where it last was finite, three times, before it is halted.
        halt_on_explosion: treat a critic above any reachable return like one that is not finite.
        track: which of `tracking.TRACKERS` draw live curves; the result does not depend on them.
        about: what to note in config.json besides, such as the recipe's name.
        quiet: no progress display.

    Raises:
        SegueError: for anything the user can mend, with `out` left readable.
    """
    safeguards = Safeguards(log_every, commit_every, env_limit, env_restarts, rollback, halt_on_explosion)
    check_numbers(safeguards, budget, seeds, seed)
    in_order(phases, since)
    track = trackers.known(track)
    job = Job(phases, task, disk.new_folder(Path(out)), seeds, seed, budget, safeguards, since, quiet, track)
    return _run(job, functools.partial(new_run, about=dict(about or {})))


def resume(
    folder: str | Path,
    phases: Mapping[str, AbstractPhase] | None = None,
    task: Task | None = None,
    *,
    env_id: str | None = None,
    quiet: bool = True,
) -> Result:
    """Go on with a run that was stopped, killed or failed, from its newest commit, in whatever phase it was.

    On a CPU, with the versions, cores and machine of before, the result is the one that the uninterrupted run would
    have had, bit for bit. Where that cannot be had, the commits that follow say `"resume": "statistical"`.

    Args:
        folder: the run's directory.
        phases: what `run` was given; None: made from config.json, which serves methods and sources of Segue's own.
        task: the same; None: made from config.json.
        env_id: needed where config.json names an env of a module to import: a file is not to run code.

    Raises:
        SegueError: where the run is finished, in use, or has no commit; DataError: where it is damaged, or the
            dataset is no longer the one it learned from.
    """
    folder = Path(folder)
    config = read_unfinished(folder)
    try:
        if task is None:
            task = task_of(config, folder, env_id)
        if phases is None:
            phases = {name: rebuild(value) for name, value in config["settings"].items()}
        else:
            check_settings(phases, config, folder)
        budget = Budget(**config["measuring"])
        safeguards, numbers = Safeguards(**config["safeguards"]), {key: int(config[key]) for key in ("seeds", "seed")}
        check_numbers(safeguards, budget, **numbers)
        pinned(config)
        track = trackers.known(config.get("track", trackers.DEFAULT))
        if any(not isinstance(config.get(part), dict) for part in ("versions", "machine", "dataset")):
            raise TypeError("versions, machine and dataset are objects")
        if not isinstance(config.get("start"), str | None) or not isinstance(config["dataset"].get("path"), str | None):
            raise TypeError("start and the dataset's path are texts")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"{folder / 'config.json'} does not describe a run that can go on: {error!r}.") from None
    since = config.get("start")
    job = Job(
        phases, task, folder, budget=budget, safeguards=safeguards, since=since, quiet=quiet, track=track, **numbers
    )
    return _run(job, functools.partial(reopened_run, config=config))


def _run(job: Job, opening: Opening) -> Result:
    """Take a run to its end in its locked directory, whose status.json says how it ended."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk.locked(job.folder))
        stop = stack.enter_context(signals.stoppable())
        try:
            job.status("running")
            state, exact = _drive(job, opening, stop, stack)
            label = "exact" if exact else "statistical"
            job.status("finished", seconds=round(time.monotonic() - begun, 1), resume=label)
        except BaseException as error:
            word, why = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", str(error)
            with contextlib.suppress(OSError):  # a full disk is reported by what needed the space first
                job.status(word, seconds=round(time.monotonic() - begun, 1), why=why or type(error).__name__)
            job.forget()
            raise
    return Result(job.folder, state, read.read(job.folder))


def _drive(job: Job, opening: Opening, stop: signals.Stop, stack: contextlib.ExitStack) -> tuple[RunState, bool]:
    """The run at its end, and whether it is, bit for bit, what it would have been without a stop."""
    hold = lambda thing: stack.enter_context(contextlib.closing(thing))
    task, safeguards, console = job.task, job.safeguards, hold(Console(job.quiet))
    spec = read_spec(task.make)
    opened = opening(job, spec, lambda: _load(job, spec, console, stop), console)
    hold(opened.journal)
    numbers = range(job.seed, job.seed + job.seeds)
    guard = {"watchdog": hold(Watchdog(safeguards.env_limit)), "restarts": safeguards.env_restarts}
    rule = {"reward": opened.reward, **guard}
    evaluator = hold(Evaluator(task.make, spec, numbers, job.budget.episodes, now_and_then=stop.now, **rule))
    worlds = None
    if any(phase.acts for phase in opened.phases.values()):
        tell = lambda text: print(f"segue: {text}", file=sys.stderr, flush=True)
        worlds = hold(LockstepEnvs(task.make, spec, numbers, tell=tell, **rule))
    watching, commit = watch(job, opened, worlds, stop, console, stack, evaluator)
    origin = opened.origin
    try:
        state = pipeline(origin.run, origin.phases, worlds, watching, resumed=origin.resumed)
        commit.wait()
        commit.flush()
        opened.journal.sync()
        return state, commit.exact
    except Stopped:
        commit.rescue()
        raise


def _load(job: Job, spec: Spec, console: Console, stop: signals.Stop) -> Dataset:
    """Load the run's dataset, or make it; none where no phase learns from one."""
    task, rows = job.task, job.budget.rows
    if not job.reads:
        return nothing(spec, task.env_id)
    with console.counting(f"making the rows of {task.name or task.env_id}", rows) as advance:

        def heard(done: int, total: int) -> None:
            stop.now()
            advance(done, total)

        return task.load(rows, heard)
