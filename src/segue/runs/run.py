"""Run a recipe's phases on a task, and resume runs. A run is its directory:

config.json       every setting, versions, seeds, revision      status.json    running, finished, failed ...
returns.jsonl     raw returns of every evaluation episode       metrics.jsonl  what learning reported
policy-S.*        seed S's policy (safetensors)                 best-S.*       the best policy that was evaluated
episodes.jsonl    returns of training episodes                  failures.jsonl seeds that diverged
commits/          the whole state, to resume from               checkpoints/   one folder for each phase's end
tensorboard/      live curves (other programs: trackers.py)     times.jsonl    when each line of the others came
given.*           the policy that it started from, if any       machine.jsonl  rates, and the load of the machine
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segue.core import Spec
from segue.data.dataset import Dataset
from segue.data.device import nothing
from segue.data.holding_out import hold_out
from segue.data.scales import standardised
from segue.envs.faults import Watchdog
from segue.envs.lockstep import LockstepEnvs
from segue.envs.make import order_notes, read_spec
from segue.envs.rollouts import Evaluator
from segue.errors import DataError, SegueError, Stopped
from segue.results import read, records
from segue.runs import extension, trackers
from segue.runs.all_hooks import make_hooks
from segue.runs.config import (
    Safeguards,
    check_numbers,
    check_order,
    check_settings,
    phases_of,
    read_unfinished,
    settings_hash,
    task_of,
)
from segue.runs.console import Console
from segue.runs.evaluate import AbstractJudge, RollOuts
from segue.runs.held_out import HeldOutErrors
from segue.runs.job import Job
from segue.runs.limits import check_phases
from segue.runs.opening import Load, Opening, OpenRun, new_run, reopened_run
from segue.system import disk, signals, untrusted
from segue.tasks.budget import PAPER, Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase
from segue.training.pipeline import pipeline
from segue.training.start import chunk_of
from segue.training.state import RunState


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: its directory, its last state and its evaluations."""

    folder: Path
    run: RunState
    """The state after the last phase."""
    evaluations: records.RunRecord
    """What its directory holds, as a report reads it."""

    @property
    def returns(self) -> np.ndarray:
        """Raw returns of the last evaluation, [seeds, episodes]. Raises SegueError where the run had no env."""
        if not self.evaluations.evaluations:
            raise SegueError(f"{self.folder} had no env, so it has no returns; `evaluations.held_out` has its errors.")
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
    """Run a recipe's phases on a task, and write everything to the directory `out`.

    Args:
        phases: what a recipe returns, for instance `segue.opt(task)`, or any dictionary of phases by name.
        task: `segue.task("walker2d-random")`, `segue.task(env_id=..., dataset=...)`, or, without an env,
            `segue.task(dataset=..., action_range=(low, high))`.
        out: a directory that is new or empty.
        seeds: the number of seeds, which are trained side by side.
        seed: the first seed's number.
        budget: how many rows to make, and how often to evaluate; the phases have their own lengths.
        since: DIRECTORY:PHASE, a checkpoint of an earlier run; this run starts after its own phase of that name.
        log_every: updates (or env steps, in phases that act) from one line of metrics.jsonl to the next.
        commit_every: updates (or env steps) from one commit to the next; `resume` continues from the last one.
        env_limit: seconds after which an env that does not answer is rebuilt.
        env_restarts: how often envs may be rebuilt before the run stops.
        rollback: return a seed that diverges to its last finite state, up to three times, before it is halted.
        halt_on_explosion: halt a seed whose critic is above any reachable return, as if it were not finite.
        track: programs that draw live curves, by name (`runs.trackers.TRACKERS`); no result depends on them.
        about: more entries for config.json, such as the recipe's name.
        quiet: show no progress.

    Returns:
        The finished run.

    Raises:
        SegueError: for anything the user can mend; what was written to `out` stays readable.
    """
    safeguards = Safeguards(log_every, commit_every, env_limit, env_restarts, rollback, halt_on_explosion)
    check_numbers(safeguards, budget, seeds, seed)
    check_phases(phases, seeds)
    check_order(phases, since)
    track = trackers.known(track)
    made = disk.new_folder(Path(out))
    job = Job(phases, task, Path(out), seeds, seed, budget, safeguards, since, quiet, track, made)
    return _run(job, functools.partial(new_run, about=dict(about or {})))


def resume(
    folder: str | Path,
    phases: Mapping[str, AbstractPhase] | None = None,
    task: Task | None = None,
    *,
    env_id: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    reset_options: Mapping[str, Any] | None = None,
    until: int | None = None,
    quiet: bool = True,
) -> Result:
    """Continue a run that was stopped, killed or failed, from its newest commit, in any phase; or make it longer.

    On a CPU, with the same versions, cores and machine, the result is that of an uninterrupted run, bit for bit. Where
    this cannot be, the commits that follow say `"resume": "statistical"`. With `until` it is that of a run whose last
    phase had this length from the beginning and all other settings, schedules included, as they are.

    Args:
        folder: the run's directory.
        phases: the phases that `run` was given; None: built from config.json, possible for Segue's own methods only.
        task: the task that `run` was given; None: built from config.json.
        env_id: the env's id, needed where it names a module to import, because a file must not be able to run code.
        env_args, reset_options: the run's own, by name, needed where they are texts of more than one word, such as
            paths, which a file must not choose either.
        until: the new length of the last phase, also of a finished run: the env step at which it ends, or its updates
            where it only learns. None: the run ends where it was to end.
        quiet: show no progress.

    Returns:
        The finished run.

    Raises:
        SegueError: where the run is finished, in use, has no commit, or cannot be made longer; DataError: where it is
            damaged, or the dataset is no longer the one that it learned from.
    """
    folder = Path(folder)
    config = read_unfinished(folder, longer=until is not None)
    if "spec" in config:
        raise SegueError(
            f"{folder} was driven by segue.Agent: make the same Agent again, and go on with your own loop."
        )
    try:
        if task is None:
            task = task_of(config, folder, env_id, env_args, reset_options)
        if phases is None:
            phases = phases_of(config, folder)
        else:
            check_settings(phases, config, folder)
        if until is not None:
            phases, config = extension.lengthened(phases, config, until)
        budget = Budget(**config["measuring"])
        safeguards, numbers = Safeguards(**config["safeguards"]), {key: int(config[key]) for key in ("seeds", "seed")}
        check_numbers(safeguards, budget, **numbers)
        check_phases(phases, numbers["seeds"])
        settings_hash(config)
        track = trackers.known(config.get("track", trackers.DEFAULT))
        if any(not isinstance(config.get(part), dict) for part in ("versions", "machine", "dataset")):
            raise TypeError("versions, machine and dataset are objects")
        if not isinstance(config.get("start"), str | None) or not isinstance(config["dataset"].get("path"), str | None):
            raise TypeError("start and the dataset's path are texts")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"{folder / 'config.json'} does not describe a run that can go on: {error!r}.") from None
    since = config.get("start")
    seeds, seed = numbers["seeds"], numbers["seed"]
    job = Job(phases, task, folder, seeds, seed, budget, safeguards, since, quiet, track)
    return _run(job, functools.partial(reopened_run, config=config))


def _run(job: Job, opening: Opening) -> Result:
    """Drive a run to its end in its locked directory, and write to status.json how it ended.

    A finished run that is made longer stays finished until its directory is open.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk.locked(job.folder))
        stop = stack.enter_context(signals.stoppable())
        try:
            if not job.finished:
                job.status("running")
            state, exact, outcome = _drive(job, opening, stop, stack)
            label = "exact" if exact else "statistical"
            job.status("finished", seconds=round(time.monotonic() - began, 1), resume=label, **outcome)
        except BaseException as error:
            if job.finished:
                raise
            status, why = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", str(error)
            with contextlib.suppress(OSError):  # a full disk is reported by what needed the space first
                job.status(status, seconds=round(time.monotonic() - began, 1), why=why or type(error).__name__)
            job.remove_if_new()
            raise
    return Result(job.folder, state, read.read(job.folder))


class Setting(NamedTuple):
    """Where a run learns: in an env, or from logs alone."""

    spec: Spec
    """The sizes, the action box, and statistics of the observations where they are standardised."""
    load: Load
    """Loads the dataset, or makes it."""
    begin: Callable[[OpenRun], tuple[LockstepEnvs | None, AbstractJudge]]
    """Returns the training envs, None where no phase acts, and what judges the policies of the opened run."""


def _drive(
    job: Job, opening: Opening, stop: signals.Stop, stack: contextlib.ExitStack
) -> tuple[RunState, bool, dict[str, Any]]:
    """Drive a run to its end.

    Returns:
        The state after the last phase; whether it is, bit for bit, that of an uninterrupted run; and what status.json
        is to say about the evaluations.
    """
    console = stack.enter_context(contextlib.closing(Console(job.quiet)))
    setting = (_on_logs if job.task.env_id is None else _in_env)(job, stop, stack, console)
    opened = opening(job, setting.spec, setting.load, console)
    stack.enter_context(contextlib.closing(opened.journal))
    envs, judge = setting.begin(opened)
    hooks, commit = make_hooks(job, opened, envs, stop, console, stack, judge)
    origin = opened.origin
    try:
        state = pipeline(origin.run, origin.phases, envs, hooks, resumed=origin.resumed)
        commit.wait()
        commit.flush()
        opened.journal.sync()
        return state, commit.exact, judge.outcome()
    except Stopped:
        commit.rescue()
        raise


def _in_env(job: Job, stop: signals.Stop, stack: contextlib.ExitStack, console: Console) -> Setting:
    """Return the setting of a run in its task's env; `stack` receives the envs, which must be closed."""
    closing = lambda resource: stack.enter_context(contextlib.closing(resource))
    task, safeguards, numbers = job.task, job.safeguards, range(job.seed, job.seed + job.seeds)
    spec = read_spec(task.make).chunked(chunk_of(job.phases))
    if spec.chunk > 1 and spec.chunk > (longest := task.longest()):
        raise SegueError(f"An episode ends after {longest} env steps, before a chunk of {spec.chunk} actions does.")

    def begin(opened: OpenRun) -> tuple[LockstepEnvs | None, AbstractJudge]:
        faults = {"watchdog": closing(Watchdog(safeguards.env_limit)), "restarts": safeguards.env_restarts}
        options = {"reward": opened.reward, **faults}
        evaluator = closing(
            Evaluator(task.make, spec, numbers, job.budget.episodes, on_step=stop.raise_if_asked, **options)
        )
        envs = None
        if any(phase.acts for phase in opened.phases.values()):
            tell = lambda text: print(f"segue: {untrusted.shown(text)}", file=sys.stderr, flush=True)
            envs = closing(LockstepEnvs(task.make, spec, numbers, tell=tell, **options))
        return envs, RollOuts(job, evaluator)

    return Setting(spec, lambda: _load(job, spec, console, stop), begin)


def _on_logs(job: Job, stop: signals.Stop, stack: contextlib.ExitStack, console: Console) -> Setting:
    """Return the setting of a run without an env: observations are standardised, and episodes are kept back.

    Raises:
        SegueError: where a phase acts, or a policy is given; DataError: as `Task.load`.
    """
    if acting := [name for name, phase in job.phases.items() if phase.acts]:
        raise SegueError(
            f"Phase {acting[0]!r} acts, and there is no env: name one (--env-id), act from your own loop (segue.Agent),"
            " or choose a recipe that only learns from data, such as iql, td3bc or bc."
        )
    if chunk_of(job.phases) > 1:
        raise SegueError(
            "Errors on logs are those of single actions: a policy of chunks is judged in an env (--env-id)."
        )
    if job.task.policy is not None:
        raise SegueError("A given policy is judged or improved in an env, and there is none: leave --policy out.")
    data = hold_out(job.task.load(job.budget.rows))
    assert data.held_out is not None
    judge = HeldOutErrors(job, data.held_out, stop.raise_if_asked)
    return Setting(standardised(data.spec(), data.transitions.obs), lambda: data, lambda opened: (None, judge))


def _load(job: Job, spec: Spec, console: Console, stop: signals.Stop) -> Dataset:
    """Load the run's dataset, or make it; return an empty one where no phase reads it."""
    task, rows = job.task, job.budget.rows
    if not job.reads_dataset:
        return dataclasses.replace(nothing(spec, task.env_id), notes=order_notes(task.make))
    with console.counting(f"making the rows of {task.label}", rows) as advance:

        def progress(done: int, total: int) -> None:
            stop.raise_if_asked()
            advance(done, total)

        return task.load(rows, progress)
