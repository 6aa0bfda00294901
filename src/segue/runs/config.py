"""Write config.json, check it, and build phases and task from it again."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax

from segue.data.dataset import Dataset
from segue.envs.reward import Reward
from segue.errors import DataError, SegueError, at_least, at_most
from segue.runs import trackers
from segue.runs.checkpoints import split_phases
from segue.runs.limits import check_phases
from segue.system import disk, untrusted
from segue.system.machine import machine, revision, versions
from segue.tasks import recipes  # noqa: F401 (imports every class that `rebuild` must know)
from segue.tasks.budget import Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase, Collect, Online


def check_order(phases: Mapping[str, AbstractPhase], since: str | None = None) -> None:
    """Raise SegueError for a phase whose `until` is not above that of the acting phase before it.

    `since` is RUN:PHASE, the checkpoint from which the run starts; earlier phases are not checked.
    """
    before, until = "", 0
    for name, phase in (split_phases(phases, since)[1] if since else phases).items():
        if not isinstance(phase, Collect | Online):
            continue
        if until and phase.until <= until:
            raise SegueError(
                f"{name}.until is {phase.until:,} and {before}.until {until:,}, both counted from the run's first env "
                f"step: nothing would be left of phase {name!r}."
            )
        if not (isinstance(phase, Online) and phase.early_stopping):  # which may end earlier
            before, until = name, phase.until


MOST_EPISODES = 100_000
"""The most episodes of an evaluation: each has an env of its own."""


def check_numbers(safeguards: "Safeguards", budget: Budget, seeds: int, seed: int) -> None:
    """Raise SegueError for a number that is out of range, TypeError for a value that is no number."""
    at_least(1, seeds=seeds, log_every=safeguards.log_every, commit_every=safeguards.commit_every)
    at_least(1, rows=budget.rows, episodes=budget.episodes)
    at_least(1, evaluate_steps=budget.evaluate_steps, evaluate_updates=budget.evaluate_updates)
    at_least(0, seed=seed, env_restarts=safeguards.env_restarts, evaluate_early=budget.evaluate_early)
    at_most(2**31 - 1, log_every=safeguards.log_every, commit_every=safeguards.commit_every, rows=budget.rows)
    at_most(2**31 - 1, evaluate_steps=budget.evaluate_steps, evaluate_updates=budget.evaluate_updates)
    at_most(MOST_EPISODES, episodes=budget.episodes)
    if seed + seeds > 2**31:
        raise SegueError(f"Seeds are numbered below 2^31, and {seed:,} is not.")
    if not safeguards.env_limit > 0:
        raise SegueError(f"env_limit must be more than 0 seconds, not {safeguards.env_limit}.")


def read_unfinished(folder: Path, longer: bool = False) -> dict[str, Any]:
    """Read the config.json of a run that can be continued; `longer` says that its last phase is to be made longer.

    Raises:
        SegueError: where the run has finished and is not made longer, or an older version of Segue began it.
        DataError: where a symbolic link leads out of the directory.
    """
    config = disk.read_signed(folder / "config.json")
    if disk.read_signed(folder / "status.json").get("status") == "finished" and not longer:
        raise SegueError(f"{folder} is finished: nothing is left to do, but its last phase can be made longer.")
    names = [f"{name}.log" for name in trackers.TRACKERS]
    names += ["commits", "checkpoints", *trackers.TRACKERS, "mlflow/mlflow.db"]
    inside = [path for name in ("commits", "checkpoints") for path in (folder / name).rglob("*")]
    disk.refuse_links(*(folder / name for name in names), *inside)
    for path in (folder / name for name in names if name.endswith(".log")):
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a file, so it is not of Segue's making: remove it.")
    policy = folder / "policy-0.safetensors"
    instead = f"start a new run with --policy {policy}" if policy.exists() else "start it again in another directory"
    disk.refuse_old(config, folder, f"finish it with that version, or {instead}")
    return config


def check_settings(phases: Mapping[str, AbstractPhase], config: dict[str, Any], folder: Path) -> None:
    """Raise DataError where the phases are not those in an earlier run's config.json."""
    if json.loads(json.dumps({name: settings(phase) for name, phase in phases.items()})) != config["settings"]:
        raise DataError(f"{folder} was run with other settings than those given: see its config.json.")


def task_of(config: dict[str, Any], folder: Path, env_id: str | None) -> Task:
    """Build the task of an earlier run from its config.json.

    Args:
        config: the content of config.json.
        folder: the run's directory, for messages.
        env_id: the env's id, which the user gives where it names a module to import; None: the one in config.json.

    Raises:
        SegueError: where `env_id` is not the run's; DataError: where config.json names a module to import.
        KeyError, TypeError, ValueError: where config.json is damaged.
    """
    name = config["env_id"]
    if name is not None and env_id is None:
        name = plain_env(config, folder / "config.json")
    if env_id is not None and env_id != name:
        raise SegueError(f"{folder} is a run on {name or 'logs without an env'}, and cannot go on on {env_id}.")
    low, high = config.get("action_range") or (None, None)
    data, score, reward = config["dataset"], config["score"], config["reward"]
    return Task(
        name,
        config["task"],
        data["path"],
        clip_actions=data["clip_actions"],
        reward=Reward(float(reward["scale"]), float(reward["shift"]), bool(reward["by_returns"])),
        score=(float(score["min"]), float(score["max"])) if score else None,
        action_range=None if low is None else (low, high),
    )


def plain_env(metadata: Mapping[str, Any], where: Path) -> str:
    """Return the env id in the metadata of the file `where`.

    Raises:
        SegueError: where the run had no env; DataError: where the id names a module to import, because a file must not
            be able to run code.
    """
    if metadata.get("env_id") is None:
        raise SegueError(
            f"{where} names no env: the policy was learned from logs alone, so there is nothing to roll out in; where "
            "there is an env like the logs', pass --env-id ID."
        )
    name = str(metadata.get("env_id"))
    if not untrusted.names_no_module(name):
        raise DataError(f"{where} names no plain env but {name!r}: if you trust it, pass {untrusted.trusting(name)}.")
    return name


def settings_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the settings that decide the result: the seal that every commit stores."""
    keys = ("settings", "safeguards", "measuring", "seed", "seeds", "reward", "start", "phases", "env_id")
    if "sha256" in config:  # an earlier version signed no config.json, and its commits do not know the score
        keys = (*keys, "score")
    decisive = {key: config[key] for key in keys} | {"dataset": config["dataset"].get("sha256")}
    if config.get("policy"):
        decisive["policy"] = config["policy"].get("sha256")
    return disk.sha256_json(decisive)


class Safeguards(NamedTuple):
    """How often a run logs and commits, and what it does about faults; the names are the arguments of `run`."""

    log_every: int
    commit_every: int
    env_limit: float
    env_restarts: int
    rollback: bool
    halt_on_explosion: bool


def changes(config: dict[str, Any]) -> list[str]:
    """Return why a resumed run may differ from an uninterrupted one: what is no longer as in config.json, in words."""
    now = {"versions": versions(), "machine": machine(), "code": {"revision": revision()}}
    config = {**config, "code": {"revision": config.get("git")}}
    differences = []
    for part, values in now.items():
        before = config.get(part) or {}
        differences += [
            f"{key} was {before.get(key)} and is {value}" for key, value in values.items() if before.get(key) != value
        ]
    if jax.default_backend() != "cpu":
        differences.append(f"the {jax.default_backend()} backend is not held to give the same bits twice")
    return differences


def rebuild(value: Any) -> Any:
    """Build what `settings` described as JSON. Only Segue's own classes are built; nothing is imported by name."""
    if not isinstance(value, dict):
        return value
    known = {cls.__name__: cls for cls in _subclasses(eqx.Module) if cls.__module__.startswith("segue.")}
    cls = known.get(value.get("is", ""))
    if cls is None:
        raise SegueError(f"The run has a {value.get('is')!r}, not a class of Segue's: resume from Python, with phases.")
    return cls(**{name: rebuild(inner) for name, inner in value.items() if name != "is"})


def phases_of(config: Mapping[str, Any], folder: Path) -> dict[str, AbstractPhase]:
    """Build the phases of an earlier run from its config.json.

    Raises:
        DataError: where a class is not Segue's, or a setting cannot be.
        KeyError, TypeError, ValueError: where config.json is damaged.
    """
    try:
        phases = {name: rebuild(value) for name, value in config["settings"].items()}
        check_phases(phases, int(config["seeds"]))
    except SegueError as error:
        raise DataError(f"{folder / 'config.json'}: {error}") from None
    return phases


def _subclasses(cls: type) -> Iterator[type]:
    """Yield the subclasses of a class, at any depth."""
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def settings(value: Any) -> Any:
    """Return settings as plain JSON: a module becomes a dictionary of its fields, with the class's name as "is"."""
    if isinstance(value, eqx.Module):
        fields = {field.name: settings(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    return value


MEASURING = ("rows", "episodes", "evaluate_updates", "evaluate_steps", "evaluate_early")
"""The fields of a `Budget` that a run uses; the other ones are in the phases."""


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
    """Return the content of config.json: what it takes to repeat the run, and to see how two runs differ."""
    return {
        "format": disk.RUN_FORMAT,
        "recipe": about.pop("recipe", "custom"),
        "task": task.name,
        "env_id": task.env_id,
        "dataset": {
            "name": untrusted.shown(data.name),
            "path": str(Path(data.path).resolve()) if data.path and Path(data.path).exists() else data.path,
            "rows": len(data),
            "held_out_rows": len(data.held_out) if data.held_out else 0,
            "clip_actions": task.clip_actions,
            "notes": list(map(untrusted.shown, data.notes)),
        },
        "backbone": task.backbone,
        "action_range": task.action_range,
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
