"""Open a run's directory: a new one (`new_run`), or that of an earlier run (`reopened_run`).

Both return an `OpenRun`. The code after them does not need to know which of the two was called.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from segue.core import Spec
from segue.data.dataset import Dataset
from segue.data.device import fingerprint, rows_for
from segue.envs.reward import Reward
from segue.errors import DataError, SegueError
from segue.nn.actors import AbstractActor
from segue.policies import importers, policy_file
from segue.runs import checkpoints, extension, restore
from segue.runs.config import changes, describe, settings_hash
from segue.runs.console import Console
from segue.runs.job import Job
from segue.runs.journal import Journal
from segue.system import disk
from segue.training.phases import AbstractPhase
from segue.training.start import check_parts, replay_rows, start
from segue.training.state import RunState


class OpenRun(NamedTuple):
    """A run in its opened directory, ready for `Drive`."""

    spec: Spec
    phases: Mapping[str, AbstractPhase]
    """The phases of the run: those of the job, without those that come before the checkpoint of `--from`."""
    state: RunState
    """The state before the first of them."""
    reward: Reward
    """Maps the env's rewards to the training rewards."""
    seal: str
    """The hash of the settings that decide the result; every commit stores it."""
    journal: Journal
    """The run's journals, which the caller closes."""
    origin: restore.AbstractOrigin
    """Where the run starts: the first phase, or a commit."""


Load = Callable[[], Dataset]
"""Loads the run's dataset, or makes it; that may take minutes."""

Opening = Callable[[Job, Spec, Load, Console], OpenRun]
"""`new_run` or `reopened_run`, with the argument that the other one does not have already bound."""


def new_run(job: Job, spec: Spec, load: Load, console: Console, *, about: dict[str, Any]) -> OpenRun:
    """Open an empty directory: copy the given policy, load the dataset, write config.json.

    Args:
        job: what the run is asked to do.
        spec: the sizes and the action box of the env.
        load: loads the dataset; called after the given policy and the order of the phases were checked.
        console: prints the notes about the dataset.
        about: more entries for config.json.

    Raises:
        SegueError, DataError: for anything the user can mend.
    """
    policy_entry = _copy_policy(job, spec, console)
    policy = _policy(job, policy_entry)
    check_parts(spec, job.phases, policy)
    data = load()
    reward, state, digest = _prepare(job, spec, policy, data, console)
    phases, state = _phases_left(job.phases, job.since), _first_state(job, state)
    config = describe(job.phases, job.task, data, job.seeds, job.seed, job.budget, job.since, about)
    config["dataset"]["sha256"] = digest
    config |= {"phases": list(phases), "safeguards": job.safeguards._asdict(), "policy": policy_entry}
    config |= {} if job.since is None else {"earlier": _earlier_settings(job.since)}
    config |= {"track": job.track, "id": uuid.uuid4().hex}
    config = disk.signed(config)
    disk.write_json(job.folder / "config.json", config)
    seal, journal = settings_hash(json.loads(json.dumps(config))), Journal(job.folder, job.track)
    return OpenRun(spec, phases, state, reward, seal, journal, restore.FromStart(state, phases))


def reopened_run(job: Job, spec: Spec, load: Load, console: Console, *, config: dict[str, Any]) -> OpenRun:
    """Open the directory of an unfinished run, and truncate its journals to its newest commit.

    A run that stopped before its first commit starts again from the beginning.

    Args:
        job: what the run is asked to do, according to config.json.
        spec, load, console: as for `new_run`.
        config: the content of config.json.

    Raises:
        DataError: where the policy, the dataset, config.json or the commits have changed or are damaged.
    """
    policy, data = _policy(job, config.get("policy")), load()
    reward, state, digest = _prepare(job, spec, policy, data, console)
    folder, phases, seal = job.folder, _phases_left(job.phases, job.since), settings_hash(config)
    starts_again = not restore.numbers(folder)
    if starts_again:
        state = _first_state(job, state)
    if config["dataset"].get("sha256") != digest:
        raise DataError(f"Dataset {data.path or data.name} is not the one that {folder} learned from.")
    if starts_again:
        _write_config(job, config)
        restore.truncate_journals(folder, {f"{name}.jsonl": {"size": 0} for name in Journal.NAMES})
        origin = restore.FromStart(state, phases)
    else:
        commit, damage = restore.newest(folder)
        lengths = {own: phases for phases, own in extension.history(job.phases, config)}
        if (then := lengths.get(commit.manifest["config"])) is None:
            raise DataError(f"{folder / 'config.json'} is not the one that its commits were made by: was it edited?")
        before = extension.with_capacity(state, replay_rows(then))
        left = _phases_left(then, job.since)
        origin = restore.FromCommit(commit, folder, before, then, left, changes(config))
        if commit.manifest["config"] != seal:
            origin.extend(phases, replay_rows(job.phases))
            console.note(extension.kept(config))
            _write_config(job, config)
        for reason in damage:
            console.note(f"{reason} Going on from the commit before.")
        restore.truncate_journals(folder, commit.manifest["logs"])
        restore.set_aside_newer(folder, commit)
    return OpenRun(spec, phases, state, reward, seal, Journal(folder, job.track), origin)


def _copy_policy(job: Job, spec: Spec, console: Console) -> dict[str, str] | None:
    """Copy the task's policy into the run's directory; return its entry of config.json, None where there is none.

    A note says what the file cannot show and the user should check.
    """
    if (source := job.task.policy) is None:
        return None
    policies = importers.read(source, spec)
    if len(policies) > 1:
        raise SegueError(f"{source} holds {len(policies)} policies: say which one, as FILE:NUMBER.")
    if (doubt := importers.doubt(source)) is not None:
        console.note(f"{source}: {doubt}")
    policy_file.save(policies[0], spec, job.given_policy, source=Path(source).name, env_id=job.task.env_id)
    return {"path": str(source), "sha256": disk.sha256(job.given_policy.read_bytes())}


def is_given(job: Job, spec: Spec, entry: Any) -> bool:
    """Return whether the task's policy is the one that the run was given, by its numbers; True where its file is gone.

    Args:
        job: what the run is asked to do now.
        spec: as for `new_run`.
        entry: the run's entry of config.json about its policy.

    Raises:
        SegueError, DataError: where one of the files is no policy that can be read.
    """
    source = job.task.policy
    if source is None or entry is None:
        return source is None and entry is None
    if not any(Path(name).exists() for name in (str(source), str(source).rpartition(":")[0]) if name):
        return True
    given, now = _policy(job, entry), importers.read(source, spec)[0]
    pairs = [jax.tree.leaves(each) for each in (given, now)]
    return len(pairs[0]) == len(pairs[1]) and all(map(np.array_equal, *pairs))


def _policy(job: Job, entry: Any) -> AbstractActor | None:
    """Read and verify the run's copy of the given policy; None where config.json has no `entry` of it."""
    if entry is None:
        return None
    known = isinstance(entry, dict) and job.given_policy.is_file()
    if not known or disk.sha256(job.given_policy.read_bytes()) != entry.get("sha256"):
        raise DataError(f"{job.given_policy} is not the policy that this run was given.")
    return policy_file.load(job.given_policy)[0]


def _prepare(
    job: Job, spec: Spec, policy: AbstractActor | None, data: Dataset, console: Console
) -> tuple[Reward, RunState, str]:
    """Return the fitted reward rule, the state before the job's first phase, and the hash of the dataset's rows."""
    for note in data.notes:
        console.note(f"{data.name}: {note}")
    if len(data) and not (data.lengths() >= spec.chunk).any() and not np.asarray(data.transitions.terminal).any():
        raise DataError(
            f"{data.name} holds no chunk of {spec.chunk} actions: its longest episode has {data.lengths().max()} rows, "
            "and none is terminal. Choose shorter chunks (--chunk)."
        )
    reward = job.task.reward.fitted(data.complete_returns())
    rows = rows_for(data, spec, reward)
    state = start(spec, rows, job.phases, seeds=job.seeds, seed=job.seed, policy=policy)
    return reward, state, fingerprint(rows, data.held_out)


def _phases_left(phases: Mapping[str, AbstractPhase], since: str | None) -> Mapping[str, AbstractPhase]:
    """Return the phases after the checkpoint of `--from`; without one, all."""
    return phases if since is None else checkpoints.split_phases(phases, since)[1]


def _write_config(job: Job, config: dict[str, Any]) -> None:
    """Write config.json with a length that it does not have yet; the verdict on the shorter run no longer holds."""
    job.status("running")
    path = job.folder / "config.json"
    if disk.read_json(path) != config:
        (job.folder / "verdict.json").unlink(missing_ok=True)
        disk.write_json(path, config)


def _earlier_settings(since: str) -> dict[str, Any]:
    """Return the settings of each phase up to the checkpoint RUN:PHASE, from the run that went through it; {} where
    its config.json is not beside the checkpoint."""
    folder, _, last = since.rpartition(":")
    try:
        config = disk.read_signed(Path(folder) / "config.json")
        settings, names = config["settings"], list(config["phases"])
        own = {name: settings[name] for name in names[: names.index(last) + 1]}
        return {**config.get("earlier", {}), **own}
    except (SegueError, KeyError, TypeError, ValueError):
        return {}


def _first_state(job: Job, state: RunState) -> RunState:
    """Return the state before the first of these phases: that of the checkpoint, or `state` without one."""
    if job.since is None:
        return state
    return checkpoints.state_after(state, checkpoints.split_phases(job.phases, job.since)[0], job.since, job.about)
