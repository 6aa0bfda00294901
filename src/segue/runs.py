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
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from segue import __version__, commits, foreign, hooks, policies, records, stats, store, strict, tracking
from segue.console import Console
from segue.core import Pretrained, Spec, Trained, Transition
from segue.data import Dataset
from segue.data.replay import Ring
from segue.errors import DataError, SegueError, at_least
from segue.evaluation import Evaluation, Evaluator
from segue.meter import Meter
from segue.nn.actors import AbstractActor
from segue.phases import AbstractPhase, Collect, Live, Online, Run, pipeline
from segue.recipes import PAPER, Budget
from segue.tasks import Task
from segue.worlds import Reward, Watchdog, Worlds, spec_of


def empty(spec: Spec) -> Transition:
    """A dataset of no rows."""
    none = lambda *shape: jnp.zeros((0, *shape), jnp.float32)
    return Transition(none(spec.obs), none(spec.act), none(), none(spec.obs), jnp.zeros(0, bool))


def start(
    spec: Spec,
    offline: Transition | None,
    phases: Mapping[str, AbstractPhase],
    *,
    seeds: int = 1,
    seed: int = 0,
    policy: AbstractActor | None = None,
) -> Run:
    """A run before its first phase.

    Args:
        spec: sizes and action box.
        offline: rows with actions in [-1, 1], or None for no dataset.
        phases: the phases it will go through; the longest `until` sizes the online replay.
        seeds: how many, numbered from `seed`. A seed draws the same random numbers whichever others run beside it; the
            last bits of what it computes may differ.
        policy: what every seed starts from; None: nothing is given.
    """
    capacity = max((getattr(phase, "until", 0) for phase in phases.values()), default=0)
    needs = seeds * capacity * 4 * (2 * spec.obs + spec.act + 2)
    if needs > memory():
        raise SegueError(
            f"The online replay of {seeds} x {capacity:,} rows takes {needs / 2**30:,.0f} GiB, more than this machine "
            "has: fewer seeds, or a lower `until`."
        )
    one = Ring.new(spec, max(capacity, 1))
    ring = Ring(jax.tree.map(lambda column: jnp.zeros((seeds, *column.shape), column.dtype), one.rows), one.written)
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    each = lambda leaf: jnp.tile(leaf, (seeds, *(1,) * jnp.ndim(leaf)))
    given = Pretrained(None if policy is None else jax.tree.map(each, Trained.new(policy)))
    return Run(spec, empty(spec) if offline is None else offline, ring, keys, given)


def memory() -> int:
    """Bytes of this machine's memory; where nothing tells, 64 GiB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not POSIX
        return 64 * 2**30


def rows_for(data: Dataset, spec: Spec, reward: Any) -> Transition:
    """The dataset on the device, as methods see it: actions in [-1, 1], the task's reward rule applied once.

    Columns that were read from a file are used where they lie (on a CPU); those that somebody may still write to are
    copied.
    """
    put = lambda column: jnp.array(column) if column.flags.writeable else jax.device_put(column)
    rows = data.transitions
    action, worth = spec.normalise(rows.action), reward(rows.reward)
    return Transition(
        obs=put(rows.obs),
        action=put(np.asarray(action, np.float32)),
        reward=put(np.asarray(worth, np.float32)),
        next_obs=put(rows.next_obs),
        terminal=put(rows.terminal),
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run left: its directory, its last state and its evaluations."""

    folder: Path
    run: Run
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
    track: Sequence[str] = tracking.DEFAULT,
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
        env_limit: seconds after which an env that does not answer is made anew.
        env_restarts: how often an env may be made anew before the run stops.
        rollback: a seed that diverges goes on from where it last was finite, three times, before it is halted.
        halt_on_explosion: treat a critic above any reachable return like one that is not finite.
        track: which of `tracking.TRACKERS` draw live curves; the result does not depend on them.
        about: what to note in config.json besides, such as the recipe's name.
        quiet: no progress display.

    Raises:
        SegueError: for anything the user can mend, with `out` left readable.
    """
    care = Care(log_every, commit_every, env_limit, env_restarts, rollback, halt_on_explosion)
    _checked(care, budget, seeds, seed)
    in_order(phases, since)
    track = tracking.known(track)
    job = Job(phases, task, store.new_folder(Path(out)), seeds, seed, budget, care, since, quiet, track)
    return job.run(dict(about or {}))


def in_order(phases: Mapping[str, AbstractPhase], since: str | None = None) -> None:
    """Refuse a phase that would be over before it begins. Raises SegueError."""
    before, ended = "", 0
    for name, phase in (skip(phases, since)[1] if since else phases).items():
        if not isinstance(phase, Collect | Online):
            continue
        if ended and phase.until <= ended:
            raise SegueError(
                f"{name}.until is {phase.until:,} and {before}.until {ended:,}, both counted from the run's first env "
                f"step: nothing would be left of phase {name!r}."
            )
        if not (isinstance(phase, Online) and phase.settle):  # which may be over earlier
            before, ended = name, phase.until


def _checked(care: "Care", budget: Budget, seeds: int, seed: int) -> None:
    """Refuse numbers that cannot be. Raises SegueError; TypeError for what is no number."""
    at_least(1, seeds=seeds, log_every=care.log_every, commit_every=care.commit_every)
    at_least(1, rows=budget.rows, episodes=budget.episodes)
    at_least(1, evaluate_steps=budget.evaluate_steps, evaluate_updates=budget.evaluate_updates)
    at_least(0, seed=seed, env_restarts=care.env_restarts, evaluate_early=budget.evaluate_early)
    if seed + seeds > 2**31:
        raise SegueError(f"Seeds are numbered below 2^31, and {seed:,} is not.")
    if not care.env_limit > 0:
        raise SegueError(f"env_limit must be more than 0 seconds, not {care.env_limit}.")


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
    config = store.read_json(folder / "config.json")
    check_unfinished(folder)
    try:
        if task is None:
            task = _task_of(config, folder, env_id)
        if phases is None:
            phases = {name: rebuild(value) for name, value in config["settings"].items()}
        else:
            check_settings(phases, config, folder)
        budget = Budget(**config["measuring"])
        care, numbers = Care(**config["care"]), {key: int(config[key]) for key in ("seeds", "seed")}
        _checked(care, budget, **numbers)
        pinned(config)
        track = tracking.known(config.get("track", tracking.DEFAULT))
        if any(not isinstance(config.get(part), dict) for part in ("versions", "machine", "dataset")):
            raise TypeError("versions, machine and dataset are objects")
        if not isinstance(config.get("start"), str | None) or not isinstance(config["dataset"].get("path"), str | None):
            raise TypeError("start and the dataset's path are texts")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"{folder / 'config.json'} does not describe a run that can go on: {error!r}.") from None
    since = config.get("start")
    job = Job(phases, task, folder, budget=budget, care=care, since=since, quiet=quiet, track=track, **numbers)
    return job.run({}, config)


def check_unfinished(folder: Path) -> None:
    """Refuse a run that has come to its end, and a directory from which a link leads out. Raises SegueError."""
    if store.read_json(folder / "status.json").get("status") == "finished":
        raise SegueError(f"{folder} is finished: nothing is left to do.")
    logs = (f"{name}.log" for name in tracking.TRACKERS)
    for name in ("commits", "checkpoints", *tracking.TRACKERS, *logs, "mlflow/mlflow.db"):
        if (folder / name).is_symlink():
            raise DataError(f"{folder / name} leads elsewhere: it is not of Segue's making.")


def check_settings(phases: Mapping[str, AbstractPhase], config: dict[str, Any], folder: Path) -> None:
    """Refuse phases that are not those of an earlier run. Raises DataError."""
    if json.loads(json.dumps({name: settings(phase) for name, phase in phases.items()})) != config["settings"]:
        raise DataError(f"{folder} was run with other settings than those given: see its config.json.")


def _task_of(config: dict[str, Any], folder: Path, env_id: str | None) -> Task:
    name = str(config["env_id"]) if env_id is not None else plain_env(config, folder / "config.json")
    if env_id is not None and env_id != name:
        raise SegueError(f"{folder} is a run on {name}, and cannot go on on {env_id}.")
    data, score, reward = config["dataset"], config["score"], config["reward"]
    return Task(
        name,
        config["task"],
        data["path"],
        clip_actions=data["clip_actions"],
        reward=Reward(float(reward["scale"]), float(reward["shift"]), bool(reward["by_returns"])),
        score=(float(score["min"]), float(score["max"])) if score else None,
    )


def plain_env(said: Mapping[str, Any], where: Path) -> str:
    """The env that a file names. Raises `DataError` for one of a module to import: a file is not to run code."""
    name = str(said.get("env_id"))
    if not strict.plain(name):
        raise DataError(f"{where} names no plain env but {name!r}: if you trust it, pass {strict.trusting(name)}.")
    return name


def pinned(config: Mapping[str, Any]) -> str:
    """SHA-256 of what a run goes by, as far as it decides what it computes."""
    keys = ("settings", "care", "measuring", "seed", "seeds", "reward", "start", "phases", "env_id")
    part = {key: config[key] for key in keys} | {"dataset": config["dataset"].get("sha256")}
    if config.get("policy"):
        part["policy"] = config["policy"].get("sha256")
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


class Care(NamedTuple):
    """How a run is watched over; the names are `run`'s."""

    log_every: int
    commit_every: int
    env_limit: float
    env_restarts: int
    rollback: bool
    halt_on_explosion: bool


class Begun(NamedTuple):
    """A run in its directory, ready to be driven."""

    state: Run
    phases: Mapping[str, AbstractPhase]
    """Those that are left to do."""
    reward: Reward
    """What training sees of the env's rewards."""
    seal: str
    journal: hooks.Journal
    found: commits.Found | None
    """The commit to go on from."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run in its directory: what `run` and `Tuner` begin, and `resume` goes on with."""

    phases: Mapping[str, AbstractPhase]
    task: Task
    folder: Path
    seeds: int
    seed: int
    budget: Budget
    care: Care
    since: str | None
    quiet: bool
    track: tuple[str, ...] = tracking.DEFAULT

    def run(self, about: dict[str, Any], config: dict[str, Any] | None = None) -> Result:
        """From the start, or, with what config.json says, from the newest commit."""
        begun = time.monotonic()
        with contextlib.ExitStack() as opened:
            opened.enter_context(store.locked(self.folder))
            stop = opened.enter_context(hooks.stoppable())
            try:
                self.status("running")
                state, exact = self._run(opened, stop, about, config)
                label = "exact" if exact else "statistical"
                self.status("finished", seconds=round(time.monotonic() - begun, 1), resume=label)
            except BaseException as error:
                word, why = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", str(error)
                with contextlib.suppress(OSError):  # a full disk is reported by what needed the space first
                    self.status(word, seconds=round(time.monotonic() - begun, 1), why=why or type(error).__name__)
                self.forget()
                raise
        return Result(self.folder, state, records.read(self.folder))

    def forget(self) -> None:
        """Leave the directory's name free if nothing was learnt in it."""
        if not (self.folder / "config.json").exists():
            for name in ("status.json", ".lock", GIVEN):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    def status(self, word: str, **more: Any) -> None:
        store.write_json(self.folder / "status.json", {"format": store.FORMAT, "status": word, **more})

    def policy(self, spec: Spec, config: dict[str, Any] | None) -> tuple[AbstractActor | None, dict[str, str] | None]:
        """The policy that the run is given, which its directory keeps, and what config.json says of it."""
        file, said = self.folder / GIVEN, (config or {}).get("policy")
        if config is None and self.task.policy is not None:
            found = foreign.read(self.task.policy, spec)
            if len(found) > 1:
                raise SegueError(f"{self.task.policy} holds {len(found)} policies: say which one, as FILE:NUMBER.")
            policies.save(found[0], spec, file, source=Path(self.task.policy).name, env_id=self.task.env_id)
            said = {"path": str(self.task.policy), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        if said is None:
            return None, None
        known = isinstance(said, dict) and file.is_file()
        if not known or hashlib.sha256(file.read_bytes()).hexdigest() != said.get("sha256"):
            raise DataError(f"{file} is not the policy that this run was given.")
        return policies.load(file)[0], said

    def begin(
        self,
        opened: contextlib.ExitStack,
        console: Console,
        spec: Spec,
        given: tuple[AbstractActor | None, dict[str, str] | None],
        data: Dataset,
        extra: dict[str, Any],
        config: dict[str, Any] | None,
    ) -> "Begun":
        """The state to start from and the files of the directory, new or, with what config.json says, as they were."""
        task, folder, phases = self.task, self.folder, self.phases
        for note in data.notes:
            console.note(f"{data.name}: {note}")
        (policy, its), reward = given, task.reward.fitted(data.returns())
        rows = rows_for(data, spec, reward)
        state = start(spec, rows, phases, seeds=self.seeds, seed=self.seed, policy=policy)
        if self.since is not None:
            done, phases = skip(phases, self.since)
            if config is None or not commits.numbers(folder):
                state = go_on(state, done, self.since, task.env_id)
        digest, described = fingerprint(rows), config or {}
        if config is None:
            described = describe(self.phases, task, data, self.seeds, self.seed, self.budget, self.since, extra)
            described["dataset"]["sha256"] = digest
            described |= {"phases": list(phases), "care": self.care._asdict(), "policy": its}
            described |= {"track": self.track, "id": uuid.uuid4().hex}
            store.write_json(folder / "config.json", described)
        elif config["dataset"].get("sha256") != digest:
            raise DataError(f"Dataset {data.path or data.name} is not the one that {folder} learned from.")
        seal = pinned(json.loads(json.dumps(described)))
        found = commits.newest(folder) if config and commits.numbers(folder) else None
        if config and not found:  # it ended before its first commit: from the start
            commits.cut(folder, {f"{name}.jsonl": {"size": 0} for name in hooks.Journal.NAMES})
        if found:
            if found[0].manifest["config"] != seal:
                raise DataError(
                    f"{folder / 'config.json'} is not the one that its commits were made by: was it edited?"
                )
            for damage in found[1]:
                console.note(f"{damage} Going on from the commit before.")
            commits.cut(folder, found[0].manifest["logs"])
            commits.sweep(folder, found[0])
        journal = opened.enter_context(contextlib.closing(hooks.Journal(folder, self.track)))
        return Begun(state, phases, reward, seal, journal, found[0] if found else None)

    def come_back(
        self, begun: Begun, commit: commits.Commit, worlds: Any, config: dict[str, Any] | None, console: Console
    ) -> tuple[Run, Mapping[str, AbstractPhase], tuple[Live, bool] | None]:
        """The state, the phases that are left, and the first one in progress, as `Drive` takes them."""
        state, phases, found, folder = begun.state, begun.phases, begun.found, self.folder
        if found is None or config is None:
            return state, phases, None
        state, live = commits.restore(found, folder, state, self.phases)
        why = changes(config)
        if worlds and not worlds.restore(*commits.worlds(found, folder, worlds)):
            why.append("an env did not come back to where it was")
        commit.goes_on(found, not why)
        if why:
            console.note(f"The result will not be bit for bit that of an uninterrupted run: {'; '.join(why)}.")
        commits.recall(found, folder, commit.hooks)
        name = found.manifest["phase"]
        if name not in phases:
            raise DataError(f"The commit is of phase {name!r}, which this run did not run: it is damaged.")
        left = {each: phases[each] for each in list(phases)[list(phases).index(name) :]}
        return state, left, (live, found.manifest["ticked"])

    def _run(
        self, opened: contextlib.ExitStack, stop: hooks.Stop, extra: dict[str, Any], config: dict[str, Any] | None
    ) -> tuple[Run, bool]:
        """The run at its end, and whether it is, bit for bit, what it would have been without a stop."""
        hold = lambda thing: opened.enter_context(contextlib.closing(thing))
        task, budget, care, folder, phases = self.task, self.budget, self.care, self.folder, self.phases
        console = hold(Console(self.quiet))
        env = task.make()
        spec = spec_of(env)
        env.close()
        given = self.policy(spec, config)  # before a dataset is made, which may take long
        reads = any(phase.reads for phase in phases.values())
        data = load_data(task, budget, console, stop) if reads else nothing(spec, task.env_id)
        begun = self.begin(opened, console, spec, given, data, extra, config)
        del data
        state, phases, reward, journal = begun.state, begun.phases, begun.reward, begun.journal
        numbers = range(self.seed, self.seed + self.seeds)
        guard = {"watchdog": hold(Watchdog(care.env_limit)), "restarts": care.env_restarts}
        evaluator = hold(
            Evaluator(task.make, spec, numbers, budget.episodes, **guard, now_and_then=stop.now, reward=reward)
        )
        about = {"env_id": task.env_id, "task": task.name}
        best = hooks.Best(folder, spec, about)

        def evaluated(name: str, live: Live, net: Any, found: Evaluation) -> None:
            best.heard(name, live, net, found)
            scores = stats.normalise(stats.seed_means(found.returns), task.score)
            console.scored(name, scores, task.score is not None)

        console.plan(phases, state)
        log = hooks.Log(journal, care.log_every, care.rollback, care.halt_on_explosion)
        evaluate = hooks.Evaluate(
            evaluator,
            journal,
            budget.evaluate_steps,
            budget.evaluate_updates,
            budget.evaluate_early,
            evaluated,
            list(phases)[-1],
        )
        commit = hold(commits.Commit(folder, journal, {"log": log, "evaluate": evaluate}, stop, care.commit_every))
        log.inexact = commit.inexact
        keep = hooks.Checkpoint(folder, about)
        commit.config, commit.settle = begun.seal, keep.settle
        worlds, watching = None, [commit, log, evaluate, keep, hold(Meter(journal)), console]
        if any(phase.acts for phase in phases.values()):
            worlds = commit.worlds = hold(
                Worlds(
                    task.make,
                    spec,
                    numbers,
                    reward,
                    **guard,
                    tell=lambda text: print(f"segue: {text}", file=sys.stderr, flush=True),
                )
            )
            watching.insert(0, hooks.Episodes(journal, worlds))
        state, phases, resumed = self.come_back(begun, commit, worlds, config, console)
        try:
            state = pipeline(state, phases, worlds, watching, resumed=resumed)
            commit.wait()
            keep.settle()
            journal.sync()
            return state, commit.exact
        except hooks.Stopped:
            commit.rescue()
            raise


GIVEN = "given.safetensors"
"""The policy that a run was given, as its directory keeps it."""


def nothing(spec: Spec, env_id: str) -> Dataset:
    """The dataset of a run that reads none."""
    rows = jax.tree.map(np.asarray, empty(spec))
    return Dataset(rows, np.zeros(0, bool), spec.low, spec.high, env_id, "none")


def load_data(task: Task, budget: Budget, console: Console, stop: hooks.Stop) -> Dataset:
    with console.counting(f"making the rows of {task.name or task.env_id}", budget.rows) as advance:

        def heard(done: int, total: int) -> None:
            stop.now()
            advance(done, total)

        return task.load(budget.rows, heard)


def fingerprint(rows: Transition) -> str:
    """SHA-256 of the rows that a run learns from."""
    digest = hashlib.sha256()
    for column in rows:
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def changes(config: dict[str, Any]) -> list[str]:
    """Why a resumed run cannot be bit for bit what it would have been: what is no longer as config.json has it."""
    now = {"versions": versions(), "machine": machine(), "code": {"revision": revision()}}
    config = {**config, "code": {"revision": config.get("git")}}
    found = []
    for part, values in now.items():
        before = config.get(part) or {}
        found += [
            f"{key} was {before.get(key)} and is {value}" for key, value in values.items() if before.get(key) != value
        ]
    if jax.default_backend() != "cpu":
        found.append(f"the {jax.default_backend()} backend is not held to give the same bits twice")
    return found


def skip(phases: Mapping[str, AbstractPhase], since: str) -> tuple[dict[str, AbstractPhase], dict[str, AbstractPhase]]:
    """The phases that an earlier run has done, and those that are left."""
    name = since.rpartition(":")[2]
    if name not in phases:
        there = hooks.kept(since)
        has = f"; {since.removesuffix(f':{name}')} has {', '.join(there)}" if there else ""
        raise SegueError(
            f"--from is RUN:PHASE, and {since!r} names none of this recipe's phases, {', '.join(phases)}{has}."
        )
    last = list(phases).index(name) + 1
    if last == len(phases):
        raise SegueError(f"Phase {name!r} is this recipe's last: nothing is left to do after {since}.")
    return dict(list(phases.items())[:last]), dict(list(phases.items())[last:])


def go_on(state: Run, done: Mapping[str, AbstractPhase], since: str, env_id: str) -> Run:
    """The state at an earlier run's checkpoint, after the phases that are done."""
    like = state.waist
    for phase in done.values():
        like = phase.leaves(state.spec, like, state.keys)
    return dataclasses.replace(hooks.load_checkpoint(since, state, like, env_id), phases=len(done))


def evaluate(
    folder: str | Path, episodes: int = 10, seed: int = 1_000, env_id: str | None = None
) -> tuple[Evaluation, tuple[float, float] | None]:
    """Evaluate the policies that a run keeps: raw returns [seeds, episodes], and the score reference.

    `seed` numbers the episodes' starts; the default's are not those of the run's own evaluations. `env_id` replaces
    the one in config.json, which may not name a module to import ("module:Env-v0"): a file is not to run code.
    """
    folder = Path(folder)
    config = store.read_json(folder / "config.json")
    env_id = plain_env(config, folder / "config.json") if env_id is None else env_id
    names = sorted(folder.glob("policy-[0-9]*.safetensors"), key=lambda path: (len(path.stem), path.stem))
    if not names:
        raise SegueError(f"{folder} holds no policy yet: its first phase has not ended.")
    loaded = [policies.load(name) for name in names]
    spec = loaded[0][1]
    make = Task(env_id).make
    env = make()
    theirs = spec_of(env)
    env.close()
    if theirs != spec:
        raise DataError(f"The policies in {folder} are for {spec}, but {env_id} has {theirs}.")
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(actor)) for actor, _ in loaded}
    if len(shapes) > 1:
        raise DataError(f"The policies in {folder} are not of one shape: they do not belong to one run.")
    actor = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(actor for actor, _ in loaded))
    evaluator = Evaluator(make, spec, range(seed, seed + len(loaded)), episodes)
    try:
        found = evaluator(actor)
    finally:
        evaluator.close()
    score = config.get("score")
    return found, (score["min"], score["max"]) if score else None


def rebuild(value: Any) -> Any:
    """What `settings` made JSON of. Only classes of Segue's own are built, and nothing is imported by name."""
    if not isinstance(value, dict):
        return value
    known = {cls.__name__: cls for cls in _modules(eqx.Module) if cls.__module__.startswith("segue.")}
    cls = known.get(value.get("is", ""))
    if cls is None:
        raise SegueError(f"The run has a {value.get('is')!r}, not a class of Segue's: resume from Python, with phases.")
    return cls(**{name: rebuild(inner) for name, inner in value.items() if name != "is"})


def _modules(cls: type) -> Iterator[type]:
    for below in cls.__subclasses__():
        yield below
        yield from _modules(below)


def settings(value: Any) -> Any:
    """Settings as plain JSON: a module becomes its fields and its class's name."""
    if isinstance(value, eqx.Module):
        fields = {field.name: settings(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    return value


MEASURING = ("rows", "episodes", "evaluate_updates", "evaluate_steps", "evaluate_early")
"""What a run takes of a budget; the phases carry the rest."""


def describe(
    phases: Mapping[str, AbstractPhase],
    task: Task,
    data: Dataset,
    seeds: int,
    seed: int,
    budget: Budget,
    since: str | None,
    about: dict[str, Any],
) -> dict[str, Any]:
    """config.json: all that is needed to do it again, and to know what was compared with what."""
    return {
        "format": store.FORMAT,
        "recipe": about.pop("recipe", "custom"),
        "task": task.name,
        "env_id": task.env_id,
        "dataset": {
            "name": data.name,
            "path": str(Path(data.path).resolve()) if data.path and Path(data.path).exists() else data.path,
            "rows": len(data),
            "clip_actions": task.clip_actions,
            "notes": list(data.notes),
        },
        "backbone": task.backbone,
        "reward": task.reward._asdict(),
        "score": {"min": task.score[0], "max": task.score[1]} if task.score else None,
        "seed": seed,
        "seeds": seeds,
        "start": since,
        "phases": list(phases),
        "settings": {name: settings(phase) for name, phase in phases.items()},
        "measuring": {key: getattr(budget, key) for key in MEASURING},
        "versions": versions(),
        "git": revision(),
        "machine": machine(),
        "command": sys.argv,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **about,
    }


JAX_FLAGS = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_enable_x64", "jax_default_matmul_precision")
"""Settings of JAX that change bits."""


def machine() -> dict[str, Any]:
    """What numbers depend on besides versions: XLA on a CPU gives other bits for another count of cores."""
    return {
        "system": platform.platform(),
        "cores": len(jax.devices()) if jax.default_backend() != "cpu" else cores(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "instructions": _instructions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_flags": {key: getattr(jax.config, key) for key in JAX_FLAGS},
    }


def _instructions() -> str | None:
    """The processor's instruction sets, as far as they decide what XLA compiles; None where nothing tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    words = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(sorted(word for word in words if word.startswith(("avx", "fma", "amx", "sve", "neon", "asimd"))))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"python": platform.python_version(), "segue": __version__}
    for name in ("jax", "jaxlib", "equinox", "optax", "numpy", "gymnasium", "mujoco"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """Git's word for the code that runs, if it runs from a checkout."""
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def compile_cache() -> None:
    """Keep compiled programs between processes."""
    folder = store.cache_dir() / "jax"
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
