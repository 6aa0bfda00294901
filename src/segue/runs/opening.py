"""Open a run's directory: a new one, or that of a run which was begun before.

Both ways end in one value, `OpenRun`. Nothing after it needs to know which way was taken.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from segue.core import Spec
from segue.data.dataset import Dataset
from segue.data.device import fingerprint, rows_for
from segue.envs.reward import Reward
from segue.errors import DataError, SegueError
from segue.nn.actors import AbstractActor
from segue.policies import importers, policy_file
from segue.runs import checkpoints, restore
from segue.runs.config import changes, describe, pinned
from segue.runs.console import Console
from segue.runs.job import Job
from segue.runs.journal import Journal
from segue.system import disk
from segue.training.phases import AbstractPhase
from segue.training.start import start
from segue.training.state import RunState


class OpenRun(NamedTuple):
    """A run in its opened directory, ready to be driven."""

    spec: Spec
    phases: Mapping[str, AbstractPhase]
    """All that the run goes through: the job's, but for those that an earlier run's checkpoint has done."""
    state: RunState
    """The state before the first of them."""
    reward: Reward
    """What training sees of the env's rewards."""
    seal: str
    """The hash of the settings that decide the result, which every commit carries."""
    journal: Journal
    """To be closed by who opened the run."""
    origin: restore.AbstractOrigin
    """Where the run goes on from."""


Load = Callable[[], Dataset]
"""Loads the run's dataset, or makes it, which may take long."""

Opening = Callable[[Job, Spec, Load, Console], OpenRun]
"""`new_run` or `reopened_run`, with the arguments that the other one does not have already bound."""


def new_run(job: Job, spec: Spec, load: Load, console: Console, *, about: dict[str, Any]) -> OpenRun:
    """Open an empty directory: keep the given policy, load the dataset, write config.json.

    Args:
        job: what the run is asked to do.
        spec: sizes and action box of its env.
        load: called once the given policy is known to be sound.
        console: shows the notes about the dataset.
        about: what to note in config.json besides.

    Raises:
        SegueError, DataError: for anything the user can mend.
    """
    its = _keep_policy(job, spec)
    data = load()
    reward, state, digest = _prepared(job, spec, _policy(job, its), data, console)
    phases, state = _remaining(job), _beginning(job, state)
    config = describe(job.phases, job.task, data, job.seeds, job.seed, job.budget, job.since, about)
    config["dataset"]["sha256"] = digest
    config |= {"phases": list(phases), "safeguards": job.safeguards._asdict(), "policy": its}
    config |= {"track": job.track, "id": uuid.uuid4().hex}
    disk.write_json(job.folder / "config.json", config)
    seal, journal = pinned(json.loads(json.dumps(config))), Journal(job.folder, job.track)
    return OpenRun(spec, phases, state, reward, seal, journal, restore.Beginning(state, phases))


def reopened_run(job: Job, spec: Spec, load: Load, console: Console, *, config: dict[str, Any]) -> OpenRun:
    """Open the directory of a run that has not come to its end, and cut its journals back to its newest commit.

    A run that ended before its first commit goes on from its beginning.

    Args:
        job: what config.json says that the run was asked to do.
        spec, load, console: as for `new_run`.
        config: what config.json says.

    Raises:
        DataError: where policy, dataset, config.json or commits are not those that the run learned from and by.
    """
    policy, data = _policy(job, config.get("policy")), load()
    reward, state, digest = _prepared(job, spec, policy, data, console)
    folder, phases, seal = job.folder, _remaining(job), pinned(config)
    begins_again = not restore.numbers(folder)
    if begins_again:
        state = _beginning(job, state)
    if config["dataset"].get("sha256") != digest:
        raise DataError(f"Dataset {data.path or data.name} is not the one that {folder} learned from.")
    if begins_again:
        restore.cut(folder, {f"{name}.jsonl": {"size": 0} for name in Journal.NAMES})
        origin = restore.Beginning(state, phases)
    else:
        found, damage = restore.newest(folder)
        if found.manifest["config"] != seal:
            raise DataError(f"{folder / 'config.json'} is not the one that its commits were made by: was it edited?")
        for each in damage:
            console.note(f"{each} Going on from the commit before.")
        restore.cut(folder, found.manifest["logs"])
        restore.sweep(folder, found)
        origin = restore.Midway(found, folder, state, job.phases, phases, changes(config))
    return OpenRun(spec, phases, state, reward, seal, Journal(folder, job.track), origin)


def _keep_policy(job: Job, spec: Spec) -> dict[str, str] | None:
    """Copy the task's policy into the run's directory, and return what config.json says of it."""
    if (source := job.task.policy) is None:
        return None
    found = importers.read(source, spec)
    if len(found) > 1:
        raise SegueError(f"{source} holds {len(found)} policies: say which one, as FILE:NUMBER.")
    policy_file.save(found[0], spec, job.given, source=Path(source).name, env_id=job.task.env_id)
    return {"path": str(source), "sha256": disk.sha256(job.given.read_bytes())}


def _policy(job: Job, said: Any) -> AbstractActor | None:
    """Read the given policy from the run's directory, if config.json says that there is one, and verify it."""
    if said is None:
        return None
    known = isinstance(said, dict) and job.given.is_file()
    if not known or disk.sha256(job.given.read_bytes()) != said.get("sha256"):
        raise DataError(f"{job.given} is not the policy that this run was given.")
    return policy_file.load(job.given)[0]


def _prepared(
    job: Job, spec: Spec, policy: AbstractActor | None, data: Dataset, console: Console
) -> tuple[Reward, RunState, str]:
    """The fitted reward rule, the state before the job's first phase, and the hash of the rows that it learns from."""
    for note in data.notes:
        console.note(f"{data.name}: {note}")
    reward = job.task.reward.fitted(data.returns())
    rows = rows_for(data, spec, reward)
    state = start(spec, rows, job.phases, seeds=job.seeds, seed=job.seed, policy=policy)
    return reward, state, fingerprint(rows)


def _remaining(job: Job) -> Mapping[str, AbstractPhase]:
    """The phases that an earlier run's checkpoint leaves to do."""
    return job.phases if job.since is None else checkpoints.skip(job.phases, job.since)[1]


def _beginning(job: Job, state: RunState) -> RunState:
    """The state before the first of the remaining phases: that of the checkpoint, if there is one."""
    if job.since is None:
        return state
    return checkpoints.go_on(state, checkpoints.skip(job.phases, job.since)[0], job.since, job.task.env_id)
