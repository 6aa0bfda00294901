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
from segue.envs.arguments import FLAGS, argument, as_json, untrusted_texts
from segue.envs.reward import Reward
from segue.errors import DataError, SegueError, at_least, at_most
from segue.results.read import MOST_SEEDS
from segue.runs import trackers
from segue.runs.checkpoints import split_phases
from segue.runs.limits import check_phases
from segue.system import disk, untrusted
from segue.system.machine import machine, revision, versions
from segue.tasks import recipes  # noqa: F401 (imports every class that `rebuild` must know)
from segue.tasks.budget import Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractOnline, AbstractPhase, Collect


def check_order(phases: Mapping[str, AbstractPhase], since: str | None = None) -> None:
    """Raise SegueError for a phase whose `until` is not above that of the acting phase before it.

    `since` is RUN:PHASE, the checkpoint from which the run starts; earlier phases are not checked.
    """
    before, until = "", 0
    for name, phase in (split_phases(phases, since)[1] if since else phases).items():
        if not isinstance(phase, Collect | AbstractOnline):
            continue
        if until and phase.until <= until:
            raise SegueError(
                f"{name}.until is {phase.until:,} and {before}.until {until:,}, both counted from the run's first env "
                f"step: nothing would be left of phase {name!r}."
            )
        if not (isinstance(phase, AbstractOnline) and phase.early_stopping):  # which may end earlier
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
    at_most(MOST_SEEDS, seeds=seeds)
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
    """Raise DataError where the phases are not those in an earlier run's config.json.

    Settings that the file does not know, because an earlier version wrote it, count as their defaults.
    """
    plain = lambda phases: json.loads(json.dumps({name: settings(phase) for name, phase in phases.items()}))
    if plain(phases) != config["settings"] and plain(phases) != plain(phases_of(config, folder)):
        raise DataError(f"{folder} was run with other settings than those given: see its config.json.")


def task_of(
    config: dict[str, Any],
    folder: Path,
    env_id: str | None,
    env_args: Mapping[str, Any] | None = None,
    reset_options: Mapping[str, Any] | None = None,
) -> Task:
    """Build the task of an earlier run from its config.json.

    Args:
        config: the content of config.json.
        folder: the run's directory, for messages.
        env_id, env_args, reset_options: those of the run, which the user gives where `env_of` does not trust the file.

    Raises:
        SegueError: where the run has another env; DataError: where the user must give a part of the env.
        KeyError, TypeError, ValueError: where config.json is damaged.
    """
    if env_id is not None and env_id != config["env_id"]:
        there = config["env_id"] or "logs without an env"
        raise SegueError(f"{folder} is a run on {there}, and cannot go on on {env_id}.")
    if config["env_id"] is None:
        env = Task(action_range=(config.get("env") or {}).get("action_range"))
    else:
        env = env_of(config, folder / "config.json", env_id, env_args, reset_options)
    if env_entry(env) != (config.get("env") or None):
        raise SegueError(f"{folder} is a run in an env with other arguments, and cannot go on with these.")
    data, score, reward = config["dataset"], config["score"], config["reward"]
    return dataclasses.replace(
        env,
        name=config["task"],
        dataset=data["path"],
        clip_actions=data["clip_actions"],
        reward=Reward(float(reward["scale"]), float(reward["shift"]), bool(reward["by_returns"])),
        score=(float(score["min"]), float(score["max"])) if score and score.get("of") != "success" else None,
        scored_by_success=bool(score) and score.get("of") == "success",
    )


def env_of(
    metadata: Mapping[str, Any],
    where: Path,
    env_id: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    reset_options: Mapping[str, Any] | None = None,
) -> Task:
    """Return a task with the env that the metadata of the file `where` describe.

    Args:
        metadata: the content of a run's config.json, or the metadata of a policy.
        where: the file, for messages.
        env_id: the user's id instead of the file's; None: the file's.
        env_args, reset_options: the user's values, instead of the file's of the same names.

    Raises:
        DataError: where the file's id names a module to import, or its arguments hold texts that are no plain words,
            because a file must not be able to run code; or where it describes no env.
    """
    entry = metadata.get("env") or {}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(part, {}), dict) for part in FLAGS):
        raise DataError(f"{where} describes no env's arguments: it is damaged.")
    found = {}
    for (part, flag), given in zip(FLAGS.items(), (env_args, reset_options), strict=True):
        own = {name: value for name, value in entry.get(part, {}).items() if name not in (given or {})}
        if texts := untrusted_texts(own):
            words = " ".join(argument(flag, name, own[name]) for name in texts)
            raise DataError(f"{where} gives the env the text {texts[0]!r}: if you trust it, pass {words}.")
        found[part] = own | dict(given or {})
    name = plain_env(metadata, where) if env_id is None else env_id
    try:
        return Task(name, **found, action_range=entry.get("action_range"))
    except SegueError as error:
        raise DataError(f"{where}: {error}") from None


def trusting(env_id: str | None, env_args: Mapping[str, Any], reset_options: Mapping[str, Any]) -> str:
    """Return the flags by which a user trusts an env in a file, with a space before each; "" where none is needed."""
    words = [] if env_id is None or untrusted.names_no_module(env_id) else [untrusted.trusting(env_id)]
    for flag, given in zip(FLAGS.values(), (env_args, reset_options), strict=True):
        words += [argument(flag, name, given[name]) for name in untrusted_texts(given)]
    return "".join(f" {word}" for word in words)


def env_entry(task: Task) -> dict[str, Any] | None:
    """Return the arguments of a task's env as JSON; None where it has none."""
    return as_json(task.env_args, task.reset_options, task.action_range) or None


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
    keys = (*keys, "env") if config.get("env") else keys
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


def score_entry(task: Task) -> dict[str, Any] | None:
    """Return what counts as 0 and 100 on a task, as JSON: returns, or shares of episodes with a success."""
    if task.scored_by_success:
        return {"min": 0.0, "max": 1.0, "of": "success"}
    return {"min": task.score[0], "max": task.score[1]} if task.score else None


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
        **({"env": entry} if (entry := env_entry(task)) else {}),
        "dataset": {
            "name": untrusted.shown(data.name),
            "path": str(Path(data.path).resolve()) if data.path and Path(data.path).exists() else data.path,
            "rows": len(data),
            "held_out_rows": len(data.held_out) if data.held_out else 0,
            "clip_actions": task.clip_actions,
            "notes": list(map(untrusted.shown, data.notes)),
        },
        "backbone": task.backbone,
        "reward": task.reward._asdict(),
        "score": score_entry(task),
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
