"""Make the hooks of a run: the same ones in the same order for `segue run` and for `Agent`."""

import contextlib
from typing import Any, NamedTuple

from segue.envs.lockstep import EnvHolder
from segue.envs.rollouts import Evaluation, Evaluator
from segue.results import stats
from segue.runs import checkpoints, hooks
from segue.runs.commits import Commit
from segue.runs.console import Console
from segue.runs.divergence import Log
from segue.runs.evaluate import Evaluate
from segue.runs.job import Job
from segue.runs.meter import Meter
from segue.runs.opening import OpenRun
from segue.system.signals import Stop
from segue.training.state import PhaseState


class Watchers(NamedTuple):
    """The hooks of a run, in the order in which they run."""

    hooks: list[hooks.NullHook]
    commit: Commit


def watch(
    job: Job,
    opened: OpenRun,
    world: EnvHolder | None,
    stop: Stop,
    console: Console,
    stack: contextlib.ExitStack,
    evaluator: Evaluator | None = None,
) -> Watchers:
    """Make a run's hooks, and restore them and the environments to the last commit.

    `Commit` runs before all other hooks that have a state; `Episodes` alone comes before it, because restored
    environments do not know which episodes ended with the step before.

    Args:
        job, opened: the run.
        world: the environments; None: no phase acts.
        stop: the request to stop; the run commits and stops at its next step.
        console: the last hook.
        stack: receives what must be closed.
        evaluator: None: the policies of this run cannot be evaluated.

    Raises:
        DataError: where the commit to go on from does not fit.
    """
    folder, journal, safeguards, origin = job.folder, opened.journal, job.safeguards, opened.origin
    console.plan(opened.phases, opened.state)
    log = Log(journal, safeguards.log_every, safeguards.rollback, safeguards.halt_on_explosion)
    writer = checkpoints.PolicyWriter()
    keep = checkpoints.Checkpoint(folder, job.about, writer)
    remembering: dict[str, hooks.NullHook] = {"log": log}
    if evaluator is not None:
        remembering["evaluate"] = _evaluate(job, opened, evaluator, console, writer)
    why = origin.bring_back(world)
    commit = Commit(
        folder,
        journal,
        remembering,
        stop,
        safeguards.commit_every,
        world=world,
        seal=opened.seal,
        settle=keep.flush,
        since=origin.stored(exact=not why),
    )
    stack.enter_context(contextlib.closing(commit))
    log.inexact = commit.inexact
    if why:
        console.note(f"The result will not be bit for bit that of an uninterrupted run: {'; '.join(why)}.")
    origin.recall(remembering)
    meter = stack.enter_context(contextlib.closing(Meter(journal)))
    episodes = [] if world is None else [hooks.Episodes(journal, world)]
    champion = checkpoints.Champion(folder, opened.spec, job.about, writer)
    return Watchers([*episodes, commit, *remembering.values(), champion, keep, meter, console], commit)


def _evaluate(
    job: Job, opened: OpenRun, evaluator: Evaluator, console: Console, writer: checkpoints.PolicyWriter
) -> Evaluate:
    """Make the hook that evaluates, keeps the best policy so far and shows the score."""
    best, score, budget = checkpoints.Best(job.folder, opened.spec, job.about, writer), job.task.score, job.budget

    def listen(name: str, phase_state: PhaseState, net: Any, found: Evaluation) -> None:
        best.heard(name, phase_state, net, found)
        console.scored(name, stats.normalise(stats.seed_means(found.returns), score), score is not None)

    every = budget.evaluate_steps, budget.evaluate_updates, budget.evaluate_early
    return Evaluate(evaluator, opened.journal, *every, listen, last=list(opened.phases)[-1])
