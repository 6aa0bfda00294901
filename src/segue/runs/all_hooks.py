"""Make the hooks of a run: the same ones in the same order for `segue run` and for `Agent`."""

import contextlib
from typing import NamedTuple

from segue.envs.lockstep import EnvHolder
from segue.runs import checkpoints
from segue.runs.commits import Commit
from segue.runs.console import Console
from segue.runs.evaluate import AbstractJudge
from segue.runs.hooks import Episodes, NullHook
from segue.runs.job import Job
from segue.runs.log import Log
from segue.runs.meter import Meter
from segue.runs.opening import OpenRun
from segue.system.signals import Stop


class RunHooks(NamedTuple):
    """The hooks of a run, in the order in which they run, and the one among them that commits."""

    hooks: list[NullHook]
    commit: Commit


def make_hooks(
    job: Job,
    opened: OpenRun,
    envs: EnvHolder | None,
    stop: Stop,
    console: Console,
    stack: contextlib.ExitStack,
    judge: AbstractJudge | None = None,
) -> RunHooks:
    """Make a run's hooks, and restore the hooks and the environments to the last commit.

    `Commit` runs before all other hooks that have a state. `Episodes` alone comes before it, because restored
    environments do not know which episodes ended with the step before.

    Args:
        job: what the run is asked to do.
        opened: its opened directory.
        envs: the environments; None: no phase acts.
        stop: the request to stop; the run commits and stops at its next step.
        console: the last hook.
        stack: receives what must be closed.
        judge: judges the policies; None: nothing does.

    Raises:
        DataError: where the commit does not fit the run.
    """
    folder, journal, safeguards, origin = job.folder, opened.journal, job.safeguards, opened.origin
    console.add_phases(opened.phases, opened.state)
    log = Log(journal, safeguards.log_every, safeguards.rollback, safeguards.halt_on_explosion)
    writer = checkpoints.PolicyWriter()
    checkpoint = checkpoints.Checkpoint(folder, job.about, writer)
    with_state: dict[str, NullHook] = {"log": log}
    if judge is not None:
        with_state["evaluate"] = judge.hook(opened, console, writer)
    differences = origin.restore_envs(envs)
    commit = Commit(
        folder,
        journal,
        with_state,
        stop,
        safeguards.commit_every,
        envs=envs,
        seal=opened.seal,
        flush=checkpoint.flush,
        stored=origin.stored_commits(exact=not differences),
    )
    stack.enter_context(contextlib.closing(commit))
    log.mark_inexact, log.note = commit.mark_inexact, console.note
    if differences:
        console.note(f"The result will not be bit for bit that of an uninterrupted run: {'; '.join(differences)}.")
    origin.restore_hooks(with_state)
    meter = stack.enter_context(contextlib.closing(Meter(journal)))
    episodes = [] if envs is None else [Episodes(journal, envs)]
    champion = checkpoints.Champion(folder, opened.spec, job.about, writer)
    return RunHooks([*episodes, commit, *with_state.values(), champion, checkpoint, meter, console], commit)
