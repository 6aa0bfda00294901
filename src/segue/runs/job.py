"""One run in its directory, from its start or from its newest commit to its end."""

import contextlib
import dataclasses
import json
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segue.core import Spec
from segue.data.dataset import Dataset
from segue.data.device import fingerprint, nothing, rows_for
from segue.envs.faults import Watchdog
from segue.envs.lockstep import Worlds
from segue.envs.make import spec_of
from segue.envs.reward import Reward
from segue.envs.rollouts import Evaluation, Evaluator
from segue.errors import DataError, SegueError, Stopped
from segue.nn.actors import AbstractActor
from segue.policies import importers, policy_file
from segue.results import read, records, stats
from segue.runs import checkpoints, commits, divergence, hooks, restore, trackers
from segue.runs.checkpoints import go_on, skip
from segue.runs.config import Care, changes, describe, pinned
from segue.runs.console import Console
from segue.runs.evaluate import Evaluate
from segue.runs.journal import Journal
from segue.runs.meter import Meter
from segue.system import disk, signals
from segue.tasks.budget import Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase
from segue.training.pipeline import pipeline
from segue.training.start import start
from segue.training.state import Live, Run


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


class Begun(NamedTuple):
    """A run in its directory, ready to be driven."""

    state: Run
    phases: Mapping[str, AbstractPhase]
    """Those that are left to do."""
    reward: Reward
    """What training sees of the env's rewards."""
    seal: str
    journal: Journal
    found: restore.Found | None
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
    track: tuple[str, ...] = trackers.DEFAULT

    def run(self, about: dict[str, Any], config: dict[str, Any] | None = None) -> Result:
        """From the start, or, with what config.json says, from the newest commit."""
        begun = time.monotonic()
        with contextlib.ExitStack() as opened:
            opened.enter_context(disk.locked(self.folder))
            stop = opened.enter_context(signals.stoppable())
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
        return Result(self.folder, state, read.read(self.folder))

    def forget(self) -> None:
        """Leave the directory's name free if nothing was learnt in it."""
        if not (self.folder / "config.json").exists():
            for name in ("status.json", ".lock", GIVEN):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    def status(self, word: str, **more: Any) -> None:
        disk.write_json(self.folder / "status.json", {"format": disk.FORMAT, "status": word, **more})

    def policy(self, spec: Spec, config: dict[str, Any] | None) -> tuple[AbstractActor | None, dict[str, str] | None]:
        """The policy that the run is given, which its directory keeps, and what config.json says of it."""
        file, said = self.folder / GIVEN, (config or {}).get("policy")
        if config is None and self.task.policy is not None:
            found = importers.read(self.task.policy, spec)
            if len(found) > 1:
                raise SegueError(f"{self.task.policy} holds {len(found)} policies: say which one, as FILE:NUMBER.")
            policy_file.save(found[0], spec, file, source=Path(self.task.policy).name, env_id=self.task.env_id)
            said = {"path": str(self.task.policy), "sha256": disk.sha256(file.read_bytes())}
        if said is None:
            return None, None
        known = isinstance(said, dict) and file.is_file()
        if not known or disk.sha256(file.read_bytes()) != said.get("sha256"):
            raise DataError(f"{file} is not the policy that this run was given.")
        return policy_file.load(file)[0], said

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
            if config is None or not restore.numbers(folder):
                state = go_on(state, done, self.since, task.env_id)
        digest, described = fingerprint(rows), config or {}
        if config is None:
            described = describe(self.phases, task, data, self.seeds, self.seed, self.budget, self.since, extra)
            described["dataset"]["sha256"] = digest
            described |= {"phases": list(phases), "care": self.care._asdict(), "policy": its}
            described |= {"track": self.track, "id": uuid.uuid4().hex}
            disk.write_json(folder / "config.json", described)
        elif config["dataset"].get("sha256") != digest:
            raise DataError(f"Dataset {data.path or data.name} is not the one that {folder} learned from.")
        seal = pinned(json.loads(json.dumps(described)))
        found = restore.newest(folder) if config and restore.numbers(folder) else None
        if config and not found:  # it ended before its first commit: from the start
            restore.cut(folder, {f"{name}.jsonl": {"size": 0} for name in Journal.NAMES})
        if found:
            if found[0].manifest["config"] != seal:
                raise DataError(
                    f"{folder / 'config.json'} is not the one that its commits were made by: was it edited?"
                )
            for damage in found[1]:
                console.note(f"{damage} Going on from the commit before.")
            restore.cut(folder, found[0].manifest["logs"])
            restore.sweep(folder, found[0])
        journal = opened.enter_context(contextlib.closing(Journal(folder, self.track)))
        return Begun(state, phases, reward, seal, journal, found[0] if found else None)

    def come_back(
        self, begun: Begun, commit: commits.Commit, worlds: Any, config: dict[str, Any] | None, console: Console
    ) -> tuple[Run, Mapping[str, AbstractPhase], tuple[Live, bool] | None]:
        """The state, the phases that are left, and the first one in progress, as `Drive` takes them."""
        state, phases, found, folder = begun.state, begun.phases, begun.found, self.folder
        if found is None or config is None:
            return state, phases, None
        state, live = restore.restore(found, folder, state, self.phases)
        why = changes(config)
        if worlds and not worlds.restore(*restore.worlds(found, folder, worlds)):
            why.append("an env did not come back to where it was")
        commit.goes_on(found, not why)
        if why:
            console.note(f"The result will not be bit for bit that of an uninterrupted run: {'; '.join(why)}.")
        restore.recall(found, folder, commit.hooks)
        name = found.manifest["phase"]
        if name not in phases:
            raise DataError(f"The commit is of phase {name!r}, which this run did not run: it is damaged.")
        left = {each: phases[each] for each in list(phases)[list(phases).index(name) :]}
        return state, left, (live, found.manifest["ticked"])

    def _run(
        self, opened: contextlib.ExitStack, stop: signals.Stop, extra: dict[str, Any], config: dict[str, Any] | None
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
        best = checkpoints.Best(folder, spec, about)

        def evaluated(name: str, live: Live, net: Any, found: Evaluation) -> None:
            best.heard(name, live, net, found)
            scores = stats.normalise(stats.seed_means(found.returns), task.score)
            console.scored(name, scores, task.score is not None)

        console.plan(phases, state)
        log = divergence.Log(journal, care.log_every, care.rollback, care.halt_on_explosion)
        evaluate = Evaluate(
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
        keep = checkpoints.Checkpoint(folder, about)
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
        except Stopped:
            commit.rescue()
            raise


GIVEN = "given.safetensors"
"""The policy that a run was given, as its directory keeps it."""


def load_data(task: Task, budget: Budget, console: Console, stop: signals.Stop) -> Dataset:
    with console.counting(f"making the rows of {task.name or task.env_id}", budget.rows) as advance:

        def heard(done: int, total: int) -> None:
            stop.now()
            advance(done, total)

        return task.load(budget.rows, heard)
